"""Rows of `correct`, in order of worth: what most would be wrong without comes first, what takes long last."""

from benchmarks.gpu import attention, codecs, collectives, networks, order, plans

ROWS = [
    *order.ROWS,
    *networks.PLAIN,
    *attention.ROWS,
    *networks.PRODUCTS,
    *networks.GRAPHS,
    *networks.EIGHT,
    *plans.ROWS,
    *collectives.ALONE,
    *codecs.ROWS,
    *plans.HOST[:4],
    *networks.COMPILED[:1],
    *collectives.TOGETHER,
    *plans.CARDS,
    *networks.COMPILED[1:],
    *plans.HOST[4:],
    *codecs.COMPILED,
]

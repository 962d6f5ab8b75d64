"""Rows of `correct`, in order of worth: what most would be wrong without comes first, what takes long last."""

from benchmarks.gpu import attention, codecs, collectives, fault, networks, order, plans

ROWS = [
    *order.ROWS,
    *networks.PLAIN,
    *attention.ROWS,
    *networks.PRODUCTS,
    *networks.GRAPHS,
    *networks.EIGHT,
    *plans.ROWS,
    *fault.ROWS,
    *collectives.ALONE,
    *plans.HOST[:1],
    *codecs.ROWS,
    *networks.COMPILED[:1],
    *plans.COMPILED,
    *plans.HOST[1:4],
    *collectives.TOGETHER,
    *plans.CARDS,
    *networks.COMPILED[1:],
    *plans.HOST[4:],
    *codecs.COMPILED,
]

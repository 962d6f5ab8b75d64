"""What plans there are on so many devices: step groups, blocks, degrees, places of encode and decode, device orders."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations, islice, pairwise

from conf.schema import PlanConfig
from parallel.cluster import Cluster
from parallel.plan import Workload

ORDERS = 30
"""Device orders tried for one shape when devices are unequal; beyond, only the file's, fastest and slowest first."""
CELLS = 8
"""Workers up to which decode is tried beside each; beyond, beside the first and the last."""


@dataclass(frozen=True)
class Shape:
    """A plan but for the sizes of its blocks and the devices.

    Attributes:
        steps: of each group.
        blocks: how many; of each group alike.
        degree: processes of a worker that owns cells.
        encode, decode: workers.
        alone: workers without cells.
        post: the worker of the stage behind decode; None: decode's, or there is none.
    """

    steps: tuple[int, ...]
    blocks: int
    degree: int
    encode: int
    decode: int
    alone: int
    post: int | None = None

    @property
    def cells(self) -> int:
        """Workers that own cells."""
        return len(self.steps) * self.blocks

    @property
    def sizes(self) -> list[int]:
        """Processes of every worker."""
        return [self.degree] * self.cells + [1] * self.alone

    @property
    def processes(self) -> int:
        return sum(self.sizes)

    def config(self, layers: Sequence[int], **more) -> PlanConfig:
        """As a user would ask for it, with blocks of these sizes."""
        grid, one_group, one_block = None, len(self.steps) == 1, self.blocks == 1
        if one_group and one_block and not self.alone:
            name = "sequential"
        elif one_block:
            name = "timestep"
        elif one_group:
            name = "layers"
        else:
            name, grid = "grid", [len(self.steps), self.blocks]
        return PlanConfig(
            name=name,
            workers=self.processes,
            steps=list(self.steps) if name in ("timestep", "grid") else None,
            layers=list(layers) if name in ("layers", "grid") else None,
            grid=grid,
            sequence_parallel=self.degree,
            encode=self.encode,
            decode=self.decode,
            post=self.post,
            **more,
        )


def shapes(workload: Workload, most: int, exactly: int | None = None, degree: int | None = None) -> Iterator[Shape]:
    """Every shape for up to `most` processes, smallest first.

    Args:
        exactly: processes; None: any number up to `most`.
        degree: of sequence parallelism; None: any.
    """
    for p in [degree] if degree else _degrees(workload, most):
        for groups in range(1, (1 if workload.undivided else workload.steps) + 1):
            for blocks in range(1, workload.layers + 1):
                cells = groups * blocks
                if cells * p > most:
                    break
                for encode, decode, post, alone in _places(cells, workload):
                    total = cells * p + alone
                    if total <= most and exactly in (None, total):
                        for steps in compositions(workload.steps, groups):
                            yield Shape(steps, blocks, p, encode, decode, alone, post)


def _degrees(workload: Workload, most: int) -> list[int]:
    """Processes that divide heads and tokens (what `builders` allows)."""
    heads, tokens = workload.heads, workload.tokens_per_frame
    return [p for p in range(1, most + 1) if p == 1 or (heads and heads % p == 0 and tokens % p == 0)]


def compositions(total: int, parts: int) -> Iterator[tuple[int, ...]]:
    """Ordered ways to write `total` as a sum of `parts` numbers above zero."""
    for cuts in combinations(range(1, total), parts - 1):
        edges = (0, *cuts, total)
        yield tuple(b - a for a, b in pairwise(edges))


def _places(cells: int, workload: Workload) -> Iterator[tuple[int, int, int | None, int]]:
    """(encode, decode, post, workers without cells). Encode leaves the head only if it is more than a table look-up."""
    beside = range(cells) if cells <= CELLS else (0, cells - 1)
    for decode in (*beside, cells) if workload.decodes else (cells - 1,):
        own = cells + (decode == cells)
        for post in (None, own) if workload.posts else (None,):
            alone = own - cells + (post is not None)
            yield 0, decode, post, alone
            if workload.encode_bytes:
                if decode == cells:
                    yield cells, decode, post, alone
                yield cells + alone, decode, post, alone + 1


def orders(cluster: Cluster, sizes: Sequence[int], fixed: Sequence[int] | None = None) -> list[tuple[int, ...]]:
    """Placements to try: the device of every process.

    None is tried where there are fewer devices than processes: they share (`parallel.placement`). Devices of one kind
    and speed are interchangeable and taken in the file's order, so equal devices give one
    placement, the identity. A worker's processes are put on equal devices where there are enough.

    Args:
        fixed: a placement that was asked for; of other sizes there is none.
    """
    if fixed is not None:
        return [tuple(fixed)] if len(fixed) == sum(sizes) else []
    if sum(sizes) > len(cluster.devices):
        return [()]
    classes: dict[tuple[str, float], list[int]] = {}
    for index, device in enumerate(cluster.devices):
        classes.setdefault((device.kind, device.speed), []).append(index)
    if len(classes) == 1:
        return [tuple(range(sum(sizes)))]
    found = dict.fromkeys(filter(None, (_take(line, sizes, classes) for line in _lines(classes, sizes))))
    return list(found)


def _lines(classes: dict[tuple[str, float], list[int]], sizes: Sequence[int]) -> Iterator[tuple]:
    """A class for every worker."""
    room = Counter({c: len(held) for c, held in classes.items()})
    by_speed = sorted(classes, key=lambda c: -c[1])
    flat = sorted((i, c) for c, held in classes.items() for i in held)
    yield tuple(c for _, c in flat)[: len(sizes)]
    yield tuple(c for c in by_speed for _ in classes[c])[: len(sizes)]
    yield tuple(c for c in reversed(by_speed) for _ in classes[c])[: len(sizes)]
    every = list(islice(_arrangements(list(sizes), room), ORDERS + 1))
    if len(every) <= ORDERS:
        yield from every


def _arrangements(sizes: list[int], room: Counter) -> Iterator[tuple]:
    """All ways to give every worker a class that has devices enough for it."""
    if not sizes:
        yield ()
        return
    for c in list(room):
        if room[c] >= sizes[0]:
            room[c] -= sizes[0]
            for rest in _arrangements(sizes[1:], room):
                yield (c, *rest)
            room[c] += sizes[0]


def _take(line: tuple, sizes: Sequence[int], classes: dict[tuple[str, float], list[int]]) -> tuple[int, ...] | None:
    """Devices for every process of workers on these classes; a group that finds too few is filled from the others."""
    left = {c: list(held) for c, held in classes.items()}
    placement: list[int] = []
    for c, size in zip(line, sizes, strict=False):
        for _ in range(size):
            source = left[c] or next((held for held in left.values() if held), None)
            if not source:
                return None
            placement.append(source.pop(0))
    return tuple(placement) if len(placement) == sum(sizes) else None

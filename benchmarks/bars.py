"""Every bar, one after another: `python -m benchmarks.bars`. Exit code 1 if one is missed."""

from __future__ import annotations

import sys

from benchmarks import (
    constant,
    decoder,
    efficiency,
    exact,
    hashes,
    kill,
    layers,
    loading,
    owned,
    pipeline,
    planner,
    prediction,
    published,
    sequence_parallel,
    step,
    uneven,
)

BENCHES = (
    hashes, decoder, step, constant, exact, sequence_parallel, owned, loading, pipeline, kill, efficiency, layers,
    prediction, published, planner, uneven,
)  # fmt: skip


def main() -> bool:
    # Every one is run, also after a miss.
    results = [bench.main() for bench in BENCHES]
    return all(results)


if __name__ == "__main__":
    sys.exit(not main())

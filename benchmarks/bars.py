"""Every bar, one after another: `python -m benchmarks.bars`. Exit code 1 if one is missed."""

from __future__ import annotations

import sys

from benchmarks import constant, decoder, exact, hashes, kill, owned, pipeline, published, step, uneven


def main() -> bool:
    # Every one is run, also after a miss.
    results = [
        bench.main() for bench in (hashes, decoder, step, constant, exact, owned, pipeline, kill, published, uneven)
    ]
    return all(results)


if __name__ == "__main__":
    sys.exit(not main())

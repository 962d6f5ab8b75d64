"""Every bar, one after another: `python -m benchmarks.bars`. Exit code 1 if one is missed."""

from __future__ import annotations

import sys

from benchmarks import constant, decoder, hashes, step


def main() -> bool:
    return all([bench.main() for bench in (hashes, decoder, step, constant)])


if __name__ == "__main__":
    sys.exit(not main())

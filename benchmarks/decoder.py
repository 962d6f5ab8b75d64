"""The small decoder: 12 frames of 128x128 on one core. `python -m benchmarks.decoder`."""

from __future__ import annotations

import statistics
import sys
import time

import torch

from benchmarks.record import bar, record
from stages.codec.small.network import SmallDecoder
from stages.weights import initialise

REPEATS = 30


@torch.inference_mode()
def measure(pixels: int = 128, latents: int = 3) -> list[float]:
    """Seconds per chunk, in the steady state of one stream."""
    torch.set_num_threads(1)
    decoder = SmallDecoder().eval()
    initialise(decoder, seed=0)
    state = decoder.start()
    chunk = torch.randn(1, decoder.channels, latents, pixels // 8, pixels // 8)
    times = []
    for _ in range(REPEATS + 5):
        start = time.perf_counter()
        decoder(chunk, state)
        times.append(time.perf_counter() - start)
    return times[5:]


def main() -> bool:
    median = statistics.median(measure())
    passed = median <= 0.2
    measured = {"12 frames of 128x128, one core, float32": bar(f"{median:.3f} s", "<= 0.2 s", passed)}
    record("decoder", "python -m benchmarks.decoder", {"pixels": 128, "latents": 3, "threads": 1}, measured)
    return passed


if __name__ == "__main__":
    sys.exit(not main())

"""Does a world cost the same after 10,000 chunks? `python -m benchmarks.endless_worlds`. And have its positions an end?

Both families that are walked, at small width with random weights and their published windows and steps, each stream
through the main job's own engine in a process of its own, on one thread, into a video and a file of latents, while what
is pressed changes every few frames: 30,000 latent frames, where the published tables of positions have 1,024. The
engine refuses a step whose latents are not finite, so a stream that went wrong would end this with an error.

Bars: resident memory at the last chunk within 2 % of chunk 1,000; seconds of the processor per chunk within 3 % of a
young stream's, with which the old one takes turns chunk by chunk at the end, so that a machine that slows down slows
both; the spread of latents in the last thousand chunks within 10 % of the first.
"""

from __future__ import annotations

import json
import random
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from benchmarks.constant import PORTRAIT, resident_bytes
from benchmarks.record import bar, record
from conf.schema import Config
from launch.cli import compose
from runtime.run import SequentialRun

CHUNKS, EVERY, YOUNG, PAIRS = 10_000, 1000, 100, 300
FRAMES = 12
"""Video frames of a chunk."""
SMALL = (
    "model.dtype=float32", "model.codec.kind=small", "model.network.dim=48", "model.network.ffn_dim=80",
    "model.network.heads=4", "model.network.layers=2", "model.network.freq_dim=32", "stream.height=32",
    "stream.width=48", "device=cpu",
)  # fmt: skip
WORLDS = {
    "matrix_game_2": (
        "model.network.image_dim=20", "model.network.image_tokens=5", "model.network.actions.layers=[0]",
        "model.network.actions.embedded=12", "model.network.actions.heads=2", "model.network.actions.width=32",
        "model.network.actions.turned=[4,6,6]",
    ),
    "lingbot_world_fast": ("model.network.text_dim=24", "model.network.text_tokens=8", "stream.prompt=hello"),
}  # fmt: skip
KEYS = {
    "matrix_game_2": ("forward", "back", "left", "right"),
    "lingbot_world_fast": ("forward", "back", "left", "right", "look_left", "look_right", "look_up", "look_down"),
}


def pressed(model: str, frames: int, path: Path) -> None:
    """Some keys, others every few frames; and a mouse where there is one."""
    draw = random.Random(0)
    with path.open("w") as file:
        frame = 0
        while frame < frames:
            line: dict[str, Any] = {"frame": frame, "keys": [key for key in KEYS[model] if draw.random() < 0.3]}
            if model == "matrix_game_2":
                line["mouse"] = [draw.choice((-0.1, 0.0, 0.1)) for _ in range(2)]
            file.write(json.dumps(line) + "\n")
            frame += draw.randint(1, 20)


def overrides_of(model: str, folder: Path) -> list[str]:
    """A run that never ends by itself."""
    rows = folder / "rows.safetensors"
    save_file({"image_rows": torch.randn(1, 5, 20, generator=torch.Generator().manual_seed(3))}, rows)
    told = [f"source.tensors={rows}"] if model == "matrix_game_2" else []
    return [
        f"model={model}", *SMALL, *WORLDS[model], *told, f"source.actions={folder}/pressed.jsonl",
        f"source.image={PORTRAIT}", "stream.chunks=1000000", f"output_dir={folder}",
    ]  # fmt: skip


class Walk:
    """A stream on its way, which writes everything it can to a new folder.

    Attributes:
        seconds: of the processor, for each chunk since they were last asked for.
    """

    def __init__(self, overrides: list[str], folder: Path):
        folder.mkdir()
        self.latents = folder / "latents.safetensors"
        sinks = f"sink.video={folder}/video.mp4", f"sink.latents={self.latents}"
        run = SequentialRun(compose("stream", Config, [*overrides, *sinks]), threading.Event())
        self.seconds: list[float] = []
        self._chunks: Iterator = iter(run.stream(0, folder))

    def next(self) -> None:
        """One chunk."""
        begun = time.process_time()
        next(self._chunks)
        self.seconds.append(time.process_time() - begun)

    def median_s(self) -> float:
        """Of a chunk, since it was last asked for."""
        found, self.seconds = statistics.median(self.seconds), []
        return found

    def close(self) -> None:
        """End it; its files are whole then."""
        self._chunks.close()


def spreads(path: Path, chunks: int) -> list[float]:
    """Of the latents of every thousand chunks: the median of their standard deviations."""
    with safe_open(path, "pt") as file:
        found = [file.get_tensor(key).std().item() for key in sorted(file.keys())[:chunks]]
    return [round(statistics.median(found[i : i + EVERY]), 5) for i in range(0, chunks, EVERY)]


def measure(model: str, chunks: int) -> dict[str, Any]:
    """Bars of one family, and what was found after every thousand chunks."""
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        pressed(model, FRAMES * (chunks + PAIRS + 1), folder / "pressed.jsonl")
        overrides = overrides_of(model, folder)
        old = Walk(overrides, folder / "old")
        for chunk in range(1, chunks + 1):
            old.next()
            if chunk % EVERY == 0:
                seconds, held = round(old.median_s(), 6), resident_bytes()
                rows.append({"chunk": chunk, "latent": 3 * chunk, "chunk_s": seconds, "resident_bytes": held})
                print(model, rows[-1], flush=True)
        young = Walk(overrides, folder / "young")
        for _ in range(YOUNG):
            young.next()
        young.median_s()
        for i in range(PAIRS):
            for walk in (old, young)[:: 1 if i % 2 else -1]:
                walk.next()
        late, early = old.median_s(), young.median_s()
        old.close()
        young.close()
        for row, value in zip(rows, spreads(old.latents, chunks), strict=True):
            row["spread"] = value
    growth = rows[-1]["resident_bytes"] / rows[0]["resident_bytes"] - 1
    drift, spread = late / early - 1, rows[-1]["spread"] / rows[0]["spread"] - 1
    return {
        f"{model}: memory at chunk {chunks} over chunk {EVERY}": bar(f"{growth:+.2%}", "within 2 %", growth <= 0.02),
        f"{model}: time per chunk over a young stream's": bar(f"{drift:+.2%}", "within 3 %", abs(drift) <= 0.03),
        f"{model}: spread of latents, last {EVERY} over first": bar(
            f"{spread:+.2%}", "within 10 %", abs(spread) <= 0.1
        ),
        f"{model}: seconds of the processor per chunk": {"old": round(late, 6), "young": round(early, 6)},
        f"{model}: every {EVERY} chunks": rows,
    }


def main(chunks: str = str(CHUNKS)) -> bool:
    found: dict[str, Any] = {}
    with ProcessPoolExecutor(len(WORLDS), get_context("spawn")) as processes:
        for measured in processes.map(measure, WORLDS, [int(chunks)] * len(WORLDS)):
            found |= measured
    configuration = {"chunks": int(chunks), "small": SMALL, "models": WORLDS, "threads": 1, "pairs": PAIRS}
    record("endless_worlds", f"python -m benchmarks.endless_worlds {chunks}", configuration, found)
    return all(m["passed"] for m in found.values() if isinstance(m, dict) and "passed" in m)


if __name__ == "__main__":
    sys.exit(not main(*sys.argv[1:]))

"""What `latents_sha256` depends on, at full length. `python -m benchmarks.hashes`.

40 chunks of `nano` (the ring holds 4): same seed and id, the same hash; another seed, id, prompt event or
recalibration, another; and recalibration changes nothing before its chunk.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

import torch
from safetensors.torch import load_file

from benchmarks.record import bar, record
from launch import stream

CHUNKS, EVENT, RECALIBRATE = 40, 17, 4


def run(folder: Path, *overrides: str) -> tuple[str, list[torch.Tensor]]:
    """The hash and the latents per chunk of one run of the main job."""
    path = folder / "latents.safetensors"
    fixed = ["model=nano", f"stream.chunks={CHUNKS}", "sink.video=null", f"sink.latents={path}", f"output_dir={folder}"]
    if stream.main([*fixed, *overrides]):
        raise SystemExit("the main job failed")
    chunks = [latents.clone() for _, latents in sorted(load_file(path).items())]
    return json.loads((folder / "report.json").read_text())["latents_sha256"], chunks


def first_difference(a: list[torch.Tensor], b: list[torch.Tensor]) -> int | None:
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=True)) if not torch.equal(x, y)), None)


def main() -> bool:
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        base, chunks = run(folder)
        again, _ = run(folder)
        seed, _ = run(folder, "stream.seed=1")
        event, after_event = run(folder, f"stream.events=[{{chunk: {EVENT}, prompt: other}}]")
        sink, after_sink = run(folder, f"model.recalibrate_chunk={RECALIBRATE}")
    event_at, sink_at = first_difference(chunks, after_event), first_difference(chunks, after_sink)
    measured = {
        "same seed and id": bar(again[:12], f"equal to {base[:12]}", again == base),
        "another seed": bar(seed[:12], "another hash", seed != base),
        f"prompt event at chunk {EVENT}": bar(
            f"{event[:12]}, from chunk {event_at}", "another, from there", event_at == EVENT
        ),
        f"recalibration at chunk {RECALIBRATE}": bar(
            f"{sink[:12]}, from chunk {sink_at}", "another, from there; equal before", sink_at == RECALIBRATE
        ),
    }
    record("hashes", "python -m benchmarks.hashes", {"model": "nano", "chunks": CHUNKS}, measured)
    return all(m["passed"] for m in measured.values())


if __name__ == "__main__":
    sys.exit(not main())

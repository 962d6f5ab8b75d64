"""`live_avatar_14b` at a small width gives one hash under plan `timestep` on any number of workers.

`python -m benchmarks.live_avatar`. Random weights in float32, all of the model's parts (sound by wav2vec2, motion
tokens, its VAE), 40 chunks through a ring of 4, recalibration at chunk 4, a prompt change at chunk 17:
`latents_sha256` on 5 workers (the VAE alone), 4, 3, 2 and 1 under torchrun against the sequential oracle's; on a grid,
under Ray, and with sequence parallelism, too. Without the recalibration, and with another attention-sink distance, the
hash must be another. What each worker holds must be what the plan says.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from benchmarks.launched import ROOT, run
from benchmarks.record import bar, record
from conf.schema import Config
from launch.cli import compose
from parallel.builders import build
from runtime.workload import describe

SMALL = (
    "model=live_avatar_14b", "model.dtype=float32", "model.network.dim=48", "model.network.ffn_dim=96",
    "model.network.heads=4", "model.network.layers=6", "model.network.freq_dim=32", "model.network.text_dim=16",
    "model.network.text_tokens=8", "model.network.audio.layers=[0,2,5]", "model.network.audio.wav2vec.layers=3",
    "model.network.audio.wav2vec.dim=16", "model.codec.width=2", "stream.height=64", "stream.width=64",
)  # fmt: skip
"""Every part of the model, at a width that a processor runs in no time."""
CHUNKS = 40
BASE = (
    *SMALL, f"stream.chunks={CHUNKS}", "stream.prompt=hello", "stream.events=[{chunk: 17, prompt: other}]",
    f"source.audio={ROOT / 'assets' / 'speech.wav'}",
)  # fmt: skip
PLANS = {
    "timestep on 5, pictures decoded": ("torchrun", 5, ("plan=timestep",)),
    "timestep on 4": ("torchrun", 4, ("plan=timestep", "sink.video=null")),
    "timestep on 3": ("torchrun", 3, ("plan=timestep", "sink.video=null")),
    "timestep on 2": ("torchrun", 2, ("plan=timestep", "sink.video=null")),
    "timestep on 1": ("torchrun", 1, ("plan=timestep", "sink.video=null")),
    "grid 4x2": ("torchrun", 8, ("plan=grid", "plan.grid=[4,2]", "sink.video=null")),
    "timestep on 4, ray": ("ray", 4, ("plan=timestep", "sink.video=null")),
}
SHARED = ("plan=timestep", "plan.sequence_parallel=2", "plan.steps=[2,2]", "sink.video=null")


def main() -> bool:
    measured = {}
    with tempfile.TemporaryDirectory() as temporary:
        count = iter(range(1000))

        def report(launcher: str, workers: int, *overrides: str) -> dict:
            return run(launcher, workers, Path(temporary) / str(next(count)), *BASE, *overrides)

        latents = Path(temporary) / "oracle.safetensors"
        oracle = report("sequential", 1, "sink.video=null", f"sink.latents={latents}")["latents_sha256"]
        other = report("sequential", 1, "sink.video=null", "model.recalibrate_chunk=null")["latents_sha256"]
        measured["without recalibration"] = bar(other[:12], "another hash", other != oracle)
        far = Path(temporary) / "far.safetensors"
        save_file({"sink_distance": torch.full((CHUNKS, 4), 30)}, far)
        other = report("sequential", 1, "sink.video=null", f"source.tensors={far}")["latents_sha256"]
        measured["attention sink always 30 ahead"] = bar(other[:12], "another hash", other != oracle)
        for name, (launcher, workers, plan) in PLANS.items():
            found = report(launcher, workers, *plan)
            sha = found["latents_sha256"]
            measured[name] = bar(sha[:12], oracle[:12], sha == oracle)
            config = compose("stream", Config, [*BASE, *plan, f"plan.workers={workers}", "output_dir=unused"])
            owed = build(config.plan, describe(config))
            expected = [owed.weight_bytes(m.worker, m.rank) for m in owed.members]
            held = list(found["weight_bytes"].values())
            measured[f"{name}: weight bytes"] = bar(held, str(expected), held == expected)
        shared = Path(temporary) / "shared.safetensors"
        report("torchrun", 4, *SHARED, f"sink.latents={shared}")
        one, two = load_file(latents), load_file(shared)
        error = max(float((one[key] - two[key]).abs().max()) for key in one)
        measured["sequence_parallel 2 x timestep on 2"] = bar(error, "<= 1e-5", error <= 1e-5 and len(two) == CHUNKS)
    record("live_avatar", "python -m benchmarks.live_avatar", {"base": [b for b in BASE if "/" not in b]}, measured)
    return all(m["passed"] for m in measured.values())


if __name__ == "__main__":
    sys.exit(not main())

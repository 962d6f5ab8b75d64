"""Published rules of what a chunk attends to, as whole runs that are saved, gone on with and struck on their way."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from benchmarks.unchanged import MODELS, WAN
from launch import stream
from tests.checkpoints import vae_tensors
from tests.stages.sources.made_video import moving, write_video

CHUNKS, SAVED, STRUCK, EVERY = 120, 61, 66, 31
"""Of a stream: how long it is, after how many the oracle saves, and of the run that goes on from there when a worker is
lost and how often it saves. The widest window holds 7 chunks."""
_DEEP = ("model=deep_forcing", *WAN)
_BATCH = (
    "model=stream_diffusion_v2_1_3b", *WAN, "model.steps=3", "model.timesteps=[700,500,400]",
    "model.adaptive_sink=0.5", "model.refresh_frames=9",
)  # fmt: skip
LAYERS, STEPS = ("plan=layers", "plan.workers=2"), ("plan=timestep", "plan.workers=2")
RULES = {
    "joint window": (MODELS["small Rolling Forcing"], LAYERS),
    "averages": (MODELS["small Reward Forcing"], STEPS),
    "deep sink": ((*_DEEP, "model.compress=null", "model.sink_frames=14"), STEPS),
    "compression": (MODELS["small Deep Forcing"], LAYERS),
    "video, stream batch": (_BATCH, STEPS),
    "video, step by step": ((*_BATCH, "model.stream_batch=false"), LAYERS),
}
"""(the model, the plan of its two workers); the last two have a video drawn anew, with an attention sink that adapts,
and positions that are refreshed."""


def ruled(folder: Path, rule: str) -> tuple[str, ...]:
    """What all runs of a rule have in common."""
    model, _ = RULES[rule]
    common = (*model, "sink.video=null", "device=cpu", f"stream.chunks={CHUNKS}")
    if not rule.startswith("video"):
        return common
    video, vae = folder / "in.mkv", folder / "vae.pth"
    if not vae.exists():
        write_video(video, moving(5 + 4 * (CHUNKS - 1), 32, 48), 16)
        torch.save(vae_tensors(4), vae)
    return *common, f"source.video={video}", f"model.codec.checkpoint={vae}"


def alone(folder: Path, *overrides: str) -> dict:
    """The report of a run in this process, with all on one worker."""
    assert stream.main([*overrides, f"output_dir={folder}"]) == 0
    return json.loads((folder / "report.json").read_text())

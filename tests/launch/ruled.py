"""Published rules of what a chunk attends to, and worlds, as whole runs that are saved, gone on with and struck on
their way."""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

import torch

from benchmarks.unchanged import MODELS, WAN
from launch import stream
from tests.checkpoints import vae_tensors
from tests.launch.worlds import CHUNKS, WORLDS, driven, told
from tests.stages.sources.made_video import moving, write_video


class Rule(NamedTuple):
    """One whole run.

    Attributes:
        model: overrides.
        plan: of its two processes.
        chunks: of its stream. The widest window holds 7.
        saved: after so many the oracle saves.
        struck: of the run that goes on from there, when a worker is lost.
        every: how often that saves; three times are within the stream.
    """

    model: tuple[str, ...]
    plan: tuple[str, ...]
    chunks: int = 120
    saved: int = 61
    struck: int = 66
    every: int = 31


_DEEP = ("model=deep_forcing", *WAN)
_BATCH = (
    "model=stream_diffusion_v2_1_3b", *WAN, "model.steps=3", "model.timesteps=[700,500,400]",
    "model.adaptive_sink=0.5", "model.refresh_frames=9",
)  # fmt: skip
LAYERS, STEPS = ("plan=layers", "plan.workers=2"), ("plan=timestep", "plan.workers=2")
SHARED = ("plan=sequential", "plan.sequence_parallel=2")
HISTORIES = {
    "joint window": Rule(MODELS["small Rolling Forcing"], LAYERS),
    "averages": Rule(MODELS["small Reward Forcing"], STEPS),
    "deep sink": Rule((*_DEEP, "model.compress=null", "model.sink_frames=14"), STEPS),
    "compression": Rule(MODELS["small Deep Forcing"], LAYERS),
    "video, stream batch": Rule(_BATCH, STEPS),
    "video, step by step": Rule((*_BATCH, "model.stream_batch=false"), LAYERS),
}
"""The last two have a video drawn anew, with an attention sink that adapts, and positions that are refreshed."""
_PLANS = (LAYERS, SHARED, STEPS)
RULES = HISTORIES | {
    world: Rule(model, _PLANS[i % 3], CHUNKS, saved=21, struck=24, every=11)
    for i, (world, model) in enumerate(WORLDS.items())
}


def ruled(folder: Path, rule: str) -> tuple[str, ...]:
    """What all runs of a rule have in common."""
    common = (*RULES[rule].model, "sink.video=null", "device=cpu", f"stream.chunks={RULES[rule].chunks}")
    if rule in WORLDS:
        return *common, *told(driven(folder, rule))
    if not rule.startswith("video"):
        return common
    video, vae = folder / "in.mkv", folder / "vae.pth"
    if not vae.exists():
        write_video(video, moving(5 + 4 * (RULES[rule].chunks - 1), 32, 48), 16)
        torch.save(vae_tensors(4), vae)
    return *common, f"source.video={video}", f"model.codec.checkpoint={vae}"


def alone(folder: Path, *overrides: str) -> dict:
    """The report of a run in this process, with all on one worker."""
    assert stream.main([*overrides, f"output_dir={folder}"]) == 0
    return json.loads((folder / "report.json").read_text())

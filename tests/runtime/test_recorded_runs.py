"""Runs whose passes are recorded while they load: the same latents, bit for bit, stream after stream.

The processor is given a recorder that plays back what operations it saw (`tests.stages.denoise.tape`), so that all but
CUDA's own recording is what runs on a GPU, and what a recording holds fixed shows.
"""

import pytest

from benchmarks.live_avatar import SMALL
from devices.processor import Processor
from stages.denoise.history import history_of
from stages.denoise.layout import Layout
from stages.denoise.schedule import schedule_of
from tests.helpers import config_of, thorough
from tests.stages.denoise.tape import Replays

NANO = ("model=nano",)
WAN = (
    "model=wan21_t2v_1_3b", "model.dtype=float32", "model.network.dim=48", "model.network.ffn_dim=96",
    "model.network.heads=4", "model.network.layers=3", "model.network.text_dim=16", "model.network.text_tokens=8",
    "model.network.freq_dim=32", "model.text.kind=table", "model.codec.width=2", "model.window_frames=9",
    "stream.height=64", "stream.width=64",
)  # fmt: skip
STREAM_BATCH = (
    *WAN, "model.steps=3", "model.timesteps=[700,500,400]", "model.warp=false", "model.stream_batch=true",
    "model.chunk_frames=1", "model.first_chunk_frames=2", "model.window_frames=6", "model.sink_frames=3",
    "model.adaptive_sink=0.5", "model.refresh_frames=8",
)  # fmt: skip
MODELS = {
    "same_level, recalibrated": (*NANO, "model.recalibrate_chunk=4"),
    "same_level, frames as sink": (*NANO, "model.reference=false", "model.positions=slot", "model.sink_frames=3"),
    "clean": (*NANO, "model.context=clean"),
    "clean, sink, recache, renoise": (
        *NANO, "model.context=clean", "model.prompt_switch=recache", "model.sampler=renoise", "model.positions=abs",
        "model.sink_frames=3", "model.recalibrate_chunk=5",
    ),
    "in bfloat16": (*NANO, "model.dtype=bfloat16"),
    "one chunk in the window": (*NANO, "model.window_frames=3"),
    "Live Avatar": (*SMALL, "model.network.layers=3", "model.network.audio.layers=[0,2]"),
    "Wan": WAN,
    "Rolling Forcing": (
        *WAN, "model.context=joint_window", "model.steps=3", "model.timesteps=[1000,600,200]", "model.sink_frames=3",
        "model.window_frames=12",
    ),
    "Reward Forcing": (*WAN, "model.sink_frames=3", "model.positions=slot", "model.sink_ema=0.9"),
    "Deep Forcing": (
        *WAN, "model.window_frames=12", "model.sink_frames=4", "model.deep_sink=true",
        "model.compress={budget_frames: 9, recent_frames: 4, reuse: 2}",
    ),
    "StreamDiffusionV2": STREAM_BATCH,
    "StreamDiffusionV2, one bank": (*STREAM_BATCH, "model.stream_batch=false"),
    "StreamDiffusionV2, a sink that stays": (*STREAM_BATCH, "model.adaptive_sink=null"),
}  # fmt: skip
STREAMS = (
    "stream.chunks=14", "stream.count=2", "stream.prompt=hello", "sink.video=null",
    "stream.events=[{chunk: 6, prompt: other}, {chunk: 9, prompt: third}]",
)  # fmt: skip


@pytest.fixture
def recorders(monkeypatch):
    """Every recorder that the processor was asked for."""
    made = []

    def recorder(self):
        made.append(Replays())
        return made[-1]

    monkeypatch.setattr(Processor, "recorder", recorder)
    return made


def passes(*overrides: str) -> int:
    """Steps and commits of different slots, those of the attention sink apart, and a recache, which later prompts of
    `STREAMS` have over the same slots."""
    model = config_of(*overrides).model
    schedule, layout = schedule_of(model), Layout.of(model, 4)
    history, found = history_of(model, layout), set()
    for chunk in history.distinct:
        steps = range(schedule.first_step(chunk), len(schedule.steps))
        places = {step: history.step(chunk, step, model.rule.bank_per_step or step == steps[0]) for step in steps}
        places |= {-1: history.commit(chunk)} if schedule.commits(chunk) else {}
        found |= {
            (step, place.runs, place.reads)
            for step, place in places.items()
            if all(slot >= layout.anchored for _, slot, _ in place.runs)
        }
    return len(found) + bool(schedule.recache_chunks)


def hashes(report: dict) -> list[str]:
    return [stream["latents_sha256"] for stream in report["streams"]]


@pytest.mark.parametrize("model", MODELS)
def test_two_streams_over_the_same_banks_are_what_they_are_without(job, recorders, model):
    plain = job(*MODELS[model], *STREAMS, "device.graphs=never")
    assert not recorders
    recorded = job(*MODELS[model], *STREAMS)
    assert hashes(recorded) == hashes(plain)
    (recorder,) = recorders
    assert recorder.recorded == passes(*MODELS[model])
    assert recorder.replayed > 2 * recorder.recorded


@pytest.mark.parametrize(
    "plan",
    [("plan=timestep",), thorough(("plan=layers", "plan.workers=2")), thorough(("plan=grid",))],
    ids=lambda plan: " ".join(plan) if isinstance(plan, tuple) else plan,
)
def test_plans_too(job, recorders, plan):
    model = MODELS["same_level, recalibrated"]
    plain = job(*model, *STREAMS, "device.graphs=never")
    assert hashes(job(*model, *STREAMS, *plan)) == hashes(plain)
    assert len(recorders) > 1 and all(recorder.recorded for recorder in recorders)

"""Published rules of what a chunk attends to, in whole runs: any plan that a rule allows gives the same latents, bit
for bit, and goes on from a state, or a cut, that any other has made."""

import pytest

from benchmarks.unchanged import WAN
from tests.helpers import sampled
from tests.runtime.test_resume import Runs

CHUNKS, SAVED = 24, 16
"""More than three times what the widest window holds; a state is of before a chunk whose bank is compressed, or of
before one whose bank is not."""
STREAM_BATCH = (
    "model=stream_diffusion_v2_1_3b", "model.noise_scale=null", "model.steps=3", "model.timesteps=[700,500,400]",
    "model.refresh_frames=12",
    "model.adaptive_sink=0.5",
)  # fmt: skip
RULES = {
    "rolling": ("model=rolling_forcing",),
    "rolling, ring of odd chunks": ("model=rolling_forcing", "model.window_frames=20", "model.sink_frames=2"),
    "reward": ("model=reward_forcing", "model.sink_ema=0.9"),
    "deep sink": ("model=deep_forcing", "model.compress=null", "model.sink_frames=14"),
    "deep": ("model=deep_forcing",),
    "deep, once": ("model=deep_forcing", "model.compress.reuse=1"),
    "a window of no whole chunks": ("model=wan21_t2v_1_3b", "model.window_frames=10", "model.sink_frames=2"),
    "stream batch": STREAM_BATCH,
    "one bank": (*STREAM_BATCH, "model.stream_batch=false"),
    "a sink that stays": (*STREAM_BATCH, "model.adaptive_sink=null"),
}
EVENTS = "stream.events=[{chunk: 2, prompt: other}, {chunk: 11, prompt: third}]"
BASE = (*WAN, EVENTS, "stream.height=64", "stream.width=64", "sink.video=null")
PLANS = {
    "layers": ("plan=layers", "plan.layers=[3,2,1]"),
    "shared": ("plan=sequential", "plan.sequence_parallel=2"),
    "shared layers": ("plan=layers", "plan.sequence_parallel=2"),
    "a head each": ("plan=sequential", "plan.sequence_parallel=4"),
    "timestep": ("plan=timestep", "plan.workers=3"),
    "grid": ("plan=grid", "plan.grid=[2,2]"),
}
UNDIVIDED = ("rolling", "deep, once", "one bank", "deep", "rolling, ring of odd chunks")
"""Rules whose steps stay together."""
ALLOWED = [(r, p) for r in RULES for p in PLANS if r not in UNDIVIDED or p not in ("timestep", "grid")]
KEPT = {
    ("rolling", "layers"), ("rolling", "shared layers"), ("reward", "grid"), ("deep", "shared layers"),
    ("deep", "layers"), ("deep sink", "timestep"), ("rolling, ring of odd chunks", "layers"), ("reward", "timestep"),
    ("stream batch", "timestep"), ("stream batch", "layers"), ("stream batch", "grid"), ("stream batch", "shared"),
    ("one bank", "layers"), ("a sink that stays", "timestep"),
}  # fmt: skip


@pytest.fixture(scope="module")
def known(tmp_path_factory):
    return tmp_path_factory.mktemp("known"), {}


@pytest.fixture
def runs(tmp_path, capsys):
    return Runs(tmp_path, capsys)


def alone(runs, known, rule: str) -> dict:
    """One worker's, which saves on its way."""
    folder, found = known
    if rule not in found:
        kept = Runs(folder, runs.capsys)
        save = f"stream.save_every_chunks={SAVED}"
        found[rule] = kept(str([*RULES].index(rule)), *RULES[rule], *BASE, f"stream.chunks={CHUNKS}", save)
    return found[rule]


@pytest.mark.parametrize(("rule", "plan"), sampled(ALLOWED, KEPT))
def test_plans_are_exact_and_go_on_from_each_other(runs, known, rule, plan):
    expected = alone(runs, known, rule)["latents_sha256"]
    what = *RULES[rule], *BASE, f"stream.chunks={CHUNKS}"
    resume = f"resume={known[0] / str([*RULES].index(rule))}"
    made = runs("made", *what, *PLANS[plan], f"stream.save_every_chunks={SAVED + 1}")
    assert made["latents_sha256"] == expected
    after = runs("after", *what, *PLANS[plan], resume)
    assert (after["latents_sha256"], after["state"]["resumed_at"]) == (expected, SAVED)
    back = runs("back", *what, f"resume={runs.folder / 'made'}")
    assert (back["latents_sha256"], back["state"]["resumed_at"]) == (expected, SAVED + 1)


@pytest.mark.parametrize("rule", ["stream batch", "one bank"])
def test_cuts_have_what_no_host_knows_was_written(runs, known, rule):
    """Each holds what has changed since the one before, slots that an adaptive sink may have chosen with it."""
    expected = alone(runs, known, rule)["latents_sha256"]
    what = *RULES[rule], *BASE, f"stream.chunks={CHUNKS}"
    made = runs("made", *what, "stream.save_every_chunks=3")
    after = runs("after", *what, f"resume={runs.folder / 'made'}")
    assert (made["latents_sha256"], after["latents_sha256"]) == (expected, expected)
    assert after["state"]["resumed_at"] > SAVED
    assert expected != alone(runs, known, "a sink that stays")["latents_sha256"]


@pytest.mark.parametrize("rule", UNDIVIDED[:4])
def test_plans_that_part_what_belongs_together_are_refused(job, rule):
    said = job.fails(*RULES[rule], *BASE, "stream.chunks=1", "plan=timestep")
    assert said.startswith("plan=timestep: puts steps on different workers, but ") and "use plan=layers" in said


def test_several_streams_keep_the_hash_they_have_alone(job):
    for rule, plan in (
        ("rolling", PLANS["layers"]), ("deep", PLANS["layers"]), ("reward", PLANS["timestep"]),
        ("stream batch", PLANS["grid"]), ("one bank", PLANS["layers"]),
    ):  # fmt: skip
        both = job(*RULES[rule], *BASE, "stream.chunks=12", "stream.count=2", *plan)["streams"]
        for i, found in enumerate(both):
            one = job(*RULES[rule], *BASE, "stream.chunks=12", f"stream.id={i}")
            assert found["latents_sha256"] == one["latents_sha256"]


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        (("model=reward_forcing", "model.sink_frames=6"), "averages frame by frame"),
        (("model=reward_forcing", "model.context=same_level"), "averages clean frames"),
        (("model=reward_forcing", "model.sink_ema=1.5"), "is a share"),
        (("model=deep_forcing", "model.deep_sink=false", "model.positions=abs"), "deep_sink=true"),
        (("model=deep_forcing", "model.prompt_switch=recache"), "prompt_switch=text_only"),
        (("model=deep_forcing", "model.compress.recent_frames=2"), "the chunk of 3 frames"),
        (("model=deep_forcing", "model.compress.budget_frames=22"), "window of 21"),
        (("model=rolling_forcing", "model.window_frames=17"), "5 chunks, 18 frames"),
        (("model=rolling_forcing", "model.reference=true"), "no reference"),
        (("model=rolling_forcing", "model.adaptive_sink=0.2"), "is for context=stream_batch"),
        ((*STREAM_BATCH, "model.refresh_frames=5"), "use 6 or more"),
        ((*STREAM_BATCH, "model.first_chunk_frames=null"), "needs first_chunk_frames=2 or more"),
        (("model=pocket_avatar", "model.stream_batch=true"), "needs reference=false"),
        (("model=pocket_avatar", "model.context=joint_window", "model.reference=false"), "nobody has yet"),
    ],
)
def test_what_a_rule_cannot_have_is_said(job, overrides, line):
    assert line in job.fails(*overrides, "stream.chunks=1")

"""Models and plans on a device that is late: nothing is mixed or out of order, nothing waits, and plans are exact.

Order and placement are seen to by the device itself, which fails a test in the end. A chunk's way from its entry to its
final latents must not hold the host: in the sequential loop where passes are given, in plans anywhere in a worker's
loop, which has the next pass to give. Commits hand over by a host wait that hides some missing edges, so rows without
them are tried as well.
"""

from collections.abc import Iterable
from itertools import product
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import devices
import tests.pictured
from benchmarks.unchanged import MODELS as WHOLE
from benchmarks.unchanged import plans_of
from stages.inputs import Axis, Input
from tests.double import KIND, Ledger, module
from tests.double.installed import Twin
from tests.double.module import CARDS
from tests.helpers import sampled, thorough
from tests.stages.denoise.tape import Replays
from tests.walked import WORLDS

PROMPTS = ("stream.prompt=hello", "stream.events=[{chunk: 2, prompt: other}, {chunk: 5, prompt: third}]")
NANO = ("model=nano", *PROMPTS)
MODELS = {
    "same_level": (*NANO, "model.sink_frames=3", "model.recalibrate_chunk=1"),
    "same_level, no reference": (*NANO, "model.reference=false", "model.positions=slot", "model.sink_frames=3"),
    "clean": (
        *NANO, "model.context=clean", "model.sink_frames=3", "model.recalibrate_chunk=4", "model.sampler=renoise",
        "model.positions=abs",
    ),
    "recache": (
        *NANO, "model.context=clean", "model.prompt_switch=recache", "model.sink_frames=3", "model.window_frames=9",
        "model.recalibrate_chunk=5", "model.sampler=renoise",
    ),
    **WHOLE,
    **WORLDS,
}  # fmt: skip
BASE = ("stream.chunks=7", "sink.video=null", "launcher.threads=true")
"""More chunks than a ring holds."""
PLANS = {
    "timestep": ("plan=timestep",),
    "layers": ("plan=layers", "plan.workers=2"),
    "grid": ("plan=grid",),
    "grid uneven": ("plan=grid", "plan.steps=[3,1]", "plan.layers=[1,5]"),
}
SHARED = {
    "timestep": ("plan=timestep", "plan.steps=[3,1]"),
    "layers": ("plan=layers", "plan.layers=[5,1]"),
    "layers, other blocks": ("plan=layers", "plan.layers=[2,4]"),
}
ALLOWED = [(p, m) for p, m in product(PLANS, MODELS) if p.partition(" ")[0] in plans_of(m)]
SHAREABLE = ("same_level", "clean", "recache", "small Live Avatar", "small Deep Forcing", "small Rolling Forcing")
ENTRY = ("Conditioning.chunk", "Conditioning.states", "Conditioning.first_states")


def some_of(models: Iterable[str], *kept: str) -> list:
    """Those in `kept` are tried always, the others by `make test-all`."""
    return [model if model in kept else thorough(model) for model in models]


@pytest.fixture
def job(twin, job):
    """The main job, which must have computed here."""
    run = job.__class__.__call__

    def checked(self, *overrides: str) -> dict:
        report = run(self, *overrides)
        assert report["device"].startswith(KIND), report["device"]
        return report

    job.__class__.__call__ = checked
    return job


@pytest.fixture(scope="module")
def oracle():
    return {}


def sequential(job, oracle: dict, model: str) -> str:
    """The hash that the plain loop gives here."""
    if model not in oracle:
        oracle[model] = job(*MODELS[model], *BASE, "device.graphs=never")["latents_sha256"]
    return oracle[model]


def waits(twin: Ledger, *inside: str, but: tuple[str, ...] = ()) -> list[str]:
    return [str(wait) for wait in twin.waits if wait.within(*inside) and not wait.within(*but)]


@pytest.mark.parametrize("model", some_of(MODELS, "small Live Avatar"))
def test_the_loop_waits_for_nothing_before_a_chunk_is_final(twin, job, oracle, model):
    assert sequential(job, oracle, model)
    assert waits(twin, "generate", but=(*ENTRY, "require_finite_steps")) == []
    assert len(waits(twin, "require_finite_steps")) == 7


@pytest.mark.parametrize(
    ("plan", "model"),
    sampled(ALLOWED, {("timestep", "clean"), ("layers", "same_level"), ("layers", "small Rolling Forcing")}),
)
def test_every_plan_is_exact_and_its_loops_wait_for_nothing(twin, job, oracle, plan, model):
    expected = sequential(job, oracle, model)
    twin.begin()
    assert job(*MODELS[model], *BASE, *PLANS[plan])["latents_sha256"] == expected
    assert waits(twin, "Worker.run") == []


@pytest.mark.parametrize("model", some_of(SHAREABLE, "same_level"))
def test_shared_passes_are_the_same_under_every_plan(twin, job, model):
    hashes = set()
    for plan in (SHARED[name] for name in SHARED if name.partition(",")[0] in plans_of(model)):
        shared = (*plan, "plan.sequence_parallel=2", "stream.chunks=6")
        hashes.add(job(*MODELS[model], *BASE, *shared)["latents_sha256"])
        assert waits(twin, "Worker.run", "Group.follow") == []
    assert len(hashes) == 1


@pytest.mark.parametrize("plan", [thorough("plan=sequential"), "plan=timestep"])
def test_pictures_are_made_and_put_out_in_order(twin, job, plan):
    report = job(*MODELS["same_level"], "stream.chunks=4", "launcher.threads=true", plan)
    assert report["frames"] == 48 and waits(twin, "Decoding.__call__") == []


@pytest.mark.long
@pytest.mark.parametrize("given", ["reference_latent", "motion_latents"])
def test_what_is_given_and_what_is_encoded_meet_on_the_device(twin, job, tmp_path, given):
    model = (*WHOLE["small Live Avatar"], "model.recalibrate_chunk=2", "stream.chunks=4", "model.codec.width=2")
    shape = (1, 16, 1 if given == "reference_latent" else 19, 8, 8)
    save_file({given: torch.ones(shape)}, tmp_path / "given.safetensors")
    model = (*model, f"source.tensors={tmp_path / 'given.safetensors'}", "launcher.threads=true")
    expected = job(*model)
    assert expected["frames"] == 48
    assert job(*model, "plan=timestep", "plan.workers=5")["latents_sha256"] == expected["latents_sha256"]


@pytest.mark.long
@pytest.mark.parametrize("plan", ["timestep", "grid"])
@pytest.mark.parametrize("model", ["recache", "small Live Avatar", "small LongLive"])
def test_a_saved_stream_goes_on_here(twin, job, oracle, tmp_path, model, plan):
    expected = sequential(job, oracle, model)
    job.folder = tmp_path / "saved"
    job(*MODELS[model], *BASE, *PLANS[plan], "stream.chunks=5", "stream.save_every_chunks=4")
    job.folder = tmp_path / "again"
    again = job(*MODELS[model], *BASE, f"resume={tmp_path / 'saved'}")
    assert again["state"]["resumed_at"] == 4 and again["latents_sha256"] == expected


@pytest.mark.parametrize("model", some_of(SHAREABLE, "recache"))
def test_cuts_are_in_order_and_no_loop_waits_for_them(twin, job, oracle, model):
    """Of every second chunk, while passes go on that write what is being copied."""
    expected = sequential(job, oracle, model)
    twin.begin()
    plan = "grid" if "grid" in plans_of(model) else "layers"
    report = job(*MODELS[model], *BASE, *PLANS[plan], "stream.save_every_chunks=2")
    assert report["latents_sha256"] == expected and report["state"]["saved"] == 6
    assert waits(twin, "Worker.run") == []


def test_every_queue_of_a_run_is_given_back(twin, job, monkeypatch):
    """By viewers, files, states, channels and workers: torch has 32, and hands out the first again then."""
    made, stream = [], module.Stream
    monkeypatch.setattr(module, "Stream", lambda *args, **kind: made.append(stream(*args, **kind)) or made[-1])
    job(*NANO[:1], "stream.chunks=3", "stream.count=2", "stream.save_every_chunks=2", "launcher.threads=true",
        "plan=timestep", "plan.workers=3", "sink.video=null")  # fmt: skip
    spare = [one for card in range(CARDS) for some in devices.of(f"{KIND}:{card}").spare.values() for one in some]
    assert {one.line.number for one in spare} == {one.line.number for one in made}
    assert len(spare) == len(made) > 6


def test_entries_of_a_saved_state_join_those_of_the_device(twin):
    """They were read from a file, and lie on the host."""
    one = Input("heard", Axis.FRAME, (5, 3), reach=1)
    own = torch.ones(1, 4, 3, device=KIND)
    assert one.within(own, torch.zeros(1, 1, 3)).sum(2).tolist() == [[0.0, 3, 3, 3, 3]]


def test_what_is_made_of_a_picture_meets_what_is_pressed(twin, job, tmp_path):
    """Latents of every chunk, a mask, rows of an epoch, and keys that are reached back to."""
    folder = Path(tests.pictured.__file__).parent / "conf"
    (tmp_path / "keys.jsonl").write_text('{"frame": 20, "action": "left"}\n')
    told = ("--config-dir", str(folder), "model=pictured", f"source.actions={tmp_path / 'keys.jsonl'}", *BASE)
    expected = job(*told)["latents_sha256"]
    assert waits(twin, "generate", but=(*ENTRY, "require_finite_steps")) == []
    twin.begin()
    assert job(*told, "plan=layers")["latents_sha256"] == expected
    assert waits(twin, "Worker.run") == []


class Recorder(Replays):
    """Records as a card does, where nobody may wait for it meanwhile."""

    def __init__(self, twin: Ledger):
        super().__init__()
        self.twin = twin

    def __call__(self, work):
        known = len(self.twin.waits)

        def watched():
            out = work()
            assert not self.twin.waits[known:], str(self.twin.waits[-1])
            return out

        return super().__call__(watched)


@pytest.mark.parametrize("model", ["LingBot-World"])
def test_passes_that_are_recorded_are_the_same(twin, job, oracle, monkeypatch, model):
    expected, made = sequential(job, oracle, model), []
    monkeypatch.setattr(Twin, "recorder", lambda self: made.append(Recorder(twin)) or made[-1])
    twin.begin()
    assert job(*MODELS[model], *BASE, "device.graphs=always")["latents_sha256"] == expected
    assert sum(one.replayed for one in made) > sum(one.recorded for one in made) > 0
    assert waits(twin, "generate", but=(*ENTRY, "require_finite_steps")) == []


def test_latents_that_are_written_are_the_devices(twin, job, tmp_path: Path):
    file = tmp_path / "latents.safetensors"
    job("model=nano", "stream.chunks=2", "sink.video=null", f"sink.latents={file}")
    assert [tuple(x.shape) for x in load_file(file).values()] == [(1, 16, 3, 4, 4)] * 2

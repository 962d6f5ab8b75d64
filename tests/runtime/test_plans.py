"""Every plan gives the oracle's latents, bit for bit, whatever its shape."""

from itertools import product

import pytest

from tests.helpers import sampled

EVENTS = "stream.events=[{chunk: 9, prompt: other}, {chunk: 10, prompt: third}]"
BASE = ("stream.chunks=14", "stream.prompt=hello", EVENTS)
PLANS = {
    "timestep": ("plan=timestep",),
    "timestep on 3": ("plan=timestep", "plan.workers=3"),
    "timestep uneven": ("plan=timestep", "plan.steps=[1,3]"),
    "layers on 2": ("plan=layers", "plan.workers=2"),
    "layers uneven": ("plan=layers", "plan.layers=[3,2,1]"),
    "grid": ("plan=grid",),
    "grid uneven": ("plan=grid", "plan.steps=[3,1]", "plan.layers=[1,5]"),
    "one worker": ("plan=timestep", "plan.workers=1"),
}
MODELS = {
    "same_level recalibrated": ("model.recalibrate_chunk=4",),
    "same_level, first chunk as sink": ("model.reference=false", "model.positions=slot", "model.sink_frames=3"),
    "same_level, both, at the same chunk": ("model.sink_frames=3", "model.recalibrate_chunk=1"),
    "clean": ("model.context=clean",),
    "clean, sink, recalibrated, renoise": (
        "model.context=clean", "model.sink_frames=3", "model.recalibrate_chunk=4",
        "model.sampler=renoise", "model.positions=abs",
    ),
}  # fmt: skip


WHOLE = "timestep", "grid uneven"
"""Plans that every model is tried under, always; under the others those models that have all that the rest has."""
KEPT = {*product(WHOLE, MODELS), *product(PLANS, ("same_level, both, at the same chunk", [*MODELS][-1]))}


@pytest.fixture(scope="module")
def oracle():
    return {}


@pytest.mark.parametrize(("plan", "model"), sampled(product(PLANS, MODELS), KEPT))
def test_exact(nano, oracle, plan, model):
    if model not in oracle:
        oracle[model] = nano(*BASE, *MODELS[model])
    assert nano(*BASE, *MODELS[model], *PLANS[plan]) == oracle[model]


def test_late_recalibration_and_short_streams(nano):
    """A version that never takes effect does not keep a stream from ending."""
    for overrides in (
        ("stream.chunks=2", "model.recalibrate_chunk=4"),
        ("stream.chunks=9", "model.recalibrate_chunk=8"),
    ):
        assert nano(*overrides, "plan=timestep") == nano(*overrides)
    late = ("stream.chunks=3", "model.recalibrate_chunk=4")
    assert nano(*late, "plan=layers", "plan.workers=2") == nano(*late)


def test_several_streams_keep_the_hash_they_have_alone(job):
    for plan in (("plan=timestep",), ("plan=layers", "model.context=clean")):
        both = job("model=nano", "sink.video=null", "stream.count=3", "stream.chunks=5", *plan)["streams"]
        context = [o for o in plan if o.startswith("model")]
        for i, found in enumerate(both):
            alone = job("model=nano", "sink.video=null", "stream.chunks=5", f"stream.id={i}", *context)
            assert found["latents_sha256"] == alone["latents_sha256"]


def test_given_tensors_reach_every_worker(nano, tmp_path):
    import torch
    from safetensors.torch import save_file

    g = torch.Generator().manual_seed(0)
    given = {f"noise.{i:06d}.step.{s}": torch.randn(1, 16, 3, 4, 4, generator=g) for i in range(3) for s in range(4)}
    given["sink_distance"] = torch.tensor([[5, 6, 7, 8]] * 6)
    given["context.000002"] = torch.randn(1, 4, 32, generator=g)
    path = tmp_path / "given.safetensors"
    save_file(given, path)
    base = ("stream.chunks=6", "model.sampler=renoise", f"source.tensors={path}")
    assert nano(*base, "plan=grid") == nano(*base)


def test_a_worker_holds_only_its_own(job):
    """Weights are what the plan predicts, exactly, and add up where nothing is shared."""
    from parallel.builders import build
    from runtime.workload import describe
    from tests.helpers import config_of

    for overrides in (("plan=timestep",), ("plan=layers", "plan.layers=[3,2,1]"), ("plan=grid",)):
        config = config_of("model=nano", *overrides, "output_dir=x")
        plan = build(config.plan, describe(config))
        report = job("model=nano", "stream.chunks=1", *overrides)
        found = [report["weight_bytes"][f"worker{i}"] for i in range(plan.workers)]
        assert found == [plan.weight_bytes(i) for i in range(plan.workers)]


def test_a_plan_makes_the_same_video_and_report(job):
    from tests.launch.test_stream import decoded

    sequential = job("model=nano", "stream.chunks=4")
    report = job("model=nano", "stream.chunks=4", "plan=timestep")
    assert report["workers"] == 5
    assert report["frames"] == sequential["frames"] == decoded(job.folder / "video.mp4")[0]
    assert {"encode", "step0", "step1", "step2", "step3", "decode", "output", "prefill"} <= set(report["stages"])
    assert report["stages"]["step2"]["worker"] == "worker2"
    assert report["latents_sha256"] == sequential["latents_sha256"]

"""Whole runs whose workers are several processes: the oracle's latents, divided banks, undivided stages."""

from safetensors.torch import load_file

from parallel.builders import build
from runtime.workload import describe
from tests.helpers import config_of

EVENTS = "stream.events=[{chunk: 9, prompt: other}, {chunk: 10, prompt: third}]"
BASE = ("model=nano", "stream.chunks=14", "stream.prompt=hello", "model.recalibrate_chunk=4", EVENTS)
PLANS = {
    "sequential": ("plan=sequential",),
    "timestep": ("plan=timestep", "plan.steps=[3,1]"),
    "layers": ("plan=layers", "plan.layers=[5,1]"),
}


def test_latents_are_the_oracles_within_rounding_and_every_plans_to_the_bit(job, tmp_path):
    """Sharing changes the order of sums, and nothing else: where cells are makes no difference to it."""

    def latents(name: str, *overrides: str) -> tuple[dict, dict]:
        file = tmp_path / f"{name}.safetensors"
        report = job(*BASE, "sink.video=null", f"sink.latents={file}", *overrides)
        return load_file(file), report

    expected, alone = latents("oracle")
    hashes = set()
    for name, plan in PLANS.items():
        found, report = latents(name, *plan, "plan.sequence_parallel=2")
        assert all((found[key] - x).abs().max() <= 1e-5 for key, x in expected.items())
        hashes.add(report["latents_sha256"])
        assert sum(report["bank_bytes"].values()) == sum(alone["bank_bytes"].values())
        assert len(set(report["bank_bytes"].values())) == (1 if name == "sequential" else 2)
    assert len(hashes) == 1


def test_stages_are_the_first_processs(job):
    """Followers hold layers and nothing else; a worker that only decodes is one process."""
    plan_overrides = ("plan=timestep", "plan.steps=[4]", "plan.sequence_parallel=2")
    report = job("model=nano", "stream.chunks=3", *plan_overrides)
    config = config_of("model=nano", *plan_overrides, "output_dir=x")
    plan = build(config.plan, describe(config))
    assert report["workers"] == plan.processes == 3
    assert list(report["weight_bytes"]) == ["worker0", "worker0.1", "worker1"]
    assert list(report["weight_bytes"].values()) == [plan.weight_bytes(m.worker, m.rank) for m in plan.members]
    assert report["frames"] == 36
    assert report["stages"]["step0"]["worker"] == "worker0"

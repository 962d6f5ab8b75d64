"""Any plan and model runs on emulated devices, loads nothing, and loses no chunk."""

import pytest

FAST = ("device=emulated", "device.emulated.step_s=0.003", "device.emulated.decode_s=0.001")


@pytest.mark.parametrize(
    "plan",
    [
        ("plan=timestep", "model.recalibrate_chunk=4"),
        ("plan=timestep", "plan.workers=3", "model.sampler=renoise"),
        ("plan=layers", "model.context=clean", "stream.count=2"),
        ("plan=grid", "model.context=clean", "device.emulated.hidden_bytes=5000", "device.emulated.latent_bytes=600"),
    ],
    ids=" ".join,
)
def test_every_plan_runs(job, plan):
    report = job("model=nano", "stream.chunks=6", *FAST, *plan)
    assert [s["chunks"] for s in report.get("streams", [report])] == [6] * len(report.get("streams", [0]))
    assert set(report["weight_bytes"].values()) == {0}
    assert "decode" in report["stages"]
    assert not (job.folder / "video.mp4").exists()


def test_no_weights_are_read(job):
    """A model whose files are not there runs, too."""
    report = job(
        "model=pocket_avatar", "model.checkpoint=/proc/nowhere/w.safetensors", "plan=timestep", "stream.chunks=3", *FAST
    )
    assert report["chunks"] == 3


def test_steering_counts(job):
    report = job("model=nano", "plan=timestep", "stream.chunks=6", "stream.events=[{chunk: 3, prompt: x}]", *FAST)
    assert report["control_to_frame_s"]["p50"] >= 4 * 0.003
    assert report["control_to_frame_s"]["mean"] >= 4 * 0.003

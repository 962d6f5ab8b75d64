"""A sample of `benchmarks.islands`: streams that fail at some seams, beside one that is what it is alone."""

import pytest

from benchmarks import faults, islands
from benchmarks.islands import SEAMS_OF, Scenario, configuration
from launch.running import start
from tests.patience import PATIENT_S

SAMPLE = {
    "same_level": ("image", "step", "decode", "video", "stop"),
    "clean": ("commit", "recache"),
}


@pytest.fixture
def armed(monkeypatch):
    """Faults are armed for one test."""
    from runtime import guard, worker

    monkeypatch.setattr(guard.Guard, "__call__", guard.Guard.__call__)
    monkeypatch.setattr(worker.Worker, "_open", worker.Worker._open)
    faults.note()
    return monkeypatch


@pytest.mark.parametrize("context", SAMPLE)
def test_whatever_fails_ends_its_own_stream(tmp_path, nano, armed, context):
    for seam in SAMPLE[context]:
        faults.fail_at(seam, armed.setattr)
    armed.setattr(faults, "ERRORS", {name: faults.ERRORS[name] for name in ("UserError", "OutOfMemoryError")})
    config = configuration("threads", context, tmp_path)
    with start(config) as running:
        found = Scenario(running.pipeline, config, tmp_path).run(list(SAMPLE[context]))
        running.close()
        running.wait(PATIENT_S)
    assert found["wrong"] == []
    rule = [o for o in islands.overrides(context, tmp_path) if o.startswith("model.")]
    assert found["hash"] == nano("stream.id=a", "stream.seed=1", f"stream.chunks={found['chunks']}", *rule)


def test_every_seam_is_in_a_scenario():
    assert sorted(seam for seams in SEAMS_OF.values() for seam in seams) == sorted(faults.SEAMS)
    assert len(faults.SEAMS) >= 15

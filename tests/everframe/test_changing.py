"""Another plan for running workers, from Python."""

from types import SimpleNamespace

import pytest

from conf.errors import UserError
from conf.schema import PlanConfig
from everframe.pipeline import Pipeline
from tests.helpers import config_of


@pytest.fixture
def faced():
    """(a program's pipeline whose workers are none, the plans it was changed to)."""
    pipeline, plans = Pipeline.__new__(Pipeline), []
    pipeline.config = config_of("model=nano", "plan=timestep", "plan.workers=5")
    pipeline.running = SimpleNamespace(pipeline=SimpleNamespace(config=pipeline.config, change=plans.append))
    return pipeline, plans


def test_a_program_changes_the_plan(faced):
    pipeline, plans = faced
    pipeline.change(workers=3)
    pipeline.change(plan="grid", grid=[2, 2])
    pipeline.change("sequential")
    made = [PlanConfig("timestep", workers=3), PlanConfig("grid", grid=[2, 2]), PlanConfig("sequential")]
    assert [PlanConfig(**plan) for plan in plans] == made
    assert pipeline.config.plan == made[-1]


@pytest.mark.parametrize("asked", [{"workers": 9}, {"plan": "timesteps"}, {"layer": [1]}, {"workers": 2.5}], ids=str)
def test_what_cannot_be_is_told_before_anything_changes(faced, asked):
    pipeline, plans = faced
    before = pipeline.config
    with pytest.raises(UserError):
        pipeline.change(**asked)
    assert plans == [] and pipeline.config is before


def test_workers_that_are_gone_are_a_runtime_error(faced):
    pipeline, _ = faced

    def gone(plan):
        raise ConnectionError("the workers have left")

    pipeline.running.pipeline.change = gone
    with pytest.raises(RuntimeError, match="the workers have left"):
        pipeline.change(workers=3)

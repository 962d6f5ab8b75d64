"""Another plan for what runs: what an order may say, and the best for fewer workers."""

import pytest

from conf.errors import UserError
from conf.schema import PlanConfig
from launch import planning
from launch.control import Control
from launch.replanning import fewer
from parallel.planner import rank
from tests.helpers import config_of
from tests.runtime.driven import Driven


class Changing(Driven):
    """A pipeline that notes the plans which it is to have."""

    def __init__(self, *overrides: str):
        super().__init__(*overrides)
        self.plans = []
        self.pipeline.change = self.plans.append


@pytest.fixture
def changing(tmp_path):
    (tmp_path / "orders").write_text("")
    with Changing(f"control={tmp_path}/orders") as changing:
        yield changing


@pytest.fixture
def control(changing):
    return Control(changing.pipeline, changing.config)


def test_an_order_names_a_plan_in_either_way(changing, control):
    control.obey('{"plan": {"workers": 3}}')
    control.obey('{"plan": {"name": "timestep", "workers": 5}}')
    control.obey('{"plan": "timestep", "workers": 5}')
    control.obey('{"plan": "layers", "layers": [4, 2], "decode": 1}')
    control.obey('{"plan": "sequential"}')
    plans = [PlanConfig(**plan) for plan in changing.plans]
    assert plans == [
        PlanConfig("timestep", workers=3),
        PlanConfig("timestep", workers=5),
        PlanConfig("timestep", workers=5),
        PlanConfig("layers", layers=[4, 2], decode=1),
        PlanConfig("sequential"),
    ]
    assert changing.orders() == [], "workers hear of it from whoever changes them"


@pytest.mark.parametrize(
    ("order", "line"),
    [
        ('{"plan": {"worker": 3}}', "plan.worker: there is no such key; did you mean workers"),
        ('{"plan": "timestep", "worker": 3}', "plan.worker: there is no such key; did you mean workers"),
        ('{"plan": "timestp"}', "plan.name=timestp: "),
        ('{"plan": "timestep", "name": "layers"}', 'plan: "name": there is no such key'),
        ('{"plan": {"workers": 3}, "workers": 5}', 'plan: "workers": there is no such key'),
        ('{"plan": {"workers": "3"}}', 'plan.workers="3": must be a whole number'),
        ('{"plan": {"workers": 0}}', "plan.workers=0: "),
        ('{"plan": {"workers": 9}}', "plan.workers=9: plan=timestep here is 4 workers, or 5 with decode on its own"),
        ('{"plan": "layers", "layers": [4, 4]}', "plan.layers=[4, 4]: must be sizes above zero that add up to 6"),
        ('{"plan": "timestep", "layers": [4, 2]}', "plan.layers=[4, 2]: plan=timestep does not follow it"),
        ('{"plan": "timestep", "sequence_parallel": 2}', "plan.sequence_parallel=2: the run has 1, and its latents'"),
        ('{"plan": null}', "plan=null: must be an object"),
        ('{"plan": 3}', "plan=3: must be an object"),
    ],
    ids=str,
)
def test_what_cannot_be_is_refused_before_anything_changes(changing, control, order, line):
    with pytest.raises(UserError) as refused:
        control.obey(order)
    assert str(refused.value).startswith(line)
    assert changing.plans == []


def test_a_run_without_cuts_refuses_what_was_asked_for_and_no_more(tmp_path):
    (tmp_path / "orders").write_text("")
    with Driven(f"control={tmp_path}/orders") as driven:
        control = Control(driven.pipeline, driven.config)
        with pytest.raises(UserError) as refused:
            control.obey('{"plan": "timestep", "workers": 3}')
    line = str(refused.value)
    assert line.startswith('plan={"name": "timestep", "workers": 3}: this run cannot change its plan')
    assert line.endswith("start it with launcher.recover=exact")


def test_the_planner_may_choose(changing, control):
    control.obey('{"plan": "auto", "workers": 2}')
    (plan,) = changing.plans
    config = config_of("model=nano", "plan=auto", "plan.workers=2")
    assert plan["name"] != "auto" and PlanConfig(**plan) == planning.resolve(config).plan


CPU = ("model=nano", "cluster=h100x5", "stream.count=1")


def test_the_best_of_what_is_left():
    config = config_of(*CPU, "plan=timestep", "plan.workers=5")
    workload, cluster, demand = planning.workload_of(config), planning.cluster_of(config), planning.demand(config)
    for workers in (4, 3, 1):
        found = fewer(config, workers)
        assert found.plan.processes <= workers and found.plan.degree == 1
        best = max(
            choice.prediction.fps
            for count in range(1, workers + 1)
            for choice in rank(workload, cluster, demand, "fps", PlanConfig("auto", workers=count, force=True))
            if choice.plan.degree == 1
        )
        assert found.fps == pytest.approx(best, rel=2e-3)
        assert found.in_time == int(found.fps / config.model.fps + 1e-3)
    assert fewer(config, 1).plan.name == "sequential"
    assert fewer(config, 0) is None


def test_processes_that_share_passes_stay_together():
    config = config_of(*CPU, "plan=timestep", "plan.steps=[2,2]", "plan.workers=4", "plan.sequence_parallel=2")
    for workers, processes in ((3, 3), (2, 2), (1, None)):
        found = fewer(config, workers)
        assert (found and (found.plan.processes, found.plan.degree)) == (processes and (processes, 2))


def test_none_where_the_model_fits_on_none():
    config = config_of("model=live_avatar_14b", "cluster=h800x5", "plan=timestep", "plan.workers=5")
    assert fewer(config, 4).plan.processes == 4
    small = config_of("model=live_avatar_14b", "cluster=rtx4090x5", "plan=timestep", "plan.workers=5")
    assert fewer(small, 4) is None

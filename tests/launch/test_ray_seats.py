"""Where a plan's processes sit on a Ray cluster: data from data."""

import pytest

from conf.errors import UserError
from conf.schema import DeviceConfig, PlanConfig
from launch.ray import seats
from parallel.builders import build
from parallel.plan import Workload

ANY = DeviceConfig()


def plan_of(name: str, **settings):
    return build(PlanConfig(name, **settings), Workload(steps=4, layers=8, layer_bytes=(1,) * 8, decodes=False))


def test_gpus_are_taken_node_by_node():
    found = seats(plan_of("timestep"), [{"GPU": 2, "CPU": 8}, {"GPU": 2, "CPU": 8}], ANY)
    assert found == ([{"GPU": 2.0}, {"GPU": 2.0}], (0, 0, 1, 1), {"GPU": 1.0})
    # All of them fit the second node.
    assert seats(plan_of("timestep"), [{"GPU": 2}, {"GPU": 8}], ANY).bundles == [{"GPU": 4.0}]


def test_rows_stay_on_a_node():
    found = seats(plan_of("grid", grid=[2, 3]), [{"GPU": 4}, {"GPU": 4}], ANY)
    assert found.of == (0, 0, 0, 1, 1, 1)


@pytest.mark.parametrize("cpus", [(1, 1), (3, 1), (2, 2, 2), (0.5, 0.4), (64,)])
@pytest.mark.parametrize("workers", [1, 3, 4])
def test_processors_are_shared_so_that_everybody_fits(cpus, workers):
    found = seats(plan_of("timestep", workers=workers), [{"CPU": c} for c in cpus], ANY)
    assert len(found.of) == workers
    for bundle, content in enumerate(found.bundles):
        assert found.of.count(bundle) * found.share["CPU"] <= content["CPU"] + 1e-3
        assert content["CPU"] <= max(cpus)


def test_too_few_gpus_are_refused():
    with pytest.raises(UserError, match=r"plan.workers=4: the Ray cluster has 3 GPUs; use plan.workers=3"):
        seats(plan_of("timestep"), [{"GPU": 2}, {"GPU": 1}], ANY)
    assert seats(plan_of("timestep"), [{"GPU": 1, "CPU": 4}], DeviceConfig("cpu")).share == {"CPU": 0.9}

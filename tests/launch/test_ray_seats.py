"""Where a plan's processes sit on a Ray cluster: data from data, and two real nodes."""

import pytest

from conf.errors import UserError
from conf.schema import DeviceConfig, PlanConfig
from launch.ray import seats
from launch.signals import signals_kept
from parallel.builders import build
from parallel.plan import Workload
from tests.launch.test_launchers import BASE, report_of, start

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


@pytest.fixture
def two_nodes():
    """The address of a Ray cluster of two nodes on this machine, two processors each."""
    cluster_utils = pytest.importorskip("ray.cluster_utils")
    with signals_kept():
        cluster = cluster_utils.Cluster(True, head_node_args={"num_cpus": 2, "include_dashboard": False})
        cluster.add_node(num_cpus=2)
    yield cluster.address
    cluster.shutdown()


def test_two_ray_nodes_give_the_oracles_bits(job, tmp_path, two_nodes):
    """A grid of two rows: each on its own node, so that hidden states stay inside."""
    expected = job(*BASE, "sink.video=null")
    more = (f"launcher.address={two_nodes}", "launcher.nodes=2", f"output_dir={tmp_path}/run")
    process = start("ray", 4, *BASE, "plan=grid", "device=cpu", *more)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    found = report_of(tmp_path / "run")
    assert found["latents_sha256"] == expected["latents_sha256"]
    nodes = list(found["nodes"].values())
    assert nodes[:2] == nodes[:1] * 2
    assert nodes[2:] == nodes[2:3] * 2
    assert nodes[0] != nodes[2]


def test_nodes_that_do_not_come_are_missed(tmp_path, two_nodes):
    more = (f"launcher.address={two_nodes}", "launcher.nodes=3", "launcher.nodes_s=1", f"output_dir={tmp_path}/run")
    process = start("ray", 2, "model=nano", "plan=timestep", *more)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 2
    assert "error: launcher.nodes=3: the Ray cluster has 2 after 1 s" in err

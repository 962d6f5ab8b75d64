"""Runs on one Ray cluster of two nodes, which all of them share."""

import pytest

from launch.stream import main
from tests.launch.test_control import come_and_go

BASE = ("launcher=ray", "model=nano", "plan=timestep", "plan.workers=2", "device=cpu")


@pytest.fixture(scope="module")
def two_nodes():
    """The address of a Ray cluster of two nodes on this machine, a processor each."""
    cluster_utils = pytest.importorskip("ray.cluster_utils")
    from launch.signals import signals_kept

    with signals_kept():
        cluster = cluster_utils.Cluster(True, head_node_args={"num_cpus": 1, "include_dashboard": False})
        cluster.add_node(num_cpus=1)
    yield f"launcher.address={cluster.address}"
    cluster.shutdown()


def test_streams_come_and_go_on_two_nodes(tmp_path, nano, two_nodes):
    nodes = come_and_go(nano, tmp_path, "ray", two_nodes, "launcher.nodes=2", "device=cpu")
    first, second = nodes.values()
    assert first != second


def complaint(capsys, folder, *overrides: str) -> str:
    """The one error of a run that comes to nothing; how many workers are ready may stand before it."""
    assert main([*BASE, f"output_dir={folder}/run", *overrides]) == 2
    [line] = [line for line in capsys.readouterr().err.splitlines() if "workers ready" not in line]
    assert not (folder / "run").exists()
    return line


def test_a_mistake_is_one_line(capsys, tmp_path, two_nodes):
    assert complaint(capsys, tmp_path, two_nodes, "source.image=/nowhere.png") == (
        "error: source.image=/nowhere.png: there is no such file; give a picture such as png, jpeg or webp"
    )


def test_nodes_that_do_not_come_are_missed(capsys, tmp_path, two_nodes):
    found = complaint(capsys, tmp_path, two_nodes, "launcher.nodes=3", "launcher.nodes_s=1")
    assert found.startswith("error: launcher.nodes=3: the Ray cluster has 2 after 1 s")

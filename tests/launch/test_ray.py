"""Runs on one Ray cluster of two nodes, which all of them share."""

import pytest

from launch.stream import main
from tests.helpers import config_of, thorough
from tests.launch.losing import EXACT, ended, going, recovered, strike
from tests.launch.ruled import RULES, alone, ruled
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
    assert complaint(capsys, tmp_path, two_nodes, "source.image=/proc/nowhere.png") == (
        "error: source.image=/proc/nowhere.png: there is no such file; give a picture such as png, jpeg or webp"
    )


def test_nodes_that_do_not_come_are_missed(capsys, tmp_path, two_nodes):
    found = complaint(capsys, tmp_path, two_nodes, "launcher.nodes=3", "launcher.nodes_s=1")
    assert found.startswith("error: launcher.nodes=3: the Ray cluster has 2 after 1 s")


@pytest.mark.parametrize("name", [name if name == "video, stream batch" else thorough(name) for name in RULES])
def test_every_history_rule_and_world_is_gone_on_with_and_loses_a_worker(tmp_path, two_nodes, name):
    """A state of the oracle's goes on here; a worker is lost on the way; the oracle goes on with a state of here."""
    base, rule = ruled(tmp_path, name), RULES[name]
    oracle = alone(tmp_path / "oracle", *base, f"stream.save_every_chunks={rule.saved}")["latents_sha256"]
    made = tmp_path / "made"
    config = config_of(
        *base, *rule.plan, "launcher=ray", two_nodes, "launcher.nodes=2", *EXACT,
        f"resume={tmp_path}/oracle", f"stream.save_every_chunks={rule.every}", f"output_dir={made}",
    )  # fmt: skip
    with going(config, rule.struck) as run:
        strike(run, 1)
        assert recovered(run)["cut"]["0"] >= rule.saved
        assert ended(run) == (oracle, rule.chunks)
    after = alone(tmp_path / "after", *base, f"resume={made}")
    assert after["latents_sha256"] == oracle and after["state"]["resumed_at"] == 3 * rule.every

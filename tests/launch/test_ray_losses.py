"""Workers and nodes of a Ray cluster that are lost on purpose: the streams go on with the oracle's latents."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.helpers import config_of
from tests.launch.losing import EXACT, ended, going, pid, recovered, strike, until

ray = pytest.importorskip("ray")

CHUNKS = 200
BASE = (
    "launcher=ray", *EXACT, "model=nano", "sink.video=null", "plan=timestep", "plan.workers=2",
    f"stream.chunks={CHUNKS}",
)  # fmt: skip


def test_a_lost_actor_is_replaced_and_only_our_lines_say_so(tmp_path, nano, capsys):
    oracle = nano(f"stream.chunks={CHUNKS}")
    with going(config_of(*BASE, f"output_dir={tmp_path}/run", "device=cpu")) as run:
        strike(run, 1)
        assert recovered(run)["workers"] == 2 and run.generation.processes == (0, 2)
        assert ended(run) == (oracle, CHUNKS)
    out, err = capsys.readouterr()
    assert out == "" and "raylet" not in err and "ray::" not in err


class Nodes:
    """A Ray cluster of nodes on this machine; the driver is on one of them."""

    def __init__(self, cluster):
        self.cluster = cluster
        self.address = f"launcher.address={cluster.address}"

    def of(self, run) -> dict[int, str]:
        """The node of every process of a run."""
        found = {a["Pid"]: a["Address"]["NodeID"] for a in ray._private.state.actors().values()}
        return {p: found[pid(run, p)] for p in (*run.generation.processes, *run.supervisor.spares)}

    def lose(self, run, number: str) -> list[int]:
        """Kill a node, and all of the run that is there; returns who was."""
        at = self.of(run)
        node = next(node for node in (self.cluster.head_node, *self.cluster.worker_nodes) if node.node_id == number)
        pids = [pid(run, process) for process in at if at[process] == number]
        for one in (node.all_processes["raylet"][0].process.pid, *pids):
            os.kill(one, signal.SIGKILL)
        return [process for process in at if at[process] == number]


@contextmanager
def nodes(count: int, **resources: int) -> Iterator[Nodes]:
    from ray.cluster_utils import Cluster

    from launch.signals import signals_kept

    with signals_kept():
        cluster = Cluster(True, head_node_args={"include_dashboard": False, **resources})
        for _ in range(count - 1):
            cluster.add_node(**resources)
    try:
        yield Nodes(cluster)
    finally:
        cluster.shutdown()


def another(run, there: Nodes) -> str:
    """A node with members of a run's plan, that is not the driver's."""
    at = there.of(run)
    own = ray.get_runtime_context().get_node_id()
    return next(at[process] for process in run.generation.processes if at[process] != own)


@pytest.mark.long
def test_a_worker_on_another_node_then_a_stopped_one(tmp_path, nano):
    oracle = nano("stream.chunks=400")
    with nodes(2, num_cpus=1) as there:
        config = config_of(
            *BASE, there.address, "launcher.nodes=2", "device=cpu", "stream.chunks=400", f"output_dir={tmp_path}/run",
            "launcher.silent_s=5",
        )  # fmt: skip
        with going(config) as run:
            at = there.of(run)
            away = another(run, there)
            victim = next(process for process, node in at.items() if node == away)
            strike(run, victim)
            recovered(run)
            assert there.of(run)[run.generation.processes[victim]] == away  # its seat is free again
            stopped = run.generation.processes[victim]
            strike(run, stopped, how=signal.SIGSTOP)
            assert "silent" in recovered(run, 1)["why"]
            assert ended(run) == (oracle, 400)


@pytest.mark.long
def test_a_lost_node_with_a_spare_elsewhere(tmp_path, nano):
    oracle = nano(f"stream.chunks={CHUNKS}")
    with nodes(3, num_cpus=2) as there:
        config = config_of(
            *BASE, there.address, "launcher.nodes=3", "device=cpu", "plan.workers=4", "launcher.spares=1",
            f"output_dir={tmp_path}/run",
        )  # fmt: skip
        with going(config) as run:
            at = there.of(run)
            [spare] = run.supervisor.spares
            assert at[spare] not in [at[process] for process in run.generation.processes]
            lost = there.lose(run, another(run, there))
            record = recovered(run)
            assert record["workers"] == 4 and spare in run.generation.processes and record["frozen_s"] < 30
            assert not set(run.generation.processes) & set(lost)
            assert ended(run) == (oracle, CHUNKS)


@pytest.mark.long
@pytest.mark.parametrize("count", [2, 3])
def test_a_lost_node_with_its_gpus(tmp_path, nano, count):
    """Ray counts GPUs that are none. On the third node there is room; where there is no third, fewer workers go on."""
    oracle = nano(f"stream.chunks={CHUNKS}")
    with nodes(count, num_cpus=2, num_gpus=2) as there:
        config = config_of(
            *BASE, there.address, f"launcher.nodes={count}", "device=auto", "plan.workers=4",
            f"output_dir={tmp_path}/run",
        )  # fmt: skip
        with going(config) as run:
            lost = there.lose(run, another(run, there))
            record = recovered(run)
            assert len(lost) == 2 and record["workers"] == (4 if count == 3 else 2)
            until(lambda: not set(run.generation.processes) & set(lost), run)
            assert ended(run) == (oracle, CHUNKS)

"""Start-up on Ray: every worker is an actor, pinned to its node by a placement group; Ray watches over them."""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple

import ray
import torch
import torch.distributed as dist
from ray.util.placement_group import placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy
from rich.console import Console

from conf.errors import UserError
from conf.schema import Config, DeviceConfig
from launch import control
from launch.log import Log
from launch.meeting import Meeting, attend
from launch.progress import Watch
from launch.signals import signals_kept
from parallel.builders import build
from parallel.placement import place
from parallel.plan import Plan
from runtime.board import Abandoned, Board, PeerLost
from runtime.pipeline import Pipeline, results
from runtime.process import over_network, run_worker
from runtime.workload import describe

POLL_S = 0.2
GRACE_S = 10.0
"""How long the survivors of a failure may take to finish their files."""


@ray.remote(max_restarts=0)
class WorkerActor:
    """A worker of a plan, in a process of its own."""

    def run(self, plan, index: int, config: Config, address: tuple[str, int], stdin: tuple[str, int] | None) -> Any:
        """Be worker `index` until every stream has ended; returns its part of the report, or what went wrong."""
        store, device = _store_at(address, config), _gpu(config)
        stream = (
            socket.create_connection(stdin).makefile("rb") if stdin and index == plan.group(plan.encode)[0] else None
        )
        try:
            board, connect = Board(store, index, plan.processes), over_network(plan, index, config, store)
            result = run_worker(plan, index, config, board, Path(config.output_dir), connect, device, stdin=stream)
            return result | {"node": ray.get_runtime_context().get_node_id()}
        except (UserError, PeerLost, Abandoned) as error:
            return error


@ray.remote(max_restarts=0)
class DoctorActor:
    """Who looks around where a worker would be."""

    def attend(self, plan: Plan, index: int, config: Config, address: tuple[str, int]) -> None:
        """Be worker `index` of a meeting."""
        attend(Meeting(_store_at(address, config), index, plan, config, _gpu(config)))


def _store_at(address: tuple[str, int], config: Config) -> dist.Store:
    return dist.TCPStore(*address, is_master=False, timeout=timedelta(seconds=config.launcher.timeout_s))


def _gpu(config: Config) -> torch.device | None:
    """The GPU that Ray shows an actor; None: it has none."""
    return torch.device("cuda") if config.device.may_be_gpu and torch.cuda.is_available() else None


@contextlib.contextmanager
def cluster(config: Config) -> Iterator[str]:
    """Ray with all its nodes, attached to or started, while the context is open; gives this machine's address.

    Raises:
        UserError: there is none at the address given, or too few nodes come.
    """
    try:
        _start(config)
        yield ray.util.get_node_ip_address()
    finally:
        ray.shutdown()


def _start(config: Config) -> None:
    """Attach to a running cluster, or start one on this machine with room for every worker."""
    quiet = {"configure_logging": True, "logging_level": "ERROR", "log_to_driver": False}
    # Workers import this very checkout, whatever their working folder is.
    paths = os.pathsep.join(p for p in (str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH")) if p)
    environment = {"env_vars": {"PYTHONPATH": paths, "OMP_NUM_THREADS": str(config.device.threads)}}
    with signals_kept():
        _connect(config, environment, quiet)
    _all_here(config)


def _connect(config: Config, environment: dict, quiet: dict) -> None:
    if config.launcher.address:
        try:
            ray.init(address=config.launcher.address, runtime_env=environment, **quiet)
        except ConnectionError as error:
            raise UserError(
                f"launcher.address={config.launcher.address}",
                "no Ray cluster answers there",
                "start one with `ray start --head`, or leave launcher.address out",
            ) from error
    else:
        # Without "local" it would join whatever cluster was started on this machine last, a batch job's maybe.
        ray.init(address="local", include_dashboard=False, runtime_env=environment, **quiet)


def nodes() -> list[dict[str, Any]]:
    """Nodes of the cluster that are alive, as Ray describes them."""
    return [node for node in ray.nodes() if node["Alive"]]


def _all_here(config: Config) -> None:
    """Wait for the nodes that were announced.

    Raises:
        UserError: fewer came in time.
    """
    wanted, end = config.launcher.nodes or 1, time.monotonic() + config.launcher.nodes_s
    while len(nodes()) < wanted:
        if time.monotonic() > end:
            there = ", ".join(node["NodeManagerHostname"] for node in nodes())
            raise UserError(
                f"launcher.nodes={wanted}",
                f"the Ray cluster has {len(nodes())} after {config.launcher.nodes_s:g} s ({there})",
                "start Ray on the others (ray start --address=...), or wait longer (launcher.nodes_s)",
            )
        time.sleep(POLL_S)


class Seats(NamedTuple):
    """Where the processes of a plan sit.

    Attributes:
        bundles: resources, one bundle for each node that is used: what is in one bundle is on one node.
        of: the bundle of every process.
        share: of a bundle, for each process.
    """

    bundles: list[dict[str, float]]
    of: tuple[int, ...]
    share: dict[str, float]


def seats(plan: Plan, resources: Sequence[dict[str, float]], device: DeviceConfig) -> Seats:
    """Where a plan's processes go: to GPUs of their own, or to fractions of processors where there are no GPUs.

    Args:
        resources: of every node, as Ray counts them.
        device: what the run may use.

    Raises:
        UserError: there are GPUs, but too few.
    """
    gpus = [int(node.get("GPU", 0)) if device.may_be_gpu else 0 for node in resources]
    if (device.kind == "cuda" or any(gpus)) and sum(gpus) < plan.processes:
        raise UserError(
            f"plan.workers={plan.processes}",
            f"the Ray cluster has {sum(gpus)} GPUs",
            f"use plan.workers={sum(gpus)}, or device=cpu",
        )
    kind, share, room = "GPU", 1.0, gpus
    if not any(gpus):
        cpus = [node.get("CPU", 0.0) for node in resources]
        kind, share = "CPU", min(1.0, round(0.9 * sum(cpus) / plan.processes, 4))
        while sum(room := [int(c / share) for c in cpus]) < plan.processes:
            share = round(0.9 * share, 4)
    held = [node for node, count in enumerate(room) for _ in range(count)]
    at = [held[seat] for seat in place(plan, held)]
    used = list(dict.fromkeys(at))
    bundles = [{kind: round(share * at.count(node), 4)} for node in used]
    return Seats(bundles, tuple(used.index(node) for node in at), {kind: share})


@contextlib.contextmanager
def actors(kind: Any, plan: Plan, config: Config) -> Iterator[list[Any]]:
    """An actor of class `kind` for every process of a plan, each where it belongs.

    Raises:
        UserError: Ray has no room for them.
    """
    seated = seats(plan, [node["Resources"] for node in nodes()], config.device)
    group = placement_group(seated.bundles, strategy="PACK")
    try:
        if not group.wait(timeout_seconds=config.launcher.timeout_s):
            raise UserError(
                f"plan.workers={plan.processes}",
                f"Ray has no room for {' and '.join(map(str, seated.bundles))} within {config.launcher.timeout_s:g} s",
                "use fewer workers, or wait until others have left",
            )
        yield [
            kind.options(
                num_cpus=seated.share.get("CPU", 0),
                num_gpus=seated.share.get("GPU", 0),
                scheduling_strategy=PlacementGroupSchedulingStrategy(group, bundle),
            ).remote()
            for bundle in seated.of
        ]
    finally:
        remove_placement_group(group)


def _feed(listener: socket.socket) -> None:
    """Standard input of this process to whoever connects: actors have none of their own."""
    connection, _ = listener.accept()
    with connection, contextlib.suppress(OSError):
        while block := os.read(sys.stdin.fileno(), 65536):
            connection.sendall(block)


def stream(config: Config, begin, console: Console, stop: threading.Event, log: Log) -> tuple[list[dict], list[dict]]:
    """Run a plan on Ray.

    Args:
        config: the run.
        begin: makes the output folder; called once all workers have loaded.
        console, log: where progress goes.
        stop: ends the streams when set.

    Returns:
        Every worker's and every stream's part of the report.

    Raises:
        UserError: a worker could not load or open something.
        PeerLost: a worker died; names it.
    """
    plan = build(config.plan, describe(config))
    config.output_dir = str(Path(config.output_dir).absolute())
    with contextlib.ExitStack() as stack:
        host = stack.enter_context(cluster(config))
        store = dist.TCPStore(host, 0, is_master=True, wait_for_workers=False)
        board = Board(store, -1, plan.processes)
        pipeline = Pipeline(board, plan, config)
        control.begin(pipeline, config)
        stdin = None
        if "-" in (config.source.audio, config.source.actions):
            listener = stack.enter_context(socket.create_server((host, 0)))
            threading.Thread(target=_feed, args=(listener,), daemon=True).start()
            stdin = listener.getsockname()[:2]
        with actors(WorkerActor, plan, config) as placed:
            running = {
                actor.run.remote(plan, index, config, (host, store.port), stdin): index
                for index, actor in enumerate(placed)
            }
            with Watch(pipeline, config, console, log):
                workers = _collect(running, pipeline, begin, stop, plan)
        numbers = {node["NodeID"]: number for number, node in enumerate(nodes())}
        workers = [worker | {"node": numbers.get(worker["node"], -1)} for worker in workers]
        pipeline.leave()
        return workers, results(pipeline)


def _collect(running: dict, pipeline: Pipeline, begin, stop: threading.Event, plan: Plan) -> list[dict]:
    """Wait for every process; the first failure ends the run, once the survivors have finished their files."""
    board = pipeline.board
    results: dict[int, Any] = {}
    begun = stopped = False
    while running:
        if not begun and all(board.told(f"loaded/{i}") for i in range(plan.processes)):
            begin()
            board.tell("begun")
            begun = True
        if stop.is_set() and not stopped:
            pipeline.stop()
            stopped = True
        done, _ = ray.wait(list(running), timeout=POLL_S)
        for reference in done:
            index = running.pop(reference)
            try:
                results[index] = ray.get(reference)
            except ray.exceptions.RayError:
                gone = f"worker {plan.members[index]} is lost (its process ended)"
                results[index] = PeerLost(board.first("lost", [-1, gone])[1])
                board.first("failed", str(results[index]))
            if isinstance(results[index], Exception):
                ray.wait(list(running), num_returns=len(running), timeout=GRACE_S) if running else None
                for other, place in running.items():
                    with contextlib.suppress(ray.exceptions.RayError):
                        results[place] = ray.get(other, timeout=0.1)
                raise _worst(list(results.values()), board)
    return [results[i] for i in range(plan.processes)]


def _worst(results: list[Any], board: Board) -> Exception:
    """The failure to tell: what the user can mend, before who was lost."""
    for result in results:
        if isinstance(result, UserError):
            return result
    told = board.told("lost")
    return PeerLost(told[1] if told else str(next(r for r in results if isinstance(r, Exception))))

"""Is everything ready? Takes the settings of `everframe stream` and `everframe serve`, under every launcher.

Looks at each worker's device, GPU driver, CUDA, NCCL, networks, shared memory, disk, output folder, video encoder and
version of Everframe, at the links between all workers, and at Ray's ports; for serving, at its packages, its ports, its
certificate, its encoders, its STUN and TURN servers and the limit of open files, which are mistakes where a setting of
`serve` is given. One line each: value, rule, remedy. Exit code 2 if something is wrong.
"""

from __future__ import annotations

import logging
import socket
import sys
import threading
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import torch.distributed as dist
from omegaconf import DictConfig
from rich import box
from rich.console import Console
from rich.table import Table

import devices
from conf.errors import UserError
from conf.schema import Config
from conf.schema.serve import ServedConfig
from launch import planning, running, torchrun
from launch.checks import Finding, fingerprint, local, merged, shared
from launch.cli import EXIT_USER_ERROR, run
from launch.command import Command
from launch.local import threads
from launch.meeting import Meeting, attend
from launch.places import settled, small
from launch.serving import serving
from parallel.builders import build
from parallel.plan import Plan
from parallel.transport import NCCL
from runtime.workload import describe

Found = dict[str, list[Finding]]
"""Findings by who found them."""
CONNECT_S = 3.0
COMMAND = Command("doctor", __doc__, schema=ServedConfig)


def _local(config: Config) -> Found:
    """Workers are of this machine: what there is for one is there for all."""
    config = planning.resolve(config)
    own = [*local(config, True), Finding("Everframe", fingerprint(), "the same everywhere")]
    # Threads hand tensors over, by whatever way others are asked to take.
    transport = None if threads(config) and config.launcher.transport != NCCL else config.launcher.transport
    plan = _plan(config)
    libraries = [devices.nccl_version() or ""] * plan.processes
    return {"this machine": [*own, *shared(plan, running.cards(plan, config), transport, libraries)]}


def _torchrun(config: Config) -> Found | None:
    """Every rank attends, and the first gathers."""
    store, rank, world = torchrun.meeting_point(config.launcher.timeout_s)
    config = planning.resolve(replace(config, plan=replace(config.plan, workers=config.plan.workers or world)))
    plan = _plan(config)
    if plan.processes != world:
        raise UserError(
            f"plan.workers={plan.processes}",
            f"torchrun started {world} processes",
            f"use plan.workers={world}, or start {plan.processes}",
        )
    meeting = Meeting(store, rank, plan, config, torchrun.device(config))
    if rank:
        attend(meeting)
        return None
    return _gathered(meeting)


def _gathered(meeting: Meeting) -> Found:
    """What a process gathers that also attends."""
    thread = threading.Thread(target=attend, args=(_clone(meeting),), daemon=True)
    thread.start()
    found = meeting.gather()
    thread.join(meeting.patience)
    return found


def _clone(meeting: Meeting) -> Meeting:
    """The same, on a connection of its own: whoever waits on a store's connection keeps others from using it."""
    return Meeting(meeting.board.store.clone(), meeting.index, meeting.plan, meeting.config, meeting.device)


def _ray(config: Config) -> Found:
    """Every worker is an actor where a stream's would be; this process gathers."""
    from launch import ray  # a heavy import that other launchers do without

    config = planning.resolve(config)
    plan = _plan(config)
    with ray.cluster(config) as host:
        found = {"Ray": list(_ports(ray.nodes()))}
        store = dist.TCPStore(host, 0, is_master=True, wait_for_workers=False)
        with ray.actors(ray.DoctorActor, plan, config) as placed:
            held = [actor.attend.remote(plan, i, config, (host, store.port)) for i, actor in enumerate(placed)]
            found |= Meeting(store, -1, plan, config).gather()
            del held
    return found


def _ports(nodes: Iterable[dict[str, Any]]) -> Iterable[Finding]:
    """Whether the ports that Ray tells of can be reached from here."""
    for node in nodes:
        host = node["NodeManagerAddress"]
        for name in ("NodeManagerPort", "ObjectManagerPort"):
            value, rule = f"{host}:{node[name]} ({name})", "can be reached from here"
            try:
                socket.create_connection((host, node[name]), CONNECT_S).close()
                yield Finding("port", value, rule)
            except OSError as error:
                remedy = "open it, or choose others: ray start --node-manager-port=, --object-manager-port="
                yield Finding("port", f"{value}: {error.strerror or error}", rule, remedy)


def _plan(config: Config) -> Plan:
    return build(config.plan, describe(config))


DOCTORS = {"local": _local, "torchrun": _torchrun, "ray": _ray}


def _instead(config: Config) -> Found:
    """What is taken for `device=auto` though there may be a GPU."""
    if settled(config) is config:
        return {}
    return {"this process": [Finding("device", f"cpu: {small(config)}", "a GPU where it is a gain")]}


def table(found: Found) -> Table:
    """A line for every finding; what is wrong comes last, where it is seen."""
    lines = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for column in ("", "what", "value", "rule", "remedy", "where"):
        lines.add_column(column, overflow="fold")
    for where, f in sorted(merged(found), key=lambda line: not line[1].ok):
        lines.add_row("ok" if f.ok else "[red]FAIL[/]", f.what, f.value, f.rule, f.remedy, where)
    return lines


def job(config: ServedConfig, resolved: str) -> None:
    """Look, print, and end with the exit code."""
    found = DOCTORS[config.launcher.name](config)
    if found is None:
        return
    found |= _instead(config) | {"the gateway": serving(config.serve)}
    terminal = sys.stdout.isatty()
    Console(highlight=False, width=None if terminal else 1000).print(table(found))
    if not all(f.ok for findings in found.values() for f in findings):
        raise SystemExit(EXIT_USER_ERROR)


def main(argv: list[str] | None = None) -> int:
    """The entry point; returns the exit code."""

    def prepare(config: DictConfig) -> None:
        torchrun.refuse_other(config.launcher.name)

    logging.basicConfig(level=logging.ERROR, format="%(levelname)s: %(message)s")
    return run(COMMAND, job, argv, "doctor", prepare=prepare, speaks=torchrun.speaks())


if __name__ == "__main__":
    sys.exit(main())

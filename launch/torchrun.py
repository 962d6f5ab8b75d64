"""Start-up under torchrun: every rank is one worker of the plan.

torchrun --nproc-per-node=5 -m launch.stream launcher=torchrun plan=timestep model=NAME ...
"""

from __future__ import annotations

import json
import os
import platform
import re
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from functools import cache, partial
from pathlib import Path

import torch
import torch.distributed as dist
from omegaconf import DictConfig

import devices
from conf.errors import UserError
from conf.schema import Config
from launch.here import PROCESSOR, Card, cluster, machine
from launch.places import Seat, named, on_seats, settled
from launch.restarting import restarts
from launch.signals import Stop, give_up
from parallel.address import refuse_loopback
from parallel.channels import ChannelError, Failure, Inbox
from parallel.plan import Plan
from runtime.board import Abandoned, Board, PeerLost
from runtime.heap import few_arenas
from runtime.network import over_network
from runtime.process import run_worker
from runtime.pulse import PULSE_S
from runtime.reasons import Reason
from runtime.running import DRIVER, INTERRUPT, POLL_S, STOPPED, Running, Start, Stopped

RENDEZVOUS_S, MEET_POLL_S = 300.0, 0.05
"""How long ranks that have found the store wait for others to come: their machines may be slower by minutes."""
MOST_RANKS = 1 << 16
START = "start it with torchrun --nproc-per-node=N -m launch.stream launcher=torchrun ..."
TELL_S = 2.0
"""How long the first rank waits for the others to hear that the run was given up."""
SILENT_S = 3 * PULSE_S
"""How long nothing is heard of a rank that has not survived a failure."""


def meeting_point(timeout_s: float) -> tuple[dist.Store, int, int]:
    """(store, rank, world size) of this torchrun. Waits for whoever holds the store, and for nobody else.

    Args:
        timeout_s: how long the store may take to answer.

    Raises:
        UserError: this process was not started by torchrun, or the store cannot be held or reached.
    """
    if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
        raise UserError("launcher=torchrun", "this process was not started by torchrun", START)
    world = _told("WORLD_SIZE", range(1, MOST_RANKS))
    rank, port = _told("RANK", range(world)), _told("MASTER_PORT", range(1, 1 << 16))
    if not (host := os.environ.get("MASTER_ADDR")):
        raise UserError("MASTER_ADDR", "is not set, as torchrun does", START)
    # The torchrun of the first host may hold it already.
    held = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    holds = rank == 0 and not held
    try:
        store: dist.Store = dist.TCPStore(
            host, port, is_master=holds, wait_for_workers=False, timeout=timedelta(seconds=timeout_s)
        )
    except RuntimeError as error:
        rule = "this port cannot be opened here" if holds else f"nobody answers there within {timeout_s:g} s"
        raise UserError(
            f"MASTER_ADDR={host} MASTER_PORT={port}",
            f"{rule} ({str(error).splitlines()[0][:160]})",
            "use a port that is free on the first host and open to the others",
        ) from error
    store.set_timeout(timedelta(seconds=RENDEZVOUS_S))
    if held:
        store = dist.PrefixStore(attempt(restarts()), store)
    return store, rank, world


def _told(name: str, valid: range) -> int:
    """What torchrun tells this process under a name.

    Raises:
        UserError: it is not in `valid`, or not there.
    """
    value = os.environ.get(name)
    if value is None:
        raise UserError(name, "is not set, as torchrun does", START)
    if not value.isdecimal() or int(value) not in valid:
        raise UserError(f"{name}={value}", f"must be a number from {valid.start} to {valid.stop - 1}", START)
    return int(value)


@cache
def rendezvous(timeout_s: float) -> tuple[dist.Store, int, int]:
    """The meeting point, found once; all else is as of `meeting_point`."""
    return meeting_point(timeout_s)


def heard(store: dist.Store, key: str) -> bytes:
    """What a rank has said under a key; waits for it.

    Raises:
        Stopped: a rank was told to stop meanwhile.
        Abandoned: a rank has failed meanwhile.
        PeerLost: nothing was said within `RENDEZVOUS_S`.
    """
    end = time.monotonic() + RENDEZVOUS_S
    while not store.check([key]):
        if store.check([INTERRUPT]):
            raise Stopped
        if store.check(["failed"]):
            raise Abandoned(store.get("failed").decode())
        if time.monotonic() > end:
            raise PeerLost(f"nothing was heard of {key} for {RENDEZVOUS_S:.0f} s")
        time.sleep(MEET_POLL_S)
    return store.get(key)


def machines(config: Config, store: dist.Store, rank: int, world: int) -> tuple[list[Seat], list[list[Card]]]:
    """(where every rank is, the devices of every machine). Machines are numbered by the torchruns that started their
    ranks. Waits for all ranks.
    """
    own = [os.environ.get("GROUP_RANK", 0), platform.node(), machine(config)]
    store.set(f"machine/{rank}", json.dumps(own))
    seats: list[Seat] = []
    found: dict[int, dict[Card, None]] = {}
    for other in range(world):
        node, name, told = json.loads(heard(store, f"machine/{other}"))
        there = [Card(*card) for card in told]
        seats.append(Seat(int(node), name, tuple(card.where for card in there if card.title != PROCESSOR)))
        # A rank may be shown some of its machine's devices only.
        found.setdefault(int(node), {}).update(dict.fromkeys(there))
    return seats, [list(found[node]) for node in sorted(found)]


def with_host(line: str, plan: Plan, hosts: Sequence[str]) -> str:
    """A line about a worker with the name of its host, where there are several.

    Args:
        hosts: of every process.
    """

    def named(found: re.Match) -> str:
        members = [i for i, member in enumerate(plan.members) if str(member) == found[1]]
        return f"{found[0]} on {hosts[members[0]]}" if members else found[0]

    return re.sub(r"worker (\d+(?:\.\d+)?)", named, line, count=1) if len(set(hosts)) > 1 else line


def speaks() -> bool:
    """Whether this process prints what all would print: the first of a torchrun, or any other process."""
    one_of_several = {"RANK", "WORLD_SIZE", "MASTER_ADDR"} <= os.environ.keys()
    rank = os.environ["RANK"] if one_of_several else ""
    return not rank.isdecimal() or int(rank) == 0


def refuse_other(launcher: str) -> None:
    """Refuse a launcher that knows nothing of torchrun's processes: each would be a whole run, all into the same files.

    Raises:
        UserError: torchrun has started several.
    """
    count = os.environ.get("WORLD_SIZE", "1")
    if launcher != "torchrun" and "TORCHELASTIC_RUN_ID" in os.environ and count != "1":
        raise UserError(
            f"launcher={launcher}",
            f"torchrun started {count} processes, and each would be a run of its own",
            "set launcher=torchrun, or start it once, without torchrun",
        )


def hearing() -> dict[str, float]:
    """How a process hears signals (see `launch.signals.Stop`): under torchrun a rank first meets the others to tell
    them, and torchrun itself passes on what the terminal has sent to all.
    """
    return {"patience_s": 8.0, "echo_s": 1.0} if "TORCHELASTIC_RUN_ID" in os.environ else {}


def agree(config: DictConfig, stop: Stop | None = None) -> None:
    """Give all ranks rank 0's output folder: its default holds the time of day. A stop ends all ranks from here on."""
    if config.launcher.name != "torchrun":
        return
    store, rank, _ = rendezvous(config.launcher.timeout_s)

    def give_up_together() -> None:
        store.set(INTERRUPT, "true")
        give_up(speaks())

    if stop is not None:
        stop.then(give_up_together)
    if rank == 0:
        store.set("output_dir", _before(config, store) or config.output_dir)
    config.output_dir = heard(store, "output_dir").decode()


def _before(config: DictConfig, store: dist.Store) -> str | None:
    """The output folder that this run had before torchrun started it again, where it is to go on; its default holds the
    time of day. None: it is the first time, or nobody knows any more."""
    if str(config.launcher.recover).lower() != "exact" or not isinstance(store, dist.PrefixStore):
        return None
    kept = store.underlying_store
    earlier = (dist.PrefixStore(attempt(number), kept) for number in reversed(range(restarts())))
    return next((one.get("output_dir").decode() for one in earlier if one.check(["output_dir"])), None)


def attempt(number: int) -> str:
    """What the keys of a run begin with that was started again so often."""
    return f"attempt_{number}"


def seated(plan: Plan, config: Config, rank: int, seats: Sequence[Seat]) -> tuple[int, torch.device | None, list[Seat]]:
    """(this rank's process of a plan, its GPU where there is one, the seat of every process).

    Args:
        seats: where every rank is.
    """
    of, own = on_seats(plan, config.plan.devices, seats)
    index = of.index(rank)
    found = None if own[index] is None else devices.choose("cuda", own[index])
    if found is not None:
        devices.of(found).use()
    return index, found, [seats[seat] for seat in of]


def device(config: Config) -> torch.device | None:
    """This rank's GPU, where there are GPUs and no plan says which.

    Raises:
        UserError: there are several, and nothing says which is this rank's.
    """
    count = devices.count()
    if not (config.device.may_be_gpu and count):
        return None
    device = devices.choose("cuda", _told("LOCAL_RANK", range(MOST_RANKS)) if count > 1 else 0)
    devices.of(device).use()
    return device


def sized(config: Config) -> Config:
    """The configuration, its plan of as many workers as torchrun started processes; where a plan is to be found and no
    cluster is named, with that of all ranks' machines."""
    store, rank, workers = rendezvous(config.launcher.timeout_s)
    if config.plan.workers not in (None, workers):
        raise UserError(
            f"plan.workers={config.plan.workers}",
            f"torchrun started {workers} processes",
            f"use plan.workers={workers}, or --nproc-per-node={config.plan.workers}",
        )
    config = replace(config, plan=replace(config.plan, workers=workers))
    if config.plan.name != "auto" or config.cluster.devices or config.cluster.file or config.device.kind == "emulated":
        return config
    _, found = machines(settled(config), store, rank, workers)
    return replace(config, cluster=cluster(found, config.cluster.measured))


def cards(plan: Plan, config: Config) -> tuple[str, ...]:
    """The GPU of every process; empty: not all have one. For ranks that have met."""
    seats, _ = machines(config, *rendezvous(config.launcher.timeout_s))
    return named(seats, *on_seats(plan, config.plan.devices, seats))


def launched(start: Start) -> Running:
    """This rank's worker, not started yet; on the first rank with the pipeline of all."""
    store, rank, world = rendezvous(start.config.launcher.timeout_s)
    seats, _ = machines(start.config, store, rank, world)
    running = TorchrunRun(start, store, rank, seats)
    board = Board(store, running.index, world)
    if running.leads:
        try:
            running.open_first(start.first)
        except UserError as error:
            board.first("failed", {"process": running.index} | Reason.of(error).to_dict())
            raise
    board.tell(f"ordered/{rank}")
    heard(store, "ordered/0")
    return running


class TorchrunRun(Running):
    """One rank's worker, on a thread. The first rank watches over the others, too; these follow it to the end.

    torchrun's own process sees who dies and ends all ranks, so nobody here does.

    Args:
        start: what to run.
        store: that all ranks share.
        rank: of this process.
        seats: where every rank is.

    Attributes:
        index: this rank's process of the plan.
    """

    def __init__(self, start: Start, store: dist.Store, rank: int, seats: Sequence[Seat]):
        # A connection of its own: whoever connects with other workers waits on the store's.
        super().__init__(start.plan, start.config, store.clone(), leads=rank == 0)
        self._workers_store = store
        self.index, self._device, self._seats = seated(start.plan, start.config, rank, seats)
        self._stdin, self._inbox = start.stdin, Inbox()
        self._failed: Exception | None = None
        self._thread = threading.Thread(target=self._work, name="worker", daemon=True)

    def _launch(self) -> None:
        self._thread.start()

    def _work(self) -> None:
        plan, config, index = self.plan, self.config, self.index
        store = self._workers_store
        few_arenas()
        try:
            run_worker(
                self.generation, index, config, Board(store, index, plan.processes), Path(config.output_dir),
                over_network(config, store),
                self._device, self._stdin, self._inbox, self._seats[index].node,
                partial(refuse_loopback, store, index, plan.processes),
            )  # fmt: skip
        except Exception as error:
            self._failed = error
        self._wake.set()

    def _gone(self, index: int) -> str | None:
        if index == self.index:
            return None if self._thread.is_alive() else "its thread ended"
        # Nobody tells of other ranks: who is silent after a failure has not survived it.
        silent = self.board.told("failed") is not None and self.roll.silent_s(index) > SILENT_S
        return "nothing is heard of it" if silent else None

    def _until_all_left(self) -> None:
        if self.leads:
            super()._until_all_left()
        else:
            self._follow()

    def _follow(self) -> None:
        """Until the first rank says that all is over, or is gone; raises what failed here, or that others failed."""
        while self._thread.is_alive() or not (self._failed or self._over_for_all()):
            self._wake.wait(POLL_S)
            self._wake.clear()
            told = self.board.told("failed")
            if told and told["kind"] == STOPPED:
                self.board.tell(f"left/{self.index}", False)
                raise Stopped(told["line"])
        self.left.clear()
        if self._failed:
            raise self._named(self._failed)

    def _over_for_all(self) -> bool:
        """Whether the first rank has all reports, and may have left with the store."""
        try:
            return self.board.told("over") is not None
        except RuntimeError:
            return True

    def _end(self) -> None:
        """Give the other ranks time to hear why; each ends its own worker."""
        self._inbox.put(Failure(self.index, ChannelError(self.index, "the run was ended")))
        end = time.monotonic() + TELL_S
        others = self.left - {self.index} if self.leads else set()
        while not all(self.board.told(f"left/{index}") is not None for index in others) and time.monotonic() < end:
            time.sleep(POLL_S)

    def _fault(self, reason: Reason, index: int) -> Exception:
        """Who was the first to fail says so itself; see `launch.stream`."""
        elsewhere = index not in (self.index, DRIVER)
        return self._named(Abandoned(reason.line) if elsewhere else self._failed or super()._fault(reason, index))

    def _named(self, error: Exception) -> Exception:
        hosts = [seat.name for seat in self._seats]
        return PeerLost(with_host(str(error), self.plan, hosts)) if isinstance(error, PeerLost) else error

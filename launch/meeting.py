"""What workers find out about each other before a run: who has come, with which Everframe, over which links."""

from __future__ import annotations

import platform
import queue
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

import devices
from conf.schema import Config
from launch.checks import Finding, existing, fingerprint, local, shared
from launch.here import PROCESSOR, machine
from launch.places import Seat, named, on_seats
from parallel.address import home, misplaced, own_address, told_address
from parallel.channels import ChannelError
from parallel.plan import Plan
from runtime.board import Abandoned, Board, PeerLost
from runtime.folder import strangers
from runtime.links import BothWays, fit

SIZES = (1024, 1 << 22)
"""Bytes of the messages that are timed."""
ROUNDS = 5
CONNECT_S = 5.0
"""Longest wait for a connection, which systems make between themselves, however busy the workers are."""
SLACK_S = 10.0
"""Added to waits for somebody who is himself waiting."""


def rounds(count: int) -> Iterator[list[tuple[int, int]]]:
    """Every pair of `count` workers once, in rounds in which nobody has two. The circle method of tournaments."""
    seats = [*range(count)] + [-1] * (count % 2)
    for _ in range(len(seats) - 1):
        pairs = zip(seats[: len(seats) // 2], reversed(seats[len(seats) // 2 :]), strict=True)
        yield [(min(pair), max(pair)) for pair in pairs if -1 not in pair]
        seats = [seats[0], seats[-1], *seats[1:-1]]


class Meeting:
    """One worker's part.

    Args:
        store: reached by all.
        index: of this process in the plan.
        plan, config: the run.
        device: this worker's; None: what the configuration means here.
        host: its name; None: the machine's.
    """

    def __init__(
        self, store: dist.Store, index: int, plan: Plan, config: Config, device: torch.device | None = None,
        host: str | None = None,
    ):  # fmt: skip
        self.board, self.index, self.plan, self.config = Board(store, index, plan.processes), index, plan, config
        self.device, self.host = device, host or platform.node()
        self.patience = min(config.launcher.timeout_s, 60.0)

    def attend(self) -> None:
        """Say what is here, wait for the others, and try the links to them."""
        decodes = self.index == self.plan.group(self.plan.decode)[0]
        findings = local(self.config, decodes, self.device)
        network = [home("net"), told_address(self.board.store)]
        cards = [card.where for card in machine(self.config) if card.title != PROCESSOR]
        here = {"host": self.host, "code": fingerprint(), "found": findings, "network": network, "cards": cards}
        here["nccl"] = devices.nccl_version() or ""
        self.board.tell(f"here/{self.index}", here)
        self.board.wait("present", self.patience + SLACK_S)
        present = self.board.told("present")
        folder = existing(Path(self.config.output_dir).absolute())
        wrong = strangers(self.board, folder, present, self.index == present[0], self.patience)
        self.board.tell(f"folder/{self.index}", wrong.get(self.index))
        self._links(present)
        self.board.tell(f"over/{self.index}")

    def gather(self) -> dict[str, list[Finding]]:
        """Everything that was found, by whom; for one process, once `attend` runs on all."""
        found: dict[str, list[Finding]] = {}
        here = self._arrivals()
        present = sorted(here)
        self.board.tell("present", present)
        for index in range(self.plan.processes):
            if index not in here:
                rule = f"comes within {self.patience:g} s"
                remedy = "see what it printed; start it, and let it reach the first host's port"
                found[f"worker {index}"] = [Finding("worker", "is missing", rule, remedy)]
        if not present:
            return found
        code, first = here[present[0]]["code"], present[0]
        for index in present:
            rule = f"the same on every worker ({first}: {code})"
            remedy = "" if here[index]["code"] == code else "install the same version there"
            name = f"worker {index} on {here[index]['host']}"
            found[name] = [Finding(*f) for f in here[index]["found"]]
            rule = rule if remedy else "the same everywhere"
            found[name].append(Finding("Everframe", here[index]["code"], rule, remedy))
        for position in misplaced([here[index]["network"] for index in present]):
            index = present[position]
            remedy = "give --local-addr=ADDRESS and MASTER_ADDR of the network that all share, or GLOO_SOCKET_IFNAME"
            address = here[index]["network"][1]
            found[f"worker {index} on {here[index]['host']}"].append(
                Finding("address", f"{address} is told to other hosts", "is no loopback address", remedy)
            )
        self._until({f"over/{i}" for i in present}, (self.patience + SLACK_S) * max(1, len(present)))
        for index in present:
            if why := self.board.told(f"folder/{index}"):
                remedy = "use a file system that all hosts share"
                value = f"{self.config.output_dir}: worker {index} {why}"
                found[f"worker {index} on {here[index]['host']}"].append(
                    Finding("output folder", value, "is one for all", remedy)
                )
        if len(present) == self.plan.processes:
            libraries = [here[index]["nccl"] for index in present]
            found["all workers"] = shared(self.plan, self._cards(here), self.config.launcher.transport, libraries)
        return found | self._told_links(present, here)

    def _cards(self, here: dict[int, dict[str, Any]]) -> tuple[str, ...]:
        """The GPU of every process; empty: not all have one."""
        hosts = list(dict.fromkeys(here[index]["host"] for index in sorted(here)))
        told = (here[index] for index in sorted(here))
        seats = [Seat(hosts.index(one["host"]), one["host"], tuple(one["cards"])) for one in told]
        # Only torchrun leaves to the plan who has which.
        wanted = self.config.plan.devices if self.config.launcher.name == "torchrun" else range(len(seats))
        return named(seats, *on_seats(self.plan, wanted, seats))

    # -- arrivals ---------------------------------------------------------------------------------------------------

    def _arrivals(self) -> dict[int, dict[str, Any]]:
        keys = {f"here/{i}": i for i in range(self.plan.processes)}
        self._until(set(keys), self.patience)
        return {i: told for key, i in keys.items() if (told := self.board.told(key)) is not None}

    def _until(self, keys: set[str], timeout_s: float) -> None:
        """Wait until all of these were told, or the time is up."""
        end = time.monotonic() + timeout_s
        while keys and time.monotonic() < end:
            keys = {key for key in keys if self.board.told(key) is None}
            time.sleep(0.05)

    # -- links ------------------------------------------------------------------------------------------------------

    def _links(self, present: list[int]) -> None:
        """A short ping-pong with everybody present, pair by pair."""
        for number, pairs in enumerate(rounds(len(present))):
            mine = [(present[a], present[b]) for a, b in pairs if self.index in (present[a], present[b])]
            for a, b in mine:
                told = self._try(a, b)
                if self.index == a:
                    self.board.tell(f"link/{a}/{b}", told)
            # Who has waited in vain does not make others late for their next pair.
            self.board.tell(f"round/{number}/{self.index}")
            self._until({f"round/{number}/{i}" for i in present}, self.patience + SLACK_S)

    def _try(self, a: int, b: int) -> Any:
        """(seconds, bytes per second) of the link between two workers, this being one; a text: why there is none."""
        device = self.device or torch.device("cpu")
        if told := self._unreachable(a, b):
            return told
        try:
            ends = BothWays(self.board.store, self.index, b if self.index == a else a, device, self.patience, "meeting")
            try:
                if self.index == b:
                    return ends.answer()
                link, _ = fit([ends.ask(size, ROUNDS) for size in SIZES])
                return [link.latency_s, link.bandwidth if link.bandwidth < float("inf") else 0.0]
            finally:
                ends.close()
        except (ChannelError, ConnectionError, RuntimeError, queue.Empty) as error:
            return " ".join(str(error).split()) or type(error).__name__

    def _unreachable(self, a: int, b: int) -> str:
        """Why one of the two cannot open a connection to the other; empty: both can.

        gloo would find out too, but asks several times before it gives up, and does not say where.
        """
        other, board = b if self.index == a else a, self.board
        key = f"{a}/{b}"
        with socket.create_server((own_address(board.store) or "127.0.0.1", 0)) as server:
            board.tell(f"listens/{key}/{self.index}", server.getsockname()[:2])
            self._until({f"listens/{key}/{other}"}, self.patience)
            if (address := board.told(f"listens/{key}/{other}")) is None:
                return f"worker {other} does not come"
            why = ""
            try:
                # Nobody need accept: the system answers for who listens.
                socket.create_connection(tuple(address), min(self.patience, CONNECT_S)).close()
            except OSError as error:
                why = f"worker {self.index} cannot reach port {address[1]} of {address[0]}: {error.strerror or error}"
            board.tell(f"reaches/{key}/{self.index}", why)
            self._until({f"reaches/{key}/{other}"}, self.patience + SLACK_S)
            return why or board.told(f"reaches/{key}/{other}") or ""

    def _told_links(self, present: list[int], here: dict[int, dict]) -> dict[str, list[Finding]]:
        found: dict[str, list[Finding]] = {}
        backend = "NCCL" if self.device is not None and self.device.type == "cuda" else "gloo"
        for a in present:
            for b in (other for other in present if other > a):
                name, told = f"workers {a} and {b}", self.board.told(f"link/{a}/{b}")
                hosts = " and ".join(dict.fromkeys((here[a]["host"], here[b]["host"])))
                if isinstance(told, list):
                    value = f"{told[0] * 1e3:.2f} ms" + (f", {told[1] / 1e9:.2f} GB/s" if told[1] else "")
                    found[name] = [Finding(f"link ({backend})", value, f"answers, on {hosts}")]
                else:
                    value = f"no connection on {hosts}" + (f" ({told})" if told else "")
                    remedy = (
                        "open these hosts' ports to each other, or name the network in GLOO_ and NCCL_SOCKET_IFNAME"
                    )
                    found[name] = [Finding(f"link ({backend})", value, f"answers within {self.patience:g} s", remedy)]
        return found


def attend(meeting: Meeting) -> None:
    """Take part, and say nothing of what went wrong: the worker that gathers sees it."""
    try:
        meeting.attend()
    except (PeerLost, Abandoned):
        return

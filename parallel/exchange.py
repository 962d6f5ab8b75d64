"""Collectives among the processes of one worker: all-to-all and gather, over gloo on CPU and NCCL on CUDA.

A group has a process group of its own, made over the shared store, so it needs no default group and a death in it takes
nothing else down. A peer that dies or is silent ends the transfer that waits for it with a `ChannelError`. On CUDA
nothing waits on the host, so it shows elsewhere (in a channel's beats), and `abort` then frees the device. What the
device goes on to compute is garbage, and `check` says so.
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

import devices
from parallel.address import gloo_device
from parallel.channels import ChannelError
from parallel.failures import why


class Exchange(ABC):
    """One member's face of a group. All members make the same calls in the same order.

    Attributes:
        worker: whose processes these are; named in errors.
        rank, size: of this member and of the group.
    """

    def __init__(self, worker: int, rank: int, size: int):
        self.worker, self.rank, self.size = worker, rank, size
        self._failed = False

    @abstractmethod
    def all_to_all(self, x: Tensor) -> Tensor:
        """Contiguous [size, ...]: part i goes to member i. Returns the same shape: part i came from member i.

        Raises:
            ChannelError: a member is gone or silent.
        """

    @abstractmethod
    def gather(self, x: Tensor) -> Tensor | None:
        """Contiguous [...] of every member to [size, ...] on member 0; None on the others. Raises as `all_to_all`."""

    def abort(self) -> None:
        """Fail whatever waits in this group, in any thread, and whatever is asked of it later."""
        self._failed = True  # before: who is freed by it looks here next
        self._abort()

    def check(self) -> None:
        """To be called when everything that was computed from exchanges is there, before it is used any further.

        Raises:
            ChannelError: the group has failed, and what was computed may be garbage.
        """
        if self._failed or self._broken():
            raise ChannelError(self.worker, f"among its {self.size} processes: an exchange was cut off")

    @abstractmethod
    def close(self) -> None:
        """Give back what the group holds. All members call it, after the last exchange has come out well."""

    @abstractmethod
    def _abort(self) -> None:
        """Wake whoever waits."""

    @abstractmethod
    def _broken(self) -> bool:
        """Whether the group itself knows of a failure."""


class GroupExchange(Exchange):
    """Processes.

    Args:
        store: shared by the members, and nobody else's keys in it (a PrefixStore); used only during this call.
        worker, rank, size: as above.
        device: of the tensors.
        timeout_s: longest wait for another member, here and from then on.

    Raises:
        ChannelError: the others did not come in time.
    """

    def __init__(self, store: dist.Store, worker: int, rank: int, size: int, device: torch.device, timeout_s: float):
        super().__init__(worker, rank, size)
        self._timeout_s, self._cuda = timeout_s, not devices.of(device).immediate
        try:
            self._group = self._connect(store, device, timedelta(seconds=timeout_s))
        except RuntimeError as error:
            raise self._failure(error) from error

    def _connect(self, store: dist.Store, device: torch.device, timeout: timedelta):
        if self._cuda:
            # Its watchdog ends the process, so it comes last: beats notice first, and `abort` ends the transfer.
            group = dist.ProcessGroupNCCL(store, self.rank, self.size, 3 * timeout)
            # The first transfer makes the communicator and needs the store; afterwards nothing does.
            warm = torch.zeros(self.size, dtype=torch.uint8, device=device)
            group.alltoall_base(torch.empty_like(warm), warm, [], []).wait()
            devices.of(device).synchronize()
            return group
        options = dist.ProcessGroupGloo._Options()
        options._devices = [gloo_device(store)]
        options._threads = 1  # one transfer at a time
        options._timeout = timeout
        return dist.ProcessGroupGloo(store, self.rank, self.size, options)

    def all_to_all(self, x: Tensor) -> Tensor:
        out = torch.empty_like(x)
        # As bytes: what a transfer supports then does not depend on the dtype.
        self._do(lambda: self._group.alltoall_base(_bytes(out), _bytes(x), [], []))
        return out

    def gather(self, x: Tensor) -> Tensor | None:
        out = x.new_empty(self.size, *x.shape) if self.rank == 0 else None
        parts = [] if out is None else [[_bytes(part) for part in out]]
        self._do(lambda: self._group.gather(parts, [_bytes(x)]))
        return out

    def close(self) -> None:
        if self._cuda and not self._failed:
            self._group.shutdown()

    def _abort(self) -> None:
        if self._cuda:
            self._group.abort()  # gloo finds a closed connection by itself, and waits no longer than its timeout

    def _broken(self) -> bool:
        return self._cuda and self._group.get_error().name != "SUCCESS"

    def _do(self, begin) -> None:
        try:
            begin().wait()
        except RuntimeError as error:
            raise self._failure(error) from error

    def _failure(self, error: Exception) -> ChannelError:
        return ChannelError(self.worker, f"among its {self.size} processes: {why(error, self._timeout_s)}")


def _bytes(x: Tensor) -> Tensor:
    return x.view(-1).view(torch.uint8)


class LocalExchange(Exchange):
    """Threads of one process; made by `local_group`."""

    def __init__(self, worker: int, rank: int, table: list[Tensor | None], gate: threading.Barrier):
        super().__init__(worker, rank, len(table))
        self._table, self._gate = table, gate

    def all_to_all(self, x: Tensor) -> Tensor:
        return self._meet(x, lambda: torch.stack([part[self.rank] for part in self._table]))

    def gather(self, x: Tensor) -> Tensor | None:
        return self._meet(x, lambda: torch.stack(list(self._table)) if self.rank == 0 else None)

    def close(self) -> None:
        """Threads hold nothing."""

    def _abort(self) -> None:
        self._gate.abort()

    def _broken(self) -> bool:
        return self._gate.broken

    def _meet(self, x: Tensor, read):
        """Lay `x` on the table, read what all have laid there, and leave when all have read."""
        try:
            self._table[self.rank] = x
            self._gate.wait()
            found = read()
            self._gate.wait()
            return found
        except threading.BrokenBarrierError as error:
            raise ChannelError(self.worker, f"one of its {self.size} threads has ended or stands still") from error


def local_group(worker: int, size: int, timeout_s: float = 60.0) -> list[LocalExchange]:
    """A group's members, one for each of `size` threads; they wait `timeout_s` for each other at most."""
    table: list[Tensor | None] = [None] * size
    gate = threading.Barrier(size, timeout=timeout_s)
    return [LocalExchange(worker, rank, table, gate) for rank in range(size)]

"""Collectives among the processes of one worker: all-to-all, gather and broadcast.

They go over NCCL where each has a card of its own, else over gloo; what is on a device goes through pinned memory then.

A group has a process group of its own, made over the shared store, so it needs no default group and a death in it takes
nothing else down. A peer that dies or is silent ends the transfer that waits for it with a `ChannelError`. With NCCL
nothing waits on the host, so it shows elsewhere (in a channel's beats), and `abort` then frees the device. What the
device goes on to compute is garbage, and `check` says so.
"""

from __future__ import annotations

import math
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

import devices
from devices import Mark
from parallel.channels import ChannelError
from parallel.ends import CUT
from parallel.failures import why
from parallel.transport import Place, by_nccl, gloo, nccl, told_places


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

    @abstractmethod
    def broadcast(self, buffer: Tensor) -> None:
        """Member 0's contiguous buffer into those of the others, of the same length. Raises as `all_to_all`."""

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
        transport: as `launcher.transport`, the same for all.

    Raises:
        ChannelError: the others did not come in time.
    """

    def __init__(
        self,
        store: dist.Store,
        worker: int,
        rank: int,
        size: int,
        device: torch.device,
        timeout_s: float,
        transport: str = "auto",
    ):
        super().__init__(worker, rank, size)
        self._device, self._timeout_s = devices.of(device), timeout_s
        try:
            # It pays always: every layer of a pass waits for two exchanges.
            self._nccl = by_nccl(transport, told_places(store, rank, size, Place.of(self._device)), math.inf)
            self._group = self._connect(store, timedelta(seconds=timeout_s))
        except RuntimeError as error:
            raise self._failure(error) from error

    def _connect(self, store: dist.Store, timeout: timedelta) -> dist.Backend:
        if not self._nccl:
            return gloo(store, self.rank, self.size, timeout)
        # Its watchdog ends the process, so it comes last: beats notice first, and `abort` ends the transfer.
        group = nccl(store, self.rank, self.size, 3 * timeout)
        # The first transfer makes the communicator and needs the store; afterwards nothing does.
        warm = torch.zeros(self.size, dtype=torch.uint8, device=self._device.torch)
        group.alltoall_base(torch.empty_like(warm), warm, [], []).wait()
        self._device.synchronize()
        return group

    def all_to_all(self, x: Tensor) -> Tensor:
        sent = self._near(x)
        came = self._memory(x.nbytes)
        self._do(lambda: self._group.alltoall_base(came, sent, [], []))
        return self._back(came).view(x.dtype).view(x.shape)

    def gather(self, x: Tensor) -> Tensor | None:
        sent = self._near(x)
        if self.rank:
            self._do(lambda: self._group.gather([], [sent]))
            return None
        came = self._memory(self.size * x.nbytes)
        self._do(lambda: self._group.gather([list(came.chunk(self.size))], [sent]))
        return self._back(came).view(x.dtype).view(self.size, *x.shape)

    def broadcast(self, buffer: Tensor) -> None:
        # Member 0 is the root unless options say otherwise.
        near = self._near(buffer) if self.rank == 0 or self._direct else self._memory(buffer.nbytes)
        self._do(lambda: self._group.broadcast([near]))
        if self.rank and not self._direct:
            _bytes(buffer).copy_(near, non_blocking=True)

    def close(self) -> None:
        if self._nccl and not self._failed:
            self._group.shutdown()

    def _abort(self) -> None:
        if self._nccl:
            self._group.abort()
            return
        # gloo's abort() wakes nobody, but a wait that runs out of time closes a pair, and whatever waits on it.
        for other in set(range(self.size)) - {self.rank}:
            with suppress(RuntimeError):
                self._group.recv([torch.empty(1)], other, CUT).wait(timedelta(milliseconds=1))

    def _broken(self) -> bool:
        return self._nccl and self._group.get_error().name != "SUCCESS"

    @property
    def _direct(self) -> bool:
        """Whether the group takes tensors where they are."""
        return self._nccl or self._device.immediate

    def _memory(self, size: int) -> Tensor:
        """[size] uint8 that the group writes to."""
        if self._direct:
            return torch.empty(size, dtype=torch.uint8, device=self._device.torch)
        return self._device.pinned(size)

    def _near(self, x: Tensor) -> Tensor:
        """The bytes of a tensor where the group reads them. As bytes: what it supports does not depend on the dtype."""
        if self._direct:
            return _bytes(x)
        staged = self._memory(x.nbytes).copy_(_bytes(x), non_blocking=True)
        self._device.mark().wait()
        return staged

    def _back(self, came: Tensor) -> Tensor:
        """What came, on the device. torch keeps pinned memory until it was copied, whoever lets go of it."""
        return came.to(self._device.torch, non_blocking=True)

    def _do(self, begin: Callable[[], dist.Work]) -> None:
        try:
            begin().wait()
        except torch.AcceleratorError:
            raise  # this process's own device, and nobody else's end
        except RuntimeError as error:
            raise self._failure(error) from error

    def _failure(self, error: Exception) -> ChannelError:
        return ChannelError(self.worker, f"among its {self.size} processes: {why(error, self._timeout_s)}")


def _bytes(x: Tensor) -> Tensor:
    return x.view(-1).view(torch.uint8)


class _Laid(NamedTuple):
    """What a member has laid on the table.

    Attributes:
        tensor: to be read by others.
        computed: when it is there, in its owner's queue.
    """

    tensor: Tensor
    computed: Mark | None


class LocalExchange(Exchange):
    """Threads of one process; made by `local_group`."""

    def __init__(self, worker: int, rank: int, table: list[_Laid], read: list[Mark | None], gate: threading.Barrier):
        super().__init__(worker, rank, len(table))
        self._table, self._reads, self._gate = table, read, gate

    def all_to_all(self, x: Tensor) -> Tensor:
        return self._meet(x, lambda all_of: torch.stack([part[self.rank].to(x.device) for part in all_of]))

    def gather(self, x: Tensor) -> Tensor | None:
        return self._meet(
            x, lambda all_of: torch.stack([part.to(x.device) for part in all_of]) if self.rank == 0 else None
        )

    def broadcast(self, buffer: Tensor) -> None:
        self._meet(buffer, lambda all_of: buffer.copy_(all_of[0]) if self.rank else None)

    def close(self) -> None:
        """Threads hold nothing."""

    def _abort(self) -> None:
        self._gate.abort()

    def _broken(self) -> bool:
        return self._gate.broken

    def _meet(self, x: Tensor, read: Callable[[list[Tensor]], Tensor | None]) -> Tensor | None:
        """Lay `x` on the table, read what all have laid there, and leave when all have read: in the order of every
        member's queue, which waits for the others' and not on the host.
        """
        device = devices.of(x.device)
        try:
            self._table[self.rank] = _Laid(x, device.mark())
            self._gate.wait()
            for laid in self._table:
                device.follow(laid.computed)
            found = read([laid.tensor for laid in self._table])
            self._reads[self.rank] = device.mark()
            self._gate.wait()
            for done in self._reads:
                device.follow(done)
            return found
        except threading.BrokenBarrierError as error:
            raise ChannelError(self.worker, f"one of its {self.size} threads has ended or stands still") from error


def local_group(worker: int, size: int, timeout_s: float = 60.0) -> list[LocalExchange]:
    """A group's members, one for each of `size` threads; they wait `timeout_s` for each other at most."""
    table, reads = [_Laid(torch.empty(0), None)] * size, [None] * size
    gate = threading.Barrier(size, timeout=timeout_s)
    return [LocalExchange(worker, rank, table, reads, gate) for rank in range(size)]

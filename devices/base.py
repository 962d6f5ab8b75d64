"""What a device is asked for."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, Protocol

import torch
from torch import Tensor


class Mark(Protocol):
    """A point in a queue."""

    def wait(self) -> None:
        """Hold this thread until all work before the point is done."""

    def reached(self) -> bool:
        """Whether it is done, without waiting."""


class Recorder(Protocol):
    """What makes a graph of device work."""

    def __call__(self, work: Callable[[], Tensor | None]) -> Callable[[], Tensor | None]:
        """Record `work` without running it. The result runs it, and gives the same tensor each time.

        Raises:
            RuntimeError: something in it cannot be recorded.
        """


class Queue(ABC):
    """Work of a device that is done in the order in which it was given. torch calls it a stream, which is a video here.

    Attributes:
        device: whose.
    """

    device: Device

    @abstractmethod
    def use(self) -> None:
        """From now on the calling thread's work goes here: the first call of every thread that touches the device."""

    @abstractmethod
    def after(self, mark: Mark | None, *used: Tensor) -> AbstractContextManager[None]:
        """Wait for `mark`, work here, and wait until that is done: for threads beside a worker's loop.

        Args:
            mark: None: there is nothing to wait for.
            used: tensors of other queues that are read or written inside; their memory stays until that is done.
        """

    @abstractmethod
    def give(self, work: Callable[[], None], *used: Tensor) -> Mark:
        """Have work done here, behind what the calling thread's queue was given so far; returns when it is done. Nobody
        waits for it but who follows that mark.

        Args:
            work: a device that works by itself is given what is in it at once, by the calling thread; elsewhere a
                thread of this queue does it.
            used: tensors of the calling thread's queue that are read or written inside.
        """

    @abstractmethod
    def close(self) -> None:
        """Give it back, to be used again, once all is done: nobody gives it more work. A second call does nothing."""


class Span:
    """A stretch of the calling thread's queue, from here to `end`; how long it took is known when it is over.

    Args:
        device: whose queue.
    """

    def __init__(self, device: Device):
        self._device, self._start = device, device.moment()
        self._end: Any = None

    def end(self) -> Span:
        """It ends with what was given so far."""
        self._end = self._device.moment()
        return self

    @property
    def over(self) -> bool:
        return self._device.over(self._end)

    @property
    def seconds(self) -> float:
        """How long it took; waits until it is over."""
        return self._device.seconds(self._start, self._end)


class Device(ABC):
    """One device. Work is given to the calling thread's queue (`Queue.use`).

    Attributes:
        torch: the device, as torch names it.
        immediate: whether work of the calling thread's is done when the call that gives it returns. Queues and marks
            mean something then only for what was given to another (`Queue.give`), and graphs nothing.
    """

    immediate: bool

    def __init__(self, device: torch.device):
        self.torch = device

    @property
    def kind(self) -> str:
        """`cpu`, `cuda`, ..."""
        return self.torch.type

    # -- order --------------------------------------------------------------------------------------------------------

    def use(self) -> None:
        """Make this the calling thread's device, without a queue of one's own."""
        # A thread takes over how many others may help it on the processor when it first asks for that. If its first
        # work is a product, MKL asks nobody: it has as many helpers as there are cores, and rounds otherwise.
        torch.get_num_threads()

    @abstractmethod
    def queue(self, passes: bool = False) -> Queue:
        """A queue that nobody else has; whoever asked for it closes it. Only marks order it with others.

        Args:
            passes: whether it is a worker's own. Those are of another supply than all that come and go beside them,
                and the device takes up their work first.
        """

    @abstractmethod
    def mark(self, *used: Tensor) -> Mark | None:
        """The point that this thread's queue has come to; None where work is immediate.

        Args:
            used: tensors that its work reads or writes and that another queue owns: their memory stays until then.
        """

    @abstractmethod
    def follow(self, mark: Mark | None, *used: Tensor) -> None:
        """Have what this thread's queue is given from now on wait for a mark of another queue. Nobody waits here, but
        where work is immediate.

        Args:
            used: as for `mark`: tensors that are going to be used here.
        """

    @abstractmethod
    def synchronize(self) -> None:
        """Wait until everything that was given to the device is done."""

    # -- time ---------------------------------------------------------------------------------------------------------

    @abstractmethod
    def moment(self) -> Any:
        """When this thread's queue comes to this point."""

    @abstractmethod
    def over(self, moment: Any) -> bool:
        """Whether it has come to it."""

    @abstractmethod
    def seconds(self, start: Any, end: Any) -> float:
        """Between two moments of one queue; waits until the later one has come."""

    # -- memory -------------------------------------------------------------------------------------------------------

    @abstractmethod
    def pinned(self, size: int) -> Tensor:
        """[size] uint8 of host memory that the device copies from and to without the host's help."""

    @abstractmethod
    def upload(self, tensor: Tensor) -> Tensor:
        """A tensor here, copied without waiting. The host's may be let go of at once, and must not be changed: where it
        is here already, it is the same."""

    @abstractmethod
    def download(self, tensor: Tensor) -> Tensor:
        """A copy of a tensor in the host's memory, made without waiting: it is whole where this thread's queue has come
        to this point."""

    @abstractmethod
    def where(self) -> str:
        """Which memory this is, among all devices of its host; empty: the host's own."""

    @abstractmethod
    def free_bytes(self) -> int:
        """Bytes of it that can be had; of a host's, what the host or its container has left."""

    @abstractmethod
    def peak_bytes(self) -> int:
        """Most bytes that tensors have held since `start_peak`, or since the process began."""

    @abstractmethod
    def start_peak(self) -> None:
        """Count the peak from now on."""

    @abstractmethod
    def trim(self) -> None:
        """Give back memory that is held and that no tensor has."""

    # -- what it is ---------------------------------------------------------------------------------------------------

    @abstractmethod
    def title(self) -> str:
        """What its maker calls it, for reports and errors: `NVIDIA H100 80GB HBM3`, `cpu`."""

    @abstractmethod
    def total_bytes(self) -> int:
        """Size of its memory; 0: the host's."""

    @abstractmethod
    def capability(self) -> tuple[int, int] | None:
        """CUDA's compute capability; None where there is no such thing, as on AMD's GPUs."""

    @abstractmethod
    def arch(self) -> str:
        """AMD's name of what a GPU executes, as `gfx942`; empty on all others."""

    @abstractmethod
    def recorder(self) -> Recorder | None:
        """Makes graphs, in memory that they share; None where there are none."""

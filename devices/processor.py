"""The host's own processor: work is done when its call returns, and what is given to a queue is done by its thread."""

from __future__ import annotations

import os
import resource
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from time import perf_counter

import torch
from torch import Tensor

from devices.base import Device, Mark, Queue

CGROUP = Path("/sys/fs/cgroup")
MEMINFO, CPUINFO = Path("/proc/meminfo"), Path("/proc/cpuinfo")
CBWR, STRICT = "MKL_CBWR", "AUTO,STRICT"
"""MKL's setting of how reproducible its products are, and its strictest with the kernels that it would choose."""


def round_alike() -> None:
    """Have a row of a product be the same bits wherever it lies in memory, and however many rows there are.

    On Intel's processors MKL promises that only where it is asked; elsewhere it has no such kernels. What the
    environment says already is left.
    """
    if CPUINFO.exists() and "GenuineIntel" in CPUINFO.read_text():
        os.environ.setdefault(CBWR, STRICT)


class _Mark:
    """A mark that is what a thread is given to do."""

    def __init__(self, work: Future[None]):
        self._work = work

    def wait(self) -> None:
        self._work.exception()  # what went wrong in it is not the business of who only waits for its end

    def reached(self) -> bool:
        return self._work.done()


class _Thread(Queue):
    """A queue whose thread starts when it is given something. What threads do for themselves is done at once."""

    def __init__(self, device: Device):
        self.device = device
        self._thread = ThreadPoolExecutor(1, "beside", self.use)

    def use(self) -> None:
        self.device.use()

    @contextmanager
    def after(self, mark: Mark | None, *used: Tensor) -> Iterator[None]:
        self.device.follow(mark)
        yield

    def give(self, work: Callable[[], None], *used: Tensor) -> Mark:
        return _Mark(self._thread.submit(work))

    def close(self) -> None:
        self._thread.shutdown()


class Processor(Device):
    """The processor, and whatever behaves like it (`meta`)."""

    immediate = True

    def queue(self, passes: bool = False) -> Queue:
        return _Thread(self)

    def mark(self, *used: Tensor) -> None:
        return None

    def follow(self, mark: Mark | None, *used: Tensor) -> None:
        if mark is not None:
            mark.wait()

    def synchronize(self) -> None:
        """Everything is done."""

    def moment(self) -> float:
        return perf_counter()

    def over(self, moment: float) -> bool:
        return True

    def seconds(self, start: float, end: float) -> float:
        return end - start

    def pinned(self, size: int) -> Tensor:
        return torch.empty(size, dtype=torch.uint8)

    def upload(self, tensor: Tensor) -> Tensor:
        return tensor.to(self.torch)

    def download(self, tensor: Tensor) -> Tensor:
        return tensor.to("cpu", copy=True)

    def where(self) -> str:
        return ""

    def free_bytes(self) -> int:
        return min(_host_bytes(), _container_bytes())

    def peak_bytes(self) -> int:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

    def start_peak(self) -> None:
        """The system counts since the process began."""

    def trim(self) -> None:
        """The system's allocator gives back by itself."""

    def title(self) -> str:
        return self.kind

    def total_bytes(self) -> int:
        return 0

    def capability(self) -> None:
        return None

    def arch(self) -> str:
        return ""

    def recorder(self) -> None:
        return None


def _host_bytes() -> int:
    """Bytes that Linux says can be had without swapping; no limit where it says nothing."""
    if MEMINFO.exists():
        for line in MEMINFO.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return 1 << 62


def _container_bytes() -> int:
    """What a control group leaves, pages of files that it can drop included; no limit where there is none."""
    try:
        limit, used = ((CGROUP / name).read_text().strip() for name in ("memory.max", "memory.current"))
        if limit == "max":
            return 1 << 62
        said = dict(line.split() for line in (CGROUP / "memory.stat").read_text().splitlines())
        files = int(said.get("inactive_file", 0)) + int(said.get("active_file", 0))
        return max(0, int(limit) - int(used) + files)
    except (OSError, ValueError):
        return 1 << 62

"""A device that works by itself, behind the module that torch has for its kind (`torch.cuda`, AMD's included)."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from devices.base import Device, Mark, Queue, Recorder

_RECORDING = threading.Lock()
"""torch records one graph at a time per process, and waiting for a whole device ends a recording that is under way."""

PASSES, BESIDE = -1, 0
"""Priorities of streams: of passes, and of all else. torch has 32 streams of each priority on a device and hands them
out in turn, whoever still has one, so that a 33rd is the first again, and its work waits for the first's."""


class _Mark:
    """A mark that is an event."""

    def __init__(self, event: Any):
        self.event = event

    def wait(self) -> None:
        self.event.synchronize()

    def reached(self) -> bool:
        return self.event.query()


class _Stream(Queue):
    """A queue that is a stream."""

    def __init__(self, device: Accelerator, priority: int):
        self.device, self._module, self._priority = device, device.module, priority
        self._stream = device.stream(priority)

    def use(self) -> None:
        self.device.use()
        self._module.set_stream(self._stream)

    @contextmanager
    def after(self, mark: Mark | None, *used: Tensor) -> Iterator[None]:
        if mark is not None:
            mark.wait()
        # Leaving puts the thread back on the device it had: that must be this one, or device 0 gets a context.
        self._module.set_device(self.device.torch)
        with self._module.stream(self._stream):
            self.device.keep(self._stream, used)
            yield
            self.device.mark().wait()

    def give(self, work: Callable[[], None], *used: Tensor) -> Mark:
        behind = self.device.mark()
        self._module.set_device(self.device.torch)
        with self._module.stream(self._stream):
            self.device.follow(behind, *used)
            work()
            return self.device.mark()

    def close(self) -> None:
        stream, self._stream = self._stream, None
        if stream is not None:
            self.device.spare[self._priority].append(stream)


class Accelerator(Device):
    """A GPU.

    Attributes:
        module: torch's, of its kind.
        spare: streams that were given back, by priority. The memory that torch keeps for one is used again with it.
        spoilt: graphs whose recording did not end. torch's allocators may ask them for ever.
    """

    immediate = False

    def __init__(self, device: torch.device):
        module = torch.get_device_module(device)
        if device.index is None:  # it is the thread's own, which another thread need not have
            device = torch.device(device.type, module.current_device() if module.is_available() else 0)
        super().__init__(device)
        self.module = module
        self.spare: dict[int, list[Any]] = {PASSES: [], BESIDE: []}
        self.spoilt: list[Any] = []

    def stream(self, priority: int) -> Any:
        """One that nobody has, as long as there are such."""
        try:
            return self.spare[priority].pop()
        except IndexError:
            return self.module.Stream(self.torch, priority=priority)

    @cached_property
    def recording(self) -> Any:
        """The stream of all recordings, one at a time. torch's own belongs to the device that recorded first."""
        return self.stream(PASSES)

    def use(self) -> None:
        super().use()
        self.module.set_device(self.torch)

    def queue(self, passes: bool = False) -> Queue:
        return _Stream(self, PASSES if passes else BESIDE)

    def mark(self, *used: Tensor) -> Mark:
        stream = self.module.current_stream(self.torch)
        self.keep(stream, used)
        # A thread that waits for it sleeps, and leaves the processor to others.
        return _Mark(stream.record_event(self.module.Event(blocking=True)))

    def follow(self, mark: Mark | None, *used: Tensor) -> None:
        stream = self.module.current_stream(self.torch)
        if mark is not None:
            stream.wait_event(mark.event)
        self.keep(stream, used)

    def keep(self, stream: Any, used: Iterable[Tensor]) -> None:
        """Keep the memory of tensors for what `stream` has been given. The host's needs no keeping."""
        for tensor in used:
            if tensor.device.type == self.kind:
                tensor.record_stream(stream)

    def synchronize(self) -> None:
        with _RECORDING:
            self.module.synchronize(self.torch)

    def moment(self) -> Any:
        return self.module.current_stream(self.torch).record_event(self.module.Event(enable_timing=True, blocking=True))

    def over(self, moment: Any) -> bool:
        return moment.query()

    def seconds(self, start: Any, end: Any) -> float:
        end.synchronize()
        return start.elapsed_time(end) / 1e3

    def pinned(self, size: int) -> Tensor:
        return torch.empty(size, dtype=torch.uint8, pin_memory=True)

    def upload(self, tensor: Tensor) -> Tensor:
        if tensor.device.type == self.kind or not tensor.numel():
            return tensor.to(self.torch, non_blocking=True)
        # torch's allocator of pinned memory keeps it until the copy is done, whoever lets go of it.
        staged = self.pinned(tensor.nbytes).view(tensor.dtype).view(tensor.shape).copy_(tensor)
        return staged.to(self.torch, non_blocking=True)

    def download(self, tensor: Tensor) -> Tensor:
        if tensor.device.type != self.kind or not tensor.numel():
            return tensor.to("cpu", copy=True)
        staged = self.pinned(tensor.nbytes).view(tensor.dtype).view(tensor.shape)
        return staged.copy_(tensor, non_blocking=True)

    def where(self) -> str:
        return str(self.module.get_device_properties(self.torch).uuid)

    def free_bytes(self) -> int:
        # What this process's allocator holds and no tensor has can be had again once it is given back. What graphs hold
        # for themselves cannot, so what is held is not asked for.
        self.trim()
        return self.module.mem_get_info(self.torch)[0]

    def peak_bytes(self) -> int:
        return self.module.max_memory_allocated(self.torch)

    def start_peak(self) -> None:
        self.module.reset_peak_memory_stats(self.torch)

    def trim(self) -> None:
        with _RECORDING:
            self.module.empty_cache()

    def title(self) -> str:
        return self.module.get_device_name(self.torch)

    def total_bytes(self) -> int:
        return self.module.get_device_properties(self.torch).total_memory

    def capability(self) -> tuple[int, int] | None:
        # torch gives AMD's architecture in its place, in numbers that mean something else.
        return None if self.arch() else self.module.get_device_capability(self.torch)

    def arch(self) -> str:
        if not torch.version.hip:
            return ""
        return self.module.get_device_properties(self.torch).gcnArchName.partition(":")[0]

    def recorder(self) -> Recorder | None:
        return _Graphs(self) if hasattr(self.module, "CUDAGraph") else None


class _Graphs:
    """Records graphs in one memory pool, on a stream of their device."""

    def __init__(self, device: Accelerator):
        self._device, self._module = device, device.module
        self._pool: Any = None
        """Of what was recorded; None: nothing was, and a pool that no graph holds cannot be recorded to again."""

    def __call__(self, work: Callable[[], Tensor | None]) -> Callable[[], Tensor | None]:
        device, module, graph = self._device, self._module, self._module.CUDAGraph()
        own, pool = module.current_stream(device.torch), self._pool or module.graph_pool_handle()
        with _RECORDING, _uncollected():
            try:
                # Only this thread's calls are recorded: others move messages meanwhile.
                with module.graph(graph, pool=pool, stream=device.recording, capture_error_mode="thread_local"):
                    out = work()
            except BaseException as error:
                if module.current_stream(device.torch) == own:
                    raise  # it has ended all the same, and all is as it was
                self._abandon(graph, pool, own)
                # What does not end says so in place of what went wrong in it.
                raise (error.__context__ or error) from None
        self._pool = pool

        def replay() -> Tensor | None:
            graph.replay()
            return out

        return replay

    def _abandon(self, graph: Any, pool: Any, own: Any) -> None:
        """Put back what torch leaves behind where a recording does not end: the thread's stream is still the
        recorder's, and memory still goes to the graphs' pool, where none that another stream used is freed. For pinned
        memory nothing puts it back: torch asks the graph whether some is its own, so it stays, with its pool."""
        self._device.spoilt.append(graph)
        self._pool = None
        self._module.set_stream(own)
        with suppress(RuntimeError):  # it had ended
            torch._C._cuda_endAllocateToPool(self._device.torch.index, pool)


@contextmanager
def _uncollected() -> Iterator[None]:
    """Keep Python's collector away, in every thread: on AMD's GPUs the end of a graph waits for the device."""
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collects:
            gc.enable()

"""`report.json`: what ran, how fast, and one hash by which two runs are compared."""

from __future__ import annotations

import json
import platform
import resource
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from conf.schema import Config
from runtime.trace import Samples, Trace


def versions() -> dict[str, str]:
    """Versions of everything that can change a bit of the result."""
    found = {"python": platform.python_version(), "torch": torch.__version__}
    for package in ("everframe", "numpy", "av"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


def peak_memory_bytes(device: torch.device) -> int:
    """Peak of the device's memory, or of this process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


class Timeline:
    """The moments of one stream that a viewer notices. All times are seconds on the trace's clock.

    Args:
        fps: the rate frames are meant for.
        clock: seconds, monotonic.
    """

    def __init__(self, fps: int, clock):
        self.fps, self.clock = fps, clock
        self.opened = clock()
        self.first_frame: float | None = None
        self.last: float | None = None
        self.chunk_latency, self.control, self.jitter = Samples(), Samples(), Samples()
        self.chunks = self.frames = self._steady_frames = 0
        self._gap: float | None = None

    def chunk(self, entered: float, frames: int, steered: bool) -> None:
        """A chunk that entered the head at `entered` has left with `frames` frames; steered: the first of an event."""
        now = self.clock()
        self.chunk_latency.add(now - entered)
        if steered:
            self.control.add(now - entered)
        if self.last is None:
            self.first_frame = now
        else:
            # Steady state: frames after the first chunk, over the time since it left.
            self._steady_frames += frames
            gap = now - self.last
            if self._gap is not None:
                self.jitter.add(abs(gap - self._gap))
            self._gap = gap
        self.last = now
        self.chunks += 1
        self.frames += frames

    @property
    def fps_now(self) -> float | None:
        """Frames per second in steady state; of the first chunk alone while there is no other."""
        if self.last is None:
            return None
        if self._steady_frames:
            return self._steady_frames / (self.last - self.first_frame)
        return self.frames / (self.last - self.opened)

    def summary(self) -> dict[str, Any]:
        return {
            "chunks": self.chunks,
            "frames": self.frames,
            "fps": self.fps_now,
            "realtime_factor": self.fps_now / self.fps if self.fps_now else None,
            "time_to_first_frame_s": None if self.first_frame is None else self.first_frame - self.opened,
            "control_to_frame_s": self.control.summary(),
            "chunk_latency_s": self.chunk_latency.summary(),
            "frame_jitter_s": self.jitter.summary(),
        }


def report(
    config: Config, device: torch.device, weight_bytes: int, trace: Trace, timeline: Timeline, sha256: str | None
) -> dict[str, Any]:
    """The content of `report.json` for one stream."""
    wall_s = (timeline.last or timeline.opened) - timeline.opened
    return {
        "model": config.model.name,
        "plan": config.plan.name,
        "launcher": config.launcher.name,
        "device": str(device),
        "threads": config.device.threads,
        "workers": 1,
        "stream": config.stream.id,
        "random_weights": config.model.checkpoint is None,
        **timeline.summary(),
        "peak_memory_bytes": {trace.worker: peak_memory_bytes(device)},
        "weight_bytes": {trace.worker: weight_bytes},
        "stages": trace.busy(wall_s),
        "latents_sha256": sha256,
        "versions": versions(),
    }


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write a file whole or not at all."""
    part = path.with_name(path.name + ".part")
    part.write_text(json.dumps(content, indent=2) + "\n")
    part.replace(path)

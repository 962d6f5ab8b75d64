"""`report.json`: what ran, how fast, and one hash by which two runs are compared."""

from __future__ import annotations

import json
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

import torch

import devices
from conf import disk
from conf.paths import is_there
from conf.schema import Config, StreamConfig
from runtime.outputs import Outputs
from runtime.trace import Samples, Trace
from stages.sinks.latents_hash import LatentsHash


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
    return devices.of(device).peak_bytes()


WAITING = ("wait", "send")
"""Stages every worker has; they are reported per worker."""


class Progress(NamedTuple):
    """Where a stream is: chunks and frames so far, the rate it is meant for, the rate it runs at, and the seconds its
    last chunk was on its way."""

    chunks: int
    frames: int
    fps: float
    fps_now: float
    latency_s: float | None = None


class Timeline:
    """The moments of one stream that a viewer notices. All times are seconds on the trace's clock.

    Args:
        fps: the rate frames are meant for.
        clock: seconds, monotonic.
        chunks, frames: made before, where the stream goes on.
    """

    def __init__(self, fps: int, clock, chunks: int = 0, frames: int = 0):
        self.fps, self.clock = fps, clock
        self.opened = clock()
        self.first_frame: float | None = None
        self.last: float | None = None
        self.chunk_latency, self.control, self.jitter = Samples(), Samples(), Samples()
        self.chunks, self.frames = chunks, frames
        self._before, self._steady_frames = frames, 0
        self._gap: float | None = None

    def chunk(self, entered: float, frames: int, accepted: float | None) -> None:
        """A chunk has left.

        Args:
            entered: when it entered the head.
            frames: video frames it made.
            accepted: when the control was accepted that first shows in it; None: there was none.
        """
        now = self.clock()
        self.chunk_latency.add(now - entered)
        if accepted is not None:
            self.control.add(now - accepted)
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
        return (self.frames - self._before) / (self.last - self.opened)

    def progress(self) -> Progress:
        """Where the stream is, for a progress line."""
        return Progress(self.chunks, self.frames, self.fps, self.fps_now or 0.0, self.chunk_latency.last)

    def summary(self) -> dict[str, Any]:
        return {
            "chunks": self.chunks,
            "frames": self.frames,
            "fps": self.fps_now,
            "realtime_factor": self.fps_now / self.fps if self.fps_now else None,
            "time_to_first_frame_s": None if self.first_frame is None else self.first_frame - self.opened,
            "control_to_frame_s": self.control.summary() | {"mean": self.control.mean},
            "chunk_latency_s": self.chunk_latency.summary(),
            "frame_jitter_s": self.jitter.summary(),
        }


def worker_report(trace: Trace, weight_bytes: int, bank_bytes: int, device: torch.device) -> dict[str, Any]:
    """What one process contributes to a report; `bank_bytes` is of one stream, `traces` is for `join_traces`."""
    packed = trace.pack()
    return {
        "worker": trace.worker,
        "device": str(device),
        "weight_bytes": weight_bytes,
        "bank_bytes": bank_bytes,
        "peak_memory_bytes": peak_memory_bytes(device),
        "stages": trace.busy(trace.clock() - trace.opened),
        "traces": [packed] if packed else [],
    }


def assemble(
    config: Config,
    workers: list[dict[str, Any]],
    streams: list[dict[str, Any]],
    total: int | None = None,
    failed: int | None = None,
) -> dict[str, Any]:
    """The content of `report.json`.

    Args:
        config: the run.
        workers: `worker_report` of each.
        streams: `stream_report` of those that are told of here; the only one's keys stand at the top level.
        total, failed: streams that ended, and those of them that an error ended; None: as many as are in `streams`.
    """
    total = len(streams) if total is None else total
    failed = sum("error" in s for s in streams) if failed is None else failed
    common = {
        "model": config.model.name,
        "plan": config.plan.name,
        "launcher": config.launcher.name,
        "device": "emulated" if config.device.kind == "emulated" else workers[0]["device"],
        "threads": config.device.threads,
        "workers": len(workers),
        "nodes": {w["worker"]: w.get("node", 0) for w in workers},
        "random_weights": config.model.checkpoint is None,
        "peak_memory_bytes": {w["worker"]: w["peak_memory_bytes"] for w in workers},
        "weight_bytes": {w["worker"]: w["weight_bytes"] for w in workers},
        "bank_bytes": {w["worker"]: w["bank_bytes"] for w in workers},
        "stages": {name: stage for w in workers for name, stage in w["stages"].items() if name not in WAITING}
        | {f"{name}.{w['worker']}": w["stages"][name] for w in workers for name in WAITING if name in w["stages"]},
        "versions": versions(),
        "streams_total": total,
        "streams_failed": failed,
    }
    if len(streams) == total == 1:
        return common | streams[0]
    return common | {"finished": all(s["finished"] for s in streams), "streams": streams}


def stream_report(
    stream: StreamConfig,
    timeline: Timeline,
    outputs: Outputs | None,
    error: dict[str, Any] | None = None,
    private: bool = False,
) -> dict[str, Any]:
    """What one stream contributes to a report.

    Args:
        stream: as it was opened.
        timeline: what its viewer noticed.
        outputs: None: it ended before anything was made.
        error: the reason that ended it, as a dictionary; None: it came to its end, or was stopped.
        private: a visitor's: what they typed is left out.
    """
    # A video without a frame is not there.
    paths = {sink: str(path) for sink, path in outputs.paths.items() if is_there(path)} if outputs else {}
    digest = (outputs.hash if outputs else LatentsHash()).hexdigest
    found = {
        "stream": stream.id,
        "seed": stream.seed,
        **({} if private else {"prompt": stream.prompt}),
        **timeline.summary(),
        "latents_sha256": digest,
        "outputs": paths,
    }
    return found | ({"error": error} if error else {})


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write a file of the output folder whole or not at all.

    Raises:
        UserError: the disk refuses.
    """
    disk.write_text(f"output_dir={path.parent}", path, json.dumps(content, indent=2) + "\n")

"""What one run streams: how long, from what, to where, on which device, by which plan and launcher."""

from __future__ import annotations

from dataclasses import dataclass, field

from conf.errors import UserError, choice, positive
from conf.paths import found

PLANS = ("sequential", "timestep", "layers", "grid")
LAUNCHERS = ("local", "torchrun", "ray")
LOGS = ("none", "wandb")


@dataclass
class Event:
    """A change at a chunk boundary: from `chunk` on, `prompt` holds."""

    chunk: int = 0
    prompt: str = ""

    def __post_init__(self):
        if self.chunk < 0:
            raise UserError(f"stream.events: chunk={self.chunk}", "chunks count from 0", "use 0 or more")


@dataclass
class StreamConfig:
    """The stream itself. Without `chunks` or `seconds` it lasts as long as its sources, or for ever."""

    chunks: int | None = None
    seconds: float | None = None
    seed: int = 0
    id: str = "0"
    """Names the stream; part of the key of every random draw."""
    prompt: str = ""
    height: int | None = None
    width: int | None = None
    events: list[Event] = field(default_factory=list)
    count: int = 1

    def __post_init__(self):
        for name in ("chunks", "seconds", "height", "width", "count"):
            positive(f"stream.{name}", getattr(self, name))
        if self.chunks is not None and self.seconds is not None:
            raise UserError(
                f"stream.chunks={self.chunks}",
                f"stream.seconds={self.seconds} also sets the length",
                "give one of the two",
            )


@dataclass
class SourceConfig:
    """Where conditioning comes from. `-` is live standard input."""

    image: str | None = None
    audio: str | None = None
    actions: str | None = None
    tensors: str | None = None

    def __post_init__(self):
        for name in ("image", "audio", "actions", "tensors"):
            setattr(self, name, found(getattr(self, name)))
        if self.audio == "-" and self.actions == "-":
            raise UserError(
                "source.audio=-", "source.actions=- reads standard input too", "give one of the two as a file"
            )


@dataclass
class SinkConfig:
    """Where frames and latents go; null: nowhere. Without video, frames or contact sheet no decoder is loaded."""

    video: str | None = "${output_dir}/video.mp4"
    latents: str | None = None
    frames: str | None = None
    contact_sheet: str | None = None
    timeline: str | None = None
    """A PNG of the pipeline filling and running, drawn from the trace at the end."""

    @property
    def needs_frames(self) -> bool:
        return any((self.video, self.frames, self.contact_sheet))


@dataclass
class DeviceConfig:
    """What a worker computes on."""

    kind: str = "auto"
    threads: int = 1

    def __post_init__(self):
        choice("device", self.kind, ("auto", "cpu", "cuda"))
        positive("device.threads", self.threads)


@dataclass
class PlanConfig:
    """Which worker runs which cell."""

    name: str = "sequential"
    workers: int | None = None
    steps: list[int] | None = None
    layers: list[int] | None = None
    grid: list[int] | None = None
    sequence_parallel: int = 1

    def __post_init__(self):
        choice("plan", self.name, PLANS)
        positive("plan.workers", self.workers)
        positive("plan.sequence_parallel", self.sequence_parallel)


@dataclass
class LauncherConfig:
    """Who starts the workers."""

    name: str = "local"
    address: str | None = None
    timeout_s: float = 60.0

    def __post_init__(self):
        choice("launcher", self.name, LAUNCHERS)
        positive("launcher.timeout_s", self.timeout_s)


@dataclass
class LoggingConfig:
    """Who else is told how the run goes."""

    name: str = "none"
    project: str = "everframe"
    mode: str = "offline"

    def __post_init__(self):
        choice("logging", self.name, LOGS)
        choice("logging.mode", self.mode, ("offline", "online", "disabled"))

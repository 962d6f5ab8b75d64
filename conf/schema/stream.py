"""What one run streams: how long, from what, to where, on which device, by which plan and launcher."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field, fields

from conf.errors import UserError, choice, positive
from conf.paths import found, live
from conf.typed import shown

PLANS = ("sequential", "timestep", "layers", "grid", "auto")
OBJECTIVES = ("fps", "first_frame", "control_latency")
LAUNCHERS = ("local", "torchrun", "ray")
POSTS = ("none", "upscale")
THREADS = ("auto", "true", "false")
LOGS = ("none", "wandb")
TRACES = ("none", "recent", "all")
PICTURES = ("video", "frames", "contact_sheet", "reader")
"""Settings of sinks that are made of pictures."""
SOURCES = ("image", "audio", "actions", "tensors", "inputs")
"""Settings of a source that are files."""
GRAPHS = ("never", "auto", "always")


MOST = 10**12
"""Chunks, pixels and seconds beyond it are slips of a finger."""
SEEDS = range(-(1 << 63), 1 << 64)
LONGEST_PROMPT, LONGEST_PATH, LONGEST_NAME = 100_000, 4096, 128
"""Characters of a prompt and of a path, bytes of a stream's name."""


def _at_most(name: str, value: float | None) -> None:
    if value is not None and not value <= MOST:
        raise UserError(f"{name}={shown(value)}", f"must not be above {MOST}", "give less, or null where it may be")


def _plain(name: str, text: str | None, longest: int) -> None:
    """Refuse text that is too long, or that no file and no encoder could take."""
    if text is None:
        return
    if len(text) > longest:
        raise UserError(
            f"{name}={shown(text)}", f"has {len(text)} characters, at most {longest} are read", "shorten it"
        )
    if "\0" in text or any("\ud800" <= letter <= "\udfff" for letter in text):
        raise UserError(f"{name}={shown(text)}", "holds a NUL or half a character", "give plain Unicode text")


def _not_negative(name: str, value: float | None) -> None:
    if value is not None and not 0 <= value < math.inf:
        raise UserError(f"{name}={value}", "must not be below zero", "give 0 or more")


@dataclass
class Event:
    """A change at a chunk boundary: from `chunk` on, `prompt` holds."""

    chunk: int = 0
    prompt: str = ""

    def __post_init__(self):
        if self.chunk < 0:
            raise UserError(f"stream.events: chunk={self.chunk}", "chunks count from 0", "use 0 or more")
        _at_most("stream.events: chunk", self.chunk)
        _plain("stream.events: prompt", self.prompt, LONGEST_PROMPT)


@dataclass
class StreamConfig:
    """The stream itself. Without `chunks` or `seconds` it lasts as long as its sources, or for ever."""

    chunks: int | None = None
    seconds: float | None = None
    seed: int = 0
    id: str = "0"
    """Names the stream, in letters, digits, _ and -; part of the key of every random draw."""
    prompt: str = ""
    height: int | None = None
    width: int | None = None
    events: list[Event] = field(default_factory=list)
    count: int = 1
    max_control_latency_s: float | None = 2.0
    """Of a model with actions: the planner refuses plans in which one may take longer to show; null: no limit."""
    save_every_chunks: int | None = None
    """Save the stream's whole state behind every so many chunks, and where it is stopped; null: never on the way."""
    save_on_stop: bool = False
    """Save it where the stream is stopped (SIGUSR1, SIGTERM, Ctrl-C, an order), and only there."""

    def __post_init__(self):
        for name in ("chunks", "seconds", "height", "width", "count", "max_control_latency_s", "save_every_chunks"):
            positive(f"stream.{name}", getattr(self, name))
            _at_most(f"stream.{name}", getattr(self, name))
        if self.seed not in SEEDS:
            raise UserError(
                f"stream.seed={shown(self.seed)}", "must be a number of at most 64 bits", "give a smaller one"
            )
        _plain("stream.prompt", self.prompt, LONGEST_PROMPT)
        if not re.fullmatch(r"[\w-]+", self.id) or len(self.id.encode()) > LONGEST_NAME:
            raise UserError(
                f"stream.id={shown(self.id)}",
                f"must be a name of letters, digits, _ and -, of at most {LONGEST_NAME} bytes",
                "e.g. stream.id=anna",
            )
        if self.chunks is not None and self.seconds is not None:
            raise UserError(
                f"stream.chunks={self.chunks}",
                f"stream.seconds={self.seconds} also sets the length",
                "give one of the two",
            )


@dataclass
class SourceConfig:
    """Where conditioning comes from. `-` is live standard input; sound and actions may also come from a program that
    listens at `tcp://HOST:PORT/TOKEN`, in the same form."""

    image: str | None = None
    audio: str | None = None
    actions: str | None = None
    tensors: str | None = None
    inputs: str | None = None
    """What `sink.inputs` recorded of another stream, in place of its sound and actions."""

    def __post_init__(self):
        for name in SOURCES:
            _plain(f"source.{name}", getattr(self, name), LONGEST_PATH)
            setattr(self, name, found(getattr(self, name)))
        self.audio, self.actions = live(self.audio), live(self.actions)
        if self.audio == "-" and self.actions == "-":
            raise UserError(
                "source.audio=-", "source.actions=- reads standard input too", "give one of the two as a file"
            )

    @property
    def reads_stdin(self) -> bool:
        """Whether it reads standard input, which one stream of a run can do."""
        return "-" in [getattr(self, name) for name in SOURCES]


@dataclass
class SinkConfig:
    """Where frames and latents go; null: nowhere. Without any that takes pictures no decoder is loaded."""

    video: str | None = "${output_dir}/video.mp4"
    latents: str | None = None
    frames: str | None = None
    contact_sheet: str | None = None
    reader: str | None = None
    """A program that takes pictures and sound as they are made: `tcp://HOST:PORT/TOKEN`. `everframe.open` sets it."""
    inputs: str | None = None
    """What was sampled for each chunk, so that another run can be driven by it."""
    timeline: str | None = None
    """A PNG of the pipeline filling and running, drawn from the trace at the end."""
    trace: str = "recent"
    """What `trace.json` holds: `none` (it is not written), the `recent` ten minutes, or `all`."""

    def __post_init__(self):
        for setting in fields(self):
            _plain(f"sink.{setting.name}", getattr(self, setting.name), LONGEST_PATH)
        choice("sink.trace", self.trace, TRACES)
        if self.timeline and self.trace == "none":
            raise UserError("sink.trace=none", f"sink.timeline={self.timeline} is drawn from it", "use recent or all")

    @property
    def pictures(self) -> dict[str, str]:
        """What is to be made of pictures, by the name of the setting."""
        return {name: path for name in PICTURES if (path := getattr(self, name))}

    @property
    def needs_frames(self) -> bool:
        return bool(self.pictures)


@dataclass
class EmulatedConfig:
    """How long the stages of an emulated device hold their worker, in seconds at speed 1."""

    step_s: float = 0.05
    """One step of the whole network; a block takes its share of the layers."""
    layers_s: list[float] | None = None
    """One step of each layer, in place of `step_s`."""
    commit_s: float | None = None
    """A clean pass of the whole network; null: as a step."""
    prefill_s: float | None = None
    """A pass that writes the reference; null: as a step."""
    encode_s: float = 0.0
    decode_s: float = 0.0
    post_s: float = 0.0
    output_s: float = 0.0
    """Of a chunk each. Output holds no device, only its stream."""
    speeds: list[float] = field(default_factory=list)
    """Of worker 0, 1, ...: times are divided by it. Workers that are not listed have speed 1."""
    jitter: float = 0.0
    """Relative deviation of every time, drawn per worker, chunk and pass."""
    seed: int = 0
    """Of the jitter."""
    latent_bytes: int | None = None
    """Of a chunk's latents as they travel; null: what the model's geometry and dtype give."""
    hidden_bytes: int | None = None
    """Of hidden states between blocks; null likewise."""

    def __post_init__(self):
        for name in ("step_s", "commit_s", "prefill_s", "encode_s", "decode_s", "post_s", "output_s", "jitter"):
            _not_negative(f"device.emulated.{name}", getattr(self, name))
        for name in ("latent_bytes", "hidden_bytes"):
            positive(f"device.emulated.{name}", getattr(self, name))
        for value in self.layers_s or []:
            _not_negative("device.emulated.layers_s", value)
        for value in self.speeds:
            positive("device.emulated.speeds", value)

    def block_s(self, layers: range, of: int) -> float:
        """A step over some layers of a network that has `of`."""
        if self.layers_s is None:
            return self.step_s * len(layers) / of
        if len(self.layers_s) != of:
            raise UserError(
                f"device.emulated.layers_s has {len(self.layers_s)} values", f"the model has {of} layers", f"give {of}"
            )
        return sum(self.layers_s[i] for i in layers)


@dataclass
class DeviceConfig:
    """What a worker computes on. `emulated`: on nothing, but for as long as `emulated` says."""

    kind: str = "auto"
    threads: int = 1
    compile: bool = False
    """Compile what lies between attentions, and the decoder where it can be: the first chunks wait for it."""
    graphs: str = "never"
    """Whether a pass that comes round is recorded as a CUDA graph: `never`, `auto` (where it can be), `always`."""
    emulated: EmulatedConfig = field(default_factory=EmulatedConfig)

    def __post_init__(self):
        choice("device", self.kind, ("auto", "cpu", "cuda", "emulated"))
        choice("device.graphs", self.graphs, GRAPHS)
        positive("device.threads", self.threads)

    @property
    def may_be_gpu(self) -> bool:
        """Whether a worker takes a GPU where there is one."""
        return self.kind in ("auto", "cuda")


@dataclass
class PlanConfig:
    """Which worker runs which cell."""

    name: str = "sequential"
    workers: int | None = None
    steps: list[int] | None = None
    layers: list[int] | None = None
    grid: list[int] | None = None
    sequence_parallel: int = 1
    encode: int | None = None
    """The worker that samples and encodes; null: the first."""
    decode: int | None = None
    """The worker that decodes; null: the last."""
    post: int | None = None
    """The worker of the stage behind decode, if there is one; null: beside decode."""
    in_flight: int | None = None
    """Chunks on their way at most; null: as many as keep every worker busy, counted in layers."""
    devices: list[int] | None = None
    """The device of every process, by its number in the cluster file; null: in order."""
    force: bool = False
    """Run a plan whose predicted control latency is over `stream.max_control_latency_s`."""

    def __post_init__(self):
        choice("plan", self.name, PLANS)
        positive("plan.workers", self.workers)
        positive("plan.in_flight", self.in_flight)
        positive("plan.sequence_parallel", self.sequence_parallel)


@dataclass
class LauncherConfig:
    """Who starts the workers."""

    name: str = "local"
    address: str | None = None
    nodes: int | None = None
    """Nodes that a Ray cluster has once all have come; null: those that are there."""
    nodes_s: float = 300.0
    """Longest wait for them."""
    timeout_s: float = 60.0
    threads: str = "auto"
    """Whether local workers are threads of one process (true) or processes; `auto`: threads, unless there are several
    GPUs."""

    def __post_init__(self):
        self.threads = self.threads.lower()  # `true` on the command line is a boolean to YAML
        choice("launcher", self.name, LAUNCHERS)
        choice("launcher.threads", self.threads, THREADS)
        positive("launcher.nodes", self.nodes)
        positive("launcher.nodes_s", self.nodes_s)
        positive("launcher.timeout_s", self.timeout_s)


@dataclass
class PostConfig:
    """What is done to pictures between the decoder and the sinks."""

    name: str = "none"
    scale: int = 4
    """Of `upscale`: new pixels per pixel, each way."""

    def __post_init__(self):
        choice("post", self.name, POSTS)
        positive("post.scale", self.scale)

    @property
    def factor(self) -> int:
        """Pixels that are put out per decoded pixel, each way."""
        return self.scale if self.name == "upscale" else 1


@dataclass
class LoggingConfig:
    """Who else is told how the run goes."""

    name: str = "none"
    project: str = "everframe"
    mode: str = "offline"

    def __post_init__(self):
        choice("logging", self.name, LOGS)
        choice("logging.mode", self.mode, ("offline", "online", "disabled"))

"""What one run streams: how long, from what, to where, on which device, by which plan and launcher."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from datetime import datetime
from secrets import token_hex

from conf.errors import UserError, not_negative, positive
from conf.paths import ADDRESS, ADDRESSES, found, is_live, live
from conf.settings import as_typed, check_choices, one_of
from conf.typed import shown

PLANS = ("sequential", "timestep", "layers", "grid", "auto")
OBJECTIVES = ("fps", "first_frame", "control_latency")
LAUNCHERS = ("local", "torchrun", "ray")
POSTS = ("none", "upscale")
THREADS = ("auto", "true", "false")
TRANSPORTS = ("auto", "nccl", "host")
RECOVERIES = ("auto", "off", "exact")
LOGS = ("none", "wandb")
TRACES = ("none", "recent", "all")
PACES = ("live", "free")
FITS = ("letterbox", "crop")
GREY = "grey"
"""In place of a video: grey pictures without end."""
PICTURES = ("video", "frames", "contact_sheet", "reader", "session")
"""Settings of sinks that are made of pictures."""
SINKS = ("video", "latents", "frames", "contact_sheet", "inputs", "timeline")
"""Settings of sinks that are files, or folders of files."""
SOURCES = ("image", "audio", "actions", "camera", "video", "tensors", "inputs")
"""Settings of a source that are files."""
LIVE = ("audio", "actions", "camera", "video")
"""Those that may come as they happen."""
PICTURE = (832, 480)
"""Width and height of the picture in whose pixels intrinsics are said, whatever the stream's own size."""
FURTHEST = 1e6
"""Pixels, of a focal length and of a principal point: there is no such lens, and its rays would have no digits left."""
LEAST = (1.0, 1.0, -FURTHEST, -FURTHEST)
"""Of fx, fy, cx, cy."""
GRAPHS = ("never", "auto", "always")
COMPILE = ("auto", "true", "false")
OF_EACH = "of-each-stream"
"""In place of an address that every stream has one of."""
HOST = r"([^/:\[\]]+|\[[^/\[\]]+\])"
"""Of an address: a name, an IPv4 address, or an IPv6 address in brackets."""
SEEDS = range(-(1 << 63), 1 << 64)
LONGEST_PROMPT, LONGEST_PATH, LONGEST_NAME = 100_000, 4096, 128
"""Characters of a prompt and of a path, bytes of a stream's name."""


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


def _address(name: str, given: str | None) -> None:
    """Refuse what is no address of a program, nor stands for one that each stream has of its own."""
    if given is not None and given != OF_EACH and not re.fullmatch(rf"({'|'.join(ADDRESSES)}){HOST}:\d+/.+", given):
        raise UserError(f"{name}={shown(given)}", "is no address", f"give {ADDRESS}HOST:PORT/TOKEN")


def check_intrinsics(name: str, values: Sequence[float]) -> None:
    """Refuse what are no intrinsics of a camera: fx, fy, cx, cy in pixels of `PICTURE`."""
    if len(values) != 4 or not all(least <= n <= FURTHEST for n, least in zip(values, LEAST, strict=True)):
        rule = (
            f"are four numbers in pixels of {PICTURE[0]} x {PICTURE[1]}, up to {FURTHEST:g}, the first two at least 1"
        )
        raise UserError(f"{name}={shown(values)}", rule, "give [fx, fy, cx, cy], e.g. [416, 416, 416, 240]")


def fresh_folder(of: str = "") -> str:
    """An output folder that no other run has, however close together and wherever they start.

    Args:
        of: what is left there, where it is no stream.
    """
    return f"outputs/{datetime.now():%Y-%m-%d/%H-%M-%S}-{of}${{model.name}}-{token_hex(4)}"


def check_folder(output_dir: str) -> None:
    """Refuse an output folder without a name: what is named below it would be at the root of the file system."""
    _plain("output_dir", output_dir, LONGEST_PATH)
    if not output_dir:
        raise UserError("output_dir=", "names no folder", "give one, or leave it out")


@dataclass
class Event:
    """A change at a chunk boundary: from `chunk` on, `prompt` holds."""

    chunk: int = 0
    prompt: str = as_typed("")

    def __post_init__(self):
        if self.chunk < 0:
            raise UserError(f"stream.events: chunk={self.chunk}", "chunks count from 0", "use 0 or more")
        not_negative("stream.events: chunk", self.chunk)
        _plain("stream.events: prompt", self.prompt, LONGEST_PROMPT)


@dataclass
class StreamConfig:
    """The stream itself. Without `chunks` or `seconds` it lasts as long as its sources, or for ever."""

    chunks: int | None = None
    """Length in chunks of `model.chunk_frames` latent frames."""
    seconds: float | None = None
    """Length in seconds of video, in place of `chunks`; rounded up to whole chunks."""
    seed: int = 0
    """Of every random draw, with the stream's id."""
    id: str = "0"
    """Names the stream, in letters, digits, _ and -; part of the key of every random draw."""
    prompt: str = as_typed("")
    """What is to be seen, in words, as typed."""
    height: int | None = None
    """Of the picture; null: the model's own."""
    width: int | None = None
    """Of the picture; null: the model's own."""
    events: list[Event] = field(default_factory=list)
    """Prompts that hold from a chunk on: `[{chunk: 17, prompt: "a sad person"}]`."""
    count: int = 1
    """Streams of this run, with the ids 0, 1, ..."""
    max_control_latency_s: float | None = 2.0
    """Of a model with actions: the planner refuses plans in which one may take longer to show; null: no limit."""
    save_every_chunks: int | None = None
    """Save the stream's whole state behind every so many chunks, and where it is stopped; null: never on the way."""
    save_on_stop: bool = False
    """Save it where the stream is stopped (SIGUSR1, SIGTERM, Ctrl-C, an order), and only there."""

    def __post_init__(self):
        for name in ("chunks", "seconds", "height", "width", "count", "max_control_latency_s", "save_every_chunks"):
            positive(f"stream.{name}", getattr(self, name))
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
    """Where conditioning comes from. `-` is live standard input; sound, actions, poses and frames may also come from a
    program that listens at `tcp://HOST:PORT/TOKEN`, in the same form."""

    image: str | None = None
    """A picture file: who is to speak, or where a world begins."""
    audio: str | None = None
    """A sound file, or `-`: live 16-bit mono sound of 16 kHz."""
    actions: str | None = None
    """A file of lines `{"frame": 0, "action": "forward"}` or, for models that take keys together or turn, `{"frame": 0,
    "keys": ["forward", "left"], "mouse": [0.0, 0.1]}`; or `-`: live lines."""
    camera: str | None = None
    """Where a camera is, in place of actions that drive it: an .npy of [frames, 4, 4], a file of lines `{"frame": 0,
    "pose": [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0]]}`, or `-`: live lines. docs/worlds.md has axes and units."""
    intrinsics: list[float] | None = None
    """The camera's fx, fy, cx, cy, in pixels of a picture of 832 x 480 whatever the stream's size, where
    `source.camera` and `source.tensors` say none; null: [416, 416, 416, 240], which is 90 degrees wide."""
    video: str | None = None
    """What a model with `model.noise_scale` draws anew: a video file, or `-` (or a named pipe): live raw RGB24 frames
    of the stream's size, `model.fps` a second; or `grey`: grey pictures without end, as a server's rate is measured."""
    fit: str = one_of(FITS, "letterbox")
    """How the pictures of a video file, or of a session's camera, come to the stream's size: `letterbox`, whole,
    between black bars; `crop`, their middle, so that no bars are left."""
    tensors: str | None = None
    """A .safetensors file of conditioning that was computed elsewhere."""
    inputs: str | None = None
    """What `sink.inputs` recorded of another stream, in place of its sound, actions and camera."""
    session: str | None = None
    """A session of a gateway, whose sound, camera and events drive the stream: `tcp://HOST:PORT/TOKEN`. `everframe
    serve` sets it."""
    pace: str = one_of(PACES, "live")
    """Of sound, actions, poses and frames that come through a pipe: `live`, a chunk is sampled no sooner than the one
    before it has been watched (frames / fps), so the stream does not run ahead of who drives it, and frames that have
    not come by then are the last one, held; `free`, as fast as stages allow."""

    def __post_init__(self):
        check_choices(self, "source.")
        for name in SOURCES:
            _plain(f"source.{name}", getattr(self, name), LONGEST_PATH)
            setattr(self, name, found(getattr(self, name)))
        for name in LIVE:
            setattr(self, name, live(getattr(self, name)))
        if self.intrinsics is not None:
            check_intrinsics("source.intrinsics", self.intrinsics)
        _address("source.session", self.session)
        if self.session:
            for name in (*LIVE, "inputs"):
                if value := getattr(self, name):
                    rule = "source.session brings sound, actions and frames of its own"
                    raise UserError(f"source.{name}={value}", rule, f"set source.{name}=null")
        if self.camera and self.actions:
            rule = f"source.actions={self.actions} drives the camera"
            raise UserError(f"source.camera={self.camera}", rule, "give one of the two")
        if len(reading := [name for name in LIVE if getattr(self, name) == "-"]) > 1:
            raise UserError(
                f"source.{reading[0]}=-",
                f"source.{reading[1]}=- reads standard input too",
                "give one of the two as a file",
            )

    @property
    def reads_stdin(self) -> bool:
        """Whether it reads standard input, which one stream of a run can do."""
        return "-" in [getattr(self, name) for name in SOURCES]

    @property
    def live(self) -> bool:
        """Whether sound, actions, poses or frames come as they happen, and may have to be waited for."""
        return any(is_live(getattr(self, name)) for name in LIVE) or self.session is not None

    @property
    def paced(self) -> bool:
        """Whether its stream is sampled no faster than it is watched."""
        return self.live and self.pace == "live"


@dataclass
class SinkConfig:
    """Where frames and latents go; null: nowhere. Without any that takes pictures no decoder is loaded."""

    video: str | None = "${output_dir}/video.mp4"
    """An .mp4 file, with sound where there is sound."""
    latents: str | None = None
    """A .safetensors file of the final latents, a key for every chunk."""
    frames: str | None = None
    """A folder of one PNG for every frame."""
    contact_sheet: str | None = None
    """A PNG of a few frames side by side."""
    reader: str | None = None
    """A program that takes pictures and sound as they are made: `tcp://HOST:PORT/TOKEN`. `everframe.open` sets it."""
    session: str | None = None
    """A session of a gateway, whose viewers are sent coded pictures and sound: `tcp://HOST:PORT/TOKEN`. `everframe
    serve` sets it."""
    inputs: str | None = None
    """What was sampled for each chunk, so that another run can be driven by it."""
    timeline: str | None = None
    """A PNG of the pipeline filling and running, drawn from the trace at the end."""
    trace: str = one_of(TRACES, "recent")
    """What `trace.json` holds: `none` (it is not written), the `recent` ten minutes, or `all`."""

    def __post_init__(self):
        for setting in fields(self):
            _plain(f"sink.{setting.name}", getattr(self, setting.name), LONGEST_PATH)
        check_choices(self, "sink.")
        _address("sink.reader", self.reader)
        _address("sink.session", self.session)
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
    """Encoding of a chunk's conditioning."""
    decode_s: float = 0.0
    """Decoding of a chunk."""
    post_s: float = 0.0
    """The post stage of a chunk."""
    output_s: float = 0.0
    """Output of a chunk; it holds no device, only its stream."""
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
    bank_bytes: int | None = None
    """Of a stream's bank at one level, of the whole network; null: none. Passes write nothing in it, but cuts copy what
    they would have written."""

    def __post_init__(self):
        for name in ("step_s", "commit_s", "prefill_s", "encode_s", "decode_s", "post_s", "output_s", "jitter"):
            not_negative(f"device.emulated.{name}", getattr(self, name))
        for name in ("latent_bytes", "hidden_bytes", "bank_bytes"):
            positive(f"device.emulated.{name}", getattr(self, name))
        for value in self.layers_s or []:
            not_negative("device.emulated.layers_s", value)
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

    kind: str = one_of(("auto", "cpu", "cuda", "emulated"), "auto")
    """What is computed on; `auto`: a GPU where there is one and the model's steps take a processor more than a tenth of
    the time that they play."""
    threads: int = 1
    """Of every process on a CPU; results are exact for equal numbers only."""
    compile: str = one_of(COMPILE, "auto")
    """Whether what lies between attentions is compiled, and the decoder where it can be, which loading waits for;
    `auto`: on a GPU that has Triton."""
    graphs: str = one_of(GRAPHS, "auto")
    """Whether passes are recorded as CUDA graphs while a worker loads; `auto`: where they can be."""
    emulated: EmulatedConfig = field(default_factory=EmulatedConfig)

    def __post_init__(self):
        self.compile = str(self.compile).lower()  # true and false come as such, or as words
        check_choices(self, "device.")
        positive("device.threads", self.threads, most=128)

    @property
    def may_be_gpu(self) -> bool:
        """Whether a worker takes a GPU where there is one."""
        return self.kind in ("auto", "cuda")


@dataclass
class PlanConfig:
    """Which worker runs which cell."""

    name: str = one_of(PLANS, "sequential")
    """The shape of the plan (`plan=NAME`): all on one worker, a step each, a block of layers each, both, or what the
    planner finds."""
    workers: int | None = None
    """All processes, those of encode, decode and sequence parallelism included; null: as many as the plan needs, or as
    torchrun started."""
    steps: list[int] | None = None
    """Steps of every worker, in order; null: as even as can be."""
    layers: list[int] | None = None
    """Layers of every block, in order; null: as even as can be."""
    grid: list[int] | None = None
    """Groups of steps, and blocks of layers, of `plan=grid`."""
    sequence_parallel: int = 1
    """Processes that share every pass of a worker, each some heads and tokens."""
    encode: int | None = None
    """The worker that samples and encodes; null: the first."""
    decode: int | None = None
    """The worker that decodes; null: the last."""
    post: int | None = None
    """The worker of the stage behind decode, if there is one; null: beside decode."""
    in_flight: int | None = None
    """Chunks on their way at most; null: as many as keep every worker busy, counted in layers."""
    devices: list[int] | None = None
    """The device of every process, by its number in the cluster, from 0; null: in order, and where there are fewer
    devices than processes, those that compute most have their own and the others share."""
    force: bool = False
    """Run a plan whose predicted control latency is over `stream.max_control_latency_s`."""

    def __post_init__(self):
        check_choices(self, "plan.")
        for name in ("workers", "in_flight", "sequence_parallel"):
            positive(f"plan.{name}", getattr(self, name), most=100_000)
        if self.devices is not None and (not self.devices or min(self.devices) < 0):
            rule = "lists whole numbers from 0, one for every process"
            raise UserError(f"plan.devices={list(self.devices)}", rule, "give them, or leave it out")


@dataclass
class LauncherConfig:
    """Who starts the workers."""

    name: str = one_of(LAUNCHERS, "local")
    """Processes of this machine, ranks that torchrun started, or actors of a Ray cluster."""
    address: str | None = None
    """Of a Ray cluster that runs already, HOST:PORT, or `auto` for the one of this machine; null: a new one."""
    nodes: int | None = None
    """Nodes that a Ray cluster has once all have come; null: those that are there."""
    nodes_s: float = 300.0
    """Longest wait for them."""
    timeout_s: float = 60.0
    """Longest wait for a peer that owes something and is not known to live."""
    threads: str = one_of(THREADS, "auto")
    """Whether local workers are threads of one process (true), all on one GPU, or processes, which go round the GPUs;
    `auto`: threads, unless there are several GPUs."""
    transport: str = one_of(TRANSPORTS, "auto")
    """How tensors go from one process's GPU to another's: `nccl` from card to card, `host` through the hosts' memories,
    which is the only way between workers on one card; `auto`: by NCCL where it can go and messages are larger than
    1 MB."""
    recover: str = one_of(RECOVERIES, "auto")
    """What a lost worker means: the end of the run (`off`), or that streams go on from their newest cut, with the
    latents that they would have had (`exact`). Under torchrun a restart goes on from the newest states on disk. `auto`:
    `exact` of a server whose workers are processes, else `off`."""
    recover_s: float = 1.0
    """Work of a stream that a loss may cost, in seconds of its slowest stage: how often cuts are made."""
    spares: int = 0
    """Processes that have loaded what any worker may need, and take a lost one's place at once."""
    cuts: str = "/dev/shm"
    """A folder in memory, for cuts; of several hosts one that all of them see."""
    silent_s: float = 5.0
    """After which a process that says nothing is lost, where workers are recovered."""

    def __post_init__(self):
        self.threads = self.threads.lower()  # `true` on the command line is a boolean to YAML
        self.recover = {"false": "off"}.get(self.recover.lower(), self.recover.lower())  # and `off` is false
        check_choices(self, "launcher.")
        if self.recovers and self.threads == "true":
            rule = "threads die with their process: none would be left to go on"
            raise UserError("launcher.recover=exact launcher.threads=true", rule, "set launcher.threads=false")
        positive("launcher.recover_s", self.recover_s, most=3600)
        positive("launcher.silent_s", self.silent_s, most=1_000_000)
        if not 0 <= self.spares <= 1024:
            raise UserError(f"launcher.spares={self.spares}", "must be from 0 to 1024", "take 1 or 2")
        if self.threads != "auto" and self.name != "local":
            rule = f"says how launcher=local starts workers, not launcher={self.name}"
            raise UserError(f"launcher.threads={self.threads}", rule, "set launcher.threads=auto")
        positive("launcher.nodes", self.nodes, most=100_000)
        positive("launcher.nodes_s", self.nodes_s, most=1_000_000)
        positive("launcher.timeout_s", self.timeout_s, most=1_000_000)

    @property
    def in_place(self) -> bool:
        """Whether they do so while the run goes on; torchrun ends all ranks with one, and starts the run again."""
        return self.recovers and self.name != "torchrun"

    @property
    def recovers(self) -> bool:
        """Whether streams go on when a worker is lost."""
        return self.recover == "exact"


@dataclass
class PostConfig:
    """What is done to pictures between the decoder and the sinks."""

    name: str = one_of(POSTS, "none")
    """A stage behind the decoder."""
    scale: int = 4
    """Of `upscale`: new pixels per pixel, each way."""

    def __post_init__(self):
        check_choices(self, "post.")
        positive("post.scale", self.scale, most=16)

    @property
    def factor(self) -> int:
        """Pixels that are put out per decoded pixel, each way."""
        return self.scale if self.name == "upscale" else 1


@dataclass
class LoggingConfig:
    """Who else is told how the run goes."""

    name: str = one_of(LOGS, "none")
    """Beside the progress line and the report."""
    project: str = "everframe"
    """Of wandb."""
    mode: str = one_of(("offline", "online", "disabled"), "offline")
    """Of wandb."""

    def __post_init__(self):
        check_choices(self, "logging.")

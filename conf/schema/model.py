"""What a model is: its family, its network's sizes, its streaming rules, its codec and what conditions it."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from types import ModuleType
from typing import Any

from conf import families, published
from conf.codecs import declared
from conf.contexts import CONTEXTS, ContextRule
from conf.errors import UserError, not_negative, positive
from conf.hub import found
from conf.paths import is_folder
from conf.schema.codec import CodecConfig
from conf.schema.conditioning import ClipConfig, TextConfig
from conf.schema.history import WAITING, Compress, check_slots
from conf.schema.lora import LoraConfig
from conf.schema.network import NetworkConfig
from conf.settings import check_choices, one_of
from conf.typed import typed

LEAST_SHIFT = 1e-3
"""Below it the first step's level would be lost to rounding."""
MOST_PIXELS = 65_536
"""On a side."""
POSITION_RULES = ("abs", "slot", "sink_shift", "deep")
SAMPLERS = ("euler", "renoise")
DTYPES = ("float32", "bfloat16", "float16")
FP8 = ("per_tensor", "per_row")


@dataclass
class SinkShift:
    """Where SINK-SHIFT places the attention sink: at `start` first, later `distance` frames ahead of the chunk.

    The distance is drawn for every chunk and step (arXiv 2512.04677).
    """

    start: int = 30
    """Latent frames ahead of the first chunk."""
    distance_min: int = 4
    """Latent frames ahead of a later chunk, at least."""
    distance_max: int = 30
    """At most."""

    def __post_init__(self):
        for name in ("start", "distance_min", "distance_max"):
            not_negative(f"model.sink_shift.{name}", getattr(self, name), most=1_000_000)
        if self.distance_min > self.distance_max:
            raise UserError(
                f"model.sink_shift.distance_min={self.distance_min}",
                f"must not exceed distance_max={self.distance_max}",
                f"use {self.distance_max} or less",
            )


@dataclass
class ModelConfig:
    """One model: architecture, context rule, sampler, positions, codec."""

    name: str = ""
    """As `report.json` calls it."""
    family: str = ""
    """A folder of `stages/models`, or a package elsewhere that is made like one."""
    network: Any = None
    """Sizes: those of its family's `Sizes` that are not its defaults."""
    text: TextConfig = field(default_factory=TextConfig)
    clip: ClipConfig = field(default_factory=ClipConfig)
    codec: CodecConfig = field(default_factory=CodecConfig)

    checkpoint: str | None = None
    """A weight file, or a folder with config.json, which then decides every size; null: random weights from
    `init_seed`."""
    lora: Any = None
    """A LoRA's path, `{path: ..., scale: ...}`, or a list of these; kept as a list of `LoraConfig`, or null."""
    lora_alpha: float | None = None
    """Alpha of a LoRA that does not say its own; null: its rank, so that its products are added as they are."""
    init_seed: int = 0
    """Of random weights."""
    dtype: str = one_of(DTYPES, "float32")
    """Of weights, banks and latents."""
    fp8: str | None = one_of(FP8, None)
    """8-bit products in the layers, with one scale for each tensor or for each row; null: none."""
    attention: str = "auto"
    """The back end, torch's own or one that is registered; `auto`: the fastest that the device and `dtype` support."""

    context: str = one_of(CONTEXTS, "same_level")
    """Which history the model was trained to read."""
    sampler: str = one_of(SAMPLERS, "euler")
    """How a step's prediction becomes the next step's input."""
    steps: int | None = 4
    """Denoising steps."""
    timesteps: list[float] | None = None
    """Step list before the shift, of 1000; null: evenly spread as diffusers' Euler scheduler does."""
    shift: float = 3.0
    """Of the step list towards noise, as flow matching has it."""
    warp: bool = True
    """Whether the shift is applied to the step list; else the network is told the list as it is, and a step's noise is
    that of the nearest of 1000 shifted ones."""
    noise_scale: float | None = None
    """Of video to video, the level of noise in what enters with a chunk, above 0 and up to 1; null: chunks begin as
    noise alone."""

    chunk_frames: int = 3
    """Latent frames that are generated together."""
    first_chunk_frames: int | None = None
    """Latent frames of the first chunk; null: as of every other."""
    window_frames: int = 12
    """Generated latent frames attended: the current chunk and the frame attention sink included."""
    sink_frames: int = 0
    """First generated latent frames kept as attention sink."""
    reference: bool = False
    """Whether a reference frame is part of the attention sink (beside the window)."""
    recalibrate_chunk: int | None = None
    """The chunk from which the reference is the first latent frame of chunk 0; null: never."""
    positions: str = one_of(POSITION_RULES, "slot")
    """Where the attention sink stands: at its own frames, right before the window, at drawn distances, or a window
    before the chunk."""
    sink_shift: SinkShift = field(default_factory=SinkShift)
    sink_ema: float | None = None
    """Share of itself that the attention sink keeps when a chunk leaves the window and is averaged into it (arXiv
    2512.04678); null: it stays as it is."""
    deep_sink: bool = False
    """The same as `positions=deep` (arXiv 2512.05081)."""
    stream_batch: bool | None = None
    """The same as `context=stream_batch` (true) or `context=one_bank` (false), StreamDiffusionV2's two modes; null: as
    `context` says."""
    adaptive_sink: float | None = None
    """Cosine, -1 to 1, of keys and values below which an attention-sink frame is too little like a new one, which takes
    its place once the window is full (arXiv 2511.07399); null: they stay."""
    refresh_frames: int | None = None
    """Positions count on from the end of a first window again when they come to it; null: they count for ever."""
    compress: Any = None
    """What is chosen of frames that leave the window, as `{budget_frames: 16, recent_frames: 4, reuse: 7}` (arXiv
    2512.05081); kept as `Compress`. Null: nothing, they are dropped."""
    prompt_switch: str = one_of(("text_only", "recache"), "text_only")
    """What a new prompt changes: `text_only`, what is read of it from then on; `recache`, what was made of the frames
    in the window, too, which are run again with it (arXiv 2509.22622)."""

    translation_scale: float | None = None
    """What a camera's way from one latent frame to the next is divided by, in the units of its poses: the longest that
    there should be. Null where a model has no camera."""

    fps: int = 16
    """Of the video."""
    height: int = 64
    """Where `stream.height` is null."""
    width: int = 64
    """Where `stream.width` is null."""

    def __post_init__(self):
        self._take_family()
        self.checkpoint, self.lora = found(self.checkpoint), LoraConfig.of(self.lora) or None
        self.compress = None if self.compress is None else typed(Compress, self.compress, "model.compress")
        check_choices(self, "model.")
        if self.fp8 is not None:
            self._check_widths()
        for name in (
            "steps", "chunk_frames", "first_chunk_frames", "window_frames", "refresh_frames", "shift", "fps",
            "lora_alpha", "translation_scale",
        ):  # fmt: skip
            positive(f"model.{name}", getattr(self, name), most=100_000)
        self.positions = "deep" if self.deep_sink else self.positions
        if self.stream_batch is not None:
            self.context = "stream_batch" if self.stream_batch else "one_bank"
        for name in ("height", "width"):
            positive(f"model.{name}", getattr(self, name), most=MOST_PIXELS)
        if self.shift < LEAST_SHIFT:
            raise UserError(f"model.shift={self.shift}", f"must not be below {LEAST_SHIFT}", "models use 1 to 17")
        if self.prompt_switch == "recache" and not self.rule.commits:
            raise UserError(
                "model.prompt_switch=recache",
                f"makes the bank of finished chunks anew, which context={self.context} has not",
                "set model.prompt_switch=text_only",
            )
        if self.noise_scale is not None:
            self._check_noise_scale()
        if self.lora and self.checkpoint is None:
            raise UserError(
                f"model.lora={self.lora[0].path}", "is merged into the weights of a checkpoint", "give model.checkpoint"
            )
        if self.checkpoint is not None and is_folder(self.checkpoint):
            self._take_folder()
        self.text, self.clip = self.text.beside(self.checkpoint), self.clip.beside(self.checkpoint)
        self._check_schedule()
        self._check_history()
        self._check_window()
        self._check_sink()
        if check := getattr(self._declared, "check", None):
            check(self)

    @property
    def _declared(self) -> ModuleType | None:
        """The family's `sizes` module; None for a configuration that is still empty."""
        return families.needed(families.FAMILIES, self.family, "sizes") if self.family else None

    def _take_family(self):
        """The network's sizes, of the type that the family declares."""
        if isinstance(self.network, NetworkConfig) and not self.family:
            self.family = families.name_of(type(self.network).__module__)
        if self._declared is None:
            if self.network is not None:
                raise UserError("model.family=null", "says what the network's sizes mean", "name a family")
            return
        self.network = typed(self._declared.Sizes, {} if self.network is None else self.network, "model.network")

    def _resized(self, config: Any, sizes: dict[str, Any], inside: str = "") -> Any:
        """A configuration with some fields replaced, all at once; `a.b` is field `b` of field `a`."""
        own, deeper = {}, {}
        for name, value in sizes.items():
            field_name, _, rest = name.partition(".")
            if rest:
                deeper.setdefault(field_name, {})[rest] = value
            else:
                own[name] = value
        for name, below in deeper.items():
            if (part := getattr(config, name, None)) is None:
                raise UserError(
                    f"model.checkpoint={self.checkpoint}",
                    f"config.json is of a model with {inside}{name}, which model={self.name} has not",
                    "name the model it is of (everframe inspect says which)",
                )
            own[name] = self._resized(part, below, f"{inside}{name}.")
        return typed(type(config), vars(config) | own, f"model.network.{inside}".rstrip("."))

    def _take_folder(self):
        """The sizes and the codec of the checkpoint's folder."""
        if self.family and (said := published.said(self.checkpoint)):
            tell = getattr(self._declared, "published", None)
            if tell is None:
                raise UserError(
                    f"model.checkpoint={self.checkpoint}",
                    f"holds a config.json, which family {self.family} does not read",
                    "name the file with the weights",
                )
            try:
                self.network = self._resized(self.network, tell(said))
            except UserError as error:
                value = f"model.checkpoint={self.checkpoint}: {error.value}"
                raise UserError(value, error.rule, error.remedy) from error
        kind = self.codec.kind
        for name, codec in (("checkpoint", kind), ("vae", declared(kind).encoder)):
            places = declared(codec).names if codec and getattr(self.codec, name) is None else ()
            if there := published.first_there(self.checkpoint, places):
                self.codec = replace(self.codec, **{name: str(there)})

    def _check_noise_scale(self):
        if not 0 < self.noise_scale <= 1:
            raise UserError(
                f"model.noise_scale={self.noise_scale}", "is a level of noise, above 0 and up to 1", "use 0.8"
            )
        if self.rule.joint:
            raise UserError(
                f"model.noise_scale={self.noise_scale}",
                f"context={self.context} denoises chunks that are to come, whose pictures nobody has yet",
                "set model.noise_scale=null, or use another context",
            )

    def _check_widths(self):
        for name, width in self.network.widths.items() if self.network else ():
            if width % 16:
                raise UserError(f"model.fp8={self.fp8}", f"needs widths in sixteens, not {name}={width}", "set it null")

    def _check_schedule(self):
        if self.timesteps is None and self.steps is None:
            raise UserError("model.steps=null", "steps or timesteps must be given", "set model.steps=4")
        if self.timesteps is None:
            return
        if self.steps is not None and self.steps != len(self.timesteps):
            raise UserError(
                f"model.steps={self.steps}",
                f"model.timesteps lists {len(self.timesteps)} steps",
                f"set model.steps={len(self.timesteps)}, or model.timesteps=null",
            )
        falling = all(a > b for a, b in zip(self.timesteps, self.timesteps[1:], strict=False))
        if not self.timesteps or not falling or self.timesteps[0] > 1000 or self.timesteps[-1] <= 0:
            raise UserError(
                f"model.timesteps={self.timesteps}", "must fall from at most 1000 to above 0", "use [1000,750,500,250]"
            )

    def _check_window(self):
        ring, c = self.window_frames - self.sink_frames, self.chunk_frames
        whole = ring % c == 0 or self._any_window or self.slots
        if self.sink_frames < 0 or ring < c or not whole:
            lower = self.sink_frames + max(1, ring // c) * c
            raise UserError(
                f"model.window_frames={self.window_frames}",
                f"(window - sink_frames={self.sink_frames}) must be a multiple of chunk_frames={c}, one chunk at least",
                f"use {lower} or {lower + c}",
            )

    def _check_sink(self):
        if self.codec.prime and self.network is not None and not self.network.before:
            raise UserError(
                f"model.codec.prime={self.codec.prime}",
                "the decoder is primed with frames of before the stream, and this model has none",
                "set model.codec.prime=0",
            )
        if not self.rule.commits and not self.slots and self.sink_frames % self.chunk_frames:
            raise UserError(
                f"model.sink_frames={self.sink_frames}",
                f"under {self.context} the attention sink is whole chunks of {self.chunk_frames} frames",
                f"use {self.sink_frames // self.chunk_frames * self.chunk_frames}",
            )
        if self.recalibrate_chunk is not None:
            if not self.reference:
                raise UserError(
                    f"model.recalibrate_chunk={self.recalibrate_chunk}",
                    "recalibration replaces the reference, and this model has none",
                    "set model.recalibrate_chunk=null, or model.reference=true",
                )
            if self.recalibrate_chunk < 1:
                raise UserError(
                    f"model.recalibrate_chunk={self.recalibrate_chunk}",
                    "chunk 0 must be finished first",
                    "use 1 or more",
                )

    def _check_history(self):
        if self.sink_ema is not None:
            self._check_average()
        if self.compress is not None:
            self._check_compress()
        if self.rule.joint:
            self._check_joint()
        self._check_slots()

    def _check_slots(self):
        """What only a history of slots has, which reads no attention sink apart from its window."""
        if self.slots:
            if self.reference or self.positions != "abs" or (self.network and self.network.adapters):
                lacking = "reference=false" if self.reference else "positions=abs, and a network without adapters"
                raise UserError(f"model.context={self.context}", f"needs {lacking}", "see conf/model of such a model")
            check_slots(
                self.window_frames, self.sink_frames, self.chunk_frames, len(self.frames(0)), self.refresh_frames,
                self.adaptive_sink,
            )  # fmt: skip
            return
        for name in ("first_chunk_frames", "refresh_frames", "adaptive_sink"):
            if (value := getattr(self, name)) is not None:
                rule = "is for context=stream_batch and context=one_bank"
                raise UserError(f"model.{name}={value}", rule, f"set model.{name}=null")

    def _check_average(self):
        if not 0 <= self.sink_ema <= 1:
            raise UserError(f"model.sink_ema={self.sink_ema}", "is a share", "use 0 to 1")
        if self.sink_frames != self.chunk_frames:
            raise UserError(
                f"model.sink_ema={self.sink_ema}",
                f"averages frame by frame, and sink_frames={self.sink_frames} is not chunk_frames={self.chunk_frames}",
                f"set model.sink_frames={self.chunk_frames}, or model.sink_ema=null",
            )
        if self.context != "clean" or self.compress is not None:
            what = "compress" if self.context == "clean" else f"context={self.context}"
            raise UserError(
                f"model.sink_ema={self.sink_ema}",
                f"averages clean frames that leave a window, which {what} has not",
                "set model.sink_ema=null, or model.context=clean",
            )

    def _check_compress(self):
        self.compress.check(self.chunk_frames, self.window_frames, self.sink_frames)
        for lacking, remedy in (
            ("context=clean" * (self.context != "clean"), "set model.context=clean"),
            ("deep_sink=true" * (self.positions != "deep"), "set model.deep_sink=true"),
            ("prompt_switch=text_only" * (self.prompt_switch != "text_only"), "set model.prompt_switch=text_only"),
            ("a network without adapters" * bool(self.network and self.network.adapters), "set model.compress=null"),
        ):
            if lacking:
                raise UserError("model.compress", f"keeps single tokens, which needs {lacking}", remedy)

    def _check_joint(self):
        least = self.sink_frames + self.step_count * self.chunk_frames
        if self.window_frames < least:
            raise UserError(
                f"model.window_frames={self.window_frames}",
                f"must hold the attention sink and {self.step_count} chunks, {least} frames",
                f"set model.window_frames={least} or more",
            )
        for lacking, remedy in (
            ("no reference" * self.reference, "set model.reference=false"),
            ("prompt_switch=text_only" * (self.prompt_switch != "text_only"), "set model.prompt_switch=text_only"),
            ("a network without adapters" * bool(self.network and self.network.adapters), "use another context"),
        ):
            if lacking:
                raise UserError("model.context=joint_window", f"needs {lacking}", remedy)

    @property
    def _any_window(self) -> bool:
        """Whether frames may leave the window in the middle of a chunk: not where chunks are run again, or averaged."""
        return self.rule.commits and self.prompt_switch == "text_only" and self.sink_ema is None

    @property
    def rule(self) -> ContextRule:
        """What `context` means for banks and passes."""
        return CONTEXTS[self.context]

    @property
    def slots(self) -> bool:
        """Whether banks are slots of single frames, all of which are read (`stages.denoise.history.Slotted`)."""
        return self.context in ("stream_batch", "one_bank")

    def frames(self, chunk: int) -> range:
        """Latent frames of a chunk."""
        ahead = 0 if self.first_chunk_frames is None else self.first_chunk_frames - self.chunk_frames
        start = ahead + chunk * self.chunk_frames if chunk else 0
        return range(start, ahead + (chunk + 1) * self.chunk_frames)

    @property
    def choice(self) -> dict[str, int]:
        """What a bank keeps to choose by: latent frames, `recalled` of queries and `chosen` of tokens, or how many
        attention-sink slots may be `waiting`; empty where nothing is chosen.

        A bank with one pass for a chunk has one more waiting with each chunk until it is full, and from then on none
        more. With several passes, each of which may have one wait while only one leaves, there is no bound: the oldest
        of more than `WAITING` are forgotten, which is seen once so many chunks in a row find nothing unlike.
        """
        if self.adaptive_sink is not None:
            return {"waiting": self.window_frames + WAITING * (not self.rule.bank_per_step)}
        if self.compress is None:
            return {}
        recent = self.compress.recent_frames
        chosen = self.compress.budget_frames - self.sink_frames - recent
        return {"recalled": recent - self.chunk_frames, "chosen": chosen}

    @property
    def ring_frames(self) -> int:
        """Latent frames in a bank beside the attention sink."""
        if self.rule.joint or self.slots:  # its frames are read as others are
            return self.window_frames
        return self.window_frames - self.sink_frames + (self.chunk_frames if self.compress else 0)

    @property
    def recache_chunks(self) -> int:
        """Finished chunks that a prompt change runs again, at most; 0: it runs none."""
        return self.window_frames // self.chunk_frames if self.prompt_switch == "recache" else 0

    @property
    def levels(self) -> int:
        """Banks per layer."""
        return self.rule.levels(self.step_count)

    @property
    def step_count(self) -> int:
        """S, the number of denoising steps."""
        return len(self.timesteps) if self.timesteps is not None else self.steps

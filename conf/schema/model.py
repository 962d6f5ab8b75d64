"""What a model is: its network, its streaming rules, its codec and what conditions it."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from conf import published
from conf.errors import UserError, choice, nearest, positive
from conf.paths import found

CONTEXT_RULES = ("same_level", "clean", "joint_window", "output_level")
POSITION_RULES = ("abs", "slot", "sink_shift")
SAMPLERS = ("euler", "renoise")
DTYPES = ("float32", "bfloat16", "float16")
FP8 = ("per_tensor", "per_row")


@dataclass
class Wav2VecConfig:
    """Sound as the hidden states of a wav2vec2 model (Wan2.2-S2V)."""

    checkpoint: str | None = None
    """A folder as transformers writes it; null: the folder of that name in `model.checkpoint`, or random weights."""
    layers: int = 25
    """Hidden states: the embedding's and every layer's."""
    dim: int = 1024
    """Width of a hidden state."""
    tokens: int = 4
    """Audio tokens made for every latent frame, besides a learned one."""
    window_s: float = 2.4
    """Live: seconds of sound that are looked at for a chunk, its own included."""
    whole_file: bool = False
    """Whether a file is listened to at once, to its end, before the stream begins, instead of as it goes."""

    def __post_init__(self):
        self.checkpoint = found(self.checkpoint)
        for name in ("layers", "dim", "tokens", "window_s"):
            positive(f"model.network.audio.wav2vec.{name}", getattr(self, name))


@dataclass
class AudioConfig:
    """Sound as causal log-mel features, cross-attended per latent frame after some of the layers."""

    layers: list[int] = field(default_factory=list)
    """Network layers followed by an audio cross-attention."""
    dim: int = 64
    """Width of an audio token; there is one token per video frame. With `wav2vec` it is the network's width."""
    bands: int = 32
    """Mel bands of a feature row."""
    rows_per_frame: int = 4
    """Feature rows per video frame."""
    lookahead_s: float = 0.0
    """How far a frame's features may look ahead of the frame's end."""
    adain: bool = False
    """Whether one more token per latent frame scales and shifts what asks for the others."""
    wav2vec: Wav2VecConfig | None = None
    """Listen with wav2vec2 instead of log-mel features."""

    def __post_init__(self):
        if self.adain and not self.wav2vec:
            raise UserError("model.network.audio.adain=true", "only wav2vec gives the token it needs", "set it false")

    @property
    def features(self) -> int:
        """Features per video frame, in each of `feature_layers`."""
        return self.wav2vec.dim if self.wav2vec else self.bands * self.rows_per_frame

    @property
    def feature_layers(self) -> int:
        """Layers that features come from."""
        return self.wav2vec.layers if self.wav2vec else 1

    @property
    def tokens(self) -> int:
        """Audio tokens of a latent frame."""
        return self.wav2vec.tokens + 1 + self.adain if self.wav2vec else 4

    @property
    def names(self) -> dict[int, str]:
        """What the part after a layer is called in a checkpoint: S2V's are counted, ours have the layer's number."""
        return {layer: str(count if self.wav2vec else layer) for count, layer in enumerate(self.layers)}


@dataclass
class NetworkConfig:
    """Sizes of the diffusion transformer (names as in Wan's `config.json` where it has one)."""

    dim: int = 64
    ffn_dim: int = 128
    heads: int = 4
    layers: int = 6
    patch: list[int] = field(default_factory=lambda: [1, 2, 2])
    in_channels: int = 16
    out_channels: int = 16
    freq_dim: int = 256
    text_dim: int = 32
    text_tokens: int = 8
    """Text rows; shorter prompts are padded with zero rows, which take part."""
    eps: float = 1e-6
    token_types: bool = False
    """Learned type embeddings that tell noisy tokens from reference and motion tokens."""
    frame_pack: bool = False
    """Motion tokens beside the reference: the 19 latent frames before the stream, packed."""
    pose: bool = False
    """Latents of a pose are added to the chunk's own."""
    actions: list[str] = field(default_factory=list)
    """Names of the actions that modulate every layer, per latent frame; empty: none."""
    audio: AudioConfig | None = None

    def __post_init__(self):
        for name in ("dim", "ffn_dim", "heads", "layers", "in_channels", "out_channels", "text_tokens"):
            positive(f"model.network.{name}", getattr(self, name))
        if self.dim % self.heads or (self.dim // self.heads) % 2:
            raise UserError(
                f"model.network.heads={self.heads}",
                f"must divide dim={self.dim} into heads of even width",
                f"use {max(h for h in range(1, self.heads + 1) if self.dim % h == 0 and self.dim // h % 2 == 0)}",
            )
        if len(self.patch) != 3 or min(self.patch) < 1:
            raise UserError(f"model.network.patch={self.patch}", "is three sizes: frames, rows, columns", "use [1,2,2]")
        bad = [layer for layer in self.audio.layers if not 0 <= layer < self.layers] if self.audio else []
        if bad:
            raise UserError(
                f"model.network.audio.layers={self.audio.layers}",
                f"layers are 0 to {self.layers - 1}",
                f"remove {bad}",
            )

    @property
    def head_dim(self) -> int:
        return self.dim // self.heads

    @property
    def audio_dim(self) -> int:
        """Width of an audio token; 0 for a network without sound."""
        if not self.audio:
            return 0
        return self.dim if self.audio.wav2vec else self.audio.dim


@dataclass
class SinkShift:
    """Where SINK-SHIFT places the attention sink: at `start` first, later `distance` frames ahead of the chunk.

    Live Avatar: start 30, distance drawn from 4 to 30 for every chunk and step.
    """

    start: int = 30
    distance_min: int = 4
    distance_max: int = 30

    def __post_init__(self):
        if self.distance_min > self.distance_max:
            raise UserError(
                f"model.sink_shift.distance_min={self.distance_min}",
                f"must not exceed distance_max={self.distance_max}",
                f"use {self.distance_max} or less",
            )


@dataclass
class TextConfig:
    """How prompts become text states.

    `table`: the small encoder, one learned row per known word, or per hash bucket where no words are listed.
    `umt5`: a UMT5 encoder in files of its own. Where a model's folder has none, states come as tensors; a model with
    random weights uses a random table in its place.
    """

    kind: str = "table"
    words: list[str] = field(default_factory=list)
    buckets: int = 256
    checkpoint: str | None = None
    """UMT5's weights: the original file, a transformers folder, or a model's folder that holds either; null: those in
    the folder that model.checkpoint names."""
    tokenizer: str | None = None
    """The tokenizer's folder; null: the one beside the weights."""

    def __post_init__(self):
        choice("model.text.kind", self.kind, ("table", "umt5"))
        self.checkpoint, self.tokenizer = found(self.checkpoint), found(self.tokenizer)

    def beside(self, model: str | None) -> TextConfig:
        """This, with the files that `model` (a checkpoint) brings, where none are named."""
        root = self.checkpoint or model
        if self.kind != "umt5" or root is None:
            return self
        weights = published.part(root, "text_encoder") or self.checkpoint
        if weights is None:
            return self
        places = (published.part(folder, "tokenizer") for folder in (root, Path(weights).parent))
        tokenizer = self.tokenizer or next((str(place) for place in places if place), None)
        return replace(self, checkpoint=str(weights), tokenizer=tokenizer)


@dataclass
class CodecConfig:
    """The network between pixels and latents.

    `small`: the pocket models'. `wan`: the Wan VAE. `taehv`: a small distilled decoder of the same latents.
    """

    kind: str = "small"
    width: int = 96
    """Channels of the Wan VAE at full resolution, where it has random weights (codec files say their own sizes)."""
    checkpoint: str | None = None
    vae: str | None = None
    """Beside a `taehv` decoder: the Wan VAE whose encoder makes latents of a reference; null: as the checkpoint's
    folder has it."""
    statistics: str | None = None
    """Which data's latent mean and deviation to use, of those the small codec's file holds."""
    prime: int = 0
    """Motion frames that are decoded and dropped before a stream, so that its first chunk is as long as all others."""

    def __post_init__(self):
        self.checkpoint = found(self.checkpoint)
        self.vae = found(self.vae)
        choice("model.codec.kind", self.kind, ("small", "wan", "taehv"))
        positive("model.codec.width", self.width)


@dataclass
class LoraConfig:
    """One LoRA to merge when weights are read.

    Attributes:
        path: a file, or a folder in PEFT's layout.
        scale: its strength, beside what its alpha and rank say.
    """

    path: str = ""
    scale: float = 1.0

    def __post_init__(self):
        self.path = found(self.path)

    @classmethod
    def of(cls, given: Any) -> list[LoraConfig]:
        """What `model.lora` may be: nothing, a path, `{path: ..., scale: ...}`, or a list of these."""
        if given is None:
            return []
        if isinstance(given, list):
            return [lora for one in given for lora in cls.of(one)]
        if isinstance(given, cls):
            return [given]
        if isinstance(given, str):
            return [cls(given)]
        if not isinstance(given, dict) or "path" not in given:
            raise UserError(f"model.lora={given}", "must be a path, or {path: FILE, scale: 1.0}", "name a file")
        for key in given:
            if key not in ("path", "scale"):
                raise UserError(f"model.lora: {key}", "is no part of a LoRA", nearest(key, ("path", "scale")))
        if not isinstance(given.get("scale", 1.0), int | float):
            raise UserError(f"model.lora: scale={given['scale']}", "must be a number", "use 1.0")
        return [cls(str(given["path"]), float(given.get("scale", 1.0)))]


@dataclass
class ModelConfig:
    """One model: architecture, context rule, sampler, positions, codec."""

    name: str = "nano"
    network: NetworkConfig = field(default_factory=NetworkConfig)
    text: TextConfig = field(default_factory=TextConfig)
    codec: CodecConfig = field(default_factory=CodecConfig)

    checkpoint: str | None = None
    """A weight file, or a folder with config.json, which then decides every size; null: random weights from
    `init_seed`."""
    lora: Any = None
    """A LoRA's path, `{path: ..., scale: ...}`, or a list of these; kept as a list of `LoraConfig`, or null."""
    lora_alpha: float | None = None
    """Alpha of a LoRA that does not say its own; null: its rank, so that its products are added as they are."""
    init_seed: int = 0
    dtype: str = "float32"
    fp8: str | None = None
    """8-bit products in the layers, with one scale for each tensor or for each row; null: none."""
    attention: str = "sdpa"

    context: str = "same_level"
    sampler: str = "euler"
    steps: int | None = 4
    timesteps: list[float] | None = None
    """Step list before the shift, of 1000; null: evenly spread as diffusers' Euler scheduler does."""
    shift: float = 3.0

    chunk_frames: int = 3
    window_frames: int = 12
    """Generated latent frames attended: the current chunk and the frame attention sink included."""
    sink_frames: int = 0
    """First generated latent frames kept as attention sink."""
    reference: bool = False
    """Whether a reference frame is part of the attention sink (beside the window)."""
    recalibrate_chunk: int | None = None
    """The chunk from which the reference is the first latent frame of chunk 0; null: never."""
    positions: str = "slot"
    sink_shift: SinkShift = field(default_factory=SinkShift)
    prompt_switch: str = "text_only"
    """What a new prompt changes: `text_only`, what is read of it from then on; `recache`, what was made of the frames
    in the window, too, which are run again with it (LongLive)."""

    fps: int = 16
    height: int = 64
    """Default height in pixels (`stream.height` overrides)."""
    width: int = 64

    def __post_init__(self):
        self.checkpoint, self.lora = found(self.checkpoint), LoraConfig.of(self.lora) or None
        choice("model.context", self.context, CONTEXT_RULES)
        choice("model.positions", self.positions, POSITION_RULES)
        choice("model.sampler", self.sampler, SAMPLERS)
        choice("model.dtype", self.dtype, DTYPES)
        if self.fp8 is not None:
            choice("model.fp8", self.fp8, FP8)
            self._check_widths()
        choice("model.prompt_switch", self.prompt_switch, ("text_only", "recache"))
        for name in ("steps", "chunk_frames", "window_frames", "shift", "fps", "lora_alpha"):
            positive(f"model.{name}", getattr(self, name))
        if self.prompt_switch == "recache" and self.context != "clean":
            raise UserError(
                "model.prompt_switch=recache",
                f"makes the bank of finished chunks anew, which context={self.context} has not",
                "set model.prompt_switch=text_only",
            )
        if self.lora and self.checkpoint is None:
            raise UserError(
                f"model.lora={self.lora[0].path}", "is merged into the weights of a checkpoint", "give model.checkpoint"
            )
        if self.checkpoint is not None and Path(self.checkpoint).is_dir():
            self._take_folder()
        self.text = self.text.beside(self.checkpoint)
        self._check_schedule()
        self._check_window()
        self._check_sink()

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
                    "name the model it is of (python -m launch.inspect says which)",
                )
            own[name] = self._resized(part, below, f"{inside}{name}.")
        return replace(config, **own)

    def _take_folder(self):
        """The sizes and the VAE of the checkpoint's folder."""
        if sizes := published.network_sizes(self.checkpoint):
            self.network = self._resized(self.network, sizes)
        holds = {"wan": "checkpoint", "taehv": "vae"}.get(self.codec.kind)
        if holds and getattr(self.codec, holds) is None:
            vae = published.part(self.checkpoint, "vae")
            self.codec = replace(self.codec, **{holds: str(vae) if vae else None})

    def _check_widths(self):
        for name in ("dim", "ffn_dim"):
            if (width := getattr(self.network, name)) % 16:
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
        if self.sink_frames < 0 or ring < c or ring % c:
            lower = self.sink_frames + max(1, ring // c) * c
            raise UserError(
                f"model.window_frames={self.window_frames}",
                f"(window - sink_frames={self.sink_frames}) must be a multiple of chunk_frames={c}, one chunk at least",
                f"use {lower} or {lower + c}",
            )

    def _check_sink(self):
        if self.network.frame_pack and not self.reference:
            raise UserError(
                "model.network.frame_pack=true",
                "motion tokens stand beside a reference, and this model has none",
                "set model.reference=true",
            )
        if self.codec.prime and not self.network.frame_pack:
            raise UserError(
                f"model.codec.prime={self.codec.prime}",
                "the decoder is primed with motion frames, and this model has none",
                "set model.codec.prime=0",
            )
        if self.context == "same_level" and self.sink_frames % self.chunk_frames:
            raise UserError(
                f"model.sink_frames={self.sink_frames}",
                f"under same_level the attention sink is whole chunks of {self.chunk_frames} frames",
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

    @property
    def ring_frames(self) -> int:
        """Latent frames in the rolling part of a bank."""
        return self.window_frames - self.sink_frames

    @property
    def recache_chunks(self) -> int:
        """Finished chunks that a prompt change runs again, at most; 0: it runs none."""
        return self.window_frames // self.chunk_frames if self.prompt_switch == "recache" else 0

    @property
    def levels(self) -> int:
        """Banks per layer: one per step under `same_level`, one shared under `clean`."""
        return self.step_count if self.context == "same_level" else 1

    @property
    def step_count(self) -> int:
        """S, the number of denoising steps."""
        return len(self.timesteps) if self.timesteps is not None else self.steps

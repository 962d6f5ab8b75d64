"""Parts of a model, made from its configuration: only the parts asked for, on the device asked for.

Weights come from the model's checkpoint where one is named, else they are random and seeded.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from conf import published
from conf.errors import UserError
from conf.schema import CodecConfig, ModelConfig
from stages.codec import taehv, wan_keys
from stages.codec.base import Decoder, Encoder
from stages.codec.small import SmallDecoder, SmallEncoder, load_half
from stages.codec.taehv import TaehvDecoder
from stages.codec.wan import WanDecoder, WanEncoder
from stages.denoise.keys import original_name
from stages.denoise.network import Network
from stages.encode.audio import AudioEncoder
from stages.encode.causal_audio import CausalAudioEncoder
from stages.encode.text import TextEncoder
from stages.encode.umt5 import Umt5Encoder
from stages.encode.wav2vec import Wav2Vec
from stages.lora import Loras
from stages.weight_file import WeightFile
from stages.weights import check, initialise, load

SPATIAL_STRIDE, TEMPORAL_STRIDE = 8, 4
"""Of every codec here: video pixels per latent pixel, video frames per latent frame."""


def torch_dtype(name: str) -> torch.dtype:
    """`bfloat16` to `torch.bfloat16`."""
    return getattr(torch, name)


def choose_device(kind: str) -> torch.device:
    """The device `device=auto|cpu|cuda` means here; an emulated one is the processor, which has little to do."""
    if kind == "cuda" and not torch.cuda.is_available():
        raise UserError("device=cuda", "no CUDA device is visible", "use device=cpu or device=auto")
    return torch.device("cuda" if kind in ("auto", "cuda") and torch.cuda.is_available() else "cpu")


def text_encoder(model: ModelConfig) -> tuple[TextEncoder, str] | None:
    """The small text encoder without its weights, and where these lie in a model's file; None: it has none.

    A model with random weights reads prompts with a random table, too: it means as much as all else it does.
    """
    if model.text.checkpoint or (model.text.kind == "umt5" and model.checkpoint is not None):
        return None
    return TextEncoder(model.text, model.network.text_dim, model.network.text_tokens), "text_encoder."


def audio_encoder(model: ModelConfig) -> tuple[AudioEncoder | CausalAudioEncoder, str] | None:
    """The sound's encoder likewise; None for a model that does not listen."""
    audio = model.network.audio
    if audio and audio.wav2vec:
        sizes = audio.wav2vec.layers, audio.wav2vec.dim, model.network.dim, audio.wav2vec.tokens
        return CausalAudioEncoder(*sizes), "casual_audio_encoder."
    return (AudioEncoder(audio), "audio_encoder.") if audio else None


def whole(model: ModelConfig) -> dict[str, torch.Size]:
    """Name and shape of every weight of a model's file, whoever holds it."""
    with torch.device("meta"):
        parts = filter(None, [(Network(model.network), ""), text_encoder(model), audio_encoder(model)])
    return {prefix + name: value.shape for part, prefix in parts for name, value in part.state_dict().items()}


class Checkpoint:
    """A model's weight file, checked against the whole model, and its LoRAs: what every part is filled from.

    Attributes:
        file: counts the bytes read.

    Raises:
        UserError: a file is missing, broken or of another model.
    """

    def __init__(self, model: ModelConfig, device: torch.device):
        names = whole(model)
        self.file = WeightFile(model.checkpoint, rename=original_name)
        check(self.file, names)
        self.loras = Loras(model.lora, names, model.lora_alpha, device) if model.lora else None

    def fill(self, module: nn.Module, prefix: str = "") -> None:
        """Read a module's own weights, and no others."""
        load(module, self.file, prefix, self.loras)


def _empty(make: Callable[[], nn.Module], device: torch.device | str, dtype: torch.dtype) -> nn.Module:
    """A module in its place and type, with room for its weights and nothing else."""
    with torch.device("meta"):
        module = make()
    return module.to(dtype).to_empty(device=device)


def _filled(module: nn.Module, model: ModelConfig, prefix: str, checkpoint: Checkpoint | None = None) -> nn.Module:
    """`module` with its weights: from the checkpoint, or seeded by name."""
    if model.checkpoint is None:
        initialise(module, model.init_seed, prefix)
    else:
        device = next(module.parameters()).device
        (checkpoint or Checkpoint(model, device)).fill(module, prefix)
    return module.eval().requires_grad_(False)


def build_network(
    model: ModelConfig, device: torch.device, layers: range | None = None, checkpoint: Checkpoint | None = None
) -> Network:
    """The network, or the block range `layers` of it; `checkpoint` where it is open already."""
    network = _empty(lambda: Network(model.network, layers, model.attention), device, torch_dtype(model.dtype))
    # Before the weights are read, so that they are never held twice.
    return _filled(network.fuse(), model, "", checkpoint)


def build_text_encoder(model: ModelConfig, device: torch.device | str = "cpu") -> TextEncoder | Umt5Encoder | None:
    """The prompt's encoder (a small one stays on the CPU: it runs once per prompt); None where states are given."""
    if model.text.checkpoint:
        # float16 is too narrow for T5.
        dtype = torch.float32 if model.dtype == "float16" else torch_dtype(model.dtype)
        sizes = model.network.text_dim, model.network.text_tokens
        return Umt5Encoder(model.text.checkpoint, model.text.tokenizer, *sizes, dtype, device)
    part = text_encoder(model)
    return _filled(part[0], model, part[1]) if part else None


def build_audio_encoder(
    model: ModelConfig, device: torch.device | str = "cpu"
) -> AudioEncoder | CausalAudioEncoder | None:
    """The sound's encoder, if the model listens."""
    part = audio_encoder(model)
    return _filled(part[0].to(device), model, part[1]) if part else None


def build_wav2vec(model: ModelConfig, device: torch.device | str = "cpu") -> Wav2Vec | None:
    """What turns sound into features, where the model has a network for it."""
    config = model.network.audio.wav2vec if model.network.audio else None
    if config is None:
        return None
    beside = published.part(model.checkpoint, "audio_encoder") if model.checkpoint else None
    folder = config.checkpoint or beside
    if folder is None and model.checkpoint is not None:
        raise UserError(
            "model.network.audio.wav2vec.checkpoint=null",
            f"model.checkpoint={model.checkpoint} brings no audio encoder",
            "name a wav2vec2 folder, or give audio_features in source.tensors",
        )
    return Wav2Vec(config, folder, model.init_seed, device)


def wan_width(codec: CodecConfig) -> int:
    """Channels of a Wan VAE at full resolution: as its file has them, without one as configured."""
    if codec.checkpoint:
        entries = _wan_file(codec).entries
        for key in ("decoder.head.0.gamma", "encoder.conv1.bias"):
            if key in entries:
                return entries[key].shape[0]
    return codec.width


def _wan_file(codec: CodecConfig) -> WeightFile:
    return WeightFile(codec.checkpoint, "model.codec.checkpoint", wan_keys.original_name)


def _build_taehv(model: ModelConfig, device: torch.device) -> TaehvDecoder:
    codec = model.codec
    if codec.checkpoint is None and model.checkpoint is not None:
        raise UserError(
            "model.codec.checkpoint=null", "a taehv decoder needs its weights", "give taew2_1.pth, or codec.kind=wan"
        )
    module = _empty(TaehvDecoder, device, torch_dtype(model.dtype))
    if codec.checkpoint is None:
        initialise(module, model.init_seed, "codec.decoder.")
    else:
        taehv.load(module.requires_grad_(False), WeightFile(codec.checkpoint, "model.codec.checkpoint"))
    return module.to(memory_format=torch.channels_last)


def _build_wan(model: ModelConfig, codec: CodecConfig, half: str, device: torch.device) -> nn.Module:
    halves = {"encoder": WanEncoder, "decoder": WanDecoder}
    if codec.checkpoint is None and model.checkpoint is not None:
        raise UserError(
            "model.codec.checkpoint=null",
            f"model.checkpoint={model.checkpoint} brings no VAE",
            "give Wan2.1_VAE.pth, or the vae folder of a diffusers model (as model.codec.vae beside a taehv decoder)",
        )
    width = wan_width(codec)
    module = _empty(lambda: halves[half](base=width), device, torch_dtype(model.dtype))
    if codec.checkpoint is None:
        initialise(module, model.init_seed, f"codec.{half}.")
        return module
    with torch.device("meta"):
        names = {k: v.shape for kind in halves.values() for k, v in kind(base=width).state_dict().items()}
    file = _wan_file(codec)
    check(file, names)
    load(module, file)
    return module


def _build_codec(model: ModelConfig, half: str, device: torch.device) -> nn.Module:
    codec: CodecConfig = model.codec
    if codec.kind == "taehv" and half == "decoder":
        module = _build_taehv(model, device)
    elif codec.kind in ("wan", "taehv"):
        wan = codec if codec.kind == "wan" else replace(codec, checkpoint=codec.vae)
        module = _build_wan(model, wan, half, device)
    elif codec.checkpoint:
        if not Path(codec.checkpoint).is_file():
            raise UserError(f"model.codec.checkpoint={codec.checkpoint}", "no such file", "check the path")
        module = load_half(codec.checkpoint, half, codec.statistics)
    else:
        module = {"encoder": SmallEncoder, "decoder": SmallDecoder}[half]()
        initialise(module, model.init_seed, f"codec.{half}.")
    return module.eval().requires_grad_(False).to(device, torch_dtype(model.dtype))


def build_encoder(model: ModelConfig, device: torch.device) -> Encoder:
    """Pixels to latents, for the reference."""
    return _build_codec(model, "encoder", device)


def build_decoder(model: ModelConfig, device: torch.device) -> Decoder:
    """Latents to pixels."""
    return _build_codec(model, "decoder", device)


def video_frames(codec: CodecConfig, latents: int, first: bool) -> int:
    """Video frames of `latents` latent frames, known without loading a decoder.

    A Wan decoder's first latent of a stream is one frame, unless it was primed; every other latent is four.
    """
    lone = codec.kind in ("wan", "taehv") and first and not codec.prime
    return TEMPORAL_STRIDE * latents - (TEMPORAL_STRIDE - 1 if lone else 0)

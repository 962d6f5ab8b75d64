"""The Wan2.1/2.2 text-to-video transformer, over any range of its layers.

Single-device code: it knows neither ranks nor history. A range [lo, hi) holds the layers of that range, the
patch embedding if lo is 0 and the head if hi is the last, so that a range can live alone; every range holds
the (small) time and text embeddings its layers are driven by. Module names give Wan's published keys.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from conf.schema import NetworkConfig
from stages.denoise.attention import backend
from stages.denoise.conditioning import ActionModulation, AudioInjector
from stages.denoise.layers import History, KeysValues, Layer, Modulation, modulate, per_token

FRAMES_PER_LATENT = 4
"""Video frames of one latent frame (the temporal stride of every codec here)."""


@dataclass
class TimeTerms:
    """What time does to the network: one set of terms per layer, and (shift, 1 + scale) of the head."""

    layers: dict[int, Modulation]
    head: tuple[Tensor, Tensor]


@dataclass
class Drive:
    """Everything that drives a forward besides the tokens themselves.

    Attributes:
        time: from `Network.time_terms`.
        text: per layer, keys and values from `Network.text_states`.
        audio: tokens [B, f, a, audio_dim], or None for no sound (prefill of a reference).
        token_type: 0 noisy, 1 reference; used where the network has type embeddings.
    """

    time: TimeTerms
    text: dict[int, KeysValues]
    audio: Tensor | None = None
    token_type: int = 0


def sinusoid(timesteps: Tensor, width: int) -> Tensor:
    """Timesteps [...] to float32 [..., width]: cosines, then sines, of t * 10000^(-i / (width / 2)), in float64."""
    half = width // 2
    frequencies = 10000.0 ** (-torch.arange(half, dtype=torch.float64, device=timesteps.device) / half)
    angles = timesteps.double()[..., None] * frequencies
    return torch.cat([angles.cos(), angles.sin()], -1).float()


class Network(nn.Module):
    """A range of layers of the transformer.

    Args:
        config: sizes of the whole network.
        layers: the layers held; None: all.
        attention: name of the attention back end.
    """

    def __init__(self, config: NetworkConfig, layers: range | None = None, attention: str = "sdpa"):
        super().__init__()
        layers = range(config.layers) if layers is None else layers
        self.config, self.layers, self.attention = config, layers, attention
        self.first, self.last = layers.start == 0, layers.stop == config.layers
        dim = config.dim
        self.text_embedding = nn.Sequential(
            nn.Linear(config.text_dim, dim), nn.GELU(approximate="tanh"), nn.Linear(dim, dim)
        )
        self.time_embedding = nn.Sequential(nn.Linear(config.freq_dim, dim), nn.SiLU(), nn.Linear(dim, dim))
        self.time_projection = nn.Sequential(nn.SiLU(), nn.Linear(dim, 6 * dim))
        self.blocks = nn.ModuleDict({str(i): Layer(i, dim, config.ffn_dim, config.heads, config.eps) for i in layers})
        if self.first:
            self.patch_embedding = nn.Conv3d(config.in_channels, dim, tuple(config.patch), tuple(config.patch))
            if config.token_types:
                self.trainable_cond_mask = nn.Embedding(3, dim)
        if self.last:
            self.head = Head(dim, math.prod(config.patch) * config.out_channels, config.eps)
        injected = [i for i in config.audio.layers if i in layers] if config.audio else []
        if injected:
            self.audio_injector = AudioInjector(injected, dim, config.heads, config.audio.dim, config.eps)
        if config.actions:
            self.action_modulation = ActionModulation(len(config.actions), FRAMES_PER_LATENT, dim)

    @property
    def dtype(self) -> torch.dtype:
        return self.text_embedding[0].weight.dtype

    @property
    def device(self) -> torch.device:
        return self.text_embedding[0].weight.device

    def fuse(self) -> Network:
        """Prepare for inference, once the weights are in place: q, k and v become one matrix product."""
        for layer in self.blocks.values():
            layer.fuse()
        return self

    def time_embeddings(self, timesteps: Tensor) -> tuple[Tensor, Tensor]:
        """Timesteps [B or 1, f or 1] (0..1000) to [.., f, d] and its projection [.., f, 6, d], float32."""
        e = self.time_embedding(sinusoid(timesteps.to(self.device), self.config.freq_dim).to(self.dtype))
        return e.float(), self.time_projection(e).unflatten(-1, (6, -1)).float()

    def time_terms(self, embeddings: tuple[Tensor, Tensor], actions: Tensor | None = None) -> TimeTerms:
        """Terms of every layer held. Constant for a step, unless actions [B, f, 4 * classes] shift them per frame."""
        e, e6 = embeddings
        head = self.head.terms(e) if self.last else ()
        if actions is not None:
            e6 = e6 + self.action_modulation(actions.to(self.device, self.dtype))
        return TimeTerms({i: self.blocks[str(i)].modulated(e6) for i in self.layers}, head)

    def text_states(self, context: Tensor) -> dict[int, KeysValues]:
        """Text rows [B, L <= text_tokens, text_dim] to keys and values per layer; once per prompt.

        Missing rows are zeros and take part: the published models attend to them.
        """
        rows = F.pad(context.to(self.device, self.dtype), (0, 0, 0, self.config.text_tokens - context.shape[1]))
        text = self.text_embedding(rows)
        return {i: self.blocks[str(i)].cross_attn.keys_values(text) for i in self.layers}

    def forward(self, x: Tensor, drive: Drive, attend: History, shape: torch.Size | None = None) -> Tensor:
        """Latents (or, for a later range, hidden states) to velocity (or, for an earlier range, hidden states).

        Args:
            x: [B, C, f, h, w] if this range starts the network, else [B, N, d].
            drive: time, text and sound.
            attend: what self-attention does with q, k and v of each layer.
            shape: the latents' shape, for a range that ends the network without starting it.
        """
        shape = x.shape if self.first else shape
        return self.leave(self.through(self.enter(x), drive, attend), shape)

    def enter(self, x: Tensor) -> Tensor:
        """What `through` takes: patches [B, N, C * patch], frame by frame, row by row; or hidden states as they are."""
        return patches(x, self.config.patch) if self.first else x

    def through(self, x: Tensor, drive: Drive, attend: History) -> Tensor:
        """From patches or hidden states to patches or hidden states [B, N, ..].

        Only `attend` lets tokens see each other, so any tokens will do, as many of each frame.
        """
        core = backend(self.attention, self.device, self.dtype)
        if self.first:
            x = self.embed(x, drive.token_type)
        for i, layer in zip(self.layers, self.blocks.values(), strict=True):
            x = layer(x, drive.time.layers[i], drive.text[i], attend, core)
            if drive.audio is not None and hasattr(self, "audio_injector"):
                x = self.audio_injector(i, x, drive.audio, core)
        return self.head(x, drive.time.head) if self.last else x

    def leave(self, x: Tensor, shape: torch.Size) -> Tensor:
        """What `through` gives, as latents of `shape` where this range ends the network."""
        return unpatch(x, self.config.patch, shape) if self.last else x

    def embed(self, x: Tensor, token_type: int = 0) -> Tensor:
        """Patches [B, N, C * patch] to tokens [B, N, d]."""
        x = F.linear(x, self.patch_embedding.weight.flatten(1), self.patch_embedding.bias)
        return x + self.trainable_cond_mask.weight[token_type] if self.config.token_types else x


class Head(nn.Module):
    """Modulated LayerNorm and projection to patches."""

    def __init__(self, dim: int, out: int, eps: float):
        super().__init__()
        self.eps = eps
        self.head = nn.Linear(dim, out)
        self.modulation = nn.Parameter(torch.randn(1, 2, dim) / dim**0.5)

    def terms(self, e: Tensor) -> tuple[Tensor, Tensor]:
        """(shift, 1 + scale), as `per_token` shapes them, from unprojected time embeddings [.., f, d]."""
        shift, scale = (self.modulation.float() + e.unsqueeze(-2)).unbind(-2)
        return per_token(shift), per_token(1 + scale)

    def forward(self, x: Tensor, terms: tuple[Tensor, Tensor]) -> Tensor:
        """[B, N, d] to patches [B, N, patch * C]."""
        return self.head(modulate(x.float(), *terms, self.eps).to(x.dtype))


def patches(latents: Tensor, patch: list[int]) -> Tensor:
    """[B, C, f, h, w] to [B, N, C * patch], channel slowest, as a convolution's weights are laid out."""
    pt, ph, pw = patch
    b, c, f, h, w = latents.shape
    x = latents.reshape(b, c, f // pt, pt, h // ph, ph, w // pw, pw).permute(0, 2, 4, 6, 1, 3, 5, 7)
    return x.reshape(b, -1, c * pt * ph * pw)


def unpatch(x: Tensor, patch: list[int], shape: torch.Size) -> Tensor:
    """[B, N, patch * C], channel fastest, to the latents' `shape` (with the output's channels)."""
    pt, ph, pw = patch
    b, _, f, h, w = shape
    x = x.reshape(b, f // pt, h // ph, w // pw, pt, ph, pw, -1).permute(0, 7, 1, 4, 2, 5, 3, 6)
    return x.reshape(b, -1, f, h, w)

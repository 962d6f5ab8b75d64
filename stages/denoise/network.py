"""The Wan2.1/2.2 transformer (text-to-video, and with sound, Wan2.2-S2V), over any range of its layers.

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
from stages.denoise.attention import Attend, backend
from stages.denoise.conditioning import ActionModulation, AudioInjector
from stages.denoise.frame_pack import FramePack
from stages.denoise.layers import History, KeysValues, Layer, Modulation, modulate, per_token
from stages.denoise.patches import embed, unpatch

NOISY, REFERENCE, MOTION = range(3)
"""Types of tokens."""

FRAMES_PER_LATENT = 4
"""Video frames of one latent frame (the temporal stride of every codec here)."""


@dataclass
class TimeTerms:
    """What time does to the network: one set of terms per layer, and (shift, 1 + scale) of the head.

    Without terms of the head there is no head: nobody wants the velocity of a prefill.
    """

    layers: dict[int, Modulation]
    head: tuple[Tensor, Tensor] | tuple[()]


@dataclass
class Drive:
    """Everything that drives a forward besides the tokens themselves.

    Attributes:
        time: from `Network.time_terms`.
        text: per layer, keys and values from `Network.text_states`.
        audio: tokens [B, f, a, audio_dim], or None for no sound (prefill of a reference).
        token_type: of what `Network.forward` enters: 0 noisy, 1 reference, 2 motion.
    """

    time: TimeTerms
    text: dict[int, KeysValues]
    audio: Tensor | None = None
    token_type: int = NOISY


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
            if config.pose:
                self.cond_encoder = nn.Conv3d(config.in_channels, dim, tuple(config.patch), tuple(config.patch))
            if config.frame_pack:
                self.frame_packer = FramePack(config.in_channels, dim, config.patch)
        if self.last:
            self.head = Head(dim, math.prod(config.patch) * config.out_channels, config.eps)
        injected = {i: name for i, name in config.audio.names.items() if i in layers} if config.audio else {}
        if injected:
            adain = config.audio.adain
            self.audio_injector = AudioInjector(injected, dim, config.heads, config.audio_dim, config.eps, adain)
        if config.actions:
            self.action_modulation = ActionModulation(len(config.actions), FRAMES_PER_LATENT, dim)

    @property
    def dtype(self) -> torch.dtype:
        return self.text_embedding[0].weight.dtype

    @property
    def device(self) -> torch.device:
        return self.text_embedding[0].weight.device

    @property
    def core(self) -> Attend:
        """The attention back end."""
        return backend(self.attention, self.device, self.dtype, self.config.head_dim)

    def fuse(self) -> Network:
        """Prepare for inference, once the weights are in place: q, k and v become one matrix product."""
        for layer in self.blocks.values():
            layer.fuse()
        return self

    def time_embeddings(self, timesteps: Tensor) -> tuple[Tensor, Tensor]:
        """Timesteps [B or 1, f or 1] (0..1000) to [.., f, d] and its projection [.., f, 6, d], float32 throughout."""
        first, _, second = self.time_embedding
        e = _wide(second, F.silu(_wide(first, sinusoid(timesteps.to(self.device), self.config.freq_dim))))
        return e, _wide(self.time_projection[1], F.silu(e)).unflatten(-1, (6, -1))

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
        return self.leave(self.through(self.enter(x, drive.token_type), drive, attend), shape)

    def enter(self, x: Tensor, token_type: int = NOISY, pose: Tensor | None = None) -> Tensor:
        """What `through` takes: tokens [B, N, d], frame by frame, row by row; hidden states are that already.

        Args:
            x: latents [B, C, f, h, w], or hidden states.
            token_type: 0 noisy, 1 reference.
            pose: latents like `x` that say where the body is; None: nothing is said, which the published models know
                as latents of zeros.
        """
        if not self.first:
            return x
        x = self._typed(embed(x, self.patch_embedding), token_type)
        if token_type != NOISY or not self.config.pose:
            return x
        return x + (self.cond_encoder.bias if pose is None else embed(pose, self.cond_encoder))

    def enter_sink(self, x: Tensor) -> Tensor:
        """A reference [B, C, 1, h, w], and motion frames behind it if there are any, to tokens [motion | reference].

        Hidden states, which later ranges take, pass unchanged.
        """
        if not self.first:
            return x
        reference = self.enter(x[:, :, :1], REFERENCE)
        if not self.config.frame_pack:
            return reference
        return torch.cat([self._typed(self.frame_packer(x[:, :, 1:]), MOTION), reference], 1)

    def _typed(self, x: Tensor, token_type: int) -> Tensor:
        return x + self.trainable_cond_mask.weight[token_type] if self.config.token_types else x

    def through(self, x: Tensor, drive: Drive, attend: History) -> Tensor:
        """From tokens or hidden states [B, N, d] to hidden states, or to patches after the last layer.

        Only `attend` lets tokens see each other, so any tokens will do, as many of each frame.
        """
        core = self.core
        for i, layer in zip(self.layers, self.blocks.values(), strict=True):
            x = layer(x, drive.time.layers[i], drive.text[i], attend, core)
            if drive.audio is not None and hasattr(self, "audio_injector"):
                x = self.audio_injector(i, x, drive.audio, core)
        return self.head(x, drive.time.head) if drive.time.head else x

    def leave(self, x: Tensor, shape: torch.Size) -> Tensor:
        """What `through` gives, as latents of `shape` where this range ends the network."""
        return unpatch(x, self.config.patch, shape) if self.last else x


def _wide(linear: nn.Linear, x: Tensor) -> Tensor:
    """A linear layer in float32, whatever its parameters are kept in; a sixth at a time, so that no large copy is."""
    parts = 1 if linear.weight.dtype == torch.float32 else 6
    pairs = zip(linear.weight.chunk(parts), linear.bias.chunk(parts), strict=True)
    return torch.cat([F.linear(x, weight.float(), bias.float()) for weight, bias in pairs], -1)


class Head(nn.Module):
    """Modulated LayerNorm and projection to patches."""

    def __init__(self, dim: int, out: int, eps: float):
        super().__init__()
        self.eps = eps
        self.head = nn.Linear(dim, out)
        self.modulation = nn.Parameter(torch.empty(1, 2, dim))
        nn.init.normal_(self.modulation, std=dim**-0.5)

    def terms(self, e: Tensor) -> tuple[Tensor, Tensor]:
        """(shift, 1 + scale), as `per_token` shapes them, from unprojected time embeddings [.., f, d]."""
        shift, scale = (self.modulation.float() + e.unsqueeze(-2)).unbind(-2)
        return per_token(shift), per_token(1 + scale)

    def forward(self, x: Tensor, terms: tuple[Tensor, Tensor]) -> Tensor:
        """[B, N, d] to patches [B, N, patch * C]."""
        return self.head(modulate(x.float(), *terms, self.eps).to(x.dtype))

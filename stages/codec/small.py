"""The pocket models' codec: a small causal convolutional encoder and decoder, 4x in time and 8x8 in space.

Almost all of it is two-dimensional convolution, frame by frame. Time enters in two places: the network's rate
changes by folding frames into channels (encoder) and channels into frames (decoder), and a few `Memory` blocks see
some channels of their own input one time step earlier. Those few features are everything a stream remembers, so
the state is small, its size never changes, and a chunk is final as soon as it leaves.

Every latent frame is four video frames, the first of a stream as well: there is no image-like first latent.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import safe_open
from torch import Tensor, nn

from stages.codec.base import CodecState

TEMPORAL_STRIDE = 4
SPATIAL_STRIDE = 8


@dataclass(frozen=True)
class SmallConfig:
    """Sizes. Widths and depths run from the latent grid (1/8) over 1/4 to 1/2 of the picture.

    Attributes:
        channels: latent channels.
        encoder, decoder: channels at 1/8 (one time step per latent), 1/4 (two) and 1/2 resolution (four).
        encoder_blocks, decoder_blocks: residual blocks at each of the three; the first at 1/8 and 1/4 has memory.
        memory: share of a block's channels that it sees from the time step before.

    Eight times a width is a multiple of the next deeper one, in the encoder and in the decoder.
    """

    channels: int = 16
    encoder: tuple[int, int, int] = (192, 96, 48)
    decoder: tuple[int, int, int] = (192, 96, 48)
    encoder_blocks: tuple[int, int, int] = (3, 2, 1)
    decoder_blocks: tuple[int, int, int] = (3, 2, 1)
    memory: float = 0.25


class Block(nn.Module):
    """Two 3x3 convolutions around a residual, starting as the identity."""

    def __init__(self, width: int, extra: int = 0):
        super().__init__()
        self.first = nn.Conv2d(width + extra, width, 3, padding=1)
        self.second = nn.Conv2d(width, width, 3, padding=1)
        nn.init.zeros_(self.second.weight)
        nn.init.zeros_(self.second.bias)

    def forward(self, x: Tensor) -> Tensor:
        """[N, width, h, w] to the same."""
        return F.relu(x + self.second(F.relu(self.first(x))))


class Memory(Block):
    """A `Block` that also sees the first `extra` channels of its own input one time step earlier (zeros at first)."""

    def __init__(self, width: int, extra: int):
        super().__init__(width, extra)
        self.extra = extra

    def remember(self, x: Tensor, batch: int, cache: Tensor | None) -> tuple[Tensor, Tensor]:
        """[B * T, width, h, w] and the tail [B, extra, h, w] of the last call to the result and the new tail."""
        part = x[:, : self.extra].unflatten(0, (batch, -1))
        if cache is None:
            cache = torch.zeros_like(part[:, 0])
        past = torch.cat([cache[:, None], part[:, :-1]], dim=1).flatten(0, 1)
        joined = torch.cat([x, past], dim=1)
        # A copy: a view would keep the whole activation alive between chunks.
        tail = part[:, -1].clone()
        return F.relu(x + self.second(F.relu(self.first(joined)))), tail


def _pass_through(mix: nn.Conv2d) -> None:
    """Add to a fresh 1x1 convolution what repeats each channel (if it widens) or averages groups of them (if not).

    With pictures that are blurred but right from the first step on, training takes half as long.
    """
    if mix.weight.is_meta:
        return
    out, inside = mix.weight.shape[:2]
    near, far = torch.arange(out), torch.arange(inside)
    same = near[:, None] // (out // inside) == far if out > inside else near[:, None] == far // (inside // out)
    with torch.no_grad():
        mix.weight += (same / same.sum(dim=1, keepdim=True))[:, :, None, None]


class Shrink(nn.Module):
    """Half the width and height, and 1 / `rate` of the time steps, by folding both into channels."""

    def __init__(self, width: int, out: int, rate: int):
        super().__init__()
        self.rate = rate
        self.mix = nn.Conv2d(width * 4 * rate, out, 1)
        _pass_through(self.mix)

    def forward(self, x: Tensor) -> Tensor:
        """[B * T, width, h, w] to [B * T / rate, out, h / 2, w / 2]."""
        x = F.pixel_unshuffle(x, 2)
        if self.rate > 1:
            x = x.unflatten(0, (-1, self.rate)).flatten(1, 2)
        return F.relu(self.mix(x))


class Grow(nn.Module):
    """Twice the width and height, and `rate` times the time steps, by unfolding channels into both."""

    def __init__(self, width: int, out: int, rate: int):
        super().__init__()
        self.rate = rate
        self.mix = nn.Conv2d(width, out * 4 * rate, 1)
        _pass_through(self.mix)

    def forward(self, x: Tensor) -> Tensor:
        """[B * T, width, h, w] to [B * T * rate, out, 2 h, 2 w]."""
        x = self.mix(x)
        if self.rate > 1:
            x = x.unflatten(1, (self.rate, -1)).flatten(0, 1)
        return F.relu(F.pixel_shuffle(x, 2))


def _blocks(width: int, depth: int, memory: float) -> list[nn.Module]:
    """`depth` blocks, the first with memory unless `memory` is 0."""
    extra = int(width * memory)
    return [Memory(width, extra) if extra and i == 0 else Block(width) for i in range(depth)]


class _Half(nn.Module):
    """What encoder and decoder share: the walk over layers that keeps each memory block's tail in the state."""

    temporal_stride = TEMPORAL_STRIDE
    spatial_stride = SPATIAL_STRIDE

    def __init__(self, config: SmallConfig, layers: list[nn.Module]):
        super().__init__()
        self.config = config
        self.channels = config.channels
        self.layers = nn.ModuleList(layers)
        self.register_buffer("mean", torch.zeros(config.channels))
        self.register_buffer("std", torch.ones(config.channels))
        # Convolutions on CPU and on tensor cores both run fastest with channels innermost.
        self.to(memory_format=torch.channels_last)

    def start(self) -> CodecState:
        """A fresh stream."""
        return CodecState(cache=[None for layer in self.layers if isinstance(layer, Memory)])

    def _walk(self, x: Tensor, batch: int, state: CodecState) -> Tensor:
        slot = 0
        for layer in self.layers:
            if isinstance(layer, Memory):
                x, state.cache[slot] = layer.remember(x, batch, state.cache[slot])
                slot += 1
            else:
                x = layer(x)
        return x

    def _affine(self) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation as [1, channels, 1, 1, 1]."""
        return self.mean.view(1, -1, 1, 1, 1), self.std.view(1, -1, 1, 1, 1)


class SmallEncoder(_Half):
    """Video to latents (see `stages.codec.base.Encoder`). Deterministic: the same frames give the same latents."""

    def __init__(self, config: SmallConfig | None = None):
        config = config or SmallConfig()
        deep, middle, shallow = config.encoder
        depths = config.encoder_blocks
        super().__init__(
            config,
            [
                nn.Conv2d(12, shallow, 3, padding=1),
                *_blocks(shallow, depths[2], 0.0),
                Shrink(shallow, middle, 2),
                *_blocks(middle, depths[1], config.memory),
                Shrink(middle, deep, 2),
                *_blocks(deep, depths[0], config.memory),
                nn.Conv2d(deep, config.channels, 3, padding=1),
            ],
        )

    def forward(self, frames: Tensor, state: CodecState) -> Tensor:
        """[B, 3, 4 m, H, W] in [-1, 1] to normalised latents [B, channels, m, H / 8, W / 8]."""
        mean, std = self._affine()
        return (self.raw(frames, state) - mean) / std

    def raw(self, frames: Tensor, state: CodecState) -> Tensor:
        """As `forward`, before normalisation: what training takes the statistics of."""
        batch, _, count, height, width = frames.shape
        if count % TEMPORAL_STRIDE or height % SPATIAL_STRIDE or width % SPATIAL_STRIDE:
            raise ValueError(f"{count} frames of {height}x{width} do not divide into 4x8x8")
        x = frames.transpose(1, 2).flatten(0, 1)
        x = F.pixel_unshuffle(x, 2).contiguous(memory_format=torch.channels_last)
        x = self._walk(x, batch, state)
        state.steps += count // TEMPORAL_STRIDE
        return x.unflatten(0, (batch, -1)).transpose(1, 2).contiguous()


class SmallDecoder(_Half):
    """Latents to video (see `stages.codec.base.Decoder`)."""

    def __init__(self, config: SmallConfig | None = None):
        config = config or SmallConfig()
        deep, middle, shallow = config.decoder
        depths = config.decoder_blocks
        super().__init__(
            config,
            [
                nn.Conv2d(config.channels, deep, 3, padding=1),
                *_blocks(deep, depths[0], config.memory),
                Grow(deep, middle, 2),
                *_blocks(middle, depths[1], config.memory),
                Grow(middle, shallow, 2),
                *_blocks(shallow, depths[2], 0.0),
                nn.Conv2d(shallow, 12, 3, padding=1),
            ],
        )

    def forward(self, latents: Tensor, state: CodecState) -> Tensor:
        """Normalised latents [B, channels, m, h, w] to frames [B, 3, 4 m, 8 h, 8 w] in [-1, 1]."""
        frames = self.raw(latents, state)
        return frames.clamp(-1, 1)

    def raw(self, latents: Tensor, state: CodecState) -> Tensor:
        """As `forward`, not yet clamped: training needs the gradient beyond the ends of the range."""
        mean, std = self._affine()
        batch, _, count = latents.shape[:3]
        # A bounded input keeps a diffusion model's outliers from ever becoming flashes on the screen.
        x = torch.tanh((latents * std + mean) / 4) * 4
        x = x.transpose(1, 2).flatten(0, 1).contiguous(memory_format=torch.channels_last)
        x = F.pixel_shuffle(self._walk(x, batch, state), 2)
        state.steps += count
        return x.unflatten(0, (batch, -1)).transpose(1, 2)

    def frames(self, latents: int, first: bool) -> int:
        """Four video frames per latent frame, at the start of a stream as well."""
        return TEMPORAL_STRIDE * latents


def describe(config: SmallConfig) -> str:
    """The configuration as the text that a weight file carries in its metadata."""
    return json.dumps(asdict(config))


def read_config(path: str | Path) -> SmallConfig:
    """The configuration in a weight file's metadata."""
    with safe_open(str(path), framework="pt") as file:
        fields = json.loads((file.metadata() or {})["config"])
    return SmallConfig(**{k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()})


def load_half(path: str | Path, half: str, data: str | None = None) -> SmallEncoder | SmallDecoder:
    """The `encoder` or the `decoder` of a weight file, in float32 and ready to run; only its own tensors are read.

    Args:
        path: a safetensors file with keys `encoder.*`, `decoder.*` and `latents.<data>.mean|std`.
        half: `encoder` or `decoder`.
        data: whose latent statistics to normalise with (`avatar` or `world`); None for those of both together.
    """
    module = {"encoder": SmallEncoder, "decoder": SmallDecoder}[half](read_config(path))
    with safe_open(str(path), framework="pt") as file:
        own = [key for key in file.keys() if key.startswith(f"{half}.")]  # noqa: SIM118 (the file is no dictionary)
        state = {key.removeprefix(f"{half}."): file.get_tensor(key).float() for key in own}
        if data is not None:
            state |= {name: file.get_tensor(f"latents.{data}.{name}").float() for name in ("mean", "std")}
    module.load_state_dict(state)
    return module.eval().requires_grad_(False)

"""Pictures at four times their width and height: a small streaming network behind the decoder.

Almost all work is done at half the size of what comes in, by 3x3 convolutions, frame by frame. Time enters by
`Leaky` blocks: they also see running averages of some of their own features, each with a decay of its own. An average
of bounded features is bounded, so nothing can build up over hours; the state is small and its size never changes, and
there is no look-ahead. What the network adds to a bilinear enlargement is all it has to learn.

At 64x64 and 16 frames a second it costs 5 GFLOP per second of video (`operations`).
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from stages.codec.small.layers import Block

SCALE = 4
FOLD = 2
"""Pictures enter with 2x2 pixels folded into channels: the body works at half their size."""


@dataclass(frozen=True)
class UpscaleConfig:
    """Sizes.

    Attributes:
        width: channels of the body, at half the incoming size.
        fine: channels at the incoming size, from which 4x4 pixels are made.
        blocks: residual blocks of the body, each with memory.
        memory: share of a block's channels whose running averages it sees.
        reference: channels of what is seen of a reference picture.
    """

    width: int = 48
    fine: int = 24
    blocks: int = 2
    memory: float = 0.25
    reference: int = 16


@dataclass
class UpscaleState:
    """A stream's memory.

    Attributes:
        averages: of each block, [B, extra, h, w]; None before the first frame.
        reference: features [B, reference, h, w] of the reference picture; None: there is none.
    """

    averages: list[Tensor | None]
    reference: Tensor | None = None


class Leaky(Block):
    """A `Block` that also sees running averages of the first `extra` channels of its own earlier inputs.

    The average before frame t is m(t) = a m(t-1) + (1 - a) x(t-1), a learned decay a in (0, 1) per channel. A stream
    begins with the average of a picture that has always been there.
    """

    def __init__(self, width: int, extra: int):
        super().__init__(width, extra)
        self.extra = extra
        # From the last frame alone to about the last twenty.
        self.decay = nn.Parameter(torch.linspace(-3.0, 3.0, extra))

    def remember(self, x: Tensor, batch: int, average: Tensor | None) -> tuple[Tensor, Tensor]:
        """[B * T, width, h, w] and the average [B, extra, h, w] so far to the result and the new average."""
        part = x[:, : self.extra].unflatten(0, (batch, -1))
        keep = torch.sigmoid(self.decay)[:, None, None]
        average = part[:, 0] if average is None else average
        before = []
        for now in part.unbind(1):
            before.append(average)
            average = now + keep * (average - now)
        joined = torch.cat([x, torch.stack(before, dim=1).flatten(0, 1)], dim=1)
        return F.relu(x + self.second(F.relu(self.first(joined)))), average


class Upscaler(nn.Module):
    """Frames to frames of four times the size, a few at a time."""

    scale = SCALE

    def __init__(self, config: UpscaleConfig | None = None):
        super().__init__()
        self.config = c = config or UpscaleConfig()
        self.enter = nn.Conv2d(3 * FOLD**2 + c.reference, c.width, 3, padding=1)
        self.blocks = nn.ModuleList([Leaky(c.width, int(c.width * c.memory)) for _ in range(c.blocks)])
        self.grow = nn.Conv2d(c.width, c.fine * FOLD**2, 1)
        self.direct = nn.Conv2d(3, c.fine, 3, padding=1)
        self.head = nn.Conv2d(c.fine, 3 * SCALE**2, 3, padding=1)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)
        self.look = nn.Conv2d(3 * (FOLD * SCALE) ** 2, c.reference, 1)
        # Convolutions on CPU and on tensor cores both run fastest with channels innermost.
        self.to(memory_format=torch.channels_last)

    def start(self, reference: Tensor | None = None) -> UpscaleState:
        """A fresh stream, with a reference picture [B, 3, 4 H, 4 W] in [-1, 1] or without one."""
        seen = None if reference is None else F.relu(self.look(F.pixel_unshuffle(reference, FOLD * SCALE)))
        return UpscaleState([None] * len(self.blocks), seen)

    def forward(self, frames: Tensor, state: UpscaleState) -> Tensor:
        """[B, 3, n, H, W] in [-1, 1] to [B, 3, n, 4 H, 4 W] in [-1, 1]; H and W are even."""
        return self.raw(frames, state).clamp(-1, 1)

    def raw(self, frames: Tensor, state: UpscaleState) -> Tensor:
        """As `forward`, not yet clamped: training needs the gradient beyond the ends of the range."""
        batch, _, count = frames.shape[:3]
        x = frames.transpose(1, 2).flatten(0, 1).contiguous(memory_format=torch.channels_last)
        folded = F.pixel_unshuffle(x, FOLD)
        if state.reference is None:
            # No reference is a grey one.
            seen = F.relu(self.look.bias).view(1, -1, 1, 1).expand(len(x), -1, *folded.shape[-2:])
        else:
            seen = state.reference.repeat_interleave(count, dim=0)
        h = F.relu(self.enter(torch.cat([folded, seen], dim=1)))
        for i, block in enumerate(self.blocks):
            h, state.averages[i] = block.remember(h, batch, state.averages[i])
        fine = F.relu(F.pixel_shuffle(self.grow(h), FOLD) + self.direct(x))
        out = enlarged(x) + F.pixel_shuffle(self.head(fine), SCALE)
        return out.unflatten(0, (batch, count)).transpose(1, 2)


def enlarged(frames: Tensor) -> Tensor:
    """[N, 3, H, W] to [N, 3, 4 H, 4 W], bilinear: bicubic would take a fifth of the time that the network takes."""
    return F.interpolate(frames, scale_factor=SCALE, mode="bilinear", align_corners=False)


def operations(config: UpscaleConfig, height: int, width: int) -> int:
    """Multiplications and additions (two per product) of the convolutions of one frame of this incoming size."""
    c, extra = config, int(config.width * config.memory)
    body = (3 * FOLD**2 + c.reference) * c.width * 9 + c.blocks * (2 * c.width + extra) * c.width * 9
    body += c.width * c.fine * FOLD**2
    fine = 3 * c.fine * 9 + c.fine * 3 * SCALE**2 * 9
    return 2 * height * width * (body // FOLD**2 + fine)


def save(upscaler: Upscaler, path: str | Path, metadata: dict[str, str] | None = None) -> None:
    """Write fp16 weights and the sizes, beside the old file first."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_suffix(".new")
    weights = {name: value.half().contiguous() for name, value in upscaler.state_dict().items()}
    save_file(weights, str(fresh), metadata={"config": json.dumps(asdict(upscaler.config))} | (metadata or {}))
    # safetensors leaves its files readable by their owner alone.
    fresh.chmod(0o644)
    fresh.replace(path)


def load(path: str | Path) -> Upscaler:
    """The network of a weight file, in float32 and ready to run."""
    with safe_open(str(path), framework="pt") as file:
        config = UpscaleConfig(**json.loads((file.metadata() or {})["config"]))
    upscaler = Upscaler(config)
    upscaler.load_state_dict({name: value.float() for name, value in load_file(str(path)).items()})
    return upscaler.eval().requires_grad_(False)

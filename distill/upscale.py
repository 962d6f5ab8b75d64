"""Training of the upscaler on drawn faces and mazes at 256x256, which cost nothing.

    python -m distill.upscale                         # draws its clips, trains, or goes on where it stopped
    python -m distill.upscale steps=20000 lr=1e-3     # any field of `Settings`
    python -m distill.upscale export=assets/weights/upscale.safetensors

Regression: on pixels, on their differences in space and time, and on how much edge there is in small squares wherever
exactly it lies, without which what cannot be known comes out blurred.
"""

from __future__ import annotations

import json
import math
import sys
from collections import defaultdict
from dataclasses import asdict, dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distill.loop import Training, parse
from distill.precision import autocast
from distill.upscale_clips import KINDS, Store
from stages.post_upscale import SCALE, UpscaleConfig, Upscaler, operations, save


@dataclass(frozen=True)
class Settings:
    """What a run can be told.

    Attributes:
        run: folder of the clips, the checkpoint and the log.
        codec: weights of the codec that the pictures have passed through.
        clips, held_out: how many are drawn to train on, and to measure with.
        steps: when to stop; the last `decay` share of them brings the learning rate to zero.
        batch, crop: crops per step, and their height and width before upscaling.
        square, edges, moving, texture: weights, beside 1 for the pixels' absolute error, of their squared error, of
            the error of their differences in space and in time, and of the error of how much edge there is.
        average: decay of the running average of the weights, which is what is measured and exported.
        report, save_s: steps between measurements, seconds between checkpoints.
        export: write the averaged weights here and do nothing else.
    """

    run: str = "runs/upscale"
    codec: str = "assets/weights/codec.safetensors"
    clips: int = 800
    held_out: int = 16
    steps: int = 6000
    decay: float = 0.6
    batch: int = 8
    crop: int = 32
    lr: float = 2.5e-3
    warmup: int = 100
    clip: float = 1.0
    square: float = 6.0
    edges: float = 1.0
    moving: float = 1.0
    texture: float = 0.25
    average: float = 0.998
    report: int = 200
    save_s: float = 120.0
    bf16: bool = True
    export: str = ""


def charbonnier(error: Tensor) -> Tensor:
    """Mean absolute error, quadratic near zero: the last grey levels do not keep the gradient noisy."""
    return (error.square() + 1e-3).sqrt().mean() - 1e-3**0.5


def edge_energy(frames: Tensor) -> Tensor:
    """How much edge there is in squares of 8x8 pixels: [B, 3, n, H, W] to [B n, 6, H / 4 - 1, W / 4 - 1]."""
    flat = frames.transpose(1, 2).flatten(0, 1)
    both = torch.cat([flat.diff(dim=-1)[..., :-1, :], flat.diff(dim=-2)[..., :-1]], dim=1)
    return F.avg_pool2d((both.square() + 1e-6).sqrt(), 8, 4)


def loss_of(made: Tensor, truth: Tensor, settings: Settings) -> Tensor:
    """Pixels, differences in space and time, and edges, of [B, 3, n, H, W]."""
    error = made.float() - truth
    edges = charbonnier(error.diff(dim=-1)) + charbonnier(error.diff(dim=-2))
    moving = charbonnier(error.diff(dim=2))
    texture = (edge_energy(made.float()) - edge_energy(truth)).abs().mean()
    pixels = charbonnier(error) + settings.square * error.square().mean()
    return pixels + settings.edges * edges + settings.moving * moving + settings.texture * texture


@torch.inference_mode()
def measured(upscaler: Upscaler, store: Store) -> dict[str, float]:
    """What there is to know of whole pictures of a store, by kind.

    `gain`: decibels more than a bicubic enlargement has. `sharp`: size of the differences between neighbouring pixels,
    of what was drawn 1. `flicker`: change, in 0 ... 255, from frame to frame where the drawing changes by less than one
    grey level, and `still`, the drawing's own.
    """
    sums: dict[str, list[float]] = defaultdict(list)
    for number in range(len(store)):
        kind = KINDS[number % 2]
        low, high, reference = store.whole(number)
        made = upscaler(low, upscaler.start(reference if kind == "avatar" else None))
        flat = low.transpose(1, 2).flatten(0, 1)
        plain = F.interpolate(flat, scale_factor=SCALE, mode="bicubic").clamp(-1, 1)
        plain = plain.unflatten(0, (1, -1)).transpose(1, 2)
        still = high.diff(dim=2).abs() * 127.5 < 1
        sums[f"error_{kind}"].append((made - high).square().mean().item())
        sums[f"bicubic_{kind}"].append((plain - high).square().mean().item())
        for name, frames in (("made", made), ("drawn", high)):
            slopes = frames.diff(dim=-1).abs().mean() + frames.diff(dim=-2).abs().mean()
            sums[f"slopes_{name}_{kind}"].append(slopes.item())
            sums[f"change_{name}_{kind}"].append((frames.diff(dim=2).abs()[still].mean() * 127.5).item())
    means = {name: sum(values) / len(values) for name, values in sums.items()}
    found = {}
    for kind in KINDS:
        found[f"psnr_{kind}"] = 10 * math.log10(4 / means[f"error_{kind}"])
        found[f"gain_{kind}"] = 10 * math.log10(means[f"bicubic_{kind}"] / means[f"error_{kind}"])
        found[f"sharp_{kind}"] = means[f"slopes_made_{kind}"] / means[f"slopes_drawn_{kind}"]
        found[f"flicker_{kind}"] = means[f"change_made_{kind}"]
        found[f"still_{kind}"] = means[f"change_drawn_{kind}"]
    return {name: round(value, 3) for name, value in found.items()}


class Run(Training):
    """A training run of the upscaler."""

    def __init__(self, settings: Settings, config: UpscaleConfig | None = None):
        super().__init__(settings, partial(Upscaler, config), _inner, asdict(config or UpscaleConfig()))
        self.clips = Store(self.folder / "clips", settings.codec, settings.clips)
        self.held_out = Store(self.folder / "held_out", settings.codec, settings.held_out, held_out=True)

    def draw(self) -> None:
        """Draw the clips that are missing."""
        for part in (self.held_out, self.clips):
            for count in part.fill():
                if count % 50 == 0 or count == part.count:
                    print(f"clips: {count} of {part.count}", flush=True)

    def loss(self) -> Tensor:
        """Of crops of what was drawn."""
        s = self.settings
        low, high, reference = self.clips.batch(self.step, s.batch, s.crop)
        with autocast("cpu", s.bf16):
            made = self.student.raw(low, self.student.start(reference))
        return loss_of(made, high, s)

    def measured(self) -> dict[str, float]:
        """As the function says."""
        return measured(self.mean, self.held_out)

    def export(self) -> dict[str, float]:
        """Write the averaged weights as a model's file; what they measure."""
        numbers = self.measured()
        about = {"steps": str(self.step), "measured": json.dumps(numbers)}
        save(self.mean, self.settings.export, about)
        return numbers | {"flop_per_frame": operations(self.mean.config, 64, 64)}


def _inner(upscaler: nn.Module) -> list[nn.Parameter]:
    return [p for p in upscaler.blocks.parameters() if p.ndim == 4]


def main(words: list[str]) -> None:
    """Train or export, as the words say."""
    settings = parse(words, Settings(), "the upscaler's training")
    torch.set_num_threads(1)
    run = Run(settings)
    if settings.export:
        print(run.export())
    else:
        run.draw()
        run.train()


if __name__ == "__main__":
    main(sys.argv[1:])

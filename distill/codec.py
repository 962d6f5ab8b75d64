"""Training of an encoder and a decoder on drawn faces and mazes.

    python -m distill.codec                       # trains, or goes on where it stopped
    python -m distill.codec steps=20000 lr=1e-3   # any field of `Settings`
    python -m distill.codec export=assets/weights/codec.safetensors

One codec serves both models that are trained here. The loss is on pixels and on their differences (edges are what a
drawn face is made of). Latents are pulled towards mean 0 and variance 1 and a little noise is added before decoding:
the decoder then forgives a diffusion model's errors, and neighbouring latents decode to similar pictures.
"""

from __future__ import annotations

import sys
from dataclasses import asdict, dataclass
from functools import partial

import torch
from torch import Tensor, nn

from distill.codec_quality import SETS, Codec, clips, export, psnr, strip
from distill.loop import Training, parse
from distill.precision import autocast
from stages.codec.small.network import SmallConfig


@dataclass(frozen=True)
class Settings:
    """What a run can be told.

    Attributes:
        run: folder of the checkpoint and the log.
        steps: when to stop; the last `decay` share of them brings the learning rate to zero.
        batch, faces: clips per step, and how many of them are of faces (the rest are mazes).
        frames, size: video frames per clip, and their height and width.
        noise: standard deviation of what is added to latents before decoding.
        square, edges, moments: weights, beside 1 for the pixels' absolute error, of their squared error, of the
            error of their differences, and of the pull on the latents' mean and variance.
        freeze: leave the encoder as it is, so that models trained on its latents stay right, and train the decoder on.
        average: decay of the running average of the weights, which is what is measured and exported.
        report, save_s: steps between measurements, seconds between checkpoints.
        export: write the averaged weights here and do nothing else.
        strip: draw originals and reconstructions to this PNG and do nothing else.
    """

    run: str = "runs/codec"
    steps: int = 4000
    decay: float = 0.55
    batch: int = 8
    faces: int = 5
    frames: int = 12
    size: int = 64
    lr: float = 2.5e-3
    warmup: int = 200
    clip: float = 1.0
    noise: float = 0.05
    square: float = 6.0
    edges: float = 0.5
    moments: float = 0.02
    freeze: bool = False
    average: float = 0.998
    report: int = 200
    save_s: float = 120.0
    bf16: bool = True
    export: str = ""
    strip: str = ""


def loss_of(made: Tensor, video: Tensor, latents: Tensor, settings: Settings) -> Tensor:
    """Pixels, edges along every axis, and the latents' moments."""

    def charbonnier(error: Tensor) -> Tensor:
        # Near zero it is quadratic: the last grey levels do not keep the gradient noisy.
        return (error.square() + 1e-3).sqrt().mean() - 1e-3**0.5

    error = made.float() - video
    edges = charbonnier(error.diff(dim=-1)) + charbonnier(error.diff(dim=-2)) + 0.5 * charbonnier(error.diff(dim=2))
    flat = latents.float().transpose(0, 1).flatten(1)
    moments = flat.mean(dim=1).square().mean() + flat.var(dim=1).add(1e-6).log().square().mean()
    pixels = charbonnier(error) + settings.square * error.square().mean()
    return pixels + settings.edges * edges + settings.moments * moments


class Run(Training):
    """A training run of encoder and decoder."""

    def __init__(self, settings: Settings, config: SmallConfig | None = None):
        super().__init__(settings, partial(Codec, config), _inner, asdict(config or SmallConfig()))
        if settings.freeze:
            # What is in use is the average, so that is what stays.
            self.student.encoder.load_state_dict(self.mean.encoder.state_dict())
            self.student.encoder.requires_grad_(False)

    def loss(self) -> Tensor:
        """Of faces and mazes that are drawn for this step."""
        s = self.settings
        shares = {"avatar": s.faces, "world": s.batch - s.faces}
        parts = [clips(kind, 10_000_000 + self.step * n, n, s.frames, s.size) for kind, n in shares.items()]
        video = torch.cat(parts)
        with autocast("cpu", s.bf16):
            made, latents = self.student(video, s.noise)
        return loss_of(made, video, latents, s)

    def measured(self) -> dict[str, float]:
        """Decibels by kind."""
        return {f"psnr_{kind}": round(psnr(self.mean, kind, self.settings.size), 2) for kind in SETS}


def _inner(codec: nn.Module) -> list[nn.Parameter]:
    """The first and last convolutions meet pixels and latents, not features: for those AdamW is the better fit."""
    return [p for p in codec.parameters() if p.ndim == 4 and min(p.shape[:2]) > 16]


def main(words: list[str]) -> None:
    """Train, export or draw, as the words say."""
    settings = parse(words, Settings(), "the codec's training")
    torch.set_num_threads(1)
    run = Run(settings)
    if settings.export:
        print(export(run.mean, settings.export, settings.size))
    elif settings.strip:
        strip(run.mean, settings.strip, settings.size)
    else:
        run.train()


if __name__ == "__main__":
    main(sys.argv[1:])

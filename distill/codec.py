"""Training of an encoder and a decoder on drawn faces and mazes.

    python -m distill.codec                       # trains, or goes on where it stopped
    python -m distill.codec steps=20000 lr=1e-3   # any field of `Settings`
    python -m distill.codec export=assets/weights/codec.safetensors

One codec serves both models that are trained here. The loss is on pixels and on their differences (edges are what a
drawn face is made of). Latents are pulled towards mean 0 and variance 1 and a little noise is added before decoding:
the decoder then forgives a diffusion model's errors, and neighbouring latents decode to similar pictures.

Every batch is a function of the step number, so a run that stops and resumes sees the same data as one that did not.
"""

from __future__ import annotations

import json
import signal
import sys
import time
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from conf.errors import UserError, nearest
from distill.codec_quality import SETS, Codec, clips, export, psnr, strip
from distill.muon import Muon
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


def rate(step: int, settings: Any) -> float:
    """The learning rate: up over the warm-up, level, then linearly down to zero."""
    left = (settings.steps - step) / max(1.0, settings.decay * settings.steps)
    return settings.lr * min(1.0, (step + 1) / settings.warmup, max(left, 0.0))


class Run:
    """A training run that can stop at any moment and go on."""

    def __init__(self, settings: Settings, config: SmallConfig | None = None):
        self.settings, self.step = settings, 0
        torch.manual_seed(0)
        self.codec, self.mean = Codec(config), Codec(config)
        self.mean.load_state_dict(self.codec.state_dict())
        # The first and last convolutions meet pixels and latents, not features: for those AdamW is the better fit.
        inner = [p for p in self.codec.parameters() if p.ndim == 4 and min(p.shape[:2]) > 16]
        chosen = {id(p) for p in inner}
        outer = [p for p in self.codec.parameters() if id(p) not in chosen]
        self.optimizer = Muon(inner, outer, settings.lr, weight_decay=1e-3)
        self.folder = Path(settings.run)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.stopping = False
        if self.file.exists():
            self._restore()
        if settings.freeze:
            # What is in use is the average, so that is what stays.
            self.codec.encoder.load_state_dict(self.mean.encoder.state_dict())
            self.codec.encoder.requires_grad_(False)

    @property
    def file(self) -> Path:
        """Where the checkpoint lies."""
        return self.folder / "checkpoint.pt"

    def save(self) -> None:
        """Write the checkpoint beside the old one and swap: a cut-off never leaves half of one."""
        state = {
            "step": self.step,
            "config": asdict(self.codec.encoder.config),
            "codec": self.codec.state_dict(),
            "mean": self.mean.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "rng": torch.get_rng_state(),
        }
        fresh = self.file.with_suffix(".new")
        torch.save(state, fresh)
        fresh.replace(self.file)

    def _restore(self) -> None:
        state = torch.load(self.file, weights_only=True)
        config = SmallConfig(**{k: tuple(v) if isinstance(v, list) else v for k, v in state["config"].items()})
        if config != self.codec.encoder.config:
            raise UserError(
                f"{self.file}",
                "was made with other widths than stages.codec.small.network.SmallConfig",
                "give another run=",
            )
        self.codec.load_state_dict(state["codec"])
        self.mean.load_state_dict(state["mean"])
        self.optimizer.load_state_dict(state["optimizer"])
        torch.set_rng_state(state["rng"])
        self.step = state["step"]

    def advance(self) -> float:
        """One step; its loss."""
        s = self.settings
        shares = {"avatar": s.faces, "world": s.batch - s.faces}
        parts = [clips(kind, 10_000_000 + self.step * n, n, s.frames, s.size) for kind, n in shares.items()]
        video = torch.cat(parts)
        with autocast("cpu", s.bf16):
            made, latents = self.codec(video, s.noise)
        loss = loss_of(made, video, latents, s)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.codec.parameters(), s.clip)
        for group in self.optimizer.param_groups:
            group["lr"] = rate(self.step, s)
        self.optimizer.step()
        self.step += 1
        # Early on the average must forget the random start.
        keep = min(s.average, self.step / (self.step + 10))
        with torch.no_grad():
            for mean, now in zip(self.mean.parameters(), self.codec.parameters(), strict=True):
                mean.lerp_(now, 1 - keep)
        return loss.item()

    def train(self) -> None:
        """To the last step, measuring and saving on the way."""
        saved = began = time.monotonic()
        losses = []
        while self.step < self.settings.steps:
            losses.append(self.advance())
            if self.step % self.settings.report == 0:
                seconds = (time.monotonic() - began) / len(losses)
                self.note(loss=round(sum(losses) / len(losses), 5), seconds_per_step=round(seconds, 3))
                losses, began = [], time.monotonic()
            if time.monotonic() - saved > self.settings.save_s:
                self.save()
                saved = time.monotonic()
            if self.stopping:
                break
        self.save()

    def stop(self, *_: object) -> None:
        """Finish the step in hand, save and return from `train` (also as a signal handler)."""
        self.stopping = True

    def note(self, **numbers: float) -> None:
        """One line in the log: step, learning rate, decibels and whatever else is known."""
        decibels = {f"psnr_{kind}": round(psnr(self.mean, kind, self.settings.size), 2) for kind in SETS}
        line = {"step": self.step, "lr": rate(self.step, self.settings), **numbers, **decibels}
        with (self.folder / "log.jsonl").open("a") as log:
            log.write(json.dumps(line) + "\n")
        print(line, flush=True)


def parse(words: list[str], settings: Any = None, what: str = "the codec's training") -> Any:
    """`name=value` words over the defaults, or over other settings of a training of `what`."""
    settings = settings or Settings()
    kinds = {f.name: type(getattr(settings, f.name)) for f in fields(settings)}
    for word in words:
        name, equals, value = word.partition("=")
        if not equals or name not in kinds:
            raise UserError(word, f"is not a setting of {what}", nearest(name, kinds))
        made = value.lower() in ("true", "1") if kinds[name] is bool else kinds[name](value)
        settings = replace(settings, **{name: made})
    return settings


def main(words: list[str]) -> None:
    """Train, export or draw, as the words say."""
    settings = parse(words)
    torch.set_num_threads(1)
    run = Run(settings)
    if settings.export:
        print(export(run.mean, settings.export, settings.size))
    elif settings.strip:
        strip(run.mean, settings.strip, settings.size)
    else:
        signal.signal(signal.SIGTERM, run.stop)
        run.train()


if __name__ == "__main__":
    main(sys.argv[1:])

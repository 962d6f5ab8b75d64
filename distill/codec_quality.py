"""What there is to know about a codec without training it: its reconstructions, their quality, its weight file."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from distill.data import avatar, sound, world
from stages.codec.small.codec import describe
from stages.codec.small.network import SmallConfig, SmallDecoder, SmallEncoder

SETS = ("avatar", "world")


class Codec(nn.Module):
    """Encoder and decoder side by side, as they are trained."""

    def __init__(self, config: SmallConfig | None = None):
        super().__init__()
        self.encoder, self.decoder = SmallEncoder(config), SmallDecoder(config)

    def forward(self, video: Tensor, noise: float = 0.0) -> tuple[Tensor, Tensor]:
        """[B, 3, n, H, W] to its reconstruction, not clamped, and the latents [B, C, n / 4, H / 8, W / 8]."""
        latents = self.encoder(video, self.encoder.start())
        fed = latents + noise * torch.randn_like(latents) if noise else latents
        return self.decoder.raw(fed, self.decoder.start()), latents


def clips(kind: str, seed: int, count: int, frames: int, size: int, held_out: bool = False) -> Tensor:
    """`count` clips of one data set as [count, 3, frames, size, size] in [-1, 1]."""
    pixels = []
    for number in range(seed, seed + count):
        if kind == "avatar":
            mouth = sound.babble(number, frames)
            setting = avatar.scene(number, held_out)
            clip = avatar.perform(setting, frames, mouth, size, start=number % 4096).frames
        else:
            clip = world.sample(number, frames, size, held_out).frames
        # A still picture is what a reference is; some clips are that.
        pixels.append(np.repeat(clip[:1], frames, axis=0) if number % 12 == 0 and not held_out else clip)
    video = torch.from_numpy(np.stack(pixels)).permute(0, 4, 1, 2, 3)
    return video.float().div(127.5).sub(1)


@torch.no_grad()
def psnr(codec: Codec, kind: str, size: int, count: int = 16, frames: int = 24) -> float:
    """Decibels over held-out clips, from the error of all of them together."""
    codec.eval()
    video = clips(kind, 1_000_000, count, frames, size, held_out=True)
    error = 0.0
    for clip in video.split(4):
        made = codec(clip)[0].clamp(-1, 1)
        error += (made - clip).square().mean().item() * len(clip) / count
    codec.train()
    return 10 * math.log10(4 / max(error, 1e-12))


@torch.no_grad()
def statistics(codec: Codec, kind: str, size: int, count: int = 96) -> tuple[Tensor, Tensor]:
    """Per-channel mean and standard deviation [channels] of the latents of one data set (of training scenes)."""
    parts = [
        codec.encoder.raw(clips(kind, 2_000_000 + lo, 8, 24, size), codec.encoder.start()) for lo in range(0, count, 8)
    ]
    flat = torch.cat(parts).transpose(0, 1).flatten(1).double()
    return flat.mean(dim=1).float(), flat.std(dim=1).float()


def export(codec: Codec, path: str | Path, size: int, count: int = 96) -> dict[str, float]:
    """Write fp16 weights and latent statistics, which the codec's `load_half` reads; PSNR of what was written.

    The statistics are taken over `count` clips of each data set, the PSNR over a third as many.
    """
    half = Codec(codec.encoder.config)
    half.load_state_dict({k: v.half().float() for k, v in codec.state_dict().items()})
    tensors = {}
    stats = {kind: statistics(half, kind, size, count) for kind in SETS}
    for kind, (mean, std) in stats.items():
        tensors |= {f"latents.{kind}.mean": mean, f"latents.{kind}.std": std}
    mean = torch.stack([m for m, _ in stats.values()]).mean(dim=0)
    second = torch.stack([s.square() + m.square() for m, s in stats.values()]).mean(dim=0)
    for part in (half.encoder, half.decoder):
        part.mean.copy_(mean)
        part.std.copy_((second - mean.square()).sqrt())
    weights = {k: v.contiguous() for k, v in half.state_dict().items()}
    tensors |= {k: v if k.endswith((".mean", ".std")) else v.half() for k, v in weights.items()}
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    quality = {kind: round(psnr(half, kind, size, count // 3), 2) for kind in SETS}
    metadata = {"config": describe(codec.encoder.config), "psnr": json.dumps(quality)}
    save_file(tensors, str(path), metadata=metadata)
    Path(path).chmod(0o644)
    return quality


@torch.no_grad()
def strip(codec: Codec, path: str | Path, size: int, count: int = 4) -> None:
    """A PNG of held-out clips, every other frame, each row of originals above its reconstruction."""
    from PIL import Image

    rows = []
    for kind in SETS:
        video = clips(kind, 3_000_000, count, 24, size, held_out=True)
        made = codec(video)[0].clamp(-1, 1)
        for pair in zip(video, made, strict=True):
            rows += [torch.cat(list(clip[:, ::2].transpose(0, 1)), dim=2) for clip in pair]
    picture = torch.cat(rows, dim=1).add(1).mul(127.5).round().byte().permute(1, 2, 0).numpy()
    image = Image.fromarray(picture)
    image.resize((image.width * 2, image.height * 2), Image.Resampling.NEAREST).save(path)

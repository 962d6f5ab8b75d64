"""Clips to train the upscaler on: decoded pictures at 64x64 beside the same scene drawn at 256x256.

    runs/upscale/clips/low.npy, high.npy, reference.npy, done.txt

Every other clip is of a face, the others of a maze; each is a pure function of its number. Half of them have noise on
their latents, as what a diffusion model makes is never quite what the encoder would have made.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from distill.clips import pixels
from distill.data import avatar, sound, world
from distill.precision import autocast
from stages.codec.small.codec import load_half
from stages.post import to_pictures
from stages.post_upscale import SCALE

SIZE = 64
FRAMES = 8
WARM = 8
"""Frames decoded before those that are kept: a decoder remembers."""
NOISE = 0.15
"""The most noise that latents get, as a standard deviation; theirs is one."""
KINDS = ("avatar", "world")
GREY = 128


class Codecs:
    """Pictures through the codec of both kinds, with noise on the latents if wanted."""

    def __init__(self, path: str):
        self.halves = {kind: tuple(load_half(path, half, kind) for half in ("encoder", "decoder")) for kind in KINDS}

    @torch.inference_mode()
    def through(self, kind: str, frames: np.ndarray, noise: float = 0.0, seed: int = 0) -> np.ndarray:
        """Frames uint8 [n, H, W, 3], n a multiple of four, encoded and decoded."""
        encoder, decoder = self.halves[kind]
        with autocast("cpu"):
            latents = encoder(pixels(frames[None]), encoder.start()).float()
            draw = torch.Generator().manual_seed(seed)
            latents = latents + noise * torch.randn(latents.shape, generator=draw)
            return np.asarray(to_pictures(decoder(latents, decoder.start())))


def draw(number: int, held_out: bool = False, frames: int = FRAMES) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """A clip: WARM + `frames` frames at 64x64, the last `frames` at 256x256, and a face's reference at 256x256."""
    whole, large = WARM + frames, SIZE * SCALE
    if KINDS[number % 2] == "world":
        clip = world.sample(number, whole, SIZE, held_out)
        return clip.frames, world.render(clip.scene, clip.poses[WARM:], large), None
    scene, mouth = avatar.scene(number, held_out), sound.babble(number, whole)
    start = int(np.random.default_rng((number, 0x5CA1E)).integers(1 << 20))
    low = avatar.perform(scene, whole, mouth, SIZE, start).frames
    high = avatar.perform(scene, frames, mouth[WARM:], large, start + WARM).frames
    return low, high, avatar.reference(scene, large)


class Store:
    """Drawn clips on disk.

    Args:
        folder: where they lie.
        codec: weights of the codec.
        count: how many.
        held_out: people and mazes that are never trained on.
        frames: of a clip.
    """

    def __init__(self, folder: str | Path, codec: str, count: int, held_out: bool = False, frames: int = FRAMES):
        self.folder, self.codec, self.count = Path(folder), codec, count
        self.held_out, self.frames = held_out, frames
        self.folder.mkdir(parents=True, exist_ok=True)
        large = SIZE * SCALE
        shapes = {"low": (frames, SIZE, SIZE, 3), "high": (frames, large, large, 3), "reference": (large, large, 3)}
        self.arrays = {name: self._array(name, shape) for name, shape in shapes.items()}

    def _array(self, name: str, shape: tuple[int, ...]) -> np.ndarray:
        path = self.folder / f"{name}.npy"
        if not path.exists():
            np.lib.format.open_memmap(path, "w+", np.uint8, (self.count, *shape)).flush()
        return np.load(path, mmap_mode="r+")

    def __len__(self) -> int:
        done = self.folder / "done.txt"
        return int(done.read_text()) if done.exists() else 0

    def fill(self) -> Iterator[int]:
        """Draw what is missing; yields how many there are."""
        codecs = Codecs(self.codec)
        for number in range(len(self), self.count):
            low, high, reference = draw(number, self.held_out, self.frames)
            noise = NOISE * np.random.default_rng((number, 0x2015E)).uniform() if number // 2 % 2 else 0.0
            self.arrays["low"][number] = codecs.through(KINDS[number % 2], low, noise, number)[WARM:]
            self.arrays["high"][number] = high
            if reference is not None:
                self.arrays["reference"][number] = reference
            (self.folder / "done.txt").write_text(str(number + 1))
            yield number + 1

    def whole(self, number: int) -> tuple[Tensor, Tensor, Tensor]:
        """A clip as it is, as a batch of one: low, high and reference (which only faces have)."""
        low, high = (pixels(self.arrays[name][number][None]) for name in ("low", "high"))
        return low, high, pixels(self.arrays["reference"][number][None, None])[:, :, 0]

    def batch(self, step: int, count: int, crop: int) -> tuple[Tensor, Tensor, Tensor]:
        """Random crops, some mirrored: low [B, 3, n, c, c], high [B, 3, n, 4 c, 4 c] and reference [B, 3, 4 c, 4 c].

        Where there is no reference, and for a third of the faces, it is grey. A function of `step`.
        """
        rng = np.random.default_rng((step, 0x0C20))
        parts: dict[str, list[np.ndarray]] = {name: [] for name in self.arrays}
        for number in rng.integers(len(self), size=count):
            y, x = 2 * rng.integers(0, (SIZE - crop) // 2 + 1, 2)
            mirrored, shown = rng.random(2)
            for name, array in self.arrays.items():
                scale = 1 if name == "low" else SCALE
                part = array[number, ..., scale * y : scale * (y + crop), scale * x : scale * (x + crop), :]
                if name == "reference" and (number % 2 or shown < 1 / 3):
                    part = np.full_like(part, GREY)
                parts[name].append(part[..., ::-1, :] if mirrored < 0.5 else part)
        low, high = (pixels(np.stack(parts[name])) for name in ("low", "high"))
        return low, high, pixels(np.stack(parts["reference"])[:, None])[:, :, 0]

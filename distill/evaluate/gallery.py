"""Who is in a picture and before what: the nearest of a gallery of people by pixels, and the nearest background colour.

Every person is drawn at 32x32 in `POSES`, before two backgrounds, which tells the person and what shows of the
background apart. So a picture is compared with every person before the picture's own background, and a wrong colour,
mood or mouth counts the same for all of them. The nearest drawing says who it is and roughly how the head is held.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from distill.data import avatar
from distill.data.people import BACKGROUNDS

SIZE = 32
# Shift in x and y, roll and turn: what `people.head_pose` reaches, in steps of about two pixels of 64.
POSES = np.array(
    list(product((-0.11, -0.055, 0.0, 0.055, 0.11), (-0.05, 0.0, 0.05), (-0.09, 0.09), (-0.2, 0.0, 0.2))), np.float32
)
# Nobody ever reaches the outer tenth of the picture's columns above the shoulders.
SIDE, ABOVE = 0.09, 0.8
TOGETHER = 256


def _light(size: int) -> np.ndarray:
    """[size] how bright each row of a background is, as `avatar` draws it."""
    rows = ((np.arange(size) + 0.5) / size * 2 - 1) * avatar.REACH
    return (1.06 - 0.06 * (rows + 1)).astype(np.float32)


def background(frames: np.ndarray) -> np.ndarray:
    """The colour [n, 3], 0 ... 255, behind the person in frames uint8 [n, H, W, 3], as the palette gives it."""
    size = frames.shape[1]
    wide, high = max(1, int(SIDE * size)), int(ABOVE * size)
    sides = np.concatenate([frames[:, :high, :wide], frames[:, :high, -wide:]], axis=2).astype(np.float32)
    return np.median(sides / _light(size)[None, :high, None, None], axis=(1, 2))


def named(colours: np.ndarray) -> list[str]:
    """The nearest background name of each of these colours [n, 3]."""
    names, palette = list(BACKGROUNDS), np.array(list(BACKGROUNDS.values()), np.float32)
    nearest = np.linalg.norm(colours[:, None] - palette, axis=2).argmin(1)
    return [names[i] for i in nearest]


class Gallery:
    """The people that a picture may show.

    Args:
        people: identity numbers.
    """

    def __init__(self, people: Sequence[int]):
        self.people = list(people)
        drawn = [self._draw(number) for number in self.people]
        self.person = torch.cat([p for p, _ in drawn])
        self.through = torch.cat([t for _, t in drawn])
        # Of |person + through x colour|^2, what does not depend on the picture.
        self.own = self.person.square().sum((1, 2))
        self.cross = (self.person * self.through[:, None]).sum(2)
        self.clear = self.through.square().sum(1)

    def _draw(self, number: int) -> tuple[Tensor, Tensor]:
        """The person [poses, 3, pixels] on black, and how much background shows, with its light [poses, pixels]."""
        n = len(POSES)
        mouth, blink = np.tile(np.float32([[0.3, 0.4]]), (n, 1)), np.zeros(n, np.float32)
        before = {
            name: avatar.render(avatar.Scene(number, name, "neutral", 0), mouth, POSES, blink, SIZE).astype(np.float32)
            for name in ("red", "white")
        }
        red, white = (np.float32(BACKGROUNDS[name]) for name in before)
        # Green differs most between the two.
        shows = (before["white"][..., 1] - before["red"][..., 1]) / (white - red)[1]
        alone = before["white"] - shows[..., None] * white
        return torch.from_numpy(alone).permute(0, 3, 1, 2).flatten(2), torch.from_numpy(shows).flatten(1)

    def distances(self, frames: np.ndarray) -> Tensor:
        """Squared distance to every drawing, [n, people, poses]."""
        pictures = F.interpolate(torch.from_numpy(frames).permute(0, 3, 1, 2).float(), size=(SIZE, SIZE), mode="area")
        colours = torch.from_numpy(background(frames))
        out = []
        for x, b in zip(pictures.flatten(2).split(TOGETHER), colours.split(TOGETHER), strict=True):
            with_person = x.flatten(1) @ self.person.flatten(1).T
            with_ground = torch.einsum("nc,ncp->np", b, x) @ self.through.T
            drawn = self.own + 2 * b @ self.cross.T + b.square().sum(1, keepdim=True) * self.clear
            out.append(x.square().sum((1, 2))[:, None] - 2 * (with_person + with_ground) + drawn)
        return torch.cat(out).unflatten(1, (len(self.people), len(POSES)))

    def who(self, frames: np.ndarray) -> np.ndarray:
        """The identity number of the nearest person, per frame of uint8 [n, H, W, 3]."""
        nearest = self.distances(frames).amin(2).argmin(1)
        return np.array(self.people)[nearest.numpy()]

    def pose(self, frames: np.ndarray, number: int) -> np.ndarray:
        """[n, 4] how this person's head is held, to the nearest of `POSES`."""
        return POSES[self.distances(frames)[:, self.people.index(number)].argmin(1).numpy()]

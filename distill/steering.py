"""Whether a dreamed walk does what its actions ask, as a loss: the camera estimator's verdict on decoded frames.

Distribution matching looks at latents, where a step of the camera is a small thing. What goes wrong is small, too: the
frames of one latent move as they should, but from the last frame of a latent to the first of the next the camera
jumps, a few degrees to either side. So those are the frames that are looked at.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distill.evaluate.camera import unexplained
from stages.inputs import FRAMES_PER_LATENT

WINDOW = 4
"""Latent frames decoded at a time; a decoder remembers, so the first only prepares it."""
SHARE = 0.1
"""Differences of what explanations leave unexplained count by this share of their mean."""


def verdict(before: Tensor, after: Tensor, asked: Tensor) -> Tensor:
    """Cross-entropy of the asked action among the camera's explanations of pairs of frames.

    Args:
        before, after: [n, 3, H, W] in [-1, 1].
        asked: [n] action classes.
    """
    errors = unexplained(before.add(1).mul(127.5), after.add(1).mul(127.5))
    # Relative to each other: paler or softer pictures, of which less is unexplained, gain nothing.
    share = errors / errors.mean(dim=1, keepdim=True).clamp(min=1e-3)
    return F.cross_entropy(-share / SHARE, asked)


def steering(decoder: nn.Module, latents: Tensor, actions: Tensor, first: int) -> Tensor:
    """The verdict on the frames at which latents meet, in a window of clips.

    Args:
        decoder: of the model's codec; nothing of it learns.
        latents: [B, C, F, h, w] with a gradient.
        actions: one-hot [B, F, 4 * classes].
        first: latent frame at which the window begins, 0 ... F - WINDOW.
    """
    window = slice(first, first + WINDOW)
    video = decoder.raw(latents[:, :, window].float(), decoder.start())
    asked = actions[:, window].unflatten(-1, (FRAMES_PER_LATENT, -1)).argmax(-1).flatten(1)
    meets = torch.arange(2 * FRAMES_PER_LATENT, WINDOW * FRAMES_PER_LATENT, FRAMES_PER_LATENT)
    before, after = (video[:, :, meets + shift].transpose(1, 2).flatten(0, 1) for shift in (-1, 0))
    return verdict(before, after, asked[:, meets].flatten())

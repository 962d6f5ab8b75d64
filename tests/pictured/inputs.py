"""What conditions the model."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from stages.controls import Controls
from stages.inputs import FRAMES_PER_LATENT, Axis, Input

from .sizes import REACH


def first_alone(latents: range) -> torch.Tensor:
    """1 at the stream's first latent, 0 after."""
    return torch.tensor([float(i == 0) for i in latents]).view(1, 1, -1, 1, 1).expand(1, 4, -1, 1, 1)


def inputs(model) -> tuple[Input, ...]:
    sizes, c = model.network, model.chunk_frames
    keys, channels = tuple(sizes.keys), sizes.in_channels
    return (
        Input(
            "condition", Axis.LATENT, (channels, c, None, None), "image", "condition_latents", whole=True, latents=True,
            narrow=True,
        ),
        Input(
            "mask", Axis.LATENT, (4, c, None, None), key="condition_mask", whole=True, entries=first_alone,
            latents=True, narrow=True,
        ),
        Input("image_rows", Axis.EPOCH, (sizes.image_rows, sizes.image_dim), "image", "image_rows"),
        Input(
            "keyboard", Axis.FRAME, (REACH + FRAMES_PER_LATENT * c, len(keys)), "actions", "keyboard", whole=True,
            rows=lambda taken: F.one_hot(torch.as_tensor(taken, dtype=torch.int64), len(keys)).float()[None],
            controls=Controls(keys, one=True), reach=REACH,
        ),
    )  # fmt: skip

"""What conditions the model: a prompt, a picture as channels of the input, and a camera."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from conf.schema import ModelConfig
from stages.inputs import Axis, Input, text
from stages.models.lingbot.moves import CONTROLS, moved
from stages.models.lingbot.rays import KEYS, LENS, POSE, numbers
from stages.models.lingbot.sizes import MASK


def inputs(model: ModelConfig) -> tuple[Input, ...]:
    """Of a picture come the latents of a clip that begins with it and goes on with nothing, and a mask that says so."""
    sizes, c = model.network, model.chunk_frames
    act = sizes.control == "act"
    return (
        text(sizes.text_tokens, sizes.text_dim),
        Input(
            "condition", Axis.LATENT, (sizes.in_channels, c, None, None), "image", "condition_latents", whole=True,
            latents=True, narrow=True,
        ),
        Input(
            "mask", Axis.LATENT, (MASK, c, None, None), key="condition_mask", whole=True, entries=_first, latents=True,
            narrow=True,
        ),
        Input(
            "camera", Axis.LATENT, (c, POSE + LENS + KEYS * act), "camera",
            rows=partial(numbers, scale=model.translation_scale, act=act), controls=CONTROLS, moves=moved,
        ),
    )  # fmt: skip


def _first(latents: range) -> Tensor:
    """1 for the latent frame that the picture is, 0 for all others: [1, 4, f, 1, 1]."""
    told = torch.tensor([float(latent == 0) for latent in latents])
    return told.view(1, 1, -1, 1, 1).expand(-1, MASK, -1, -1, -1)

"""What conditions the model: a picture, as channels of the input and as rows, and what is pressed and turned."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from conf.schema import ModelConfig
from stages.controls import Controls
from stages.inputs import FRAMES_PER_LATENT, Axis, Input, scene
from stages.models.matrix_game_2.sizes import KEYBOARD, MASK, MOUSE, WINDOW

REACH = WINDOW - FRAMES_PER_LATENT + 1
"""Video frames before a chunk's own: its first latent frame reads twelve, three of which are the chunk's."""


def inputs(model: ModelConfig) -> tuple[Input, ...]:
    """There is no prompt. A model without a mouse is told no axes."""
    sizes, a = model.network, model.network.actions
    controls = Controls(tuple(a.keys), one=a.one, axes=tuple(a.axes))
    frames = REACH + FRAMES_PER_LATENT * model.chunk_frames

    def keys(pressed: np.ndarray) -> Tensor:
        if a.one:
            return F.one_hot(torch.as_tensor(pressed, dtype=torch.int64), a.keyboard).float()[None]
        return torch.as_tensor(pressed[:, : a.keyboard], dtype=torch.float32)[None]

    def axes(pressed: np.ndarray) -> Tensor:
        return torch.as_tensor(pressed[:, a.keyboard :], dtype=torch.float32)[None]

    pressed = [(KEYBOARD, a.keyboard, keys), *([(MOUSE, a.mouse, axes)] if a.mouse else [])]
    return (
        *scene(model.chunk_frames, sizes.in_channels, MASK),
        Input("image_rows", Axis.EPOCH, (sizes.image_tokens, sizes.image_dim), "image", "image_rows"),
        *(
            Input(
                name, Axis.FRAME, (frames, count), "actions", name, whole=True, rows=rows, controls=controls,
                reach=REACH,
            )
            for name, count, rows in pressed
        ),
    )  # fmt: skip

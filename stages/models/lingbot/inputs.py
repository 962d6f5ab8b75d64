"""What conditions the model: a prompt, a picture as channels of the input, and a camera."""

from __future__ import annotations

from functools import partial

from conf.schema import ModelConfig
from stages.inputs import Axis, Input, scene, text
from stages.models.lingbot.moves import CONTROLS, moved
from stages.models.lingbot.rays import KEYS, LENS, POSE, numbers
from stages.models.lingbot.sizes import MASK


def inputs(model: ModelConfig) -> tuple[Input, ...]:
    """Of a picture come the latents of a clip that begins with it and goes on with nothing, and a mask that says so."""
    sizes, c = model.network, model.chunk_frames
    act = sizes.control == "act"
    return (
        text(sizes.text_tokens, sizes.text_dim),
        *scene(c, sizes.in_channels, MASK),
        Input(
            "camera", Axis.LATENT, (c, POSE + LENS + KEYS * act), "camera",
            rows=partial(numbers, scale=model.translation_scale, act=act), controls=CONTROLS, moves=moved,
        ),
    )  # fmt: skip

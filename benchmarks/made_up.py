"""What drives a model, made up: tensors of a chunk's inputs, and what is pressed in a stream.

Numbers are random but for a camera's, whose rays are divided by focal lengths: it moves as keys move it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from torch import Tensor

from conf.schema import ModelConfig
from stages.controls import ACTION, MOUSE, Controls
from stages.inputs import FRAMES_PER_LATENT, Given, Input, Views, inputs_of, with_chunk
from stages.views import NINETY, identity, scaled

HELD = 7
"""Video frames until another key is held."""
TURNED = 0.1


def of_chunk(model: ModelConfig, grid: tuple[int, int], chunk: int, random: Callable[..., Tensor]) -> Given:
    """Inputs of a chunk.

    Args:
        grid: height and width of a latent.
        random: a tensor of a shape.
    """
    return {
        one.name: _moving(one, model.frames(chunk), chunk) if one.moves else random(*one.full(grid))
        for one in with_chunk(inputs_of(model))
        if one.made
    }


def _moving(one: Input, latents: range, chunk: int) -> Tensor:
    """Of a camera that a key moves, another for every chunk."""
    row, poses, frames = _row(one.controls, chunk), [identity()], FRAMES_PER_LATENT * len(latents)
    for _ in range(frames):
        poses.append(one.moves(poses[-1], row))
    return one.rows(Views(np.stack(poses), np.tile(scaled(NINETY), (1 + frames, 1)), [row] * frames))


def _row(controls: Controls, number: int) -> Any:
    return controls.parse({ACTION: _action(controls, number)}, f"chunk {number}")


def _action(controls: Controls, number: int) -> str:
    """Every key in turn."""
    return controls.actions[1 + number % (len(controls.actions) - 1)]


def pressed(controls: Controls, frames: int) -> Iterator[dict[str, Any]]:
    """Lines of `source.actions`: every key in turn, and every axis to one side and to the other."""
    for number, frame in enumerate(range(1, frames, HELD)):
        turned = {MOUSE: [TURNED * (-1) ** (number + axis) for axis in range(len(controls.axes))]}
        yield {"frame": frame, ACTION: _action(controls, number)} | (turned if controls.axes else {})

"""Sizes of LingBot-World's network, what its `config.json` says of them, and rules of the model."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from conf import published as folder
from conf.errors import UserError
from conf.schema import ModelConfig
from conf.settings import check_choices, one_of
from conf.typed import typed
from stages.dit.sizes import PUBLISHED, SUPPORTED, TransformerSizes

PIXELS = 8
"""Rows and columns of the picture that one of a latent stands for."""
CONTROLS = {"cam": 6, "act": 7}
"""Channels of a pixel's ray, by what a camera is told by: origin and direction of its step; or the direction, and four
keys that move it."""
MASK = 4
"""Channels that say which latent frames are a picture's: one for each video frame."""
TERMS, STATE, NOTHING = "terms", "state", "nothing"
INDICES = [1000, 821, 642, 321]
"""Published steps (`stages.models.lingbot.schedule`)."""
LEAST_SCALE = 1e-6
"""Of a camera: what it divides is float32 in the network."""


@dataclass
class Sizes(TransformerSizes):
    """The shared transformer's, and those of its camera."""

    control: str = one_of(CONTROLS, "cam")
    """What the camera is told by: `cam`, the step of its pose; `act`, how that turns, and the keys that move it."""
    camera_kept: str = one_of((TERMS, STATE, NOTHING), TERMS)
    """What is kept of a camera between the passes of a chunk: `terms`, two numbers for each channel of a token and
    layer, so that later passes have no product of a camera's; `state`, one, and half of the products; `nothing`."""

    def __post_init__(self):
        super().__post_init__()
        check_choices(self, "model.network.")

    @property
    def beside(self) -> dict[str, int]:
        return {"mask": MASK, "condition": self.in_channels}

    @property
    def ray_values(self) -> int:
        """Numbers that a token is told of its rays."""
        return CONTROLS[self.control] * PIXELS**2 * math.prod(self.patch)

    def once_values(self, new: int, frames: int) -> int:
        return new * self._kept

    def once_flops(self, new: int) -> Sequence[float]:
        """2 n d^2 for each of two products that make a layer's state, and of two that make its terms. What layers have
        in common is left out: n (2 d^2 + d r) for r numbers of a ray, once for a range of them."""
        return [2.0 * new * self._products[0] * self.dim**2] * self.layers

    def layer_flops(self, new: int, keys: int) -> Sequence[float]:
        """With the products of a camera that are in every pass."""
        more = 2.0 * new * self._products[1] * self.dim**2
        return [flops + more for flops in super().layer_flops(new, keys)]

    def once_moved(self, new: int) -> Sequence[float]:
        """Of a layer's products of a camera that are made once."""
        return [self._values(new, self._products[0])] * self.layers

    def layer_values(self, new: int, keys: int) -> Sequence[float]:
        """With those that are in every pass, and what is kept of a camera."""
        more = self._values(new, self._products[1]) + new * self._kept
        return [values + more for values in super().layer_values(new, keys)]

    @property
    def _kept(self) -> int:
        """Numbers that a layer keeps of a token's camera."""
        return {TERMS: 2, STATE: 1, NOTHING: 0}[self.camera_kept] * self.dim

    @property
    def _products(self) -> tuple[int, int]:
        """A camera's products in a layer: made once, and made in every pass."""
        once = {TERMS: 4, STATE: 2, NOTHING: 0}[self.camera_kept]
        return once, 4 - once

    def _values(self, new: int, products: int) -> float:
        return float(products * (2 * new * self.dim + self.dim**2 + self.dim))


def published(said: dict[str, Any]) -> dict[str, Any]:
    """Sizes that a `config.json` tells; raises UserError."""
    forms = SUPPORTED | {"model_type": ("i2v",)}
    found = folder.sizes(said, PUBLISHED | {"control": ("control_type",)}, forms, "a LingBot-World model")
    if "in_channels" in found:
        inside = typed(int, found["in_channels"], "config.json: in_dim")
        outside = typed(int, found.get("out_channels", 16), "config.json: out_dim")
        if inside != 2 * outside + MASK:
            raise UserError(
                f"config.json: in_dim={inside}",
                f"is not twice out_dim={outside} and {MASK}: latents, a mask, and a picture's latents enter",
                "use a LingBot-World model",
            )
        found["in_channels"] = outside
    return found


def check(model: ModelConfig) -> None:
    """Raises UserError where the model cannot be as it is configured."""
    if model.reference:
        raise UserError(
            "model.reference=true", "the picture enters as channels of the input", "set model.reference=false"
        )
    listed = model.timesteps or []
    if not listed or any(t != int(t) or t < 1 for t in listed):
        raise UserError(
            f"model.timesteps={model.timesteps}",
            "lists the steps of a table of 1000, from 1000 on, as whole numbers",
            f"use {INDICES}",
        )
    if model.translation_scale is None or model.translation_scale < LEAST_SCALE:
        raise UserError(
            f"model.translation_scale={'null' if model.translation_scale is None else model.translation_scale}",
            f"translations of the camera are divided by it, at least {LEAST_SCALE:g}",
            "use 0.2: four frames at full speed",
        )

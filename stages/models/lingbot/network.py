"""The network: the shared transformer, with a picture as channels of its input, and a camera in every layer.

A camera's state C is made of the rays of a token, and each layer scales and shifts its residual by what it makes of C:
behind self-attention x = (1 + S y) x + T y, with y = C + I2 silu(I1 C), without a gate, a norm, or the step's time. So
C, S y and T y are the same in all passes of a chunk.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stages.denoise.attention import History, KeysValues
from stages.denoise.network import Take
from stages.dit.layers import Inside, Layer, reusable
from stages.dit.network import Constants, Drive, Transformer
from stages.dit.patches import patches
from stages.inputs import Given
from stages.models.lingbot import sizes
from stages.models.lingbot.rays import rays
from stages.models.lingbot.sizes import Sizes

CAMERA, CAMERA_STATE = "camera", "camera_state"
"""The input, and C, where a pass makes it for itself."""
MADE = "once."
"""Marks what is made for all passes: y, or S y and T y, by layer."""


class SteeredLayer(Layer):
    """A layer with its part of the camera, under the published names."""

    def __init__(self, index: int, dim: int, ffn_dim: int, heads: int, eps: float):
        super().__init__(index, dim, ffn_dim, heads, eps)
        self.cam_injector_layer1, self.cam_injector_layer2 = nn.Linear(dim, dim), nn.Linear(dim, dim)
        self.cam_scale_layer, self.cam_shift_layer = nn.Linear(dim, dim), nn.Linear(dim, dim)

    def state(self, camera: Tensor) -> Tensor:
        """C [B, N, d] to y of this layer."""
        return camera + self.cam_injector_layer2(F.silu(self.cam_injector_layer1(camera)))

    def terms(self, state: Tensor) -> tuple[Tensor, Tensor]:
        """y to S y and T y."""
        return self.cam_scale_layer(state), self.cam_shift_layer(state)


def steered(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """(1 + scale) x + shift for a float32 residual [B, N, d], whose memory may be reused."""
    y = torch.addcmul(x, x, scale, out=reusable(x))
    return torch.add(y, shift, out=reusable(y))


class Network(Transformer):
    """A range of layers; see `Transformer`."""

    layer = SteeredLayer

    def __init__(self, config: Sizes, layers: range | None = None, attention: str = "sdpa"):
        super().__init__(config, layers, attention)
        self.patch_embedding_wancamctrl = nn.Linear(config.ray_values, config.dim)
        self.c2ws_hidden_states_layer1 = nn.Linear(config.dim, config.dim)
        self.c2ws_hidden_states_layer2 = nn.Linear(config.dim, config.dim)
        self.steered = steered

    def compile(self, compiled: Any) -> Self:
        self.steered = compiled(steered)
        return super().compile(compiled)

    def camera(self, given: Given, take: Take) -> Tensor:
        """C [B, N, d] of the tokens that are computed here."""
        rows, columns = given["mask"].shape[-2:]
        planes = rays(given[CAMERA], rows, columns, self.config.control == "act")
        p = self.patch_embedding_wancamctrl(take(patches(planes.to(self.dtype), self.config.patch)))
        return p + self.c2ws_hidden_states_layer2(F.silu(self.c2ws_hidden_states_layer1(p)))

    def once(self, given: Given, take: Take) -> Iterable[tuple[str, Tensor]]:
        kept = self.config.camera_kept
        if kept == sizes.NOTHING:
            return
        camera = self.camera(given, take)
        for i in self.layers:
            layer = self.blocks[str(i)]
            state = layer.state(camera)
            if kept == sizes.STATE:
                yield f"{MADE}state.{i}", state
                continue
            for name, term in zip(("scale", "shift"), layer.terms(state), strict=True):
                yield f"{MADE}{name}.{i}", term

    def drive(
        self, constants: Constants, states: dict[int, KeysValues], given: Given, take: Take, leaves: bool = True
    ) -> Drive:
        """Where nothing was made of the camera for all passes, this one does it for itself."""
        if not any(name.startswith(MADE) for name in given):
            given = given | {CAMERA_STATE: self.camera(given, take)}
        return super().drive(constants, states, given, take, leaves)

    def inside(self, layer: int, given: Given, attend: History) -> Inside:
        scale, shift = self._terms(layer, given)
        return Inside(after_self=partial(self.steered, scale=scale, shift=shift))

    def _terms(self, layer: int, given: Given) -> tuple[Tensor, Tensor]:
        """S y and T y of a layer, as much of it as was not made before."""
        if (scale := given.get(f"{MADE}scale.{layer}")) is not None:
            return scale, given[f"{MADE}shift.{layer}"]
        own = self.blocks[str(layer)]
        state = given.get(f"{MADE}state.{layer}")
        return own.terms(own.state(given[CAMERA_STATE]) if state is None else state)

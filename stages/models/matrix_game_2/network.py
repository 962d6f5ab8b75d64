"""The network: the shared transformer, with a picture in place of text, its latents as channels of the input, and what
is pressed between cross-attention and feed-forward of some layers."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Any, Self

from torch import Tensor, nn

import devices
from stages.denoise.attention import History, KeysValues
from stages.denoise.network import Take
from stages.dit.layers import NOTHING, Inside
from stages.dit.network import Constants, Drive, Transformer
from stages.inputs import Given
from stages.models.matrix_game_2.actions import WHOLE, ActionModule, windows
from stages.models.matrix_game_2.sizes import KEYBOARD, MOUSE, Sizes

READ = "mouse_windows"
"""What latent frames read of a mouse, in one pass."""
KEYS, VALUES = "once.keys", "once.values"
"""Of the keyboard, by layer: made once for a chunk."""


class PictureRows(nn.Module):
    """Rows of a picture to rows that cross-attention reads, under the published name."""

    def __init__(self, image_dim: int, dim: int):
        super().__init__()
        self.proj = nn.Sequential(
            nn.LayerNorm(image_dim), nn.Linear(image_dim, image_dim), nn.GELU(), nn.Linear(image_dim, dim),
            nn.LayerNorm(dim),
        )  # fmt: skip

    def forward(self, rows: Tensor) -> Tensor:
        """[B, rows, image_dim] to [B, rows, d]."""
        return self.proj(rows)


class Network(Transformer):
    """A range of layers; see `Transformer`."""

    def __init__(self, config: Sizes, layers: range | None = None, attention: str = "sdpa"):
        super().__init__(config, layers, attention)
        self.acting = [i for i in config.actions.layers if i in self.layers]
        for i in self.acting:
            self.blocks[str(i)].action_model = ActionModule(config.dim, config.actions)
        self.regions = WHOLE

    def embed_context(self, config: Sizes) -> None:
        self.img_emb = PictureRows(config.image_dim, config.dim)

    def compile(self, compiled: Any) -> Self:
        self.regions = self.regions.compiled(compiled)
        return super().compile(compiled)

    def module(self, layer: int) -> ActionModule:
        """A layer's part that reads actions."""
        return self.blocks[str(layer)].action_model

    def states(self, epoch: Given) -> dict[int, KeysValues]:
        """The picture's rows, once for a stream."""
        rows = devices.of(self.device).upload(epoch["image_rows"]).to(self.dtype)
        return self.context(self.img_emb(rows))

    def once(self, given: Given, take: Take) -> Iterable[tuple[str, Tensor]]:
        """Keys and values of the keyboard: every latent frame has one of each, whatever process it is in."""
        rows = given[KEYBOARD].to(self.dtype)
        for i in self.acting:
            k, v = self.module(i).keyboard(rows)
            yield f"{KEYS}.{i}", k
            yield f"{VALUES}.{i}", v

    def drive(
        self, constants: Constants, states: dict[int, KeysValues], given: Given, take: Take, leaves: bool = True
    ) -> Drive:
        """Where keys and values were not made for all passes of a chunk, this one does it for itself."""
        if MOUSE in given:
            given = given | {READ: windows(given[MOUSE]).to(self.dtype)}
        if not any(name.startswith(KEYS) for name in given):
            given = given | dict(self.once(given, take))
        return super().drive(constants, states, given, take, leaves)

    def inside(self, layer: int, given: Given, attend: History) -> Inside:
        if layer not in self.acting:
            return NOTHING
        keyboard = given[f"{KEYS}.{layer}"], given[f"{VALUES}.{layer}"]
        module, mouse = self.module(layer), given.get(READ)
        return Inside(
            after_text=partial(module, mouse=mouse, keyboard=keyboard, attend=partial(attend, layer), run=self.regions)
        )

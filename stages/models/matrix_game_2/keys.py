"""Weight files of Matrix-Game 2, which are told by what can be pressed."""

from __future__ import annotations

import re
from functools import partial

from stages.dit.keys import LAYERS, TRANSFORMER, original_name, tells
from stages.dit.keys import sizes as layer_sizes
from stages.file_kinds import FileKind, Shapes
from stages.models.matrix_game_2.sizes import FOUNDATION, WHY

rename = original_name

IMAGE = "img_emb.proj.1.weight"
MODULE = "blocks.0.action_model"
KEYS, ASKED, HEAD = (f"{MODULE}.{name}.weight" for name in ("keyboard_embed.0", "mouse_attn_q", "key_attn_q_norm"))
MOVED = f"{MODULE}.t_qkv.weight"
"""Where there is a mouse."""
READ = LAYERS | {IMAGE: 2, KEYS: 2, ASKED: 2, HEAD: 1}


def acting(shapes: Shapes) -> list[int]:
    """Layers that have a part for actions."""
    found = {int(match[1]) for name in shapes if (match := re.match(r"blocks\.(\d+)\.action_model\.", name))}
    return sorted(found)


def sizes(shapes: Shapes) -> dict[str, object]:
    """Fields of `Sizes` that a network's shapes tell."""
    found, head = layer_sizes(shapes), shapes[HEAD][0]
    embedded, keyboard = shapes[KEYS]
    width, _ = shapes[ASKED]
    told = {
        "layers": acting(shapes), "keyboard": keyboard, "embedded": embedded, "width": width, "heads": width // head,
    }  # fmt: skip
    return found | {
        "in_channels": found["out_channels"],
        "image_dim": shapes[IMAGE][0],
        **{f"actions.{name}": value for name, value in told.items()},
    }


def _is(keys: int, mouse: bool, shapes: Shapes) -> bool:
    return tells(shapes, READ) and shapes[KEYS][1] == keys and (MOVED in shapes) == mouse


def _everywhere(shapes: Shapes) -> bool:
    return tells(shapes, READ) and len(acting(shapes)) == layer_sizes(shapes)["layers"]


def _kind(name: str, **said) -> FileKind:
    has = (*TRANSFORMER, re.escape(IMAGE), re.escape(KEYS))
    return FileKind(name, has, rename, sizes=sizes, **said)


FILES = (
    _kind(FOUNDATION, fits=_everywhere, refused=WHY),
    _kind("Matrix-Game 2, universal", models=("matrix_game_2",), fits=partial(_is, 4, True)),
    _kind("Matrix-Game 2, GTA drive", models=("matrix_game_2_gta_drive",), fits=partial(_is, 2, True)),
    _kind("Matrix-Game 2, Temple Run", models=("matrix_game_2_templerun",), fits=partial(_is, 7, False)),
)
"""Of two that fit, the first: the foundation model's actions are the universal one's."""

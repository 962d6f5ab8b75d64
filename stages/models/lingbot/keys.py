"""Weight files of LingBot-World.

Base has the same names and shapes, of two networks that share the steps, each in a folder of its own: a folder with
both is refused, and one of them alone cannot be told from Fast.
"""

from __future__ import annotations

import math

from stages.dit import keys
from stages.dit.keys import TRANSFORMER, original_name
from stages.file_kinds import FileKind, Shapes
from stages.models.lingbot.sizes import CONTROLS, MASK, PIXELS

rename = original_name
RAYS = "patch_embedding_wancamctrl.weight"


def _control(shapes: Shapes) -> str | None:
    """What the camera is told by, as the width of its embedding says; None: nothing that is known here."""
    of_pixel = PIXELS**2 * math.prod(shapes["patch_embedding.weight"][2:])
    widths = {channels * of_pixel: control for control, channels in CONTROLS.items()}
    return widths.get(shapes[RAYS][-1]) if shapes[RAYS] else None


def _fits(shapes: Shapes) -> bool:
    if not keys.tells(shapes) or _control(shapes) is None:
        return False
    inside, outside = keys.channels(shapes)
    return inside == 2 * outside + MASK


def sizes(shapes: Shapes) -> dict[str, object]:
    """Fields of `Sizes` that a network's shapes tell, the control among them."""
    found = keys.sizes(shapes)
    return found | {"in_channels": found["out_channels"], "control": _control(shapes)}


FILES = (
    FileKind(
        "LingBot-World",
        (*TRANSFORMER, r"patch_embedding_wancamctrl\.weight", r"blocks\.0\.cam_injector_layer1\.weight"),
        rename,
        ("lingbot_world_fast",),
        fits=_fits,
        sizes=sizes,
        rows=lambda shapes: {"control": _control(shapes)},
    ),
)

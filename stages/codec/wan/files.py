"""What this codec's file is told by, and what can be said of it."""

from __future__ import annotations

from stages.codec.wan.keys import original_name, width
from stages.file_kinds import FileKind, Shapes


def _rows(shapes: Shapes) -> dict[str, str]:
    halves = [half for half in ("encoder", "decoder") if any(name.startswith(f"{half}.") for name in shapes)]
    return {"sizes": f"width {width(shapes)}", "halves": " and ".join(halves)}


VAE = (r"(encoder\.conv1|decoder\.head\.2)\.weight", r"conv[12]\.weight")
SETTING = "model.codec.checkpoint"
FILES = (
    FileKind("Wan2.1 VAE", VAE, original_name, setting=SETTING, rows=_rows),
    FileKind(
        "Wan2.2 VAE",
        (*VAE, r"encoder\.(downsamples\.0\.downsamples|down_blocks\.0\.resnets)\..*"),
        original_name,
        refused="its latents have 48 channels and a stride of 16, and no network here takes them",
        setting=SETTING,
    ),
)

"""What this codec's file is told by, and what can be said of it."""

from __future__ import annotations

from stages.codec.wan.keys import original_name, width
from stages.file_kinds import FileKind, Shapes


def _rows(shapes: Shapes) -> dict[str, str]:
    halves = [half for half in ("encoder", "decoder") if any(name.startswith(f"{half}.") for name in shapes)]
    return {"sizes": f"width {width(shapes)}", "halves": " and ".join(halves)}


FILES = (
    FileKind(
        "Wan2.1 VAE",
        (r"(encoder\.conv1|decoder\.head\.2)\.weight", r"conv[12]\.weight"),
        original_name,
        rows=_rows,
    ),
)

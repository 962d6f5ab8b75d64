"""Makes the shipped portrait and action list; the speech sample comes from `distill.data.make_speech`.

python -m distill.data.make_assets assets
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from distill.data.avatar import Scene, reference
from distill.data.maze import ACTIONS, Maze, Player, entrance

# A held-out person and a held-out maze: the shipped models have seen neither.
PORTRAIT = Scene(identity=34, background="teal", emotion="neutral", motion=0)
MAZE, SECONDS, FPS = 27, 20, 16


def make(folder: Path) -> None:
    """Write `portrait.png` and `actions.jsonl`: a line wherever the pressed key changes."""
    Image.fromarray(reference(PORTRAIT, 512)).save(folder / "portrait.png", optimize=True)
    rng = np.random.default_rng(MAZE)
    maze = Maze(MAZE)
    pressed, _, _ = Player(maze, rng).walk(entrance(maze, rng), SECONDS * FPS)
    changes = [0, *(np.flatnonzero(np.diff(pressed)) + 1)]
    lines = [json.dumps({"frame": int(at), "action": ACTIONS[pressed[at]]}) for at in changes]
    # At the end the key is let go, so that a longer run does not walk on into a wall for ever.
    lines.append(json.dumps({"frame": SECONDS * FPS, "action": "none"}))
    (folder / "actions.jsonl").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    make(Path(sys.argv[1]))

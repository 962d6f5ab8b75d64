"""Small worlds of both families, and what drives them: keys, a mouse, poses and prompts that change all along."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file

from tests.runtime.test_lingbot_runs import BASE
from tests.runtime.test_matrix_game_runs import PRESSED, SMALL

CHUNKS = 40
"""Of which there is something to hear. The widest window holds 3."""
_EVERY = 9
"""Video frames, after which something else is pressed: no chunk's, nor a latent frame's."""
_SEEN = (*BASE, "stream.events=[{chunk: 2, prompt: other}, {chunk: 10, prompt: third}, {chunk: 25, prompt: hello}]")
WORLDS = {
    "keys and mouse": ("model=matrix_game_2", *SMALL),
    "driving": ("model=matrix_game_2_gta_drive", *SMALL),
    "running": ("model=matrix_game_2_templerun", *SMALL),
    "camera by keys": (*_SEEN, "model.network.control=cam"),
    "camera by poses": (*_SEEN, "model.network.control=cam", "model.network.camera_kept=state"),
    "acts": (*_SEEN, "model.network.control=act"),
}
_WALKED = dict(zip(WORLDS, PRESSED, strict=False))
_KEYS = [{"keys": keys} for keys in (["forward"], ["forward", "look_left"], ["right", "look_up"], [], ["back"])]


def driven(folder: Path, world: str, hand: int = 0) -> dict[str, str]:
    """Keys of `source` of one who drives it; another hand does otherwise, from another picture."""
    mine = folder / f"hand{hand}"
    found = {"image": mine / "picture.png"}
    mine.mkdir(exist_ok=True)
    pixels = np.random.default_rng(hand).integers(0, 255, (48, 64, 3), np.uint8)
    Image.fromarray(pixels).save(found["image"])
    if world in _WALKED:
        found["tensors"] = mine / "rows.safetensors"
        rows = torch.randn(1, 5, 20, generator=torch.Generator().manual_seed(hand))
        save_file({"image_rows": rows}, found["tensors"])
    if world == "camera by poses":
        found["camera"] = mine / "poses.jsonl"
        lines = [{"frame": frame, "pose": _pose(frame, hand)} for frame in range(0, 12 * CHUNKS, _EVERY)]
        lines[len(lines) // 2]["intrinsics"] = [500, 500, 416, 240]
    else:
        found["actions"], said = mine / "pressed.jsonl", PRESSED[_WALKED[world]] if world in _WALKED else _KEYS
        lines = [{"frame": _EVERY * i} | said[(i + hand) % len(said)] for i in range(12 * CHUNKS // _EVERY)]
    found.get("camera", found.get("actions")).write_text("".join(json.dumps(line) + "\n" for line in lines))
    return {key: str(path) for key, path in found.items()}


def _pose(frame: int, hand: int) -> list[list[float]]:
    """On a screw line about the vertical, to one side or the other."""
    turn = np.radians(frame) * (1, -1)[hand]
    s, c = np.sin(turn), np.cos(turn)
    return [[c, 0, s, s], [0, 1, 0, -0.01 * frame], [-s, 0, c, 1 - c]]


def told(source: dict[str, str]) -> tuple[str, ...]:
    """`driven` as overrides of a command line."""
    return tuple(f"source.{key}={path}" for key, path in source.items())

"""Worlds at small width, and all that drives them: a picture and rows of it, keys, a mouse, a camera, and prompts.

Files beside this one say what is pressed, and hold the rows that CLIP would make.
"""

from __future__ import annotations

from pathlib import Path

from benchmarks.unchanged import IMAGE, WAN

FOLDER = Path(__file__).parent


def told(*lines: str) -> tuple[str, ...]:
    """Overrides that every world has, and its own."""
    return "model.codec.kind=small", IMAGE, *lines


GAME = told(
    "model.dtype=float32", "model.network.dim=48", "model.network.ffn_dim=80", "model.network.heads=4",
    "model.network.layers=6", "model.network.freq_dim=32", "model.network.image_dim=20",
    "model.network.image_tokens=5", "model.network.actions.layers=[0,1,3]", "model.network.actions.embedded=12",
    "model.network.actions.heads=2", "model.network.actions.width=32", "model.network.actions.turned=[4,6,6]",
    "model.steps=4", "model.timesteps=[1000,750,500,250]",
    "stream.height=32", "stream.width=48", f"source.tensors={FOLDER}/rows.safetensors",
)  # fmt: skip
CAMERA = told(
    "model=lingbot_world_fast", *WAN, "model.window_frames=9", f"source.actions={FOLDER}/looked.jsonl"
)  # fmt: skip
WORLDS = {
    "Matrix-Game 2": ("model=matrix_game_2", *GAME, f"source.actions={FOLDER}/walked.jsonl"),
    "Matrix-Game 2, driving": ("model=matrix_game_2_gta_drive", *GAME, f"source.actions={FOLDER}/driven.jsonl"),
    "Matrix-Game 2, running": ("model=matrix_game_2_templerun", *GAME, f"source.actions={FOLDER}/ran.jsonl"),
    "LingBot-World": CAMERA,
    "LingBot-World, act": (
        *CAMERA, "model.network.control=act", "model.network.camera_kept=state", "model.positions=slot",
        "model.prompt_switch=recache",
    ),
}  # fmt: skip

"""A family that is seen through a camera: small, with random weights, of no use but to try poses with."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from conf.schema import Config, ModelConfig
from conf.typed import typed
from tests.helpers import config_of

FILES = {
    "__init__.py": "",
    "sizes.py": "from conf.schema import NetworkConfig as Sizes\n",
    "inputs.py": '''
import numpy as np
import torch
from stages.controls import Controls
from stages.inputs import Axis, Input

CONTROLS = Controls(("none", "forward", "left", "up"), one=True)


def turn(axis, degrees):
    """About x (0) or y (1)."""
    s, c = np.sin(np.radians(degrees)), np.cos(np.radians(degrees))
    found = np.eye(3)
    i, j = [(1, 2), (2, 0)][axis]
    found[i, i], found[j, j], found[i, j], found[j, i] = c, c, -s, s
    return found


def moves(pose, row):
    """Left and up turn by degrees that no power of two divides; forward goes where the camera looks."""
    pose = pose.copy()
    if row == 1:
        pose[:3, 3] += 0.05 * pose[:3, 2]
    elif row == 2:
        pose[:3, :3] = turn(1, -1.7) @ pose[:3, :3]
    elif row == 3:
        pose[:3, :3] = pose[:3, :3] @ turn(0, 1.3)
    return pose


def rows(views):
    """Of every latent frame the step from the one before, and the intrinsics of its last video frame."""
    steps = np.linalg.inv(views.poses[:-4:4]) @ views.poses[4::4]
    found = [steps[:, :3].reshape(len(steps), -1), views.intrinsics[4::4], np.array(views.rows[3::4])[:, None]]
    return torch.from_numpy(np.concatenate(found, 1)).float()[None]


def inputs(model):
    shape = (model.chunk_frames, 17)
    return (Input("camera", Axis.LATENT, shape, "camera", rows=rows, controls=CONTROLS, moves=moves),)
''',
    "network.py": """
import torch.nn.functional as F
from torch import nn
from stages.denoise.network import Network as Base
from stages.dit.patches import embed, unpatch


class Network(Base):
    def __init__(self, config, layers=None, attention="sdpa"):
        super().__init__(config, layers, attention)
        d, patch = config.dim, tuple(config.patch)
        self.qkv = nn.ModuleDict({str(i): nn.Linear(d, 3 * d) for i in self.layers})
        self.patch, self.head = nn.Conv3d(config.in_channels, d, patch, patch), nn.Linear(d, 4 * config.out_channels)
        self.camera = nn.Linear(17, d)

    def constants(self, timestep):
        return timestep.to(self.dtype).view(1) / 1000

    def states(self, epoch):
        raise AssertionError("there are no inputs of an epoch")

    def once(self, given, take):
        yield "seen", self.camera(given["camera"].to(self.dtype))

    def drive(self, constants, states, given, take, leaves=True):
        return constants + given["seen"][:, :, None]

    def enter(self, x, given):
        return embed(x, self.patch) if self.first else x

    def through(self, x, drive, attend):
        for i, layer in zip(self.layers, self.qkv.values(), strict=True):
            driven = (x.unflatten(1, (drive.shape[1], -1)) + drive).flatten(1, 2)
            q, k, v = layer(F.layer_norm(driven, driven.shape[-1:])).unflatten(-1, (3, self.config.heads, -1)).unbind(2)
            x = x + attend(i, q.contiguous(), k.contiguous(), v.contiguous()).flatten(2)
        return self.head(F.layer_norm(x, x.shape[-1:])) if self.last else x

    def leave(self, x, shape):
        return unpatch(x, self.config.patch, shape) if self.last else x
""",
}
SIZES = {"dim": 24, "heads": 2, "layers": 4}


MODEL = {
    "name": "posed", "family": "posedfamily", "network": SIZES, "window_frames": 9, "height": 32, "width": 32,
    "context": "clean", "codec": {"kind": "wan"},
}  # fmt: skip


def config(*overrides: str) -> Config:
    """As `tests.helpers.config_of`, of this family."""
    return replace(config_of(*overrides), model=typed(ModelConfig, MODEL, "model"))


def write(folder: Path) -> list[str]:
    """Write it; returns what a command line says of it. The folder has to be where Python looks for modules."""
    (folder / "posedfamily").mkdir()
    for name, text in FILES.items():
        (folder / "posedfamily" / name).write_text(text)
    (folder / "conf" / "model").mkdir(parents=True)
    (folder / "conf" / "model" / "posed.yaml").write_text(json.dumps(MODEL))
    return ["--config-dir", str(folder / "conf"), "model=posed"]

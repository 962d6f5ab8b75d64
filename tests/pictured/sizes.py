"""Sizes of the network."""

from __future__ import annotations

from dataclasses import dataclass, field

from conf.schema import NetworkConfig

REACH = 9
"""Video frames before a latent frame's own last three that it reads keys of: 12 in all."""


@dataclass
class Sizes(NetworkConfig):
    """Those that every network has, and its own."""

    image_rows: int = 5
    image_dim: int = 160
    keys: list[str] = field(default_factory=lambda: ["none", "left", "right"])

"""Sizes of Wan2.1's text-to-video network, and what its `config.json` says of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from conf import published as folder
from stages.dit.sizes import PUBLISHED, SUPPORTED, TransformerSizes
from stages.models.wan import relatives


@dataclass
class Sizes(TransformerSizes):
    """The shared transformer's, and nothing else."""


def published(said: dict[str, Any]) -> dict[str, Any]:
    """Sizes that a `config.json` tells; raises UserError."""
    relatives.require_none(said)
    return folder.sizes(said, PUBLISHED, SUPPORTED | {"model_type": ("t2v",)}, "a text-to-video model")

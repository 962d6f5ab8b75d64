"""LoRAs that are merged into a model's weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from conf.errors import UserError, nearest
from conf.hub import found


@dataclass
class LoraConfig:
    """One LoRA to merge when weights are read.

    Attributes:
        path: a file, or a folder in PEFT's layout.
        scale: its strength, beside what its alpha and rank say.
    """

    path: str = ""
    scale: float = 1.0

    def __post_init__(self):
        self.path = found(self.path)

    @classmethod
    def of(cls, given: Any) -> list[LoraConfig]:
        """What `model.lora` may be: nothing, a path, `{path: ..., scale: ...}`, or a list of these."""
        if given is None:
            return []
        if isinstance(given, list):
            return [lora for one in given for lora in cls.of(one)]
        if isinstance(given, cls):
            return [given]
        if isinstance(given, str):
            return [cls(given)]
        if not isinstance(given, dict) or "path" not in given:
            raise UserError(f"model.lora={given}", "must be a path, or {path: FILE, scale: 1.0}", "name a file")
        for key in given:
            if key not in ("path", "scale"):
                raise UserError(f"model.lora: {key}", "is no part of a LoRA", nearest(key, ("path", "scale")))
        if not isinstance(given.get("scale", 1.0), int | float):
            raise UserError(f"model.lora: scale={given['scale']}", "must be a number", "use 1.0")
        return [cls(str(given["path"]), float(given.get("scale", 1.0)))]

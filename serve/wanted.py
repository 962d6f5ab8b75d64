"""What a new session is to be, however it is asked for."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from conf.errors import UserError
from conf.schema.stream import check_intrinsics
from serve.asked import check_prompt

SEEDS = range(1 << 63)


@dataclass
class Wanted:
    """Body of `POST /v1/sessions`, and part of `session.start`."""

    model: str | None = None
    """None: the first that is served."""
    prompt: str | None = None
    seed: int | None = None
    """None: one that is drawn."""
    image: str | None = None
    """The id of an upload, or a picture in base64."""
    intrinsics: list[float] | None = None
    """Of the camera that the picture was taken with: fx, fy, cx, cy in pixels of a picture of 832 x 480; None: as the
    configuration has it."""
    seconds: float | None = None
    """At most; None: as long as the server lets it, who checks it."""
    queue: bool = False
    """Whether to wait for a place where there is none."""

    def __post_init__(self):
        if self.seed is not None and self.seed not in SEEDS:
            raise UserError(f"seed={self.seed}", "is a whole number from 0, of at most 63 bits", "give another")
        if self.prompt is not None:
            check_prompt(self.prompt)
        if self.intrinsics is not None:
            check_intrinsics("intrinsics", self.intrinsics)

    @property
    def given(self) -> dict[str, Any]:
        """What is said of it, and nothing that is not."""
        found = {field.name: getattr(self, field.name) for field in fields(Wanted)}
        return {name: value for name, value in found.items() if value is not None and value is not False}

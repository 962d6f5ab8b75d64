"""Everframe from Python.

    import everframe

    with everframe.open(model="nano", plan="timestep") as pipeline:
        stream = pipeline.stream(image="face.png", audio="speech.wav", prompt="a happy person")
        for chunk in stream:
            show(chunk.frames, chunk.sound)
    print(stream.report["latents_sha256"])

`open` takes what the command line takes; see `everframe.pipeline` for all there is.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from everframe.names import check

if TYPE_CHECKING:
    from everframe.pipeline import LIVE, Chunk, Pipeline, Stream, UserError, open

__all__ = ["LIVE", "Chunk", "Pipeline", "Stream", "UserError", "open"]


def __getattr__(name: str) -> Any:
    """What is public, loaded when it is first asked for; ImportError where another's package has a name of ours."""
    if name not in __all__:
        raise AttributeError(f"module 'everframe' has no attribute '{name}'")
    check()
    return getattr(importlib.import_module("everframe.pipeline"), name)

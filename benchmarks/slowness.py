"""Streams whose name begins with `b` open slowly and put their files out slowly: what `benchmarks.bystanders` looks at.

A file of its own, so that Ray's actors, which arm themselves while they import the runtime, import nothing else.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from benchmarks import faults

ARRIVALS = "EVERFRAME_ARRIVALS"
"""The environment variable that names the file of moments at which chunks of `a` were put out."""
PLAY_S = 12 / 16
OPENING_S, FILES_S = 2.0, 3 * PLAY_S


def arm() -> None:
    """Make everything of streams `b` slow, and note when chunks of `a` are put out."""
    from runtime.emulated import EmulatedEncoders
    from runtime.output import Output

    faults.note()
    still, write = EmulatedEncoders.still, Output.write

    def opening(self: Any, *args: Any) -> Any:
        if faults.working_for().startswith("b"):
            time.sleep(OPENING_S)
        return still(self, *args)

    def written(self: Any, *args: Any) -> None:
        if self.name.startswith("b"):
            time.sleep(FILES_S)
        write(self, *args)
        if self.name == "a":
            with Path(os.environ[ARRIVALS]).open("a") as file:
                file.write(f"{time.perf_counter()}\n")

    EmulatedEncoders.still, Output.write = opening, written

"""A session's camera from one generation of a run to the next, and from a recording of a stream's inputs.

What a chunk showed is held as the JPEG that was decoded for it: in the journal (`runtime.journal`), where it is kept
until a newer cut is whole, as long as all lines have no more than `journal.MOST_BYTES`; and in files of `sink.inputs`
(`runtime.inputs`), for good.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from conf.errors import UserError
from runtime.journal import Line
from stages.sources.film import Shots
from stages.sources.fitting import Fit


class NotedCamera:
    """A live camera, whose pictures are noted (as of sound, see `runtime.ends.Noted`).

    Args:
        source: `stages.sources.session_parts.SessionFrames`.
        fit: how pictures come to the stream's size.

    Attributes:
        held: the picture that was shown last, as JPEG; empty: none was.
    """

    count = None

    def __init__(self, source: Any, fit: Fit):
        self.source, self.name, self._fit = source, "source.session", fit
        self.held = b""
        self._taken: np.ndarray | None = None
        self._again: Line | None = None

    @property
    def accepted(self) -> float | None:
        """When the oldest came that is new in the latest `take`."""
        return self._again.seen if self._again else self.source.accepted

    @property
    def shots(self) -> Shots | None:
        """What the latest `take` showed."""
        return self._again.shots if self._again else self.source.shots

    def take(self, count: int) -> np.ndarray | None:
        """The next `count` frames, uint8 [count, H, W, 3].

        Raises:
            RuntimeError: the chunk that is sampled again wants another number of frames than before.
        """
        if self._again is not None:
            shots = self._again.shots
            if shots is None or len(shots.shown) != count:
                raise RuntimeError(f"chunk {self._again.chunk} wants other pictures than it was sampled from before")
            self.held = shots.last
            return shots.developed(self._fit)
        if self._taken is None:
            self.source.held = self.source.held or self.held  # one that goes on for another has seen nothing yet
            self._taken = self.source.take(count)
        self.held = self.source.held
        return self._taken

    def skip(self, count: int) -> None:
        """What another showed does not come again."""

    def again(self, line: Line | None) -> None:
        """As of sound."""
        self._again = line

    def note(self, line: Line) -> None:
        """As of sound."""
        line.shots, line.seen, self._taken = self.source.shots, self.source.accepted, None

    def drop(self, before: int) -> None:
        """The journal lets go of them by itself."""

    def back(self) -> None:
        """As of sound."""
        self._again = None

    def close(self) -> None:
        """Release the source."""
        self.source.close()


class RecordedFrames:
    """A camera that was recorded, as a source. A line is read when its chunk is: all of them may be more than memory.

    Args:
        path: the file of inputs.
        lines: for each chunk, where its line begins in the file, and how many frames it shows.
        fit: how pictures come to the stream's size.

    Attributes:
        count: how many frames there are.
        shots: what the latest `take` showed.
    """

    accepted = None

    def __init__(self, path: str | Path, lines: list[tuple[int, int]], fit: Fit):
        self.name, self._path, self._lines, self._fit = f"source.inputs={path}", Path(path), lines, fit
        self.count, self._next = sum(frames for _, frames in lines), 0
        self.shots: Shots | None = None

    def take(self, count: int) -> np.ndarray | None:
        """The next `count` frames, uint8 [count, H, W, 3]; None where fewer are left.

        Raises:
            UserError: they are of another model, or cannot be decoded.
        """
        if self._next >= len(self._lines):
            return None
        start, frames = self._lines[self._next]
        if frames != count:
            rule = f"chunk {self._next} was made of {frames} pictures, and is to be made of {count}"
            raise UserError(self.name, rule, "use the model that it was recorded of")
        try:
            with self._path.open("rb") as file:
                file.seek(start)
                self.shots = Shots.of(json.loads(file.readline())["pictures"])
            found = self.shots.developed(self._fit)
        except (OSError, ValueError, KeyError, TypeError) as error:
            rule = f"the pictures of chunk {self._next} cannot be read ({error})"
            raise UserError(self.name, rule, "give a file that sink.inputs wrote") from error
        self._next += 1
        return found

    def skip(self, count: int) -> None:
        """The first `count` frames were taken by another."""
        self._next = 0
        while count > 0 and self._next < len(self._lines):
            count -= self._lines[self._next][1]
            self._next += 1

    def close(self) -> None:
        """Nothing to release."""

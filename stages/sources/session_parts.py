"""The sound, the pictures and the actions of a session, as sources of a stream that have no end of their own."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import reduce
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from stages.controls import Controls, Row, row_of
from stages.sources.audio import RATE
from stages.sources.film import Film, Shots
from stages.sources.fitting import Fit

if TYPE_CHECKING:
    from stages.sources.session import SessionSource

TAP_FRAMES = 4
"""Video frames, a latent's, for which an action shows that was over before it could be sampled."""


class SessionSound:
    """The sound of a session, as a source that has no end of its own."""

    rate = RATE
    duration_s = None

    def __init__(self, session: SessionSource):
        self._session = session

    def read(self, samples: int) -> np.ndarray:
        """The next samples, float32 [samples]."""
        return self._session.read(samples)

    def close(self) -> None:
        """The session is closed as a whole."""


class SessionFrames:
    """What a camera of a session sees, as a source that has no end of its own.

    Attributes:
        accepted: when the oldest picture came that is new in the latest `take`; None: none is.
        new: of that `take`, [when the first new picture was taken, the number of its frame]; None likewise.
    """

    name, count = "source.session", None

    def __init__(self, session: SessionSource, fit: Fit):
        self._session, self._film = session, Film(fit)
        self.accepted: float | None = None
        self.new: list[float] | None = None

    def take(self, count: int) -> np.ndarray:
        """The next `count` frames, uint8 [count, H, W, 3]."""
        found = self._film.take(self._session.look(count))
        first = self._film.first
        self.accepted, self.new = (None, None) if first is None else (first[0].came, [first[0].at, first[1]])
        return found

    @property
    def shots(self) -> Shots | None:
        """What the latest `take` showed."""
        return self._film.shots

    @property
    def held(self) -> bytes:
        """The picture that was shown last, as JPEG; empty: none was."""
        return self._film.held

    @held.setter
    def held(self, jpeg: bytes) -> None:
        self._film.held = jpeg

    def skip(self, count: int) -> None:
        """What another showed does not come again."""

    def close(self) -> None:
        """The session is closed as a whole."""


class SessionActions:
    """The actions of a session, as a source that has no end of its own.

    What is held when a chunk is sampled shows from its first frame on. What was pressed and let go of since the chunk
    before shows first, TAP_FRAMES for each, so that no key is lost that was pressed for a moment; likewise what turned
    and turns less now, by the furthest that it was turned. The last frames are always of what is held: those for which
    a chunk has no room beside it are pressed together with the last of the others, or left out where one holds at a
    time.

    Args:
        known: what can be pressed, or actions of which one holds at a time, the first that of none.

    Attributes:
        accepted: when the oldest came that first shows in the chunk; None: nothing is new in it.
    """

    ended = False

    def __init__(self, known: Controls | Iterable[str] = ()):
        self._controls = Controls.of(known)
        self._held = self._controls.rest
        self._taps: list[Row] = []
        self.accepted: float | None = None

    def begin(self, pressed: Sequence[tuple[Row, float | None]]) -> None:
        """What was pressed since the last chunk, in order: (row, when); None: it is held as before."""
        self.accepted = min((at for _, at in pressed if at is not None), default=None)
        before, rows = self._held, [row for row, _ in pressed]
        self._held = rows[-1] if rows else before
        self._taps = _taps(before, rows, len(self._controls.keys))

    def take(self, first_frame: int, count: int) -> list[Row]:
        """The row of each of `count` frames."""
        taps, self._taps = _within(self._taps, max(0, count // TAP_FRAMES - 1)), []
        shown = [row for row in taps for _ in range(TAP_FRAMES)]
        return shown + [self._held] * (count - len(shown))

    @property
    def progress(self) -> dict[str, Any]:
        """What another goes on from."""
        return {"held": self._held}

    def resume(self, progress: dict[str, Any], again: bool = False) -> None:
        """Go on from the progress of another."""
        self._held = row_of(progress["held"])

    def close(self) -> None:
        """Nothing to release."""


def _taps(before: Row, rows: Sequence[Row], keys: int) -> list[Row]:
    """Of rows that followed the one `before`, those that the last one would hide. Such as follow each other with the
    same keys, which are the first `keys` numbers of a row, become one, turned as far as any of them."""
    found: list[Row] = []
    for previous, row in pairwise([before, *rows[:-1]]):
        if not _shows(row, previous, rows[-1]):
            continue
        if found and not isinstance(row, int) and found[-1][:keys] == row[:keys]:
            found[-1] = _together(found[-1], row)
        else:
            found.append(row)
    return list(dict.fromkeys(found))


def _within(taps: Sequence[Row], room: int) -> list[Row]:
    """At most `room` rows, in which all that these press and turn is still there where keys may be held together."""
    kept = list(taps[:room])
    if kept and not isinstance(kept[-1], int):
        kept[-1] = reduce(_together, taps[room:], kept[-1])
    return kept


def _together(one: tuple[float, ...], other: tuple[float, ...]) -> tuple[float, ...]:
    """What both press, and turned as far as either of them."""
    return tuple(max(pair, key=abs) for pair in zip(one, other, strict=True))


def _shows(row: Row, previous: Row, last: Row) -> bool:
    """Whether a row begins to press or turn something, beyond the row before it, that the last row does not."""
    if isinstance(row, int):
        return row not in (0, last)
    return any(
        value * (was - value) < 0 and value * (held - value) < 0
        for value, was, held in zip(row, previous, last, strict=True)
    )

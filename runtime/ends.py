"""The live ends of a stream's sources: what cannot be opened anew without loss, kept from one generation of a run to
the next.

Beside a journal (`runtime.journal`) they see to it that each sample and each action is in one chunk and no other. What
a chunk takes is noted until its line is written. A chunk that does not come so far gives it back, and chunks that are
sampled again are given what their lines say, while the live end stands where it stood.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from conf.errors import UserError
from runtime.filmed import NotedCamera
from runtime.journal import Line
from runtime.pace import Pace
from stages.controls import Row
from stages.sources.audio import NOTHING, SAMPLE, Pcm
from stages.sources.session import SessionSource

MOST_FRAMES = 1 << 29
"""Bytes of live pictures that are kept of a stream: at 480 x 832 half a minute, where no cut becomes whole."""


class Noted:
    """A live source of sound, whose samples are noted.

    Args:
        source: where the sound comes from.
    """

    def __init__(self, source: Pcm):
        self.source, self.rate, self.duration_s = source, source.rate, source.duration_s
        self.name = getattr(source, "name", "source.audio=-")
        self._back = NOTHING
        """Samples that come again."""
        self._taken: list[np.ndarray] = []
        self._short = False
        self._again: Line | None = None
        """The line that is read, and from where on."""
        self._at = 0

    def read(self, samples: int) -> np.ndarray:
        """The next samples, float32; fewer only at the end.

        Raises:
            Turned: they were waited for when the run's generation ended; nothing is lost of them.
            RuntimeError: the chunk that is sampled again wants other samples than before.
        """
        if self._again is not None:
            return self._noted(samples)
        back = self._back[:samples]
        if missing := samples - len(back):
            back = np.concatenate([back, self.source.read(missing)])
        self._back = self._back[samples:]
        self._taken.append(back)
        self._short |= len(back) < samples
        return back

    def _noted(self, samples: int) -> np.ndarray:
        part = self._again.sound[self._at : self._at + samples]
        self._at += len(part)
        if len(part) < samples and not self._again.short:
            raise RuntimeError(f"chunk {self._again.chunk} wants more sound than it was sampled from before")
        return part

    def again(self, line: Line | None) -> None:
        """The chunk that comes is sampled again; None: for the first time."""
        self._again, self._at = line, 0

    @property
    def position(self) -> int:
        """Bytes of its stream that chunks with a line were sampled from."""
        return self.source.position - SAMPLE * sum(map(len, [self._back, *self._taken]))

    def note(self, line: Line) -> None:
        """A chunk was sampled: its line says from what."""
        line.sound, line.short = np.concatenate([NOTHING, *self._taken]), self._short
        self._taken, self._short = [], False

    def back(self) -> None:
        """What was taken since the last line comes again."""
        self._back = np.concatenate([*self._taken, self._back])
        self._taken, self._short, self._again = [], False, None

    def close(self) -> None:
        """Release the source."""
        self.source.close()


class NotedActions:
    """A live source of actions, likewise.

    Args:
        source: where the actions come from.

    Attributes:
        progress: how the source stood behind the last chunk that was sampled.
    """

    def __init__(self, source: Any):
        self.source, self.progress = source, source.progress
        self.name = getattr(source, "name", "source.actions=-")
        self._taken: list[Row] | None = None
        self._again: Line | None = None

    @property
    def ended(self) -> bool:
        """Whether the last action holds for good."""
        return self.source.ended

    @property
    def fresh(self) -> bool:
        """Whether a line took effect in the latest `take`."""
        return getattr(self.source, "fresh", False)

    @property
    def silent(self) -> bool:
        """Whether it ended before any action came."""
        return getattr(self.source, "silent", False)

    @property
    def accepted(self) -> float | None:
        """When the oldest came that is new in the latest `take`."""
        return self._again.pressed if self._again else self.source.accepted

    def take(self, first_frame: int, count: int) -> list[Row]:
        """The row of each of `count` frames from `first_frame` on.

        Raises:
            Turned: they were waited for when the run's generation ended.
        """
        if self._again is not None:
            return self._again.actions
        if self._taken is None:
            self._taken = self.source.take(first_frame, count)
        return self._taken

    def again(self, line: Line | None) -> None:
        """As of sound."""
        self._again = line
        if line is not None:
            self.progress = line.held

    @property
    def position(self) -> int:
        """As of sound, behind the chunk that was noted last."""
        return self.source.position

    def note(self, line: Line) -> None:
        """As of sound."""
        line.actions, line.held, line.pressed = self._taken, self.source.progress, self.accepted
        self._taken, self.progress = None, line.held

    def back(self, anew: bool) -> None:
        """As of sound. `anew`: the source itself gives again what was taken."""
        self._again = None
        if anew:
            self._taken = None

    def resume(self, progress: dict[str, Any], again: bool = False) -> None:
        """Go on from the progress of another. Arguments as of `LiveActions.resume`."""
        self.source.resume(progress, again)
        self.progress = progress

    def close(self) -> None:
        """Release the source."""
        self.source.close()


class NotedFrames:
    """A live source of pictures, likewise. A chunk's are too many bytes for a journal, so they stay in this process's
    memory until a newer cut is whole: where the process itself is lost, they are.

    Args:
        source: where the pictures come from.
    """

    count = None

    def __init__(self, source: Any):
        self.source, self.name = source, getattr(source, "name", "source.video=-")
        self._taken: np.ndarray | None = None
        self._again: Line | None = None
        self._kept: OrderedDict[int, np.ndarray] = OrderedDict()
        """Pictures of chunks that were sampled, by chunk."""

    @property
    def accepted(self) -> float | None:
        """When the oldest came that is new in the latest `take`."""
        return self._again.seen if self._again else self.source.accepted

    def take(self, count: int) -> np.ndarray | None:
        """The next `count` frames, uint8 [count, H, W, 3]; None where fewer will ever come.

        Raises:
            Turned: they were waited for when the run's generation ended.
            UserError: they were another process's, which was lost, or are too many to be kept.
        """
        if self._again is not None:
            return self._noted(self._again.chunk)
        if self._taken is None:
            self._taken = self.source.take(count)
        return self._taken

    def _noted(self, chunk: int) -> np.ndarray:
        if chunk not in self._kept:
            rule = f"the frames of chunk {chunk} went with the process that had read them"
            raise UserError(self.name, rule, "begin anew, or give them as a file")
        return self._kept[chunk]

    def skip(self, count: int) -> None:
        """Live frames that another took do not come again."""

    def again(self, line: Line | None) -> None:
        """As of sound."""
        self._again = line

    @property
    def position(self) -> int:
        """As of actions."""
        return self.source.position

    def note(self, line: Line) -> None:
        """As of sound."""
        line.frames, line.seen = len(self._taken), self.accepted
        self._kept[line.chunk], self._taken = self._taken, None
        while len(self._kept) > 1 and sum(frames.nbytes for frames in self._kept.values()) > MOST_FRAMES:
            self._kept.popitem(last=False)

    def drop(self, before: int) -> None:
        """Pictures of chunks below `before` are needed no more: a newer cut is whole."""
        while self._kept and next(iter(self._kept)) < before:
            self._kept.popitem(last=False)

    def back(self) -> None:
        """What was taken since the last line comes again."""
        self._again = None

    def close(self) -> None:
        """Release the source."""
        self.source.close()


class NoFrames:
    """Stands for a live source of pictures of a stream that had ended."""

    accepted = shots = None
    held = b""

    def take(self, count: int) -> None:
        """Nothing."""

    def wire(self, stop: threading.Event) -> None:
        """Nothing waits."""

    def close(self) -> None:
        """Nothing is there to release."""


class Gone:
    """Stands for a live source of a stream that had ended: all that it ever gave is in the journal.

    Args:
        rest: the row of no action.
    """

    rate, duration_s = 16000, None
    ended, fresh, accepted = True, False, None

    def __init__(self, rest: Row = 0):
        self.progress: dict[str, Any] = {}
        self._rest = rest

    def read(self, samples: int) -> np.ndarray:
        """Nothing."""
        return NOTHING

    def take(self, first_frame: int, count: int) -> list[Row]:
        """No action."""
        return [self._rest] * count

    def resume(self, progress: dict[str, Any], again: bool = False) -> None:
        """Nothing goes on."""

    def wire(self, stop: threading.Event) -> None:
        """Nothing waits."""

    def close(self) -> None:
        """Nothing is there to release."""


@dataclass
class LiveEnds:
    """Of one stream.

    Attributes:
        session, sound, actions, video, pace: those that it has.
        opened: whether they are open: who opens the stream again goes on with them.
        forget: called when they are closed.
    """

    session: SessionSource | None = None
    sound: Noted | None = None
    actions: NotedActions | None = None
    video: NotedFrames | NotedCamera | None = None
    pace: Pace | None = None
    opened: bool = False
    forget: Callable[[], object] = field(default=lambda: None)

    @property
    def sources(self) -> list[Noted | NotedActions | NotedFrames | NotedCamera]:
        """Those of sound, actions and pictures."""
        return [one for one in (self.sound, self.actions, self.video) if one is not None]

    @property
    def _streams(self) -> dict[str, Noted | NotedActions | NotedFrames]:
        """Those that read bytes of a live stream, as lines name them."""
        named = {"audio": self.sound, "actions": self.actions, "video": self.video}
        return {name: one for name, one in named.items() if one and hasattr(one.source, "position")}

    def again(self, line: Line | None) -> None:
        """A chunk is sampled again, from its line; None: one is sampled for the first time."""
        for source in self.sources:
            source.again(line)

    def note(self, line: Line) -> None:
        """A chunk was sampled: its line is made whole."""
        for source in self.sources:
            source.note(line)
        if self.session:
            line.events = self.session.shown
        if self.pace:
            line.pace = self.pace.progress
        line.read = {name: one.position for name, one in self._streams.items()}

    def drop(self, line: Line) -> None:
        """A line is in the journal: what it was sampled from is needed no more."""
        for name, one in self._streams.items():
            one.source.drop(line.read[name])

    def back(self) -> None:
        """What was taken for a chunk that did not come to have a line comes again."""
        if self.sound:
            self.sound.back()
        if self.actions:
            self.actions.back(anew=self.session is not None)
        if self.video:
            self.video.back()
        if self.pace:
            self.pace.turn()

    def open(self, stop: threading.Event, say: Callable, pace: Pace | None, slack: Callable) -> None:
        """They are open; those that were before go on in a stream that has other objects."""
        self.pace = pace
        if self.opened and self.session:
            self.session.wire(stop, say, slack)
        elif self.opened:
            for source in self.sources:
                source.source.wire(stop)
        self.opened = True

    def leave(self) -> None:
        """Let go of them, since another process goes on: nobody outside is told of an end."""
        if self.session:
            self.session.leave()
        self._release()

    def close(self) -> None:
        """The stream has ended."""
        if self.session:
            self.session.close()
        self._release()
        self.forget()

    def _release(self) -> None:
        for source in self.sources:
            source.close()
        self.session = self.sound = self.actions = self.video = self.pace = None
        self.opened = False

"""Pictures from a video file, by FFmpeg, at the rate and of the size that the model takes."""

from __future__ import annotations

import logging
import math
import threading
from collections import deque
from collections.abc import Iterator
from fractions import Fraction
from itertools import chain
from pathlib import Path

import av
import numpy as np
from av.stream import Disposition

from conf import disk
from conf.errors import UserError
from stages.sources.fitting import SQUARE, Fit
from stages.sources.live import POLL_S, Turned, turned
from stages.sources.moments import Moments, shown

log = logging.getLogger(__name__)

AHEAD = 16
"""Frames that are decoded ahead of who takes them, at least."""
THREADS = 2
"""Of the decoder."""
BROKEN = (OSError, ValueError, EOFError)
"""What FFmpeg raises of a file: its EOFError is no OSError."""


class VideoFile:
    """The first video track of anything FFmpeg reads, decoded by a thread ahead of who takes it.

    Which frames are shown is said in `stages.sources.moments`. The first frame is decoded at once, so that a bad file
    fails here. A damaged packet further on is skipped with a warning; what was to be seen then is the frame before it.

    Args:
        path: the file.
        fps: frames a second that are taken.
        fit: how they come to the picture's size.
        stop: a set event ends the video and releases a blocked `take`.

    Attributes:
        count: how many frames of `fps` there are, as the file says; None: it does not say.

    Raises:
        UserError: the file is missing, unreadable, or has no pictures in it.
    """

    accepted = None

    def __init__(self, path: str | Path, fps: int, fit: Fit, stop: threading.Event | None = None):
        self.name, self.fps, self._fit = f"source.video={path}", fps, fit
        self._stop = threading.Event() if stop is None else stop
        self._changed = threading.Condition()
        self._held: deque[tuple[np.ndarray, int]] = deque()
        """Pictures, and by how many frames each is shown that were not taken yet."""
        self._wanted, self._have, self._first = 0, 0, 0
        self._over = self._closed = False
        self._failure: Exception | None = None
        self._damage: Exception | None = None
        """What FFmpeg said last of a part that cannot be read."""
        self._thread: threading.Thread | None = None
        disk.readable(self.name, path, "give the path of a video file, or -")
        try:
            self._container = av.open(f"file:{path}")
        except BROKEN as error:
            raise self._unreadable(_reason(error)) from error
        try:
            self._open_track()
        except BROKEN as error:
            self._container.close()
            raise self._unreadable(_reason(error)) from error
        except BaseException:
            self._container.close()
            raise

    def _open_track(self) -> None:
        tracks = [t for t in self._container.streams.video if not t.disposition & Disposition.attached_pic]
        if not tracks:
            raise UserError(self.name, "the file has no video track", "give a file with pictures that move")
        track = tracks[0]
        if track.codec_context is None:
            raise self._unreadable("its header names no codec")
        track.codec_context.thread_type, track.codec_context.thread_count = "AUTO", THREADS
        self._aspect = Fraction(track.sample_aspect_ratio or 0) or SQUARE
        rate = track.average_rate or track.guessed_rate or track.base_rate or self.fps
        self._moments = Moments(Fraction(track.time_base), 1 / Fraction(rate))
        self.count = self._counted(track)
        self._frames = self._decode(track)
        first = next(self._frames, None)
        if first is None:
            raise self._unreadable(_reason(self._damage) if self._damage else "there are no pictures in it")
        self._frames = chain([first], self._frames)

    def _counted(self, track: av.VideoStream) -> int | None:
        if track.duration is not None:
            seconds = track.duration * Fraction(track.time_base)
        elif self._container.duration is not None:
            seconds = Fraction(self._container.duration, av.time_base)
        else:
            return None
        return max(1, math.ceil((seconds - self._moments.slack) * self.fps))

    # -- taking -------------------------------------------------------------------------------------------------------

    def take(self, count: int) -> np.ndarray | None:
        """The next `count` frames, uint8 [count, H, W, 3]; None where fewer are left, or when stopped.

        Raises:
            UserError: the file could not be read any further.
            Turned: they were waited for when the run's generation ended.
        """
        self._begin()
        with self._changed:
            self._wanted = count
            self._changed.notify_all()
            while self._have < count and not self._over and not self._closed:
                if turned(self._stop):
                    raise Turned
                if self._stop.is_set():
                    return None
                self._changed.wait(POLL_S)
            if self._have < count or self._closed:
                if self._failure is not None:
                    raise self._unreadable(_reason(self._failure)) from self._failure
                return None
            taken = self._taken(count)
            self._wanted = 0
            self._changed.notify_all()
        return taken

    def _taken(self, count: int) -> np.ndarray:
        found = np.empty((count, self._fit.height, self._fit.width, 3), np.uint8)
        done = 0
        while done < count:
            picture, times = self._held.popleft()
            used = min(times, count - done)
            found[done : done + used] = picture
            done += used
            if times > used:
                self._held.appendleft((picture, times - used))
        self._have -= count
        return found

    def skip(self, count: int) -> None:
        """The first `count` frames were taken by another; said before the first `take`.

        They are decoded all the same, since most frames are made from those before them.
        """
        self._first = count

    def close(self) -> None:
        """Close the file; `take` gives nothing any more."""
        with self._changed:
            self._closed = True
            self._held.clear()
            self._changed.notify_all()
        if self._thread is None:
            self._container.close()
        else:
            self._thread.join()

    # -- the thread ---------------------------------------------------------------------------------------------------

    def _begin(self) -> None:
        if self._thread is None and not self._closed:
            self._thread = threading.Thread(target=self._run, name="video-file", daemon=True)
            self._thread.start()

    def _run(self) -> None:
        try:
            for frame, first, end in shown(self._frames, self._moments, self.fps):
                if self._abandoned:
                    break
                if (times := end - max(first, self._first)) > 0:
                    self._put(self._fit(frame, self._aspect), times)
        except Exception as error:  # whoever takes is told
            self._failure = error
        finally:
            self._container.close()
            with self._changed:
                self._over = True
                self._changed.notify_all()

    def _put(self, picture: np.ndarray, times: int) -> None:
        with self._changed:
            while len(self._held) >= max(AHEAD, self._wanted) and not self._abandoned:
                self._changed.wait(POLL_S)
            if not self._abandoned:
                self._held.append((picture, times))
                self._have += times
                self._changed.notify_all()

    @property
    def _abandoned(self) -> bool:
        """Whether `close` or the stop event ended it."""
        return self._closed or (self._stop.is_set() and not turned(self._stop))

    def _decode(self, track: av.VideoStream) -> Iterator[av.VideoFrame]:
        """The track's frames, in the order in which they are shown."""
        packets = self._container.demux(track)
        while True:
            try:
                packet = next(packets, None)
                if packet is None:
                    return
            except BROKEN as error:
                self._note(error)
                return
            try:
                yield from packet.decode()
            except BROKEN as error:
                self._note(error)

    def _note(self, error: Exception) -> None:
        self._damage = error
        log.warning("%s: skipped damaged pictures: %s", self.name, _reason(error))

    def _unreadable(self, reason: str) -> UserError:
        return UserError(self.name, f"cannot be read as video ({reason})", "give a file that plays, such as mp4 or mkv")


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error) or type(error).__name__

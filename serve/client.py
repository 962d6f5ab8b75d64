"""A program's end of a session, over the WebSocket.

    with serve.client.connect("http://127.0.0.1:8080", prompt="a maze by day") as session:
        session.act("forward")
        session.save("maze.mp4", seconds=10)

Someone has to read, by `save` or `for part in session`: a server does not keep one who takes nothing. All other methods
may be called from other threads meanwhile: `threading.Timer(3, session.act, ["left"]).start()` turns while it is saved.
"""

from __future__ import annotations

import json
import ssl
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, suppress
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit, urlunsplit

import numpy as np
from websockets.exceptions import ConcurrencyError, ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection
from websockets.sync.client import connect as connect_socket

from serve.ahead import Ahead
from serve.requests import ANSWER_S, Refused, authorization, checked, create, delete, problem
from stages.controls import entry_of

__all__ = ["Chunk", "Part", "Refused", "Session", "connect", "create", "delete"]

PROTOCOL = "everframe.v1"
PATH = "/v1/realtime/video"
ENDED = frozenset({1001, 1008, 1009, 1011, 1013})
"""Codes of a connection that the server ended, and said why (RFC 6455, 7.4.1)."""
CLOSE_S = 2.0
"""Longest wait for a server to say goodbye."""


class Chunk(NamedTuple):
    """What the server said of a chunk; times in seconds.

    Attributes:
        chunk, frames: its number, and how many frames it has.
        events: ids of what is first shown in it, as `act` and the others returned them.
        latency_s: from the oldest of these until now; None: it shows nothing new.
        late_s: how late it was.
        pts_s: its place in the media that comes here.
        audio_held_s: speech that waits to be spoken.
        camera: what is new in it of a camera: `at`, when the picture was taken, as `see` was told, `after_s` until it
            shows in the chunk, and `latency_s` from its coming to the server until then; None: nothing is.
        at: where the world's camera is in its last frame, [x, y, z, yaw, pitch], angles in degrees; None: it has none.
    """

    chunk: int
    frames: int
    events: tuple[str, ...]
    latency_s: float | None
    late_s: float
    pts_s: float
    audio_held_s: float
    camera: dict[str, Any] | None = None
    at: list[float] | None = None


class Part(NamedTuple):
    """Some media.

    Attributes:
        data: an init segment of fragmented mp4, or a fragment; all of them, one after the other, are a file.
        chunk: that it belongs to; None: none has begun since this program came.
        init: whether it is an init segment.
        first: whether it is the first of its chunk.
    """

    data: bytes
    chunk: Chunk | None
    init: bool = False
    first: bool = False


def connect(
    url: str, token: str | None = None, context: ssl.SSLContext | None = None, media: bool = True, **wanted: Any
) -> Session:
    """Open a session, or join one; waits until it has begun, in the server's queue if `queue=True`.

    Args:
        url: of the server, `http://127.0.0.1:8080`.
        token: the server's, if it wants one; who joins a session needs none.
        context: for `https`, where the certificate is the server's own.
        media: False: no picture and sound is wanted here.
        wanted: `model`, `prompt`, `seed`, `image`, `intrinsics`, `seconds`, `queue`; or `session` and `secret`, to join
            one.

    Raises:
        Refused: the server refuses, or is not there; `url` is no address of one.
    """
    session = Session(lambda secret: _opened(checked(url), token, context, secret), owned="session" not in wanted)
    session._begin({"media": media, **wanted})
    return session


def _opened(url: str, token: str | None, context: ssl.SSLContext | None, secret: str | None) -> ClientConnection:
    """A connection, before its first message."""
    parts = urlsplit(url)
    address = urlunsplit(parts._replace(scheme="wss" if parts.scheme == "https" else "ws", path=parts.path + PATH))
    own = [f"everframe.session.{secret}"] if token is None and secret else []
    try:
        opened = connect_socket(
            address,
            ssl=context,
            subprotocols=[PROTOCOL, *own],
            additional_headers=authorization(token, None),
            compression=None,
            max_size=None,
            open_timeout=ANSWER_S,
            close_timeout=CLOSE_S,
            proxy=None,
        )
        return ExitStack().enter_context(opened)  # `_leave` closes it
    except InvalidStatus as error:
        raise problem(error.response.body or b"", error.response.status_code) from None
    except (OSError, TimeoutError) as error:
        raise Refused("lost", f"nobody answers at {url} ({error})") from error


class Session:
    """A session that has begun. Made by `connect`; to be closed, or used in a `with`, with which one that was opened
    here ends.

    Attributes:
        id, secret: with which another connection joins it.
        model: that is served.
        offer: what it is and takes.
        mime: of the media; None before it begins.
        figures: the server's, of the last second.
        notices: what it had to say, the last 100: `session.notice`, and `error` where it went on.
        done: its last word, with `reason`; None: it goes on.
    """

    def __init__(self, opened: Callable[[str | None], ClientConnection], owned: bool):
        self._opened, self._owned = opened, owned
        self._connection: ClientConnection | None = None
        self._sending = threading.Lock()
        self._numbers = count(1)
        self._chunk: Chunk | None = None
        self._first = self._read = self._started = False
        self._kept: Part | None = None
        self._error: dict[str, Any] = {}
        self._speech = Ahead(self._send_sound, Refused)
        self.id = self.secret = self.model = ""
        self.offer: dict[str, Any] = {}
        self.mime: str | None = None
        self.figures: dict[str, Any] = {}
        self.notices: deque[dict[str, Any]] = deque(maxlen=100)
        self.done: dict[str, Any] | None = None

    def act(
        self, action: str | None = None, *, keys: Iterable[str] | None = None, mouse: Iterable[float] | None = None
    ) -> str:
        """Press a key that the model knows (`offer["actions"]`, the first stands for none), until the next; returns
        the event's id.

        Args:
            action: held alone.
            keys: held together, of `offer["controls"]["keys"]`, in its place; a model that knows `one` takes one.
            mouse: how far to turn in each video frame, from -10 to 10, one number for each of
                `offer["controls"]["axes"]`; None: not at all.
        """
        return self._event({"type": "action", **entry_of(action, keys, mouse)})

    def prompt(self, prompt: str) -> str:
        """Say what is to be seen from now on; returns the event's id."""
        return self._event({"type": "prompt", "prompt": prompt})

    def interrupt(self) -> str:
        """Stop what is being spoken, and forget what was to be; returns the event's id."""
        self._speech.forget()
        return self._event({"type": "interrupt"})

    def speak(self, samples: np.ndarray, rate: int) -> None:
        """Have it spoken: float32 [n] in [-1, 1], mono. Returns at once; the sound is
        sent as it is needed, from the session's first chunk on."""
        self._speech.add(np.asarray(samples, np.float32), rate)

    def hear(self, samples: np.ndarray, rate: int) -> None:
        """The microphone: float32 [n] in [-1, 1], mono, to be given as it is recorded."""
        self._send_sound(np.asarray(samples, np.float32), rate, live=True)

    def see(self, jpeg: bytes, at: float | None = None) -> None:
        """A camera has seen a picture.

        Args:
            jpeg: of 256 KB and 4 megapixels at most.
            at: when, in seconds of any clock that goes on; None: now, of `time.monotonic`.
        """
        at = time.monotonic() if at is None else at
        self._send({"type": "session.frame", "at": at, "bytes": len(jpeg)}, jpeg)

    def stop(self) -> None:
        """Ask for the session's end; its last parts still come."""
        with suppress(Refused):  # it has ended
            self._send({"type": "session.stop"})

    def close(self) -> None:
        """Leave. The session itself goes on for a while (`serve.lease_s`), for one who joins it again."""
        self._speech.close()
        if self._connection is not None:
            _leave(self._connection)

    def save(self, path: str | Path, seconds: float) -> float:
        """Write seconds of it to a fragmented mp4, in whole chunks; returns how many there are.

        Where something has been read before, this joins the session once more, so that the file begins with a picture
        that can be decoded: what was not read until then is left out.

        Raises:
            Refused: as the loop; `ended`: there is nothing more.
        """
        if self.done is not None:
            raise Refused("ended", f"the session has ended ({self.done['reason']}): connect anew to save more")
        if self._read:
            self._begin({"session": self.id, "secret": self.secret})
        end = 0.0
        with Path(path).open("wb") as file:
            for part in self:
                if part.first and part.chunk.pts_s >= seconds:
                    self._kept = part
                    break
                file.write(part.data)
                if part.chunk is not None:
                    end = part.chunk.pts_s + part.chunk.frames / self.offer["fps"]
        return end

    def __iter__(self) -> Iterator[Part]:
        """Media as it comes, until the session has ended.

        Raises:
            Refused: the server ended the connection, or it broke.
        """
        if self._kept is not None:
            kept, self._kept = self._kept, None
            yield kept
        while self.done is None:
            data = self._receive()
            if data is None:
                continue
            self._read = True
            if data[4:8] == b"ftyp":
                yield Part(data, self._chunk, init=True)
            else:
                first, self._first = self._first, False
                yield Part(data, self._chunk, first=first)

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *_: object) -> None:
        if self._owned:
            self.stop()
        self.close()

    def _begin(self, start: dict[str, Any]) -> None:
        """Open a session or join one, over a connection that takes the place of the one before."""
        before, connection = self._connection, self._opened(start.get("secret"))
        with self._sending:
            self._connection, self._started = connection, False
            self._chunk, self._kept, self._first, self._read = None, None, False, False
        try:
            self._send({"type": "session.start", **start})
            while not self._started:
                self._receive()
        except BaseException:
            _leave(connection)
            raise
        finally:
            if before is not None:
                _leave(before)

    def _event(self, event: dict[str, Any]) -> str:
        name = f"e{next(self._numbers)}"
        self._send({"type": "session.interaction", "event_id": name, "event": event})
        return name

    def _send_sound(self, samples: np.ndarray, rate: int, live: bool = False) -> None:
        pcm = (np.clip(samples, -1, 1) * 32767).astype("<i2").tobytes()
        size = 2 * rate  # a second
        for at in range(0, len(pcm), size):
            data = pcm[at : at + size]
            form = {"sample_rate": rate, "channels": 1, "bytes": len(data), "live": live}
            self._send({"type": "session.audio", **form}, data)

    def _send(self, message: dict[str, Any], data: bytes | None = None) -> None:
        try:
            with self._sending:  # sound is to follow its announcement
                self._connection.send(json.dumps(message))
                if data is not None:
                    self._connection.send(data)
        except ConnectionClosed as error:
            raise Refused("lost", "the connection has ended: what was read last says why") from error

    def _receive(self) -> bytes | None:
        """The next media; None: a message came."""
        try:
            said = self._connection.recv()
        except ConnectionClosed as error:
            if self._error and error.rcvd is not None and error.rcvd.code in ENDED:
                raise _refused(self._error) from None
            raise Refused("lost", f"the connection ended ({error}): join the session again") from error
        if isinstance(said, bytes):
            return said
        self._hear(json.loads(said))
        return None

    def _hear(self, message: dict[str, Any]) -> None:
        kind = message.pop("type")
        if kind == "session.started":
            self.id, self.secret = message["id"], message["secret"]
            self.model, self.offer, self._started = message["model"], message["offer"], True
        elif kind == "video.start":
            self.mime = message["mime"]
        elif kind == "video.chunk_metadata":
            known = {name: message.get(name) for name in Chunk._fields}
            self._chunk, self._first = Chunk(**known | {"events": tuple(message["events"])}), True
            self._speech.told(self._chunk.audio_held_s)
        elif kind == "session.figures":
            self.figures = message
        elif kind == "session.done":
            self.done = message
        elif kind != "session.pong":
            self._error = message if kind == "error" else self._error
            self.notices.append({"type": kind, **message})


def _refused(message: dict[str, Any]) -> Refused:
    return Refused(message["code"], message["message"], message.get("retry_after_s"))


def _leave(connection: ClientConnection) -> None:
    """Close it. That waits for the server's answer, which is behind all that was not read."""

    def throw_away() -> None:
        with suppress(ConnectionClosed, ConcurrencyError):
            while True:
                connection.recv()

    threading.Thread(target=throw_away, daemon=True).start()
    connection.close()

"""What clients say over a WebSocket or data channels, checked: sizes and forms. What it means, the session checks."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from conf.errors import UserError, nearest
from conf.typed import shown, typed
from serve.problems import Problem
from serve.wanted import Wanted

LONGEST = 16 << 10
"""Bytes of a message."""
MOST_SOUND = 1 << 20
"""Bytes of one binary message."""
LATEST_S = 1e12
"""Of a camera's clock: beyond, a double holds no fractions worth the name."""
RATES = range(8_000, 48_001)
MOST_HELD, LONGEST_NAME = 16, 64
"""Keys that are held at once, and characters of the name of one."""
COUNTED = range(1 << 53)
"""Numbers of messages: what a double holds."""


@dataclass
class Start(Wanted):
    """`session.start`: a session that was opened before, or what one is to be."""

    session: str | None = None
    secret: str | None = None
    media: bool = True
    """Whether pictures and sound are wanted here."""

    def __post_init__(self):
        super().__post_init__()
        if (self.session is None) != (self.secret is None):
            raise UserError("session.start", "names a session and its secret, or neither", "give both")
        if self.session is not None and self.given:
            rule = "names a session that has been opened, and what a new one is to be"
            raise UserError("session.start", rule, f"leave out {', '.join(self.given)}")


@dataclass
class Interaction:
    """`session.interaction`: something to react to (`serve.asked` checks what)."""

    event_id: str
    event: dict[str, Any]


@dataclass
class Audio:
    """`session.audio`: the binary message that follows is PCM16, little-endian, channels interleaved."""

    sample_rate: int
    channels: int
    bytes: int
    live: bool = False

    def __post_init__(self):
        if self.sample_rate not in RATES:
            raise UserError(f"sample_rate={self.sample_rate}", "is from 8000 to 48000", "use 16000")
        if self.channels not in (1, 2):
            raise UserError(f"channels={self.channels}", "is 1 or 2", "use 1")
        whole = 2 * self.channels
        if not 0 < self.bytes <= MOST_SOUND or self.bytes % whole:
            rule = f"is a multiple of {whole} up to {MOST_SOUND}"
            raise UserError(f"bytes={self.bytes}", rule, "send 16-bit samples in smaller pieces")
        if self.live and self.bytes > whole * self.sample_rate:
            rule = "is more than a second of a microphone"
            raise UserError(f"bytes={self.bytes}", rule, "send what was recorded at once, 20 ms at a time")


@dataclass
class Frame:
    """`session.frame`: the binary message that follows is a camera's picture, as JPEG, taken at `at` seconds of the
    camera's own clock (`serve.camera` looks at it)."""

    at: float
    bytes: int

    def __post_init__(self):
        if not -LATEST_S < self.at < LATEST_S:
            raise UserError(f"at={self.at}", "is a time in seconds", "use the time at which it was taken")
        if not 0 < self.bytes <= MOST_SOUND:
            raise UserError(f"bytes={self.bytes}", f"is from 1 to {MOST_SOUND}", "send a smaller picture")


@dataclass
class Ping:
    """`session.ping`: `t` comes back."""

    t: Any = None

    def __post_init__(self):
        if not isinstance(self.t, int | float | None):
            raise UserError(f"t={shown(self.t)}", "is a number", "use the time in seconds")


@dataclass
class Stop:
    """`session.stop`: end the session."""


@dataclass
class Pressed:
    """The one message of the channel `keys`, which has no type: all that is held now, and how far axes are turned."""

    seq: int
    held: list[str]
    mouse: list[float] | None = None
    event_id: str | None = None

    def __post_init__(self):
        if self.seq not in COUNTED:
            raise UserError(f"seq={self.seq}", "is a whole number from 0", "count the messages")
        if len(self.held) > MOST_HELD or not all(0 < len(name) <= LONGEST_NAME for name in self.held):
            raise UserError("held", f"is a list of at most {MOST_HELD} action names", "send all that are held")


Message = Start | Interaction | Audio | Frame | Ping | Stop

ON_CONTROL: dict[str, type[Interaction | Ping | Stop]] = {
    "session.interaction": Interaction,
    "session.ping": Ping,
    "session.stop": Stop,
}
"""Messages of the data channel `control`, by their type."""
MESSAGES: dict[str, type[Message]] = {
    "session.start": Start,
    "session.audio": Audio,
    "session.frame": Frame,
    **ON_CONTROL,
}
"""Those of the WebSocket."""


def message(text: str | bytes, kinds: Mapping[str, type[Message]] = MESSAGES) -> Message:
    """A client's message.

    Args:
        kinds: that may be said here.

    Raises:
        Problem: it is too long, or none of these.
    """
    found = _object(text)
    kind = found.pop("type", None)
    if not isinstance(kind, str) or kind not in kinds:
        detail = f"type={shown(kind)} is no message of a client here; {nearest(str(kind), kinds)}"
        raise Problem("bad_request", detail)
    return _typed(kinds[kind], found, kind)


def pressed(text: str | bytes) -> Pressed:
    """A message of the channel `keys`.

    Raises:
        Problem: it is too long, or none.
    """
    return _typed(Pressed, _object(text), "keys")


def _object(text: str | bytes) -> dict[str, Any]:
    if not isinstance(text, str):
        raise Problem("bad_request", "a message is text, and this one is binary; send a JSON object")
    if len(text.encode(errors="replace")) > LONGEST:
        detail = f"a message has at most {LONGEST} bytes; send pictures to /v1/uploads, sound as binary messages"
        raise Problem("too_large", detail)
    try:
        found = json.loads(text)
        json.dumps(found, ensure_ascii=False, allow_nan=False).encode()
    except (ValueError, RecursionError):  # not JSON, or what only Python takes for it: NaN, half a character
        found = None
    if not isinstance(found, dict):
        raise Problem("bad_request", "a message is a JSON object; this one is not")
    return found


def _typed(kind: type, found: dict[str, Any], name: str) -> Any:
    try:
        return typed(kind, found, name)
    except UserError as error:
        raise Problem("bad_request", str(error)) from None

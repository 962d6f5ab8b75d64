"""What clients of the WebSocket say, checked: sizes, rates, forms."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from conf.errors import UserError, nearest
from conf.typed import shown, typed
from serve.problems import Problem
from serve.wanted import LONGEST_PROMPT, Wanted

LONGEST, LONGEST_ID = 16 << 10, 64
"""Bytes of a message, characters of an event's id."""
PROMPT_RULE = f"has at most {LONGEST_PROMPT} bytes", "say it in fewer words"
MOST_SOUND = 1 << 20
"""Bytes of one message of sound."""
RATES = range(8_000, 48_001)
PER_SECOND, BURST = 20.0, 40.0
"""Messages that are heard; others are answered with an error."""
SOUND_PER_SECOND, SOUND_BURST = 100.0, 200.0
"""Messages of sound likewise: in pieces of 20 ms it is 50."""
FLOOD = 100.0
"""Messages over the limit, after each other, that end the connection."""


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
    """`session.interaction`: something to react to."""

    event_id: str
    event: dict[str, Any]

    def __post_init__(self):
        if not 0 < len(self.event_id) <= LONGEST_ID:
            raise UserError("event_id", f"has 1 to {LONGEST_ID} characters", "count: e1, e2, ...")

    def check(self) -> None:
        """Refuse what a person, and not a program, has done wrong.

        Raises:
            Problem: the prompt is too long.
        """
        prompt = self.event.get("prompt")
        if isinstance(prompt, str) and len(prompt.encode()) > LONGEST_PROMPT:
            raise Problem("too_large", str(UserError(f"prompt={shown(prompt)}", *PROMPT_RULE)))


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
class Ping:
    """`session.ping`: `t` comes back."""

    t: Any = None

    def __post_init__(self):
        if not isinstance(self.t, int | float | None):
            raise UserError(f"t={shown(self.t)}", "is a number", "use the time in seconds")


@dataclass
class Stop:
    """`session.stop`: end the session."""


MESSAGES = {
    "session.start": Start,
    "session.interaction": Interaction,
    "session.audio": Audio,
    "session.ping": Ping,
    "session.stop": Stop,
}


def message(text: str) -> Start | Interaction | Audio | Ping | Stop:
    """A client's message.

    Raises:
        Problem: it is too long, or none of the protocol's.
    """
    if len(text.encode()) > LONGEST:
        detail = f"a message has at most {LONGEST} bytes; send pictures to /v1/uploads, sound as binary messages"
        raise Problem("too_large", detail)
    try:
        found = json.loads(text)
        json.dumps(found, ensure_ascii=False, allow_nan=False).encode()
    except (ValueError, RecursionError):  # not JSON, or what only Python takes for it: NaN, half a character
        raise Problem("bad_request", "a message is a JSON object; this one is not") from None
    kind = found.pop("type", None) if isinstance(found, dict) else None
    if not isinstance(kind, str) or kind not in MESSAGES:
        raise Problem("bad_request", f"type={shown(kind)} is no message of a client; {nearest(str(kind), MESSAGES)}")
    try:
        return typed(MESSAGES[kind], found, kind)
    except UserError as error:
        raise Problem("bad_request", str(error)) from None


class Limit:
    """So many messages a second, and a few at once.

    Args:
        per_second, burst: of messages.
        clock: seconds, monotonic.
    """

    def __init__(self, per_second: float, burst: float, clock: Callable[[], float]):
        self._per_second, self._burst, self._clock = per_second, burst, clock
        self._left, self._looked = burst, clock()
        self._over = 0

    def passes(self) -> bool:
        """Whether one more is heard.

        Raises:
            Problem: the limit was passed over and over; the connection is not worth keeping.
        """
        now = self._clock()
        self._left = min(self._burst, self._left + (now - self._looked) * self._per_second)
        self._looked = now
        if self._left >= 1:
            self._left -= 1
            self._over = 0
            return True
        self._over += 1
        if self._over > FLOOD:
            raise Problem("too_many", f"over {self._per_second:.0f} messages a second, again and again: send fewer")
        return False

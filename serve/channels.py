"""What a viewer says over data channels: events on `control`, pressed keys on `keys`."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, Protocol

from serve.problems import Problem

MOST_BYTES = 16384
"""Of a message."""
PER_SECOND, FLOOD_PER_SECOND = 20, 100
"""Messages that are listened to on `control`, and after how many on both the viewer is shown out."""
MOST_HELD, LONGEST_NAME, LONGEST_ID = 16, 64, 128
NO_ACTION = "none"
"""What is done when no key is held."""


class Heard(Protocol):
    """The part of a session that a viewer's words are for."""

    def event(self, id: str, event: dict[str, Any]) -> None:
        """Raises Problem where the session cannot do it."""

    def stop(self, reason: str) -> None:
        """End the session."""


class Allowance:
    """So many a second, and as many at once.

    Args:
        clock: seconds.
    """

    def __init__(self, per_second: float, clock: Callable[[], float]):
        self._per_second, self._clock = per_second, clock
        self._left, self._at = float(per_second), clock()

    def take(self) -> bool:
        """Whether one more is within it."""
        now = self._clock()
        self._left = min(self._per_second, self._left + (now - self._at) * self._per_second)
        self._at = now
        if self._left < 1:
            return False
        self._left -= 1
        return True


class Control:
    """The messages of `control`.

    Args:
        session: what they are for.
        say: sends an answer.
        clock: seconds.
    """

    def __init__(self, session: Heard, say: Callable[[dict[str, Any]], None], clock: Callable[[], float]):
        self._session, self._say, self._allowance = session, say, Allowance(PER_SECOND, clock)

    def take(self, text: str | bytes) -> None:
        """A message; whatever is wrong with it is answered, and never raised."""
        id = None
        try:
            if not self._allowance.take():
                raise Problem("too_many", f"messages: at most {PER_SECOND} a second, send fewer", 1.0)
            message = parsed(text)
            found = message.get("event_id")
            id = found[:LONGEST_ID] if isinstance(found, str) else None
            self._do(message)
        except Problem as problem:
            self._say(problem.message | ({} if id is None else {"event_id": id}))

    def _do(self, message: dict[str, Any]) -> None:
        kind = message.get("type")
        if kind == "session.ping":
            given = message.get("t")
            self._say({"type": "session.pong"} | ({"t": given} if isinstance(given, int | float) else {}))
        elif kind == "session.interaction":
            id, event = message.get("event_id"), message.get("event")
            if not _text(id, LONGEST_ID):
                raise Problem("bad_request", f"event_id: is a text of 1 to {LONGEST_ID} characters, give one")
            if not isinstance(event, dict):
                raise Problem("bad_request", 'event: is no object, send {"type": "prompt", "prompt": ...} or another')
            self._session.event(id, event)
        elif kind == "session.stop":
            self._session.stop("stopped")
        else:
            rule = "is none of session.interaction, session.ping, session.stop"
            raise Problem("bad_request", f"type: {rule}, send one of these")


class Keys:
    """The messages of `keys`: each says which keys are held now, so one that is lost or late does no harm.

    Each counts, up to the flood: one that lets go must not be the one that is not listened to.

    Args:
        session: what they are for.
        say: sends a complaint, over `control`.
    """

    def __init__(self, session: Heard, say: Callable[[dict[str, Any]], None]):
        self._session, self._say = session, say
        self._newest = -1
        self._held: list[str] = []
        """In the order in which they were pressed."""
        self._action = NO_ACTION

    def take(self, text: str | bytes) -> None:
        """A message; whatever is wrong with it is answered, and never raised."""
        try:
            message = parsed(text)
            seq, held, id = message.get("seq"), message.get("held"), message.get("event_id")
            if not isinstance(seq, int) or isinstance(seq, bool) or not 0 <= seq < 2**53:
                raise Problem("bad_request", "seq: is no number from 0, count the messages")
            if not isinstance(held, list) or len(held) > MOST_HELD or not all(_text(key, LONGEST_NAME) for key in held):
                raise Problem("bad_request", f"held: is no list of at most {MOST_HELD} action names, send all held")
            if seq > self._newest:
                self._newest = seq
                self._change(held, id if _text(id, LONGEST_ID) else f"keys-{seq}")
        except Problem as problem:
            self._say(problem.message)

    def _change(self, held: list[str], id: str) -> None:
        """The one pressed last of those that are still held is done."""
        new = [key for key in dict.fromkeys(held) if key not in self._held]
        self._held = [key for key in self._held if key in held] + new
        action = self._held[-1] if self._held else NO_ACTION
        if action != self._action:
            self._action = action
            self._session.event(id, {"type": "action", "action": action})


def parsed(text: str | bytes) -> dict[str, Any]:
    """A message as JSON.

    Raises:
        Problem: it is too long, or no JSON object.
    """
    if not isinstance(text, str):
        raise Problem("bad_request", "message: is binary, send JSON text")
    if len(text.encode(errors="replace")) > MOST_BYTES:
        raise Problem("too_large", f"message: is longer than {MOST_BYTES // 1024} KiB, send less")
    try:
        message = json.loads(text, parse_constant=_refused)
    except (ValueError, RecursionError) as error:
        raise Problem("bad_request", "message: is no JSON, send a JSON object") from error
    if not isinstance(message, dict):
        raise Problem("bad_request", "message: is no JSON object, send one")
    return message


def _refused(name: str) -> None:
    raise ValueError(name)


def _text(value: Any, longest: int) -> bool:
    return isinstance(value, str) and 0 < len(value) <= longest

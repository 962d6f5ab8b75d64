"""What is done with a viewer's words: messages of the WebSocket and of `control`, and keys that are held (`keys`)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from serve.asked import controls_of
from serve.incoming import ON_CONTROL, Interaction, Ping, Pressed, Stop, message, pressed
from serve.limits import Limit
from serve.problems import Problem
from stages.controls import entry_of

PER_SECOND, BURST = 20.0, 40.0
"""Messages that are heard; others are answered with an error."""


class Driven(Protocol):
    """The part of a session that a viewer's words are for."""

    served: Any
    """The model, with its `offer`."""

    def event(self, id: str, event: dict[str, Any]) -> None:
        """Raises Problem where the session cannot do it."""

    def stop(self, reason: str) -> None:
        """End the session."""


class Control:
    """Does what messages say.

    Args:
        session: what they are for.
        say: sends an answer.
        clock: seconds.

    Attributes:
        limit: of messages.
    """

    def __init__(self, session: Driven, say: Callable[[dict[str, Any]], None], clock: Callable[[], float]):
        self._session, self._say = session, say
        self.limit = Limit(PER_SECOND, BURST, clock)

    def take(self, text: str | bytes) -> None:
        """A message of `control`; whatever is wrong with it is answered, and never raised."""
        try:
            found = message(text, ON_CONTROL)
        except Problem as problem:
            self._say(problem.message)
        else:
            self.do(found)

    def do(self, found: Interaction | Ping | Stop) -> None:
        """What a message says; what cannot be is answered."""
        try:
            self.limit.check()
            if isinstance(found, Interaction):
                self._session.event(found.event_id, found.event)
            elif isinstance(found, Ping):
                self._say({"type": "session.pong", "t": found.t})
            else:
                self._session.stop("stopped")
        except Problem as problem:
            known = {"event_id": found.event_id} if isinstance(found, Interaction) else {}
            self._say(problem.message | known)


class Keys:
    """The messages of `keys`: each says which keys are held now, so one that is lost or late does no harm.

    Each counts, up to the flood: one that lets go must not be the one that is not listened to.

    Args:
        session: what they are for.
        say: sends a complaint, over `control`.
    """

    def __init__(self, session: Driven, say: Callable[[dict[str, Any]], None]):
        self._session, self._say = session, say
        self._controls = controls_of(session.served.offer)
        self._newest = -1
        self._held: list[str] = []
        """In the order in which they were pressed."""
        self._event = self._of(None)

    def take(self, text: str | bytes) -> None:
        """A message; whatever is wrong with it is answered, and never raised."""
        try:
            found = pressed(text)
            if found.seq > self._newest:
                self._newest = found.seq
                self._change(found, f"keys-{found.seq}" if found.event_id is None else found.event_id)
        except Problem as problem:
            self._say(problem.message)

    def _change(self, found: Pressed, id: str) -> None:
        new = [key for key in dict.fromkeys(found.held) if key not in self._held]
        self._held = [key for key in self._held if key in found.held] + new
        event = self._of(found.mouse)
        if event != self._event:
            self._event = event
            self._session.event(id, event)

    def _of(self, mouse: list[float] | None) -> dict[str, Any]:
        """What is done: all keys that are held or, by a model that knows one at a time, the one pressed last."""
        mouse = mouse if any(mouse or ()) else None
        if not self._controls.one:
            return {"type": "action", **entry_of(None, sorted(self._held), mouse)}
        # With no key held a model does its first action; None: it has none at all.
        action = self._held[-1] if self._held else next(iter(self._controls.keys), None)
        return {"type": "action", **entry_of(action, None, mouse)}

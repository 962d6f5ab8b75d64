"""What a person asks of a session while it runs: events, each with an id that comes back on the chunk that shows it."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

from conf.errors import UserError
from conf.typed import shown
from serve.problems import Problem
from stages.controls import FORM, Controls
from stages.encode.text import split

EVENTS = ("prompt", "action", "interrupt")
LONGEST_ID, LONGEST_PROMPT = 64, 2 << 10
"""Characters of an event's id, bytes of a prompt."""
SAID = 5
"""Words that a model does not know, of which somebody is told."""
KEPT = 256
"""Events and chunks that are remembered until they are shown."""


def checked(id: Any, event: Any, offer: dict[str, Any]) -> dict[str, Any]:
    """An event, without what is no part of it.

    Args:
        id: that the person gave it.
        event: as it came.
        offer: of the model.

    Raises:
        Problem: there is no such event, or the model has no use for it.
    """
    if not isinstance(id, str) or not 0 < len(id) <= LONGEST_ID:
        raise Problem("bad_request", f"event_id: must be text of 1 to {LONGEST_ID} characters; number your events")
    if not isinstance(event, dict) or not isinstance(kind := event.get("type"), str):
        raise Problem("bad_request", 'event: has no type; give {"type": "action", "action": ...} or the like')
    if kind == "image":
        rule = "a picture is where a session begins, and is not changed later"
        raise Problem("not_while_running", f"event: {rule}; open another session with it")
    if kind not in EVENTS:
        raise Problem("bad_request", f"event {kind[:40]!r}: there is no such event; use one of {', '.join(EVENTS)}")
    if kind == "prompt":
        return {"type": kind, "prompt": _prompt(event.get("prompt"), offer)}
    if kind == "action":
        try:
            controls_of(offer).parse(event, "event")
        except UserError as error:
            raise Problem("unprocessable", str(error)) from None
        return {"type": kind} | {name: event[name] for name in FORM if name in event}
    return {"type": kind}


def controls_of(offer: dict[str, Any]) -> Controls:
    """What can be pressed, as an offer says it; `actions` alone are those of a model that knows one at a time."""
    if (told := offer.get("controls")) is None:
        return Controls.of(offer["actions"])
    return Controls(tuple(told["keys"]), told["one"], tuple(told["axes"]))


def _prompt(prompt: Any, offer: dict[str, Any]) -> str:
    if not offer["prompts"]:
        raise Problem("unprocessable", f"event prompt: {offer['id']} takes no prompts; leave it out")
    try:
        check_prompt(prompt)
    except UserError as error:
        raise Problem("bad_request", f"event {error}") from None
    return prompt


def check_prompt(prompt: Any) -> None:
    """Whether this can be a prompt at all, of an event or of a new session.

    Raises:
        UserError: it cannot.
    """
    if not isinstance(prompt, str) or len(prompt.encode(errors="replace")) > LONGEST_PROMPT or _broken(prompt):
        rule = f"is plain text of at most {LONGEST_PROMPT} bytes"
        raise UserError(f"prompt={shown(prompt)}", rule, "say it in fewer words")


def unread(prompt: str, offer: dict[str, Any]) -> list[str]:
    """Words of a prompt that mean nothing to a model that knows some words alone."""
    known = set(offer["words"])
    words = dict.fromkeys(split(prompt)) if known else {}
    return [word for word in words if word not in known][:SAID]


def _broken(text: str) -> bool:
    """Whether a text holds what no encoder takes."""
    return "\0" in text or any("\ud800" <= letter <= "\udfff" for letter in text)


class Asked:
    """Events from being accepted until they are shown; moments are of the gateway's clock.

    Each has a number of its own for the stages: two people may give theirs the same id.
    """

    def __init__(self):
        self._numbers = 0
        self._accepted: OrderedDict[str, tuple[str, float]] = OrderedDict()
        """By number, the id that a person gave it, and when it was accepted."""
        self._interrupts: dict[str, float] = {}
        self.last = -1
        """The last chunk that was sampled."""
        self._chunks: OrderedDict[int, tuple[tuple[str, ...], float, list[float] | None]] = OrderedDict()
        """By chunk that was sampled and not shown yet, what it shows first, when it was sampled, and where the world's
        camera is then."""

    def accept(self, id: str, event: dict[str, Any], now: float) -> str:
        """An event was accepted; returns its number."""
        self._numbers += 1
        number = str(self._numbers)
        self._accepted[number] = id, now
        if event["type"] == "interrupt":
            self._interrupts[number] = now
        for held in (self._accepted, self._interrupts):
            while len(held) > KEPT:
                del held[next(iter(held))]
        return number

    def sampled(self, chunk: int, numbers: tuple[str, ...], now: float, at: list[float] | None = None) -> bool:
        """A chunk was sampled that shows these first; returns whether it is the first after all that interrupted. What
        is said again of one changes nothing."""
        if chunk <= self.last:
            return False
        self.last = chunk
        self._chunks[chunk] = numbers, now, at
        while len(self._chunks) > KEPT:
            self._chunks.popitem(last=False)
        order = list(self._interrupts)
        # Those before one that was sampled were too, or will never be: a stage that is not there yet is not kept all.
        past = max((order.index(one) + 1 for one in numbers if one in self._interrupts), default=0)
        for one in order[:past]:
            del self._interrupts[one]
        return past > 0 and not self._interrupts

    def again(self, chunk: int) -> None:
        """The stream goes on from a chunk, with what was asked and not sampled before it."""
        self.last = min(self.last, chunk - 1)

    def shown(self, chunk: int) -> tuple[tuple[str, ...], float | None, float | None, list[float] | None]:
        """A chunk begins to leave: (ids that it shows first, when the oldest was accepted, when it was sampled, where
        the world's camera is in its last frame)."""
        numbers, sampled, at = self._chunks.pop(chunk, ((), None, None))
        known = [self._accepted.pop(one) for one in numbers if one in self._accepted]
        return tuple(id for id, _ in known), min((when for _, when in known), default=None), sampled, at

    @property
    def interrupted_at(self) -> float | None:
        """When the oldest interruption was accepted after which nothing was sampled yet; None: there is none."""
        return min(self._interrupts.values(), default=None)

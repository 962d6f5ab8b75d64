"""Which prompt holds from which chunk on: what the configuration says, and what is heard while the stream runs."""

from __future__ import annotations

import threading
from typing import Any, NamedTuple

from conf.errors import UserError
from conf.schema import StreamConfig


class Heard(NamedTuple):
    """A prompt that was given while the stream ran; `accepted`: when, in seconds of this host's clock; `number`: of the
    last order that was heard by then."""

    prompt: str
    accepted: float
    number: int = -1


class Prompts:
    """The prompts of one stream. `steer` may be called from any thread; all else belongs to who samples the chunks.

    Args:
        stream: its configuration.

    Raises:
        UserError: two events are at one chunk.
    """

    def __init__(self, stream: StreamConfig):
        self._texts = _planned(stream)
        """By the chunk from which each holds."""
        self._accepted: dict[int, float] = {}
        """When the prompts were accepted that were given while the stream ran, by chunk."""
        self._lock = threading.Lock()
        self._steered: Heard | None = None
        self._number = -1
        """Of the last order that was heard."""
        self.sampled = -1
        """Of the last order that a sampled chunk shows, or that was replaced before it could be."""
        self.latest: Heard | None = None
        """What was heard for the chunk that was sampled last."""

    def steer(self, prompt: str, accepted: float, number: int) -> None:
        """From the next chunk that is sampled on, `prompt` holds. An order that is heard again changes nothing.

        Args:
            accepted: when it was given, in seconds of this host's clock.
            number: of the order; numbers rise.
        """
        with self._lock:
            if number > self._number:
                self._steered, self._number = Heard(prompt, accepted, number), number

    def say(self, prompt: str, accepted: float) -> None:
        """As `steer`, of a source that says everything once."""
        with self._lock:
            self._steered = Heard(prompt, accepted, self._number)

    def plan(self, prompts: dict[int, str]) -> None:
        """Prompts by the chunk from which each is to hold, beside those that are configured."""
        self._texts |= prompts

    def sample(self, chunk: int) -> str | None:
        """Chunk `chunk` is sampled now: what was heard holds from it on. Returns the prompt that begins with it."""
        with self._lock:
            heard, self._steered = self._steered, None
        return self._begin(chunk, heard)

    def again(self, chunk: int, heard: Heard | None) -> str | None:
        """As `sample`, of a chunk for which this was heard when it was sampled before."""
        return self._begin(chunk, heard)

    def _begin(self, chunk: int, heard: Heard | None) -> str | None:
        self.latest = heard
        if heard is not None:
            self._texts[chunk], self._accepted[chunk] = heard.prompt, heard.accepted
            self.sampled = max(self.sampled, heard.number)
        # The one before may still be asked for, where a state is saved.
        oldest = self.epoch(chunk - 1)
        self._texts = {e: text for e, text in self._texts.items() if e >= oldest}
        return self._texts.get(chunk)

    def epoch(self, chunk: int) -> int:
        """The chunk with which the prompt began that holds at `chunk`."""
        return max((e for e in self._texts if e <= chunk), default=0)

    def text(self, epoch: int) -> str:
        """The prompt that began with chunk `epoch`."""
        return self._texts.get(epoch, "")

    def first_told(self) -> str | None:
        """The first prompt that says anything; None if none does."""
        return next(filter(None, self._texts.values()), None)

    def accepted(self, chunk: int, entered: float) -> float | None:
        """When the prompt was accepted that first shows in `chunk`; None: no prompt begins there.

        A prompt that was known in advance counts from the moment its chunk enters.
        """
        if chunk == 0 or chunk not in self._texts:
            return None
        return self._accepted.pop(chunk, entered)

    # -- going on ---------------------------------------------------------------------------------------------------

    def progress(self, chunk: int) -> dict[str, Any]:
        """Where the prompts stand before `chunk` is sampled."""
        with self._lock:
            steered = self._steered
        before = max((e for e in self._texts if e < chunk), default=0)
        return {
            "prompt": self._texts.get(before, ""),
            "steered": steered.prompt if steered else None,
            "number": self.sampled,
        }

    def shown(self, number: int) -> None:
        """Orders up to this number are in chunks that were sampled before: they change nothing when they are heard."""
        with self._lock:
            self._number, self.sampled = max(self._number, number), max(self.sampled, number)
            if self._steered is not None and self._steered.number <= number:
                self._steered = None

    def resume(self, chunk: int, content: dict[str, Any], now: float, again: bool = False) -> None:
        """Go on with `chunk` from the progress of another run.

        Args:
            now: stands for the moment at which a prompt was accepted that had not been sampled yet.
            again: whether it is of the same run: whoever orders then says again what had not been sampled yet.
        """
        self._texts = {chunk - 1: content["prompt"]} | {e: p for e, p in self._texts.items() if e >= chunk}
        if again:
            self.shown(content["number"])
        elif content["steered"] is not None:
            with self._lock:
                # Its number is not counted as heard: this run's orders are numbered anew.
                self._steered = Heard(content["steered"], now)


def _planned(stream: StreamConfig) -> dict[int, str]:
    """Prompt by the chunk from which it holds, as configured."""
    prompts = {0: stream.prompt}
    for event in stream.events:
        if event.chunk in prompts and event.chunk:
            raise UserError(
                f"stream.events: chunk={event.chunk}", "two events are at the same chunk", "keep one of them"
            )
        prompts[event.chunk] = event.prompt
    return prompts

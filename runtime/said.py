"""What was said to streams that are open, as far as the next generation of a run has to be told of it."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import replace

from runtime.orders import Cancel, Order, Prompt, Status, Stop


class Said:
    """Of every stream the last prompt, which may not have been sampled yet, and what it was told to end by; and the
    questions that nobody has heard."""

    def __init__(self):
        self._prompts: dict[int, Prompt] = {}
        self._ends: dict[int, Order] = {}
        self._questions: list[Status] = []

    def note(self, order: Order, live: Collection[int], heard: bool) -> None:
        """An order was given.

        Args:
            live: streams that are open.
            heard: whether a generation runs that reads it.
        """
        if isinstance(order, Prompt) and order.stream in live:
            self._prompts[order.stream] = order
        elif isinstance(order, Stop | Cancel):
            for stream in live if order.stream is None else {order.stream} & set(live):
                if not isinstance(self._ends.get(stream), Cancel):
                    self._ends[stream] = replace(order, stream=stream)
        elif isinstance(order, Status) and not heard:
            self._questions.append(order)

    def forget(self, stream: int) -> None:
        """A stream has ended."""
        self._prompts.pop(stream, None)
        self._ends.pop(stream, None)

    def to(self, stream: int) -> Iterator[Order]:
        """What a stream is to be told behind the order that opens it, with the numbers that the orders had."""
        yield from (order for order in (self._prompts.get(stream), self._ends.get(stream)) if order is not None)

    def questions(self) -> list[Status]:
        """Those that nobody has heard, once."""
        found, self._questions = self._questions, []
        return found

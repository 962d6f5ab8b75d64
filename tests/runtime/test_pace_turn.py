"""After a run has turned, what is seen is as old as it was before, in virtual time."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.pace import DRIFT, Pace
from tests.serve.core_ends import Clock

CHUNK_S, FRAME_S, MARGIN_S = 0.75, 1 / 16, 0.08


class Watched:
    """A stream that is sampled, made and watched; several chunks are under way.

    Args:
        way_s: from a chunk's being sampled until it is there.
        period_s: from one chunk's being there to the next one's, at least.
    """

    def __init__(self, way_s: float, period_s: float):
        self.way_s, self.period_s, self.clock, self.zero = way_s, period_s, Clock(), None
        self.pace = Pace(self.wait, self.clock)
        self.sampled: list[float] = []
        self.there: dict[int, float] = {}
        """When chunks come that are under way."""
        self.shown, self.last = 0, 0.0
        self.delays: list[float] = []
        """From being sampled until it is seen, of each chunk."""

    def wait(self, seconds: float) -> None:
        self.clock.now += seconds

    def hear(self) -> None:
        """Chunks that have come by now are shown in their turn, and told of."""
        while (there := self.there.get(self.shown)) is not None and there <= self.clock.now:
            del self.there[self.shown]
            self.zero = there + MARGIN_S if self.zero is None else self.zero
            slack = self.zero + self.shown * CHUNK_S - there
            self.zero -= min(0.0, slack)
            self.delays.append(self.zero + self.shown * CHUNK_S - self.sampled[self.shown])
            self.pace.slack(slack - MARGIN_S, max(0.0, -slack))
            self.shown += 1

    def enter(self, chunk: int) -> None:
        self.last = max(self.clock.now + self.way_s, self.last + self.period_s)
        if chunk >= self.shown:
            self.there[chunk] = self.last

    def chunk(self) -> None:
        """The next one is sampled, as soon as there is room and it is due."""
        # What fills the stages is under way; the next has room when one has come.
        full = int(self.way_s / self.period_s) + 1
        if len(self.there) >= full:
            self.clock.now = max(self.clock.now, min(self.there.values()))
        self.hear()
        self.pace.hold()
        self.hear()
        self.sampled.append(self.clock.now)
        self.pace.sampled(CHUNK_S)
        self.enter(len(self.sampled) - 1)

    def turn(self, frozen_s: float, back: int, survives: bool) -> None:
        """The run stands still, and goes on from a cut so many chunks before."""
        progress = self.pace.progress
        if not survives:
            self.pace = Pace(self.wait, self.clock)
            self.pace.resume(json.loads(json.dumps(progress)))
        self.pace.turn()
        self.there.clear()
        self.clock.now += frozen_s
        self.last = self.clock.now
        sampled = len(self.sampled)
        for chunk in range(max(0, min(sampled - back, self.shown)), sampled):
            self.enter(chunk)
            self.clock.now += self.period_s


@settings(max_examples=100)
@given(st.floats(0.2, 1.5), st.floats(0.1, 0.7), st.floats(0.1, 12.0), st.integers(0, 4), st.booleans())
def test_latency_is_what_it_was(way_s, period_s, frozen_s, back, survives):
    one = Watched(way_s, min(period_s, way_s))
    for _ in range(60):
        one.chunk()
    before = max(one.delays[-3:])
    seen = one.shown
    one.turn(frozen_s, back, survives)
    for _ in range(60):
        one.chunk()
    after = one.delays[seen + math.ceil(5.0 / CHUNK_S) :]
    assert len(after) > 30
    assert max(after) <= before + FRAME_S
    assert min(after) >= way_s


@pytest.mark.parametrize("survives", [True, False])
def test_nothing_is_waited_for_twice(survives):
    """A chunk that is not late in the end is due when it would have been."""
    one = Watched(0.3, 0.1)
    for _ in range(40):
        one.chunk()
    before = one.sampled[-1]
    one.turn(0.0, 0, survives)
    one.chunk()
    assert one.sampled[-1] - before == pytest.approx(CHUNK_S * (1 - DRIFT), abs=0.02)

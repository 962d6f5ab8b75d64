"""A stream that is opened again, anywhere and by anyone: what is around it, which outlives its processes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

import torch
from hypothesis import strategies as st

from runtime.conditioning import Conditioning
from runtime.ends import LiveEnds
from runtime.journal import Journal

CHUNKS = 7


class Turn(NamedTuple):
    """The run turns before chunk `at`, and goes on from the cut before chunk `cut`; None: from the stream's beginning.

    `survives`: whether the process does.
    """

    at: int
    cut: int | None
    survives: bool


@st.composite
def turns(draw):
    made = []
    for at in draw(st.lists(st.integers(1, CHUNKS), max_size=3)):
        made.append(Turn(at, draw(st.none() | st.integers(1, at)), draw(st.booleans())))
    return sorted(made, key=lambda turn: turn.at)


class Cut:
    """What was written of a stream's sources before a chunk, as a state is read."""

    def __init__(self, chunk, progress):
        self.chunk, self.anchor = chunk, {}
        self._content = json.dumps(progress.content)
        self._arrays = {name: array.copy() for name, array in progress.arrays.items()}

    def read(self, name):
        tensors = {name: torch.from_numpy(array.copy()) for name, array in self._arrays.items()}
        return tensors, json.loads(self._content)


def equal(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


class Around:
    """What is around a stream of `CHUNKS` chunks.

    Attributes:
        folder: of its own; cuts are in it.
    """

    folder: Path

    def open(self, state: Cut | None, journal: Journal | None, ends: LiveEnds | None) -> Conditioning:
        """What drives the stream, from a cut on."""
        raise NotImplementedError

    def feed(self, chunk: int, conditioning: Conditioning) -> None:
        """What drives `chunk` happens, once."""

    def order(self, conditioning: Conditioning, chunk: int) -> None:
        """What is ordered before `chunk` is, as often as somebody new is there."""

    def made(self, conditioning: Conditioning, chunk: int) -> dict | None:
        """What a chunk is made with; None: the stream has ended before it."""
        return conditioning.chunk(chunk)

    def gone_on(self, conditioning: Conditioning, found: list, chunk: int, at: int) -> None:
        """Somebody new is there, who goes on from `chunk`, behind all that was sampled before `at`."""
        assert conditioning.replay.next == at

    def play(self, happens: list[Turn], journaled: bool = False) -> list:
        """What every chunk is made with."""
        found, cuts, ends = [], {}, LiveEnds()
        journal = Journal(self.folder / "cuts") if journaled else None
        conditioning = self.open(None, journal, ends)
        chunk = 0
        for turn in [*happens, None]:
            last = turn.at if turn else CHUNKS + 1
            while chunk < last:
                self.order(conditioning, chunk)
                self.feed(chunk, conditioning)
                cuts[chunk] = Cut(chunk, conditioning.progress(chunk))
                made = self.made(conditioning, chunk)
                if made is None:
                    conditioning.ended(chunk)
                    break
                if chunk < len(found):
                    assert equal(found[chunk], made), f"chunk {chunk} was sampled in another way"
                else:
                    found.append(made)
                chunk += 1
            if turn is None:
                break
            cuts[chunk] = Cut(chunk, conditioning.progress(chunk))
            conditioning.turn()
            if not turn.survives:
                ends.leave()
                ends = LiveEnds()
            chunk = turn.cut or 0
            conditioning = self.open(cuts[chunk] if chunk else None, Journal(self.folder / "cuts"), ends)
            self.gone_on(conditioning, found, chunk, turn.at)
            for before in range(turn.at + 1):  # and one that was heard, and not sampled
                self.order(conditioning, before)
        conditioning.close()
        return found

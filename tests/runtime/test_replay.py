"""A stream that is opened again, anywhere and by anyone, is sampled as if nothing had happened."""

from __future__ import annotations

import json
import os
import threading
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.conditioning import Conditioning
from runtime.encoders import Encoders, frames_of
from runtime.ends import LiveEnds
from runtime.journal import Journal
from stages.inputs import Axis, on
from stages.sources.audio import RATE
from stages.sources.live import Stop, Turned
from tests.helpers import config_of, write_wav

CHUNKS = 7
CONFIG = config_of("model=nano", "stream.prompt=hello", "stream.events=[{chunk: 3, prompt: planned}]", "source.pace=free")
ENCODERS = Encoders(CONFIG.model, torch.device("cpu"))
SOUND = np.random.default_rng(1).integers(-9000, 9000, 20 * RATE).astype("<i2")
NAMES = ("none", "forward", "back", "left", "right")


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


PROMPTS = st.dictionaries(st.integers(0, CHUNKS - 1), st.sampled_from(["a dog", "night", "rain"]), max_size=3)


class Cut:
    """What was written of a stream's sources before a chunk, as a state is read."""

    def __init__(self, chunk, progress):
        self.chunk, self.anchor = chunk, {}
        self._content = json.dumps(progress.content)
        self._arrays = {name: array.copy() for name, array in progress.arrays.items()}

    def read(self, name):
        tensors = {name: torch.from_numpy(array.copy()) for name, array in self._arrays.items()}
        return tensors, json.loads(self._content)


class World:
    """What is around a stream, and outlives its processes: pipes or files, orders, the folder of cuts.

    Args:
        folder: empty.
        kind: `live`, `files` or `recorded`.
        prompts: ordered before each chunk.
    """

    def __init__(self, folder: Path, kind: str, prompts: dict[int, str], *overrides: str):
        self.folder, self.kind, self.prompts = folder, kind, prompts
        self.config = config_of("model=nano", *overrides) if overrides else CONFIG
        self.sink = replace(self.config.sink, video=None, inputs=str(folder / "inputs"))
        self.stdin, self.fed, self._rest = None, 0, ExitStack()
        if kind == "live":
            reading, self.sound = os.pipe()
            self.stdin = self._rest.enter_context(os.fdopen(reading, "rb", buffering=0))
            os.mkfifo(folder / "actions")
            self.actions = os.open(folder / "actions", os.O_RDWR)
            self._rest.callback(os.close, self.actions)
            self.source = replace(CONFIG.source, audio="-", actions=str(folder / "actions"))
        elif kind == "files":
            write_wav(folder / "speech.wav", SOUND / 32768)
            (folder / "actions").write_text("".join(action(chunk) for chunk in range(CHUNKS)))
            self.source = replace(CONFIG.source, audio=str(folder / "speech.wav"), actions=str(folder / "actions"))
        else:
            (folder / "other").mkdir()
            other = World(folder / "other", "files", {})
            other.play([])
            self.source = replace(CONFIG.source, inputs=other.sink.inputs)

    def feed(self, chunk: int) -> None:
        """What drives `chunk` happens."""
        if self.kind == "live" and chunk == self.fed:
            self.fed += 1
            start, end = (frames(n) * RATE // CONFIG.model.fps for n in (chunk, chunk + 1))
            os.write(self.sound, SOUND[start:end].tobytes())
            os.write(self.actions, action(chunk).encode())

    def open(self, state: Cut | None, journal: Journal | None, ends: LiveEnds | None) -> Conditioning:
        stream = replace(CONFIG.stream, chunks=None if self.kind == "recorded" else CHUNKS)
        return Conditioning(
            CONFIG.model, stream, self.source, ENCODERS, self.stdin, Stop(), state, self.sink, None, journal, ends
        )

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
                self.feed(chunk)
                cuts[chunk] = Cut(chunk, conditioning.progress(chunk))
                made = made_with(conditioning, chunk)
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
            assert conditioning.replay.next == turn.at
            for before in range(turn.at + 1):  # and one that was heard, and not sampled
                self.order(conditioning, before)
        conditioning.close()
        return found

    def order(self, conditioning: Conditioning, chunk: int) -> None:
        if chunk in self.prompts:
            conditioning.prompts.steer(self.prompts[chunk], 0.0, 10 + chunk)

    def close(self) -> None:
        if self.kind == "live":
            os.close(self.sound)
        self._rest.close()


def frames(chunk: int) -> int:
    """Video frames before a chunk."""
    return frames_of(CONFIG.model, chunk)[0]


def action(chunk: int) -> str:
    """Lines that are seen by the end of a chunk: one inside of it, one that holds from the next on."""
    lines = [(frames(chunk) + 2, NAMES[chunk % 5]), (frames(chunk + 1), NAMES[(chunk * 3 + 1) % 5])]
    return "".join(json.dumps({"frame": frame, "action": name}) + "\n" for frame, name in lines)


def made_with(conditioning: Conditioning, chunk: int):
    made = conditioning.chunk(chunk)
    if made is None:
        return None
    epoch = conditioning.epoch(chunk)
    texts = {one.name: conditioning.encoding.state(one, epoch) for one in on(conditioning.inputs, Axis.EPOCH)}
    sound = torch.from_numpy(conditioning.samples(chunk).copy())
    return {**made, **texts, "sound": sound, "x": conditioning.noise(chunk, 0), "new": torch.tensor(epoch == chunk)}


def equal(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize(("kind", "examples"), [("live", 20), ("files", 10), ("recorded", 10)])
def test_chunks_are_made_with_what_they_were_made_with(tmp_path_factory, kind, examples):
    @settings(max_examples=examples, deadline=None)
    @given(turns(), PROMPTS)
    def check(happens, prompts):
        folder = tmp_path_factory.mktemp(kind)
        alone, turned = (folder / name for name in ("alone", "turned"))
        found = []
        for name, what in ((alone, []), (turned, happens)):
            name.mkdir()
            world = World(name, kind, prompts)
            found.append(world.play(what, journaled=name is turned))
            world.close()
        assert len(found[0]) == len(found[1]) == CHUNKS
        assert all(equal(a, b) for a, b in zip(*found, strict=True))
        assert (turned / "inputs").read_bytes() == (alone / "inputs").read_bytes()

    check()


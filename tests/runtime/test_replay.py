"""A stream that is opened again, anywhere and by anyone, is sampled as if nothing had happened."""

from __future__ import annotations

import json
import os
import threading
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.conditioning import Conditioning
from runtime.encoders import Encoders, frames_of
from runtime.ends import LiveEnds
from runtime.journal import Journal
from runtime.prompts import Prompts
from stages.inputs import Axis, on
from stages.sources.audio import RATE
from stages.sources.live import Stop, Turned
from tests.helpers import config_of, write_wav
from tests.runtime.replaying import CHUNKS, Around, Cut, equal, turns

CONFIG = config_of(
    "model=nano", "stream.prompt=hello", "stream.events=[{chunk: 3, prompt: planned}]", "source.pace=free"
)
ENCODERS = Encoders(CONFIG.model, torch.device("cpu"))
SOUND = np.random.default_rng(1).integers(-9000, 9000, 20 * RATE).astype("<i2")
NAMES = ("none", "forward", "back", "left", "right")


PROMPTS = st.dictionaries(st.integers(0, CHUNKS - 1), st.sampled_from(["a dog", "night", "rain"]), max_size=3)


class World(Around):
    """What is around a stream, and outlives its processes: pipes or files, orders, the folder of cuts.

    Args:
        folder: empty.
        kind: `live`, `files` or `recorded`.
        prompts: ordered before each chunk.
    """

    def __init__(self, folder: Path, kind: str, prompts: dict[int, str]):
        self.folder, self.kind, self.prompts = folder, kind, prompts
        self.sink = replace(CONFIG.sink, video=None, inputs=str(folder / "inputs"))
        self.stdin, self.fed, self._rest, self.chunks = None, 0, ExitStack(), CHUNKS
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

    def feed(self, chunk: int, conditioning: Conditioning | None = None) -> None:
        if self.kind == "live" and chunk == self.fed:
            self.fed += 1
            start, end = (frames(n) * RATE // CONFIG.model.fps for n in (chunk, chunk + 1))
            os.write(self.sound, SOUND[start:end].tobytes())
            os.write(self.actions, action(chunk).encode())

    def open(
        self, state: Cut | None, journal: Journal | None, ends: LiveEnds | None, stop: Stop | None = None, prompts=None
    ) -> Conditioning:
        stream = replace(CONFIG.stream, chunks=None if self.kind == "recorded" else self.chunks)
        return Conditioning(
            CONFIG.model,
            stream,
            self.source,
            ENCODERS,
            self.stdin,
            stop or Stop(),
            state,
            self.sink,
            prompts,
            journal,
            ends,
        )

    def made(self, conditioning: Conditioning, chunk: int) -> dict | None:
        return made_with(conditioning, chunk)

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


@pytest.mark.parametrize(("kind", "examples"), [("live", 20), ("files", 10), ("recorded", 10)])
def test_chunks_are_made_with_what_they_were_made_with(tmp_path_factory, kind, examples):
    @settings(max_examples=examples)
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


PARTS = [(0, 0), (4001, 0), (1.0, 0), (1.0, 30), (1.0, 1.0)]
"""Of what a chunk needs, the bytes of sound and of actions that have come when the run turns; 1.0: all, and the run
turns when they have been taken."""


@pytest.mark.parametrize("parts", PARTS)
@pytest.mark.parametrize("cut", [None, 2, 3])
def test_a_pipe_loses_nothing_where_a_chunk_is_given_up_half_way(tmp_path, parts, cut):
    (alone := tmp_path / "alone").mkdir()
    (turned := tmp_path / "turned").mkdir()
    world = World(alone, "live", {})
    expected = world.play([])
    world.close()
    world, ends, at = World(turned, "live", {}), LiveEnds(), 3
    conditioning = world.open(None, Journal(turned / "cuts"), ends)
    state = None
    for chunk in range(at):
        state = Cut(chunk, conditioning.progress(chunk)) if chunk == cut else state
        world.feed(chunk)
        assert equal(made_with(conditioning, chunk), expected[chunk])
    state = Cut(at, conditioning.progress(at)) if at == cut else state
    start, end = (frames(n) * RATE // CONFIG.model.fps for n in (at, at + 1))
    sound, actions = SOUND[start:end].tobytes(), action(at).encode()
    count, counted = (len(all) if part == 1.0 else part for part, all in zip(parts, (sound, actions), strict=True))
    os.write(world.sound, sound[:count])
    os.write(world.actions, actions[:counted])
    sampler = threading.Thread(target=give_up, args=(conditioning, at, given_up := []))
    if parts == (1.0, 1.0):
        conditioning.sound.hear = lambda end_frame: conditioning.stop.turn()
        sampler.start()
    else:
        sampler.start()
        conditioning.stop.turn()
    sampler.join()
    conditioning.turn()
    assert given_up == [at] and Journal(turned / "cuts").lines(at) == []
    os.write(world.sound, sound[count:])
    os.write(world.actions, actions[counted:])
    world.fed = at + 1
    conditioning = world.open(state, Journal(turned / "cuts"), ends)
    for chunk in range(cut or 0, CHUNKS):
        world.feed(chunk)
        assert equal(made_with(conditioning, chunk), expected[chunk])
    assert conditioning.chunk(CHUNKS) is None
    conditioning.ended(CHUNKS)
    conditioning.close()
    world.close()
    assert not ends.opened
    assert (turned / "inputs").read_bytes() == (alone / "inputs").read_bytes()


def give_up(conditioning: Conditioning, chunk: int, given_up: list[int]) -> None:
    """Sample a chunk; the run turns meanwhile."""
    try:
        conditioning.chunk(chunk)
    except Turned:
        given_up.append(chunk)


@pytest.mark.parametrize("survives", [True, False])
@pytest.mark.parametrize("ended", ["by itself", "stopped"])
def test_a_stream_that_had_ended_ends_there_again(tmp_path, survives, ended):
    """Its pipes are gone: neither opened nor read again."""
    world, ends = World(tmp_path, "live", {}), LiveEnds()
    world.chunks = None
    conditioning, made = world.open(None, Journal(tmp_path / "cuts"), ends), []
    for chunk in range(3):
        world.feed(chunk)
        made.append(made_with(conditioning, chunk))
    if ended == "stopped":
        conditioning.stop.set()
    else:
        os.close(world.sound)
        os.close(world.actions)
        made.append(made_with(conditioning, 3))
        # What is held of actions that were to come is shown yet; then both have ended.
        while made[-1] is not None:
            made.append(made_with(conditioning, len(made)))
        made.pop()
    finished = conditioning.finished(len(made))
    assert conditioning.chunk(len(made)) is None and finished == (ended == "by itself")
    conditioning.ended(len(made))
    conditioning.turn() if survives else conditioning.close()
    (tmp_path / "actions").unlink()
    again = world.open(None, Journal(tmp_path / "cuts"), ends)
    for chunk, expected in enumerate(made):
        assert not again.hold(chunk)
        assert equal(made_with(again, chunk), expected)
    assert again.chunk(len(made)) is None and again.finished(len(made)) == finished
    again.ended(len(made))
    again.close()


def test_orders_that_a_sampled_chunk_shows_change_nothing_and_others_do(tmp_path):
    def opened():
        return Conditioning(CONFIG.model, CONFIG.stream, CONFIG.source, ENCODERS, journal=Journal(tmp_path))

    def heard(conditioning, chunk, *orders):
        for prompt, number in orders:
            conditioning.prompts.steer(prompt, 0.0, number)
        conditioning.chunk(chunk)
        return conditioning.prompts.text(conditioning.prompts.epoch(chunk))

    first = opened()
    assert heard(first, 0) == "hello"
    assert heard(first, 1, ("dog", 4), ("cat", 5)) == "cat"
    state = Cut(2, first.progress(2))
    assert heard(first, 2, ("owl", 7)) == "owl"
    first.turn()
    prompts = Prompts(CONFIG.stream)
    for prompt, number in [("dog", 4), ("cat", 5), ("owl", 7)]:
        prompts.steer(prompt, 0.0, number)  # before its sources are open
    again = Conditioning(
        CONFIG.model, CONFIG.stream, CONFIG.source, ENCODERS, state=state, journal=Journal(tmp_path), prompts=prompts
    )
    assert heard(again, 2, ("owl", 7)) == "owl"
    assert heard(again, 3) == "planned"  # and not "owl" once more
    assert heard(again, 4, ("fox", 9)) == "fox"
    again.turn()
    # Of another run, whose orders have numbers of their own, the state's are forgotten.
    other = Conditioning(
        CONFIG.model, CONFIG.stream, CONFIG.source, ENCODERS, state=state, journal=Journal(tmp_path / "other")
    )
    assert heard(other, 2, ("elk", 0)) == "elk"

"""A session's source goes on where another stood, and where the same one stood a generation before."""

from __future__ import annotations

import io
import threading
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from runtime.conditioning import Conditioning
from runtime.encoders import Encoders
from runtime.ends import LiveEnds
from runtime.journal import Journal
from stages.sources.audio import RATE
from stages.sources.live import Stop, Turned
from tests.helpers import config_of
from tests.patience import PATIENT_S
from tests.runtime.replaying import Cut, equal
from tests.runtime.test_replay import made_with
from tests.serve.core_ends import End

CONFIG = config_of("model=nano", "stream.prompt=hello", "sink.video=null", "source.pace=free")
ENCODERS = Encoders(CONFIG.model, torch.device("cpu"))
PNG = io.BytesIO()
Image.new("RGB", (4, 4), (200, 20, 90)).save(PNG, "PNG")
PICTURE = PNG.getvalue()


class Person:
    """Says something before each chunk."""

    def __init__(self, end: End):
        self.end, self._at = end, 0

    def speak(self, conditioning: Conditioning, chunk: int) -> None:
        """All of it has come when this returns."""
        rng = np.random.default_rng(chunk)
        pcm = rng.integers(-9000, 9000, 12 * RATE // 16).astype("<i2").tobytes()
        self.end.say("sound", pcm, at=chunk * 12 * RATE // 16)
        if chunk % 2:
            self.act(f"p{chunk}", type="prompt", prompt=f"a dog {chunk}")
        self.act(f"a{chunk}", type="action", action=("left", "right", "forward")[chunk % 3])
        taken(conditioning, self.end)

    def act(self, id: str | None, **event) -> None:
        self.end.say("event", id=id, event=event)


def taken(conditioning: Conditioning, end: End) -> None:
    """Messages are in order: what was said so far has come when this has."""
    came = threading.Event()
    session = conditioning.sources.session
    before, session._slack = session._slack, lambda *_: came.set()
    end.say("slack", seconds=0.5, late_s=0.0)
    assert came.wait(PATIENT_S)
    session._slack = before


def opened(end: End, folder, ends: LiveEnds | None, state: Cut | None = None) -> Conditioning:
    return Conditioning(
        CONFIG.model, CONFIG.stream, replace(CONFIG.source, session=end.address), ENCODERS, None, Stop(), state,
        journal=Journal(folder), ends=ends,
    )  # fmt: skip


def sample(conditioning: Conditioning, person: Person, chunks: range) -> tuple[list, list]:
    """Chunks, and what the gateway is told of them."""
    made, told = [], []
    for chunk in chunks:
        person.speak(conditioning, chunk)
        made.append(made_with(conditioning, chunk))
        told.append(person.end.hear("sampled")[0])
    return made, told


@pytest.mark.parametrize("cut", [None, 2])
def test_a_new_source_tells_what_it_knows_and_is_told_what_is_held(tmp_path, cut):
    ends = LiveEnds()
    with End(("hello", PICTURE)) as end:
        first = opened(end, tmp_path, ends)
        made, told = sample(first, Person(end), range(2))
        state = Cut(2, first.progress(2)) if cut else None
        more, told_more = sample(first, Person(end), range(2, 4))
        made, told, reference = made + more, told + told_more, first.sink()["reference"]
        first.stop.turn()
        first.turn()
        ends.leave()
        assert end.hear() is None  # gone without a word
    with End(("hello", PICTURE)) as end:
        again = opened(end, tmp_path, LiveEnds(), state)
        said = end.hear()[0]
        assert {**said, "bytes": 0} == {
            "kind": "resume", "bytes": 0, "chunk": 4,
            "sampled": [[one["chunk"], one["events"], None] for one in told if one["chunk"] >= (cut or 0)],
        }  # fmt: skip
        if not cut:
            assert torch.equal(again.sink()["reference"], reference)
        for chunk in range(cut or 0, 4):
            assert equal(made_with(again, chunk), made[chunk])
        held = again.actions.source.take(0, 1)
        Person(end).act("lost", type="prompt", prompt="an owl")
        Person(end).act(None, type="action", action="back")
        taken(again, end)
        assert again.chunk(4) is not None
        assert end.hear("sampled")[0]["events"] == ["lost"]  # what has no id is not told, nor are chunks sampled again
        assert again.accepted(4, 7.0) is not None and again.actions.accepted is None
        assert again.prompts.text(again.prompts.epoch(4)) == "an owl"
        assert held == [3] and again.actions.source.take(0, 1) == [2]
        again.close()
        assert end.hear()[0]["kind"] == "end"


def test_one_that_is_kept_goes_on_and_what_was_heard_meanwhile_is_not(tmp_path):
    ends = LiveEnds()
    with End(("hello", PICTURE)) as end:
        first, person = opened(end, tmp_path, ends), Person(end)
        made, _ = sample(first, person, range(3))
        person.act("k3", type="action", action="back")
        person.act("p3", type="prompt", prompt="an owl")
        taken(first, end)
        first.stop.turn()
        with pytest.raises(Turned):
            first.chunk(3)
        first.turn()
        for _ in range(8):
            end.say("sound", b"\x01\x00" * (RATE // 2), at=10 * RATE)
        again = opened(end, tmp_path, ends)
        taken(again, end)
        for chunk in range(3):
            assert equal(made_with(again, chunk), made[chunk])
        assert made_with(again, 3) is not None
        assert end.hear()[0]["events"] == ["k3", "p3"]
        assert again.prompts.text(again.prompts.epoch(3)) == "an owl"
        assert again.sources.session._microphone.silent == first.sources.session._microphone.silent
        assert again.sink().keys() == {"reference"}
        end.close()
        assert again.stop.wait(PATIENT_S)  # the stream as it is now is ended
        again.close()


def test_a_gateway_that_goes_between_two_generations_ends_the_next(tmp_path):
    ends = LiveEnds()
    with End() as end:
        first = opened(end, tmp_path, ends)
        first.stop.turn()
        first.turn()
        end.leave()
        first.sources.session._thread.join(PATIENT_S)
        again = opened(end, tmp_path, ends)
        assert again.stop.is_set() and again.chunk(0) is None
        again.close()

"""Whether people should be sent here."""

from __future__ import annotations

import pytest

from conf.schema.serve import ServeConfig
from serve.admission import Admission
from serve.readiness import FOLLOWING, reasons

CHUNK_S = 1.0
LIMIT_S = 8.0


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


class Model:
    """A model whose workers last did something at moments that the test sets."""

    def __init__(self, clock: Clock, name: str = "one", workers: int = 2):
        self.clock, self.name, self.offer, self.lost = clock, name, {"chunk_s": CHUNK_S}, None
        self.frozen: str | None = None
        self.moved = [clock.now] * workers
        self.told = [{"alive": True, "loaded": True, "lost": None, "at": "decode of chunk 7"} for _ in range(workers)]

    def health(self) -> list[dict]:
        return [
            told | {"worker": str(i), "at_s": 0.0, "moved_s": self.clock.now - moved}
            for i, (told, moved) in enumerate(zip(self.told, self.moved, strict=True))
        ]


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def gate(clock):
    found = Admission(ServeConfig(), clock)
    found.model("one", 9.0)
    return found


def test_a_model_that_rests_is_ready_however_long(clock, gate):
    model = Model(clock)
    clock.now += 10_000
    assert reasons([model], {}, gate, clock) == []
    gate.enter("one", "x")
    assert reasons([model], {}, gate, clock) == [], "its work has just come"


def test_a_worker_that_is_stuck_is_found(clock, gate):
    model, place = Model(clock), gate.enter("one", "x")
    for _ in range(100):
        clock.now += CHUNK_S
        model.moved = [clock.now] * 2
        assert reasons([model], {}, gate, clock) == []
    for _ in range(round(LIMIT_S / CHUNK_S)):
        clock.now += CHUNK_S
        model.moved[0] = clock.now
        assert reasons([model], {}, gate, clock) == []
    clock.now += CHUNK_S
    stuck = ["one: worker 1 is stuck: nothing has moved for 9 s, at decode of chunk 7"]
    assert reasons([model], {}, gate, clock) == stuck
    model.moved[1] = clock.now
    assert reasons([model], {}, gate, clock) == []
    clock.now += 100
    place.leave()
    assert reasons([model], {}, gate, clock) == [], "nobody waits for it"


def test_who_shares_the_passes_of_a_worker_is_not_asked_to_move(clock, gate):
    model = Model(clock)
    gate.enter("one", "x")
    clock.now += 100
    model.moved[0], model.told[1]["at"] = clock.now, FOLLOWING
    assert reasons([model], {}, gate, clock) == []


@pytest.mark.parametrize(
    ("told", "said"),
    [
        ({"loaded": False, "at": "loading weights"}, "one: worker 1 has not loaded yet (loading weights)"),
        ({"alive": False}, "one: worker 1 is not heard of"),
        ({"alive": False, "lost": "by SIGKILL"}, "one: worker 1 is lost (by SIGKILL)"),
    ],
)
def test_a_worker_that_is_not_there(clock, gate, told, said):
    model, other = Model(clock), Model(clock, "two")
    model.told[1] |= told
    assert reasons([other, model], {}, gate, clock) == [said]


def test_a_pipeline_that_is_gone(clock, gate):
    model = Model(clock)
    model.lost = "worker 0 is lost"
    assert reasons([model], {}, gate, clock) == ["one: the pipeline is gone (worker 0 is lost)"]
    model.lost, model.health = None, lambda: (_ for _ in ()).throw(RuntimeError("the store"))
    assert reasons([model], {}, gate, clock) == ["one: its workers cannot be asked"]


def test_a_server_that_ends_or_serves_nothing(clock, gate):
    gate.draining = True
    assert reasons([Model(clock)], {}, gate, clock) == ["the server is ending"]
    gate.draining = False
    assert reasons([], {}, gate, clock) == ["no model is served"]


def test_models_that_are_to_come_are_named(clock, gate):
    coming = {"two": "loading", "three": "measuring"}
    assert reasons([Model(clock)], coming, gate, clock) == ["loading two", "measuring three"]
    assert reasons([], {"two": "loading"}, gate, clock) == ["loading two"]

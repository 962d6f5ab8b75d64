"""What a model's pipeline takes, by a pipeline whose speed the test knows."""

from __future__ import annotations

import asyncio
import os
from contextlib import suppress

import pytest
import torch.distributed as dist

from conf.errors import UserError
from launch.control import open_stream
from launch.planning import resolve
from launch.running import start
from parallel.builders import build
from runtime.board import Board
from runtime.offer import offer_of
from runtime.orders import host
from runtime.pulse import key
from runtime.workload import describe
from serve.capacity import CHUNKS, CHUNKS_AFAR, ENDLESS, LONGEST_S, measured, measured_afar, memory_of
from serve.resources import Memory, Needs, held
from tests.helpers import config_of


class Emulated:
    """A pipeline in virtual time.

    Args:
        rates: seconds of video a second that all streams together come to, by how many they are.
        free: bytes for streams in this host's memory, of which each needs one.
        memory: of the workers; None: this host's.
    """

    def __init__(self, rates, workers=1, free=10, cores=0.5, memory=None, fails=None, chunk_s=0.5):
        self.config = resolve(config_of("model=nano", "device=emulated", f"plan.workers={workers}", "plan=timestep"))
        self.plan, self.board = build(self.config.plan, describe(self.config)), Board(dist.HashStore(), -1, workers)
        self.running, self.pipeline, self.fails = self, self, fails
        self.rates, self.cores, self.chunk_s, self.now = rates, cores, chunk_s, 0.0
        self.live, self.stopped, self.opened, self.cancelled = {}, {}, [], []
        for worker in range(workers):
            room = {"stream_bytes": 1, "pooled": 0, "memory": memory or host(), "free_bytes": free}
            self.board.tell(f"room/{worker}", room)

    async def open(self, name, changes):
        self.opened.append((name, changes))
        self.live[len(self.opened)] = self.now
        return len(self.opened)

    async def sleep(self, seconds):
        self.now += seconds
        for process in range(self.plan.workers):
            cost = {"process": f"p{process}", "cpu_s": self.now * self.cores / self.plan.workers, "now_s": self.now}
            self.board.tell(key(process), cost)

    def _made(self, number):
        return (self.now - self.live[number]) * self.rates[len(self.live)] / len(self.live)

    def progress(self, number):
        return {"chunks": int(self._made(number) / self.chunk_s)}

    def ended(self, number):
        return number not in self.live

    def stop(self, number):
        self.stopped[number] = self._made(number)

    def result(self, number, timeout_s):
        if self.fails:
            raise self.fails
        assert self.stopped[number] >= CHUNKS * self.chunk_s
        del self.live[number]
        together = len(self.stopped)
        if not self.live:
            self.stopped.clear()
        return {"realtime_factor": self.rates[together] / together}

    def cancel(self, number):
        self.cancelled.append(number)


def measure(emulated: Emulated) -> Needs:
    return asyncio.run(measured(emulated, emulated.sleep))


def test_the_rate_is_how_many_streams_it_keeps_in_time():
    found = measure(Emulated({1: 4.0}))
    assert (found.rate, found.shares) == (4.0, {"cores": pytest.approx(0.5 / 4)})
    assert (found.memory, found.most) == ([Memory(host(), 1, 0, 10)], 64)


def test_a_plan_of_several_workers_is_filled():
    found = measure(Emulated({1: 1.5, 4: 3.6}, workers=3, free=30, cores=1.8))
    assert (found.rate, found.shares) == (pytest.approx(3.6), {"cores": pytest.approx(0.5)})


def test_as_far_as_memory_goes():
    emulated = Emulated({1: 1.5, 2: 2.4}, workers=3, free=6)
    assert measure(emulated).rate == pytest.approx(2.4) and len(emulated.opened) == 3


def test_it_is_silence_that_nobody_sees_and_no_clock_holds_back():
    emulated = Emulated({1: 4.0})
    measure(emulated)
    ((_, changes),) = emulated.opened
    unheard = dict.fromkeys(("audio", "actions", "camera", "inputs", "session"))
    assert changes["source"] == unheard | {"pace": "free"}
    assert changes["sink"]["session"] is None


def test_a_slow_pipeline_is_given_time():
    assert measure(Emulated({1: 0.2})).rate == pytest.approx(0.2)


def test_who_computes_on_a_card_fills_that_and_takes_no_processors_here():
    assert measure(Emulated({1: 4.0}, memory="elsewhere/0")).shares == {"cores": 0.0, "elsewhere/0": 0.25}


def test_memory_is_counted_for_all_workers_that_share_it():
    for workers, free, sessions in ((1, 10, 10), (3, 10, 3), (1, 10**6, 64)):
        assert held(memory_of(Emulated({1: 1.0}, workers, free)), 64) == sessions


class Afar:
    """A pipeline that has joined, in virtual time, and tells once a second how far its streams are.

    Args:
        rates: as of `Emulated`.
        room: bytes for streams, of which each needs one.
        fails: what the first stream ends with.
    """

    name, fps, chunk_s, lost = "afar", 16.0, 0.75, None
    offer = {"sees": False}

    def __init__(self, rates, workers=1, room=64, memory="there/card", fails=None):
        self.rates, self.workers, self.most, self.fails = rates, workers, 64, fails
        self.memory = [Memory(memory, 1, 0, room)]
        self.now, self.live, self.opened, self.told = 0.0, {}, [], {}

    async def open(self, name, changes):
        self.opened.append((name, changes))
        self.live[len(self.opened)] = self.now
        return len(self.opened)

    async def cancel(self, number):
        if self.live.pop(number, None) is not None:
            self.on_ended(number, {})

    def progress(self, number):
        return self.told.get(number)

    async def sleep(self, seconds):
        self.now += seconds
        if self.fails:
            number, self.fails = next(iter(self.live)), None
            del self.live[number]
            self.on_ended(number, {"error": {"line": "step1 broke"}})
        if self.now % 1 == 0:
            each = self.rates[len(self.live)] / max(1, len(self.live)) if self.live else 0
            for number, since in self.live.items():
                chunks = int((self.now - since) * each / self.chunk_s)
                fps = each * self.fps if chunks else 0.0
                self.told[number] = {"chunks": chunks, "fps": self.fps, "fps_now": fps} if chunks else None


def measure_afar(afar: Afar, cores: float = 2.0) -> Needs:
    return asyncio.run(measured_afar(afar, cores, afar.sleep))


def test_a_pipeline_that_has_joined_is_measured_alone_and_filled():
    afar = Afar({1: 4.0, 4: 6.0}, workers=3)
    assert measure_afar(afar) == Needs(6.0, {"cores": 0.0, "there/card": 1 / 6}, afar.memory, 64)
    assert len(afar.opened) == 5 and not afar.live
    assert all(changes["chunks"] == ENDLESS for _, changes in afar.opened)


@pytest.mark.parametrize("rate", [1.2, 0.3])
def test_one_that_is_hardly_faster_than_real_time_is_judged_by_what_it_makes(rate):
    """Workers + 1 streams of enough chunks would take it minutes."""
    afar = Afar({1: rate, 6: rate}, workers=5)
    assert 6 * CHUNKS_AFAR * afar.chunk_s / rate > LONGEST_S
    assert measure_afar(afar).rate == pytest.approx(rate)
    assert not afar.live and afar.now < 3 * LONGEST_S


def test_no_more_are_opened_there_than_its_memory_holds():
    afar = Afar({1: 4.0, 2: 5.0}, workers=5, room=2)
    assert measure_afar(afar).rate == 5.0 and len(afar.opened) == 3


def test_one_that_computes_on_this_hosts_processors_is_taken_to_fill_them():
    afar = Afar({1: 4.0}, memory=host())
    assert measure_afar(afar, cores=2.0).shares == {"cores": 0.5}


@pytest.mark.parametrize(
    ("afar", "why"), [(Afar({1: 1e-9}), "nothing within"), (Afar({1: 4.0}, fails=1), "step1 broke")]
)
def test_one_that_makes_nothing_says_so_and_nothing_goes_on_there(afar, why):
    with pytest.raises(RuntimeError, match=why):
        measure_afar(afar)
    assert not afar.live


@pytest.mark.parametrize("error", [UserError("source.image", "is missing", "give one"), OSError("gone")])
def test_a_pipeline_that_cannot_says_why_and_leaves_nothing_behind(error):
    emulated = Emulated({1: 4.0}, fails=error)
    with pytest.raises(UserError if isinstance(error, UserError) else RuntimeError, match=r"missing|gone"):
        measure(emulated)
    assert emulated.cancelled == [1]


@pytest.mark.long
def test_a_real_pipeline():
    """Its passes take a known time, so it is no faster than they are."""
    config = resolve(config_of("model=nano", "device=emulated", "device.emulated.step_s=0.02", "launcher.threads=true"))

    class Held:
        def __init__(self):
            self.config, self.running = config, start(config, begin=lambda: None)

        async def open(self, name, changes):
            return await asyncio.to_thread(open_stream, self.running.pipeline, config, name, changes)

    served = Held()
    with served.running:
        while not served.running.begun:
            with suppress(TimeoutError):
                served.running.wait(0.05)
        found = asyncio.run(measured(served))
        assert not served.running.pipeline.streams
    steps = served.running.plan.workload.steps
    assert 0 < found.rate <= offer_of(config)["chunk_s"] / (steps * 0.02)
    assert 0 < found.shares["cores"] * found.rate < os.cpu_count() and held(found.memory, found.most) > 0

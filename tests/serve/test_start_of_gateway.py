"""A gateway that starts: what it says while models load and are measured, and how it is told to end meanwhile."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import pytest

from conf.schema.serve import ServeConfig
from launch.serve import Said, load
from runtime.admission import Full
from runtime.board import PeerLost
from serve import capacity, served
from serve.problems import Problem
from serve.resources import Needs
from tests.serve.core_time import settle, virtually
from tests.serve.test_core_gateway import house


class Starting:
    """Workers that load when a test says so."""

    def __init__(self):
        self.begun, self.lost = False, None

    def wait(self, seconds: float) -> None:
        if self.lost:
            raise self.lost
        raise TimeoutError


class Hold:
    """Stands for `serve.served.Held`."""

    made: list[Hold]

    def __init__(self, config, running, open_stream):
        self.name, self.offer, self.lost = config.model.name, {"id": config.model.name, "chunk_s": 0.75}, None
        self.frozen, self.recovers = None, False
        self.closed = False
        Hold.made.append(self)

    def health(self) -> list[dict]:
        return []

    async def close(self) -> None:
        self.closed = True


@pytest.fixture
def parts(monkeypatch):
    """(configurations, what is started, an event on which measuring waits)."""

    async def at_once(work, *arguments):
        await asyncio.sleep(0.1)
        return work(*arguments)

    async def measured(held) -> Needs:
        await let.wait()
        return Needs(8.0)

    let = asyncio.Event()
    monkeypatch.setattr(asyncio, "to_thread", at_once)
    monkeypatch.setattr(capacity, "measured", measured)
    monkeypatch.setattr(served, "Held", Hold)
    Hold.made = []
    configs = [SimpleNamespace(model=SimpleNamespace(name=name)) for name in ("one", "two")]
    return configs, [Starting(), Starting()], let


def without_models(one) -> None:
    one.gateway.served.clear()


def test_who_comes_while_models_load_is_told_so(parts):
    configs, started, let = parts

    @virtually
    async def work():
        async with house() as one:
            without_models(one)
            loading = asyncio.ensure_future(load(one.gateway, configs, started))
            await asyncio.sleep(1)
            assert one.gateway.reasons() == ["loading one", "loading two"]
            assert one.gateway.offers() == []
            with pytest.raises(Problem) as caught:
                await one.gateway.create({}, "x")
            assert caught.value.type == "not_ready" and caught.value.detail == "loading one, loading two; come again"
            for each in started:
                each.begun = True
            await asyncio.sleep(1)
            assert one.gateway.reasons() == ["measuring one", "measuring two"]
            assert one.gateway.offers() == [], "nobody is let in while others are measured"
            let.set()
            await loading
            assert one.gateway.reasons() == [] and [offer["id"] for offer in one.gateway.offers()] == ["one", "two"]

    work()


@pytest.mark.parametrize("when", ["loading", "measuring"])
def test_it_is_told_to_end_meanwhile_and_lets_go(parts, when):
    configs, started, _ = parts

    @virtually
    async def work():
        async with house() as one:
            without_models(one)
            for each in started:
                each.begun = when == "measuring"
            loading = asyncio.ensure_future(load(one.gateway, configs, started))
            await asyncio.sleep(1)
            loading.cancel()
            await asyncio.wait([loading])
            assert loading.cancelled() and one.gateway.coming == {} == one.gateway.served
            assert len(Hold.made) == (when == "measuring") and all(each.closed for each in Hold.made)

    work()


def test_a_model_that_is_lost_while_it_loads_is_told(parts):
    configs, started, _ = parts

    @virtually
    async def work():
        async with house() as one:
            started[0].lost = PeerLost("worker 1 is lost")
            with pytest.raises(PeerLost, match="worker 1 is lost"):
                await load(one.gateway, configs, started)

    work()


def test_the_address_is_said_once_all_models_are_there(capsys):
    @virtually
    async def work():
        async with house() as one:
            told = Said(one.gateway, ServeConfig(), 2)
            told.listening(SimpleNamespace(address="http://here", fingerprint=None))
            one.gateway.on_served("maze")
            assert capsys.readouterr().out == "maze: 1 session at once\n"
            one.gateway.on_served("head")
            one.gateway.on_served("maze")  # it was gone, and has joined again
            said = capsys.readouterr().out.splitlines()
            assert said == ["head: 1 session at once", "open http://here", "maze: 1 session at once"]

    work()


@virtually
async def test_who_finds_no_room_in_memory_may_come_again():
    async with house(2) as one:
        one.models["maze"].refuses = Full("stream.id=a", "worker 0 lacks 5 bytes", "wait")
        with pytest.raises(Problem) as caught:
            await one.open()
        assert (caught.value.type, caught.value.status) == ("full", 503) and caught.value.retry_after_s >= 1
        assert "worker" not in caught.value.detail
        await settle()
        assert one.nothing_is_left()


@virtually
async def test_a_pipeline_that_cannot_be_served_is_told_to_leave():
    async with house() as one:
        joined = SimpleNamespace(
            name="far", offer={"sees": False}, memory=[], most=4, workers=1, lost="it has gone", closed=False
        )

        async def opens(name, changes):
            raise RuntimeError("it has gone")

        async def closes():
            joined.closed = True

        joined.open, joined.close = opens, closes
        one.gateway.join(joined)
        await settle()
        assert joined.closed and "far" not in one.gateway.served and one.gateway.coming == {}

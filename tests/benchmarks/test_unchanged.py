"""The comparison of hashes: equal ones pass, and one that changed is seen until it is kept."""

import json
from functools import cache

import pytest

from benchmarks import unchanged


@pytest.fixture
def seed(job, monkeypatch):
    """seed(number): from now on one model is run with it, under two plans in this process, each of them once."""

    @cache
    def run(launcher, workers, *overrides):
        return job(*overrides, *(() if launcher == "sequential" else (f"plan.workers={workers}",)))

    def choose(number: int) -> None:
        monkeypatch.setattr(unchanged, "MODELS", {"nano": ("model=nano", f"stream.seed={number}")})

    monkeypatch.setattr(unchanged, "run", lambda launcher, workers, folder, *o: run(launcher, workers, *o))
    monkeypatch.setattr(unchanged, "BASE", ("sink.video=null", "stream.chunks=2"))
    monkeypatch.setattr(unchanged, "PLANS", {name: unchanged.PLANS[name] for name in ("sequential", "layers")})
    choose(0)
    return choose


def test_a_changed_hash_is_seen_until_it_is_kept(seed, tmp_path):
    results = tmp_path / "results"

    def reference() -> dict:
        return json.loads((results / "unchanged.json").read_text())["measured"]["reference"]

    assert unchanged.main(results=results)  # nothing is recorded yet
    first = reference()
    assert unchanged.main(results=results)
    seed(1)
    assert not unchanged.main(results=results)
    assert not unchanged.main(results=results)
    assert reference() == first
    assert unchanged.main(keep=True, results=results)
    assert unchanged.main(results=results)
    assert reference()["hashes"] != first["hashes"]


def test_a_plan_must_give_the_oracles_whatever_is_recorded():
    found = {"nano": {"sequential": "a" * 64, "layers": "b" * 64}}
    assert [b["passed"] for b in unchanged.compare(found, found).values()] == [True, False]


def test_a_hash_that_is_not_recorded_is_a_difference():
    found = {"nano": {"sequential": "a" * 64}}
    assert [b["passed"] for b in unchanged.compare(found, {}).values()] == [False]

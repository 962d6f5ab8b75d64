"""By which way bodies travel: one rule, the same at both ends, and what a plan's communicators are."""

from __future__ import annotations

from itertools import permutations

import pytest
import torch
from torch.distributed import HashStore

import devices
from conf.errors import UserError
from conf.schema import LauncherConfig, PlanConfig
from parallel.builders import build
from parallel.plan import Plan, Workload
from parallel.transport import LARGE, Place, bodies, by_nccl, communicators, refuse, told_places
from runtime.board import Board
from runtime.network import agree

A, B, C = (Place(card, "2.27.5") for card in "ABC")
PROCESSOR, OLDER, AMD, BARE = Place(), Place("D", "2.21.5"), Place("E", "RCCL 2.27.5"), Place("F")
HUGE = 32 << 20


@pytest.mark.parametrize(
    ("transport", "places", "size", "expected"),
    [
        ("auto", (A, B), HUGE, True),
        ("auto", (A, B), LARGE, False),
        ("auto", (A, B), 400_000, False),
        ("nccl", (A, B), 400_000, True),
        ("nccl", (A, B), 0, False),
        ("host", (A, B), HUGE, False),
        ("host", (A, B), float("inf"), False),
        ("auto", (A, A), HUGE, False),
        ("auto", (A, PROCESSOR), HUGE, False),
        ("auto", (PROCESSOR, PROCESSOR), HUGE, False),
        ("auto", (A, OLDER), HUGE, False),
        ("auto", (A, AMD), HUGE, False),
        ("auto", (BARE, BARE._replace(card="G")), HUGE, False),
        ("auto", (A, B, C), HUGE, True),
        ("auto", (A, B, A), HUGE, False),
    ],
)
def test_both_ends_choose_the_same_way(transport, places, size, expected):
    assert {by_nccl(transport, each, size) for each in permutations(places)} == {expected}


def test_the_processor_is_no_card():
    assert Place.of(devices.of("cpu")) == PROCESSOR


def test_places_are_told_over_the_store_as_they_are():
    store = HashStore()
    store.set("place/1", '["B", "2.27.5"]')
    assert told_places(store, 0, 2, A) == [A, B]


def plan(name: str, hidden: int = HUGE, **settings) -> Plan:
    return build(PlanConfig(name, **settings), Workload(4, 8, latent_bytes=400_000, hidden_bytes=hidden))


def cards(count: int, shared: int = 1) -> list[Place]:
    return [Place(str(process // shared), "2.27.5") for process in range(count)]


def made(plan: Plan, places: list[Place], transport: str = "auto") -> list[tuple[int, ...]]:
    return sorted(communicators(plan, transport, places))


def test_only_channels_with_large_bodies_have_communicators():
    steps, ring = plan("timestep", workers=5), plan("layers", workers=4, decode=0)
    assert made(steps, cards(5)) == []
    assert len(bodies(steps)) == len(steps.channels) > 5
    assert set(made(ring, cards(4))) == {(0, 1), (1, 2), (2, 3)}
    assert set(made(ring, cards(4), "nccl")) == {pair for pair, size in bodies(ring).items() if size}
    assert made(ring, cards(4), "host") == []


def test_workers_on_one_card_have_none_between_them():
    assert made(plan("layers", workers=4, decode=0), cards(4, shared=2)) == [(1, 2)]
    assert made(plan("layers", workers=4, decode=0), cards(4, shared=4)) == []


def test_processes_that_share_passes_have_one_together():
    shared = plan("layers", hidden=0, workers=4, sequence_parallel=2)
    assert made(shared, cards(4)) == [(0, 1), (2, 3)]
    assert made(shared, cards(4, shared=2)) == []


@pytest.mark.parametrize(
    ("places", "why"),
    [
        ([A, A, B, C], r"processes 0 and 1 are on one device \(A\)"),
        ([A, B, PROCESSOR, C], "processes 1 and 2 compute on the processor"),
        ([A, B, C, OLDER], "processes 2 and 3 have different libraries for it: 2.27.5 and 2.21.5"),
        ([BARE, *cards(3)], "processes 0 and 1 have different libraries for it: none and 2.27.5"),
    ],
)
def test_nccl_is_refused_where_it_cannot_go(places, why):
    with pytest.raises(UserError, match=rf"^launcher.transport=nccl: .*{why}.*; use launcher.transport=auto"):
        refuse(plan("layers", workers=4, decode=0), places)
    refuse(plan("layers", workers=4, decode=0), cards(4))


def test_what_shares_passes_is_refused_on_one_card():
    with pytest.raises(UserError, match="processes 0 and 1 are on one device"):
        refuse(plan("sequential", sequence_parallel=2), [A, A])


def test_nccl_is_refused_before_anything_loads():
    two, store = plan("layers", workers=2), HashStore()
    store.set("place/0", '["A", "2.27.5"]')
    with pytest.raises(UserError, match="processes 0 and 1 compute on the processor, or one of them does"):
        agree(two, 1, Board(store, 1, 2), torch.device("cpu"), 60.0)


def test_other_words_for_a_transport_are_refused():
    with pytest.raises(UserError, match=r"launcher\.transport"):
        LauncherConfig(transport="rdma")

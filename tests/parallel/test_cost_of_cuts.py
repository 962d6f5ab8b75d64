"""What cuts copy and keep, added up by hand."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conf.schema import PlanConfig
from conf.schema.cluster import ClusterConfig, DeviceGroup, DeviceKind, StageTimes
from parallel.builders import build
from parallel.cluster import Cluster, Subject
from parallel.cost import Costs
from parallel.cuts import MOST, Cuts, Logged, chunks, needs
from parallel.plan import Workload
from parallel.predict import Demand, predict

# Three frames of 10 bytes a chunk and a ring of twelve, with two frames of an attention sink.
FRAMES = (3, 6, 9, 12)
LOGGED = Logged(FRAMES, FRAMES, (10.0,) * 6, (0.0,) * 6, (140.0,) * 6, (0.0,) * 6, decoder=1000.0, entered=7.0)


def plan_of(config: PlanConfig, **changes):
    return build(config, Workload(**{"steps": 4, "layers": 6, "latent_bytes": 1, "hidden_bytes": 1} | changes))


def test_a_chunk_dirties_its_frames_of_every_bank_and_never_more_than_a_ring():
    plan = plan_of(PlanConfig("timestep"))
    assert [Cuts(plan, LOGGED, 1).dirty(worker) for worker in range(5)] == [6 * 3 * 10] * 4 + [1000]
    for every, frames in ((1, 3), (2, 6), (4, 12), (5, 12), (100, 12)):
        assert Cuts(plan, LOGGED, every).dirty(0) == 6 * frames * 10
        # Where the ring turns between two cuts, a chunk of the third is there before it.
        held = 6 * 140 + 2 * 6 * frames * 10 + (6 * 3 * 10 if every >= 4 else 0)
        # The journal keeps what was sampled in as many intervals and the one that is under way.
        assert Cuts(plan, LOGGED, every).memory(0) == held + 3 * every * 7
        assert Cuts(plan, LOGGED, every).memory(1) == held
        assert Cuts(plan, LOGGED, every).memory(4) == 3 * 1000


def test_a_ring_of_layers_keeps_every_level():
    plan = plan_of(PlanConfig("layers", workers=2, layers=[4, 2]))
    assert [Cuts(plan, LOGGED, 1).dirty(worker) for worker in range(2)] == [4 * 4 * 30, 4 * 2 * 30 + 1000]
    clean = plan_of(PlanConfig("layers", workers=2, layers=[4, 2]), context="clean")
    assert [Cuts(clean, LOGGED, 1).dirty(worker) for worker in range(2)] == [4 * 30, 2 * 30 + 1000]


def test_processes_that_share_passes_keep_a_part_each_and_some_all():
    plan = plan_of(PlanConfig("sequential", sequence_parallel=2, workers=2), heads=4, tokens_per_frame=4)
    one = Logged(FRAMES, FRAMES, (10.0,) * 6, (2.0,) * 6, (140.0,) * 6, (28.0,) * 6, decoder=1000.0, entered=7.0)
    cuts = Cuts(plan, one, 1)
    assert cuts.dirty(0) == 4 * 6 * 3 * (10 / 2 + 2) + 1000
    banks = 4 * 6 * (140 / 2 + 28) + 2 * 4 * 6 * 3 * (10 / 2 + 2)
    # The decoder and what was sampled are with the first of the two.
    assert cuts.memory(0) == 2 * banks + 3 * 1000 + 3 * 7


def test_chunks_that_may_be_run_again_are_with_the_first_block():
    plan = plan_of(PlanConfig("layers", workers=2, layers=[4, 2]), context="clean", decodes=False)
    one = Logged(FRAMES, FRAMES, (10.0,) * 6, (0.0,) * 6, (140.0,) * 6, (0.0,) * 6, finished=100.0, kept=4)
    assert Cuts(plan, one, 1).dirty(0) == 4 * 30 + 100 and Cuts(plan, one, 1).dirty(1) == 2 * 30
    assert Cuts(plan, one, 100).dirty(0) == 4 * 120 + 400
    assert Cuts(plan, one, 1).memory(0) == 4 * 140 + 400 + 2 * (4 * 30 + 100)


def test_what_chunks_write_unevenly_counts_by_its_mean_on_the_way_and_by_its_most_in_memory():
    """Every second chunk writes nine frames, the other three of them; and something of its own."""
    plan = plan_of(PlanConfig("layers", workers=2, layers=[4, 2]), context="clean", decodes=False)
    one = Logged((6.0, 9.0), (9, 9), (10.0,) * 6, (0.0,) * 6, (200.0,) * 6, (4.0,) * 6, 5.0, 2.0)
    assert [Cuts(plan, one, 1).mean(worker) for worker in range(2)] == [4 * (60 + 5 + 2), 2 * (60 + 5 + 2)]
    assert Cuts(plan, one, 1).dirty(0) == 4 * (90 + 7) == Cuts(plan, one, 2).mean(0) == Cuts(plan, one, 50).dirty(0)
    assert Cuts(plan, one, 1).memory(1) == 2 * 204 + 2 * Cuts(plan, one, 1).dirty(1)
    shared = plan_of(PlanConfig("sequential", sequence_parallel=2, workers=2), heads=4, tokens_per_frame=4,
                     context="clean", decodes=False)  # fmt: skip
    assert Cuts(shared, one, 1).dirty(0) == 6 * (90 / 2 + 5 / 2 + 2)


def test_how_often_cuts_are_made():
    assert [chunks(1.0, period) for period in (0.1, 0.26, 0.5, 1.0, 3.0)] == [10, 3, 2, 1, 1]
    assert chunks(3600.0, 1e-9) == MOST == chunks(1.0, 0.0)


def needed(bandwidth: float | None, recover_s: float = 1.0, devices: int = 5, placement=None, **demand):
    """Of four steps of 0.25 s."""
    kind = DeviceKind(memory_bytes=1e9, host_bandwidth=bandwidth)
    times = [StageTimes(model="test", step_s=0.25, decode_s=0.125)]
    groups = [DeviceGroup(count=3), DeviceGroup(count=devices - 3, node=1)]
    cluster = Cluster.of(ClusterConfig(kinds={"gpu": kind}, devices=groups, times=times), Subject("test"))
    costs, asked = Costs(plan_of(PlanConfig("timestep")), cluster, placement), Demand(frames=12, fps=16.0, **demand)
    return needs(costs, LOGGED, asked, predict(costs, asked), recover_s)


def test_what_goes_to_the_host():
    found = needed(1e6)
    assert (found.wanted, found.every, found.allowed, found.work_s) == (4, 4, True, pytest.approx(1.0))
    # Four chunks of 0.25 s: a ring, of six layers.
    assert found.rates == pytest.approx([720.0] * 4 + [1000.0])
    assert found.dirty == pytest.approx([720.0] * 4 + [1000.0])
    # On machines 0 and 1: three workers' banks with the journal of one of them, and the other two.
    bank = 6 * 140 + 2 * 720 + 180
    assert found.memory == pytest.approx({0: 3 * bank + 3 * 4 * 7, 1: bank + 3000})
    assert found.replay_s > 1.0


def test_streams_share_devices_and_the_pace_of_life_spares_them():
    one, three = needed(1e6, recover_s=0.25), needed(1e6, recover_s=0.75, streams=3)
    assert one.every == three.every == 1 and three.work_s == pytest.approx(0.75)
    assert three.rates == pytest.approx(one.rates), "each goes a third as fast"
    assert three.memory == pytest.approx({node: 3 * size for node, size in one.memory.items()})
    # A chunk is played for 0.75 s.
    assert needed(1e6, recover_s=0.25, paced=True).rates == pytest.approx([rate / 3 for rate in one.rates])
    crowded = needed(1e6, devices=4, placement=(0, 1, 2, 3, 3))
    # Two of them take 0.375 s for a chunk, and cuts are made every two chunks.
    assert crowded.rates == pytest.approx([360 / 0.75] * 3 + [(360 + 1000) / 0.75] * 2)


def test_where_the_way_is_narrow_cuts_are_made_less_often():
    # The decoder's 1000 bytes within half of 100 bytes a second: 20 s, 80 chunks.
    found = needed(100.0)
    assert (found.wanted, found.every, found.allowed) == (4, 80, False)
    assert max(found.rates) == pytest.approx(50.0)
    assert needed(None).allowed, "what is not known is not held against it"
    assert needed(1e-6).every == MOST


@given(st.floats(1.0, 1e5), st.floats(0.1, 30.0))
def test_as_often_as_the_way_allows_and_no_less(bandwidth, recover_s):
    found = needed(bandwidth, recover_s)
    assert found.every >= found.wanted and max(found.rates) <= 0.5 * bandwidth * (1 + 1e-9)
    if found.every > found.wanted:
        plan = plan_of(PlanConfig("timestep"))
        before = max(Cuts(plan, LOGGED, found.every - 1).dirty(w) for w in range(5)) / ((found.every - 1) * 0.25)
        assert before > 0.5 * bandwidth * (1 - 1e-9)

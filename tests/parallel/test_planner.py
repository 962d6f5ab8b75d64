"""The planner: as good as trying every plan, and refusing what cannot be."""

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from benchmarks.uneven import best_by_hand
from conf.errors import UserError
from conf.schema import PlanConfig
from parallel.builders import build
from parallel.cost import Costs, Ranges
from parallel.memory import Memory
from parallel.plan import Version
from parallel.planner import assess, choose, of_shape, rank, refuse
from parallel.predict import Demand
from parallel.shapes import shapes
from tests.parallel.test_predict import cluster, workload


@pytest.mark.parametrize("slow", range(5))
def test_one_of_five_devices_is_slower(slow):
    speeds = [1.0] * 5
    speeds[slow] = 1 / 1.5
    layer_s = [0.01] * 6
    found = choose(workload(steps=2), cluster(*speeds, layer_s=layer_s, decode_s=0.02), Demand())
    best = best_by_hand(speeds, layer_s, 2, 0.02)
    assert found.prediction.period_s == pytest.approx(best)
    # No worse than what brute force finds for four equal and one slower device in the middle.
    assert found.prediction.fps >= 0.95 * 12 / best


@settings(max_examples=15)
@given(
    st.lists(st.sampled_from([0.5, 1.0, 2.0]), min_size=1, max_size=4),
    st.lists(st.sampled_from([0.1, 0.2, 0.35, 0.5]), min_size=4, max_size=5),
    st.integers(1, 3),
    st.sampled_from([0.0, 0.3, 1.1]),
)
# Three of the four workers do most of the work: a limit that takes layers and devices for equal admits too few chunks.
@example([0.5, 0.5, 0.5, 1.0], [0.1, 0.1, 0.1, 0.2], 3, 0.3)
# Two in flight bring 98.6 % of the rate.
@example([0.5, 0.5, 2.0], [0.1, 0.35, 0.1, 0.35, 0.2], 3, 1.1)
def test_unequal_devices_and_layers_equal_brute_force(speeds, layer_s, steps, decode_s):
    n = len(layer_s)
    found = choose(
        workload(steps=steps, layers=n, layer_bytes=(0,) * n),
        cluster(*speeds, layer_s=layer_s, decode_s=decode_s),
        Demand(),
    )
    # Values that differ by a thousandth count as equal.
    best = best_by_hand(tuple(speeds), layer_s, steps, decode_s)
    assert best * (1 - 1e-9) <= found.prediction.period_s <= best * 1.002


def test_the_search_counts_as_the_prediction_does():
    devices = cluster(1, 0.5, 1, layer_s=[0.1, 0.2, 0.3, 0.1, 0.2, 0.3], decode_s=0.4, encode_s=0.1, hop_s=0.01)
    for context in ("same_level", "clean"):
        w = workload(context=context, latent_bytes=10, hidden_bytes=1000, bank_bytes=50, layer_bytes=(10,) * 6)
        for shape in shapes(w, 3):
            for choice in of_shape(shape, tuple(range(shape.processes)), Ranges(w, devices), Demand(streams=2)):
                plan, costs = choice.plan, Costs(choice.plan, devices)
                memory = Memory(costs, 2)
                for worker in range(plan.workers):
                    held = plan.blocks_of(worker)
                    if held:
                        part = plan.blocks[held[0]]
                        own = costs.fixed_s(worker) + costs.layers_s(worker, held[0])[part.start, part.stop]
                        assert own == pytest.approx(choice.prediction.load[worker])
                        total = memory.ranges(worker, held[0])[part.start, part.stop]
                        assert total == pytest.approx(choice.bytes[worker].total)


def test_a_chosen_plan_is_an_ordinary_one():
    w = workload(latent_bytes=1000, encode_bytes=100, heads=4, tokens_per_frame=4, versions=(Version(-1, 0),))
    devices = cluster(1, 1, 0.5, 1, decode_s=0.3)
    for choice in rank(w, devices, Demand()):
        assert build(choice.config, w) == choice.plan
        assert assess(choice.config, w, devices, Demand()) == choice
        assert len(set(choice.placement)) == choice.plan.processes


def test_equal_devices_are_taken_in_order():
    choice = choose(workload(), cluster(*[1] * 5, decode_s=0.5), Demand())
    assert (choice.config.devices, choice.config.name, choice.config.steps) == (None, "timestep", [1, 1, 1, 1])
    assert choice.plan.decode == 4


def test_a_post_stage_is_placed_where_it_does_not_hold_others_back():
    w = workload(posts=True, picture_bytes=1000)
    choice = choose(w, cluster(*[1] * 6, decode_s=0.7, post_s=0.7), Demand())
    # Four steps, decode and post, each with a device of its own.
    assert (choice.plan.decode, choice.plan.post, choice.prediction.period_s) == (4, 5, pytest.approx(1.0))
    assert build(choice.config, w) == choice.plan
    beside = choose(w, cluster(*[1] * 6, decode_s=0.2, post_s=0.2), Demand())
    assert (beside.plan.stages[1].worker, beside.plan.processes) == (beside.plan.decode, 5)


def test_objectives():
    w, devices = workload(heads=4, tokens_per_frame=4), cluster(*[1] * 4, decode_s=0.2, serial=0.0)
    best = {
        objective: choose(w, devices, Demand(), objective) for objective in ("fps", "first_frame", "control_latency")
    }
    assert best["fps"].prediction.fps == pytest.approx(max(c.prediction.fps for c in rank(w, devices, Demand())))
    # Only sharing passes shortens a chunk's way.
    assert best["first_frame"].plan.degree == 4
    assert best["control_latency"].plan.degree > 1
    for objective in ("fps", "first_frame"):
        p, q = best["control_latency"].prediction, best[objective].prediction
        assert p.control_worst_s <= q.control_worst_s * 1.001


def test_bytes_limit_what_a_device_holds():
    w = workload(layer_bytes=(10_000_000,) * 6, bank_bytes=1_000_000)
    # All six layers and their banks are 60 + 24 MB.
    assert {c.plan.name for c in rank(w, cluster(1, 1, memory=90e6), Demand())} == {"sequential", "timestep", "layers"}
    assert {c.plan.name for c in rank(w, cluster(1, 1, memory=80e6), Demand())} == {"timestep", "layers"}
    halves = rank(w, cluster(1, 1, memory=60e6), Demand())
    assert {c.plan.name for c in halves} == {"layers"}
    assert all(c.short <= 0 for c in halves)
    # More streams, more banks.
    with pytest.raises(UserError, match=r"too much"):
        rank(w, cluster(1, 1, memory=60e6), Demand(streams=4))


def test_what_does_not_fit_is_refused_by_how_much():
    w = workload(layer_bytes=(10_000_000,) * 6, bank_bytes=1_000_000)
    with pytest.raises(UserError) as refusal:
        rank(w, cluster(1, 1, memory=40e6), Demand())
    assert "needs 42.00 MB (weights 30.00 MB, banks 12.00 MB" in str(refusal.value)
    assert "2.00 MB too much" in str(refusal.value)
    choice = assess(PlanConfig("sequential"), w, cluster(1, memory=80e6), Demand())
    with pytest.raises(UserError, match=r"4\.00 MB too much"):
        refuse(choice, cluster(1, memory=80e6), Demand())


def test_interactive_models_have_a_limit():
    devices = cluster(*[0.5] * 2)
    late = Demand(interactive=True, max_control_latency_s=2.0)
    with pytest.raises(UserError, match=r"after 12\.00 s at worst.*plan\.force=true"):
        rank(workload(), devices, late)
    assert rank(workload(), devices, late, wanted=PlanConfig("auto", force=True))[0].config.force
    assert rank(workload(), devices, Demand(interactive=False, max_control_latency_s=2.0))
    # Some are quick enough: only those are offered.
    some = Demand(interactive=True, max_control_latency_s=14.0)
    assert {c.prediction.control_worst_s <= 14 for c in rank(workload(), devices, some)} == {True}
    plan = assess(PlanConfig("sequential"), workload(), devices, late)
    with pytest.raises(UserError, match="max_control_latency_s is 2"):
        refuse(plan, devices, late)
    refuse(plan, devices, late, force=True)


def test_settings_beside_auto():
    w, devices = workload(heads=4, tokens_per_frame=4), cluster(*[1] * 4)
    assert {c.plan.processes for c in rank(w, devices, Demand(), wanted=PlanConfig("auto", workers=3))} == {3}
    assert {c.plan.degree for c in rank(w, devices, Demand(), wanted=PlanConfig("auto", sequence_parallel=2))} == {2}
    with pytest.raises(UserError, match="is chosen by plan=auto"):
        rank(w, devices, Demand(), wanted=PlanConfig("auto", steps=[2, 2]))
    with pytest.raises(UserError, match=r"devices of cluster=.* are 0 to 3; name these"):
        assess(PlanConfig("timestep", workers=2, devices=[0, 9]), w, devices, Demand())


def test_a_device_is_shared_where_more_workers_are_wanted_than_there_are_devices():
    w, devices = workload(layer_bytes=(10,) * 6), cluster(*[1] * 4, decode_s=0.5)
    best = rank(w, devices, Demand())[0]
    assert best.plan.processes <= 4 and len(set(best.placement)) == best.plan.processes
    five = rank(w, devices, Demand(), wanted=PlanConfig("auto", workers=5))[0]
    assert five.plan.processes == 5 and set(five.placement) == {0, 1, 2, 3}
    # Nothing is gained by the fifth, and hardly anything lost.
    assert best.prediction.period_s <= five.prediction.period_s <= 1.001 * 1.5
    assert assess(five.config, w, devices, Demand()) == five
    # The four that step have devices of their own, and the decoder is beside the one it gets latents from.
    named = assess(PlanConfig("timestep"), w, devices, Demand())
    assert named.placement == (0, 1, 2, 3, 3)
    assert named.prediction.period_s == pytest.approx(1.5)
    assert named.prediction.bound == "device 3, shared by workers 3, 4"


def test_who_shares_a_device_shares_its_memory():
    w = workload(layer_bytes=(10_000_000,) * 6, bank_bytes=1_000_000)
    # A step's worker holds 60 MB of weights and 6 MB of banks.
    two = PlanConfig("timestep", workers=2, decode=1)
    assert assess(two, w, cluster(1, 1, memory=73e6), Demand()).short <= 0
    choice = assess(two, w, cluster(1, memory=140e6), Demand())
    assert choice.short == pytest.approx(4e6)
    with pytest.raises(UserError, match=r"beside 1 other processes: 4\.00 MB too much"):
        refuse(choice, cluster(1, memory=140e6), Demand())
    assert assess(two, w, cluster(1, memory=145e6), Demand()).short <= 0


def test_a_second_opinion_ranks_the_best_again():
    devices = cluster(*[1] * 4)
    asked = []

    def check(costs, demand):
        asked.append(costs.plan)
        found = assess(PlanConfig("sequential"), workload(), devices, demand).prediction
        return found if costs.plan.name != "layers" else type(found)(**vars(found) | {"fps": 1e6})

    first = rank(workload(), devices, Demand(), check=check)[0]
    assert first.plan.name == "layers" and len(asked) == 10

"""Placement on several machines: what travels most stays inside one."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from conf.schema import PlanConfig
from parallel.builders import build
from parallel.placement import crossing, place, share
from parallel.plan import Workload


def plan_of(name: str, **settings):
    workload = Workload(steps=4, layers=8, layer_bytes=(1,) * 8, decodes=False, latent_bytes=1, hidden_bytes=80)
    return build(PlanConfig(name, **settings), workload)


def on(*sizes: int) -> list[int]:
    """The machine of every device, of machines with so many devices each."""
    return [node for node, size in enumerate(sizes) for _ in range(size)]


plans = st.sampled_from(
    [
        plan_of("timestep"), plan_of("layers", layers=[2, 2, 2, 2]), plan_of("grid", grid=[2, 2]),
        plan_of("grid", grid=[4, 2]), plan_of("timestep", workers=8, sequence_parallel=2),
        plan_of("grid", grid=[2, 2], workers=8, sequence_parallel=2),
    ]
)  # fmt: skip


@given(plans, st.lists(st.integers(1, 9), min_size=1, max_size=6), st.integers(0, 5))
def test_every_process_has_a_device_of_its_own(plan, sizes, more):
    nodes = on(*sizes, max(0, plan.processes - sum(sizes)) + more)
    placement = place(plan, nodes)
    assert len(placement) == len(set(placement)) == plan.processes
    assert set(placement) <= set(range(len(nodes)))


@given(plans, st.lists(st.integers(1, 9), min_size=1, max_size=6))
def test_a_plan_that_fits_a_machine_is_on_one(plan, sizes):
    nodes = on(*sizes, plan.processes)
    assert len({nodes[device] for device in place(plan, nodes)}) == 1


@given(plans, st.integers(1, 4))
def test_equal_machines_that_rows_fill_evenly_are_taken_in_order(plan, rows):
    row = len(plan.rows[0]) * plan.degree
    nodes = [device // (row * rows) for device in range(plan.processes)]
    assert place(plan, nodes) == tuple(range(plan.processes))


def test_rows_stay_whole_and_only_latents_cross():
    plan = plan_of("grid", grid=[4, 2])
    # In order, rows would be cut: devices 2 and 3 are the second row's, on two machines.
    nodes = on(3, 3, 2, 2)
    assert crossing(plan, nodes, range(plan.processes))["hidden"] > 0
    crosses = crossing(plan, nodes, place(plan, nodes))
    assert "hidden" not in crosses
    assert crosses["latents"] > 0


def test_processes_that_share_passes_stay_together():
    plan = plan_of("timestep", workers=8, sequence_parallel=2)
    nodes = on(3, 3, 4)
    assert crossing(plan, nodes, range(8))["shared"] == 1
    assert "shared" not in crossing(plan, nodes, place(plan, nodes))


def test_what_fits_no_machine_is_cut_into_neighbours():
    ring = plan_of("layers", layers=[2, 2, 2, 2])
    # A ring on two machines: hidden states to the second, latents back for the next step.
    crosses = crossing(ring, on(2, 2), place(ring, on(2, 2)))
    assert (crosses["hidden"], crosses["latents"]) == (1, 1)


@given(plans, st.lists(st.integers(1, 3), min_size=1, max_size=3))
def test_devices_are_shared_evenly_where_there_are_too_few(plan, sizes):
    nodes = on(*sizes)
    held = Counter(place(plan, nodes))
    if plan.processes > len(nodes):
        assert set(held) == set(range(len(nodes)))
        # All of these plans' processes with cells compute as much.
        assert max(held.values()) <= -(-plan.processes // len(nodes)) + 1


def test_who_computes_most_has_a_device_of_its_own():
    decoding = Workload(steps=4, layers=8, layer_bytes=(1,) * 8)
    steps = build(PlanConfig("timestep"), decoding)
    # Decode is beside the last step, which sends it latents.
    assert place(steps, on(4)) == (0, 1, 2, 3, 3)
    assert place(build(PlanConfig("timestep", encode=5, workers=6), decoding), on(4)) == (0, 1, 2, 3, 3, 0)
    uneven = build(PlanConfig("timestep", steps=[1, 2, 1], workers=4), decoding)
    assert place(uneven, on(2)) == (1, 0, 1, 0)
    assert place(steps, on(1)) == (0,) * 5
    # Known times change that: a decoder that takes longer than two steps.
    assert place(steps, on(2), loads=[1, 1, 1, 1, 5]) == (1, 1, 1, 1, 0)


def test_processes_that_share_passes_are_on_several_devices():
    plan = plan_of("timestep", workers=4, steps=[2, 2], sequence_parallel=2)
    placement = place(plan, on(2))
    assert [{placement[p] for p in plan.group(worker)} for worker in range(2)] == [{0, 1}, {0, 1}]


@given(st.lists(st.floats(0, 10), min_size=1, max_size=8), st.integers(1, 8))
def test_no_device_is_much_busier_than_it_must_be(loads, devices):
    shared = share(loads, [1.0] * devices)
    ends = [sum(load for load, at in zip(loads, shared, strict=True) if at == d) for d in range(devices)]
    if len(loads) > devices:
        # Whoever comes last goes where least was.
        assert max(ends) <= sum(loads) / devices + max(loads) * (1 - 1 / devices) + 1e-6
    else:
        assert shared == tuple(range(len(loads)))
    assert share([1, 1, 1], [1.0, 2.0]) == (1, 0, 1)

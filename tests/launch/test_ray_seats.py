"""Where a plan's processes sit on a Ray cluster: data from data."""

from itertools import permutations

import pytest

from conf.errors import UserError
from conf.schema import DeviceConfig, PlanConfig
from launch.ray import seats
from parallel.builders import build
from parallel.plan import Workload

ANY = DeviceConfig()


def plan_of(name: str, **settings):
    return build(PlanConfig(name, **settings), Workload(steps=4, layers=8, layer_bytes=(1,) * 8, decodes=False))


def test_gpus_are_taken_node_by_node():
    found = seats(plan_of("timestep"), [{"GPU": 2, "CPU": 8}, {"GPU": 2, "CPU": 8}], ANY)
    cards = ((0, 0), (0, 1), (1, 0), (1, 1))
    assert found == ([{"GPU": 2.0}, {"GPU": 2.0}], (0, 0, 1, 1), ({"GPU": 1.0},) * 4, cards)
    # All of them fit the second node.
    assert seats(plan_of("timestep"), [{"GPU": 2}, {"GPU": 8}], ANY).bundles == [{"GPU": 4.0}]


def test_rows_stay_on_a_node():
    found = seats(plan_of("grid", grid=[2, 3]), [{"GPU": 4}, {"GPU": 4}], ANY)
    assert found.of == (0, 0, 0, 1, 1, 1)


@pytest.mark.parametrize("cpus", [(1, 1), (3, 1), (2, 2, 2), (0.5, 0.4), (64,)])
@pytest.mark.parametrize("workers", [1, 3, 4])
def test_processors_are_shared_so_that_everybody_fits(cpus, workers):
    found = seats(plan_of("timestep", workers=workers), [{"CPU": c} for c in cpus], ANY)
    assert len(found.of) == workers
    share = found.shares[0]["CPU"]
    assert found.shares == ({"CPU": share},) * workers and found.cards == ()
    for bundle, content in enumerate(found.bundles):
        assert found.of.count(bundle) * share <= content["CPU"] + 1e-3
        assert content["CPU"] <= max(cpus)


def as_ray_does(bundle: float, asked: list[float]) -> list[float]:
    """What is left of a bundle's GPUs: a part goes to the fullest that has room for it."""
    left = [1.0] * int(bundle)
    for part in asked:
        fits = [card for card, room in enumerate(left) if room >= part - 1e-9]
        assert fits, (left, part)
        left[min(fits, key=lambda card: left[card])] -= part
    return left


@pytest.mark.parametrize("gpus", [(1,), (2,), (4,), (5,), (1, 1), (2, 1), (4, 2)])
@pytest.mark.parametrize("workers", [1, 2, 3, 5])
def test_gpus_are_shared_where_there_are_too_few(gpus, workers):
    plan = build(PlanConfig("timestep", workers=workers), Workload(steps=4, layers=8, layer_bytes=(1,) * 8))
    found = seats(plan, [{"GPU": float(count), "CPU": 1.0} for count in gpus], ANY)
    asked = [share["GPU"] for share in found.shares]
    assert all(asked) if workers > sum(gpus) else asked == [1.0] * workers
    assert len(set(found.cards)) == min(workers, sum(gpus))
    for bundle, content in enumerate(found.bundles):
        own = [part for part, of in zip(asked, found.of, strict=True) if of == bundle]
        # They may come in any order.
        for order in permutations(own):
            assert min(as_ray_does(content["GPU"], list(order))) >= 0


def test_who_decodes_shares_a_gpu_with_who_steps_last():
    plan = build(PlanConfig("timestep"), Workload(steps=4, layers=8, layer_bytes=(1,) * 8))
    found = seats(plan, [{"GPU": 4.0}], ANY)
    assert [share["GPU"] for share in found.shares] == [1.0, 1.0, 1.0, 0.5, 0.5]
    assert found.bundles == [{"GPU": 4.0}]


def test_gpus_that_are_asked_for_and_not_there_are_refused():
    with pytest.raises(UserError, match=r"device=cuda: the Ray cluster has no GPUs; use device=cpu or device=auto"):
        seats(plan_of("timestep"), [{"CPU": 4.0}], DeviceConfig("cuda"))
    for remedy in ("cpu", "auto"):
        assert seats(plan_of("timestep"), [{"CPU": 4.0}], DeviceConfig(remedy)).shares == ({"CPU": 0.9},) * 4
    assert seats(plan_of("timestep"), [{"GPU": 1, "CPU": 4}], DeviceConfig("cpu")).shares[0] == {"CPU": 0.9}

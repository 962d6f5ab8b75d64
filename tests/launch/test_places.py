"""What a machine has, and what is chosen for it: GPUs are stood in for by their count, names and sizes."""

import json
from types import SimpleNamespace

import pytest
import torch
from torch.distributed import HashStore

import devices
from conf.errors import UserError
from conf.schema import PlanConfig
from launch import here, local, places, planning, ray, running, torchrun, worker
from launch.places import Seat, named, on_one_host, on_seats, said
from parallel.builders import build
from parallel.plan import Plan, Workload
from runtime.workload import describe
from tests.helpers import config_of

COUNTS = (0, 1, 2, 4, 5)
LARGE = ("model=wan21_t2v_1_3b", "sink.video=null")
"""A model that gains from a GPU."""
H100 = ("NVIDIA H100 80GB HBM3", 85_000_000_000)


@pytest.fixture
def machine(monkeypatch):
    """machine(COUNT, (title, bytes)): so many GPUs."""
    monkeypatch.setattr(devices.kinds, "_MADE", {})
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)

    def make(count: int, *kinds: tuple[str, int]) -> None:
        kinds = kinds or (H100,)
        cards = [kinds[i % len(kinds)] for i in range(count)]
        monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: cards[device.index][0])

        def properties(device):
            return SimpleNamespace(uuid=f"uuid-{device.index}", total_memory=cards[device.index][1])

        monkeypatch.setattr(torch.cuda, "get_device_properties", properties)

    return make


def plan_of(workers: int | None = None) -> Plan:
    return build(PlanConfig("timestep", workers=workers), Workload(steps=4, layers=8, layer_bytes=(1,) * 8))


# -- make demo ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("tour", ["demo", "demo_world", "demo_video"])
def test_the_demo_runs_on_processors_whatever_there_is(machine, count, tour):
    machine(count)
    config = planning.resolve(config_of(f"experiment={tour}"))
    assert config.device.kind == ("cpu" if count else "auto")
    plan = build(config.plan, describe(config))
    found = ray.seats(plan, [{"GPU": float(count), "CPU": 2.0}], config.device)
    assert all("CPU" in share for share in found.shares) and not found.cards
    assert "device=cuda computes on a GPU" in places.small(config)


@pytest.mark.parametrize("count", COUNTS)
def test_the_demo_runs_on_gpus_that_are_asked_for(machine, count):
    machine(count)
    config = planning.resolve(config_of("experiment=demo", "device=cuda"))
    assert config.device.kind == "cuda"
    plan, there = build(config.plan, describe(config)), [{"GPU": float(count), "CPU": 2.0}]
    if count:
        assert len(set(ray.seats(plan, there, config.device).cards)) == min(count, plan.processes)
    else:
        with pytest.raises(UserError, match="use device=cpu"):
            ray.seats(plan, there, config.device)
        told = config_of("experiment=demo", "device=cpu")
        assert len(ray.seats(plan, there, told.device).of) == plan.processes


def test_whether_a_gpu_is_a_gain_follows_from_what_is_computed(machine):
    machine(1)
    assert planning.resolve(config_of("model=pocket_avatar")).device.kind == "cpu"
    # A processor is not enough for many streams, nor for a large model.
    assert planning.resolve(config_of("model=pocket_avatar", "stream.count=40")).device.kind == "auto"
    assert planning.resolve(config_of(*LARGE)).device.kind == "auto"
    assert planning.cluster_of(config_of("model=pocket_avatar")).kinds == {"cpu"}
    machine(0)
    assert planning.resolve(config_of("model=pocket_avatar")).device.kind == "auto"
    # A cluster elsewhere may have some.
    there = config_of("model=pocket_avatar", "launcher=ray", "launcher.address=10.0.0.1:6379")
    assert planning.resolve(there).device.kind == "cpu"


# -- the cluster of the machine at hand --------------------------------------------------------------------------------


@pytest.mark.parametrize("count", COUNTS[1:])
@pytest.mark.parametrize("named", [(), ("cluster=here",)], ids=["default", "named"])
def test_the_machine_at_hand_is_a_cluster(machine, count, named):
    machine(count)
    found = planning.cluster_of(config_of(*LARGE, *named))
    assert [device.kind for device in found.devices] == ["h100"] * count
    assert {device.sheet.memory_bytes for device in found.devices} == {H100[1]}
    assert found.intra.bandwidth == 360e9 and found.name == "here"


def test_processors_are_a_cluster_where_there_are_no_gpus(machine, monkeypatch):
    machine(0)
    monkeypatch.setattr(here.os, "sched_getaffinity", lambda process: set(range(6)))
    found = planning.cluster_of(config_of("model=pocket_avatar"))
    assert [device.kind for device in found.devices] == ["cpu"] * 6
    assert sum(device.sheet.memory_bytes for device in found.devices) == pytest.approx(here._memory())
    assert len(planning.cluster_of(config_of("model=pocket_avatar", "device.threads=4")).devices) == 1
    machine(2)
    assert len(planning.cluster_of(config_of("model=pocket_avatar", "device=cpu")).devices) == 6


@pytest.mark.parametrize(
    ("title", "kind"),
    [
        ("NVIDIA GeForce RTX 4090", "rtx4090"), ("NVIDIA A100-SXM4-40GB", "a100"), ("NVIDIA H200", "h200"),
        ("NVIDIA L40S", "l40s"), ("Tesla T4", "teslat4"), ("NVIDIA A10", "a10"), ("cpu", "cpu"),
    ],
)  # fmt: skip
def test_kinds_are_told_by_their_makers_names(title, kind):
    assert here.kind_of(title) == kind


def test_unequal_and_unknown_cards_have_their_own_memory(machine, caplog):
    machine(3, ("NVIDIA A100-SXM4-40GB", 42_000_000_000), ("NVIDIA A100-SXM4-80GB", 85_000_000_000), ("Acme X1", 25e9))
    found = planning.cluster_of(config_of(*LARGE))
    assert [(d.kind, d.sheet.memory_bytes) for d in found.devices] == [("a100", 42e9)] * 2 + [("acmex1", 25e9)]
    assert found.devices[2].sheet.flops == 74e12  # of the one with 24 GB
    assert "no file describes Acme X1: it is given the rates of rtx4090" in caplog.text
    # The slowest links of all.
    assert found.intra.bandwidth == 10e9


def test_measured_times_of_an_unknown_card_are_taken(machine, tmp_path, caplog):
    machine(1, ("Acme X2", 50e9))
    (path := tmp_path / "x2.yaml").write_text(
        "times: [{model: wan21_t2v_1_3b, kind: acmex2, basis: measured, step_s: 0.5}]\n"
    )
    found = planning.cluster_of(config_of(*LARGE, f"cluster.measured=[{path}]"))
    assert found.times["acmex2", 1].step_s == 0.5 and "Acme" not in caplog.text


# -- plan=auto ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", COUNTS[1:])
def test_auto_gives_every_worker_a_gpu_of_its_own(machine, count):
    machine(count)
    resolved = planning.resolve(config_of(*LARGE, "plan=auto"))
    plan = build(resolved.plan, describe(resolved))
    assert plan.processes <= count
    assert len(set(on_one_host(plan, resolved.plan.devices, count))) == plan.processes


@pytest.mark.parametrize("count", COUNTS)
def test_auto_with_more_workers_than_devices_shares_them(machine, count, monkeypatch):
    monkeypatch.setattr(here.os, "sched_getaffinity", lambda process: {0, 1})
    machine(count)
    resolved = planning.resolve(config_of(*LARGE, "plan=auto", "plan.workers=5"))
    plan = build(resolved.plan, describe(resolved))
    assert plan.processes == 5
    if count:
        assert set(on_one_host(plan, resolved.plan.devices, count)) == set(range(count))


def test_what_does_not_fit_is_refused_and_the_remedy_works(machine):
    machine(1, ("NVIDIA GeForce RTX 4090", 25_000_000_000))
    with pytest.raises(UserError, match=r"rtx4090 has .* too much; use more devices, fewer streams or"):
        planning.resolve(config_of("model=wan21_t2v_1_3b", "plan=auto", "stream.count=8"))
    assert planning.resolve(config_of("model=wan21_t2v_1_3b", "plan=auto")).plan.name == "sequential"


# -- torchrun ----------------------------------------------------------------------------------------------------------


def on(*machines: tuple[int, int]) -> list[Seat]:
    """Seats of machines with (ranks, cards)."""
    return [
        Seat(node, f"host{node}", tuple(f"{node}-{card}" for card in range(cards)))
        for node, (ranks, cards) in enumerate(machines)
        for _ in range(ranks)
    ]


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("ranks", [1, 2, 3, 5])
def test_ranks_go_round_the_cards_of_their_host(ranks, count):
    plan = plan_of(ranks)
    of, cards = on_seats(plan, None, on((ranks, count)))
    assert of == tuple(range(ranks))
    if not count:
        assert cards == (None,) * ranks and named(on((ranks, 0)), of, cards) == ()
        return
    assert set(cards) == set(range(min(ranks, count)))
    assert (cards == of) == (ranks <= count)


def test_five_ranks_on_four_cards():
    seats = on((5, 4))
    of, cards = on_seats(plan_of(), None, seats)
    assert cards == (0, 1, 2, 3, 3)
    assert said(plan_of(), named(seats, of, cards)) == "workers 3, 4 share GPU 3; workers 0, 1, 2: a GPU each"


def test_ranks_of_two_hosts_share_what_each_has():
    seats = on((3, 2), (2, 2))
    of, cards = on_seats(plan_of(), None, seats)
    assert sorted(of) == list(range(5))
    names = named(seats, of, cards)
    assert len(set(names)) == 4 and {name[-5:] for name in names} == {"host0", "host1"}


def test_a_rank_that_sees_one_card_has_that():
    seats = [Seat(0, "host", (f"uuid-{rank}",)) for rank in range(4)]
    of, cards = on_seats(plan_of(4), None, seats)
    assert cards == (0,) * 4
    assert named(seats, of, cards) == ("GPU 0", "GPU 1", "GPU 2", "GPU 3")


def test_cards_follow_the_plan():
    # A permutation of ranks: rank i is device i, and so is its card.
    of, cards = on_seats(plan_of(4), [2, 0, 1, 3], on((4, 4)))
    assert of == cards == (2, 0, 1, 3)
    # Cards that are shared are named themselves.
    of, cards = on_seats(plan_of(), [0, 0, 0, 0, 1], on((5, 2)))
    assert (of, cards) == ((0, 1, 2, 3, 4), (0, 0, 0, 0, 1))


def test_ranks_find_one_plan_for_all_their_machines(machine, monkeypatch):
    """Three ranks on two machines with a card each."""
    machine(1)
    store = HashStore()
    for rank, node in ((1, 0), (2, 1)):
        card = here.Card(f"uuid-of-{node}" if node else "uuid-0", *H100)
        store.set(f"machine/{rank}", json.dumps([node, f"host{node}", [card]]))
    monkeypatch.setattr(torchrun, "rendezvous", lambda timeout_s: (store, 0, 3))
    monkeypatch.setattr(torchrun.platform, "node", lambda: "host0")
    config = torchrun.sized(config_of(*LARGE, "launcher=torchrun", "plan=auto"))
    assert [(group.kind, group.node) for group in config.cluster.devices] == [("h100", 0), ("h100", 1)]
    plan = build(planning.resolve(config).plan, describe(config))
    assert plan.processes == 3
    seats, _ = torchrun.machines(config, store, 0, 3)
    assert {torchrun.seated(plan, config, rank, seats)[0] for rank in range(3)} == {0, 1, 2}
    assert torchrun.seated(plan, config, 0, seats)[1] == torch.device("cuda", 0)
    assert len(set(running.cards(plan, config))) == 2


# -- launcher=local ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", COUNTS)
def test_local_workers_go_round_the_cards(machine, count):
    machine(count)
    config = config_of(*LARGE, "plan=timestep", "model.context=same_level")
    plan = build(config.plan, describe(config))
    cards = local.cards(plan, config)
    assert local.threads(config) == (count < 2)
    assert len(set(cards)) == min(count, plan.processes)
    own = [worker._device(local.card_of(plan, config, index)) for index in range(plan.processes)]
    assert own == ([torch.device("cuda", int(card[-1])) for card in cards] or [None] * plan.processes)
    if count == 1:
        assert said(plan, cards) == f"workers {', '.join(map(str, range(plan.processes)))} share GPU 0"


def test_processes_may_share_the_only_card(machine):
    machine(1)
    config = config_of(*LARGE, "plan=timestep", "model.context=same_level", "launcher.threads=false")
    plan = build(config.plan, describe(config))
    assert set(local.cards(plan, config)) == {"GPU 0"}


@pytest.mark.parametrize("count", COUNTS)
def test_nccl_is_refused_where_workers_share_a_card_and_the_remedy_works(machine, count):
    machine(count)
    told = (*LARGE, "plan=timestep", "plan.workers=4", "model.context=same_level", "launcher.threads=false")
    config = config_of(*told, "launcher.transport=nccl")
    plan = build(config.plan, describe(config))
    cards = local.cards(plan, config)
    if count in (1, 2):
        with pytest.raises(UserError, match=r"are on one device \(GPU \d\); use launcher.transport=auto"):
            places.refuse_unjoined(plan, config, cards)
    else:
        places.refuse_unjoined(plan, config, cards)
    places.refuse_unjoined(plan, config_of(*told, "launcher.transport=auto"), cards)


# -- several models side by side ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("count", "workers", "cards"),
    [
        (2, (1, 1), [[0], [1]]),
        (4, (2, 1), [[0, 1], [2]]),
        (3, (2, 2), [[0, 1], [2, 0]]),
        (2, (1, 1, 1), [[0], [1], [0]]),
        (1, (1, 1), [[0], [0]]),
    ],
)
def test_models_on_one_machine_take_the_next_free_cards(machine, count, workers, cards):
    machine(count)
    configs = [config_of(*LARGE, "plan=timestep", f"plan.workers={number}") for number in workers]
    found = places.together(configs, [None] * len(configs))
    assert [list(on_one_host(build(c.plan, describe(c)), c.plan.devices, count)) for c in found] == cards


def test_cards_that_a_person_names_are_kept_and_left_to_that_model(machine):
    machine(2)
    configs = [config_of(*LARGE, "plan.devices=[0]"), config_of(*LARGE)]
    assert [c.plan.devices for c in places.together(configs, [[0], None])] == [[0], [1]]
    machine(0)
    assert places.together(configs, [[0], None]) == configs


def test_models_that_share_a_card_are_named():
    used = {"a": ("GPU 0", "GPU 1"), "b": ("GPU 1",), "c": ("GPU 2",), "d": ()}
    assert places.sharing(used) == ["a, b share GPU 1"]

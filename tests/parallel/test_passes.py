"""The table of passes: what a row means to the schedule and to the simulator, and that a new kind is a new row."""

from __future__ import annotations

from collections import defaultdict, deque
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from conf.schema import PlanConfig
from conf.schema.cluster import ClusterConfig, DeviceGroup, DeviceKind, StageTimes
from parallel.builders import build
from parallel.cluster import Cluster, Subject
from parallel.cost import Costs
from parallel.message import DUE
from parallel.passes import LEFT, OUT, PASSES, ROWS, Kind, Pass, entering
from parallel.plan import Plan, Version, Workload
from parallel.predict import Demand
from parallel.schedule import Schedule
from parallel.simulated import simulated
from parallel.simulator import Simulator
from parallel.timeline import Periods
from runtime.cells import Cells
from runtime.guard import Guard
from runtime.head import Entry
from runtime.local import LocalRun
from runtime.messages import Messages
from runtime.pipeline import results, run_all
from runtime.workload import describe
from stages.inputs import FINITE, LATENTS
from tests.helpers import config_of

PROBE = Kind(
    "probe",
    ROWS,
    reads=lambda due, item: {"chunk": item.chunk},
    counter="probes",
    on_final=lambda workload, chunk: [chunk],
)
"""Along every row of banks after every finished chunk; the next chunk's steps wait for it."""


def plan_of(config: PlanConfig, **changes) -> Plan:
    return build(config, Workload(**{"steps": 3, "layers": 4} | changes))


def execute(plan: Plan, chunks: int, choose) -> dict[int, list[Pass]]:
    """What every worker does for one stream, in that order, if `choose` picks who goes on next.

    Channels are queues, nothing takes time, and the head lets in what its schedule allows.
    """
    schedules = [Schedule(plan, worker) for worker in range(plan.workers)]
    for schedule in schedules:
        schedule.open(0)
    channels: dict[tuple[int, int], deque[Pass]] = defaultdict(deque)
    done: dict[int, list[Pass]] = {worker: [] for worker in range(plan.workers)}
    entered, out = 0, []

    def send(source: int, sent) -> None:
        for target, item in sent:
            channels[source, target].append(item)

    def take(source: int, target: int) -> None:
        item, schedule = channels[source, target].popleft(), schedules[target]
        if item.kind == "done":
            out.append((item.chunk, item.step))
        elif item.kind == "sidecar":
            schedule.sidecar(0, item.chunk)
        else:
            schedule.arrive(item)

    def run(worker: int, item: Pass) -> None:
        done[worker].append(item)
        if item.kind == "step" and item[3:5] == (0, 0):
            schedules[worker].entered(0, item.chunk)
        send(worker, schedules[worker].done(item))

    while True:
        for worker, schedule in enumerate(schedules):
            for item, _ in list(schedule.staged()):
                run(worker, item)
        may: list = [(take, pair) for pair, queue in channels.items() if queue]
        head = schedules[plan.encode]
        if entered <= chunks and (entered == chunks or head.may_enter(0, entered)):
            may.append((None, ()))
        may += [(worker, ()) for worker, schedule in enumerate(schedules) if schedule._ready]
        if not may:
            break
        what, pair = choose(may)
        if what is None:
            sent = entering(plan, 0, entered) if entered < chunks else [(plan.head, Pass("end", 0, chunks))]
            send(plan.encode, sent)
            entered += 1
        elif what is take:
            take(*pair)
        else:
            run(what, schedules[what].next()[0])
    assert sorted(out) == [(chunk, told) for chunk in range(chunks) for told in (LEFT, OUT)]
    schedules[plan.encode].close(0, "head")
    assert not any(schedule.streams for schedule in schedules)
    return done


configs = st.sampled_from([
    PlanConfig("sequential"), PlanConfig("timestep"), PlanConfig("timestep", workers=2),
    PlanConfig("layers", workers=3), PlanConfig("grid", grid=[2, 2]),
    PlanConfig("grid", grid=[2, 2], decode=0, encode=4),
])  # fmt: skip
contexts = st.sampled_from([
    ("same_level", ()), ("clean", ()), ("same_level", (Version(-1, 0), Version(0, 3))),
    ("same_level", (Version(0, 1, "commit"),)), ("same_level", (Version(0, 1, "commit"), Version(0, 1))),
])  # fmt: skip


def on_banks(passes: list[Pass], kinds: tuple[str, ...]) -> dict[tuple[int, int], list[tuple[str, int, int]]]:
    """(kind, chunk, step) of passes, in order, by the (block, level) of their bank."""
    found = defaultdict(list)
    for item in passes:
        if item.kind in kinds:
            found[item.block, item.level].append((item.kind, item.chunk, item.step if item.kind == "step" else 0))
    return found


@settings(max_examples=60)
@given(configs, contexts, st.data())
def test_the_order_on_every_bank_is_the_same_whoever_goes_on_first(config, context, data):
    plan = plan_of(config, context=context[0], versions=context[1])
    kinds = (*PASSES.on(ROWS), "step")
    first = execute(plan, 5, lambda may: may[0])
    other = execute(plan, 5, lambda may: data.draw(st.sampled_from(may)))
    for worker, passes in first.items():
        assert on_banks(passes, kinds) == on_banks(other[worker], kinds)
        for stage in (3, 4):
            order = [i for i in passes if i.step == stage]
            assert order == [i for i in other[worker] if i.step == stage]
            assert [i.chunk for i in order if i.kind == "stage"] in ([], [0, 1, 2, 3, 4])


@settings(max_examples=40)
@given(configs, contexts, st.data())
def test_a_new_kind_is_a_row_for_the_schedule(config, context, data):
    plan = plan_of(config, context=context[0], versions=context[1], passes=PASSES.also(PROBE))
    done = execute(plan, 4, lambda may: data.draw(st.sampled_from(may)))
    probed_in_order(plan, done, 4)


@settings(max_examples=20)
@given(configs, contexts)
def test_and_for_the_simulator(config, context):
    plan = plan_of(config, context=context[0], versions=context[1], passes=PASSES.also(PROBE))
    simulator = Simulator(plan, Periods(plan), spans=True)
    simulator.open(0, chunks=4)
    simulator.run(lambda: False)
    assert [chunk.number for chunk in simulator.chunks] == [0, 1, 2, 3]
    done = {w: [span.item for span in simulator.spans if span.worker == w] for w in range(plan.workers)}
    probed_in_order(plan, done, 4)
    assert not any(worker.schedule.streams for worker in simulator.workers)


def test_and_for_the_workers(tmp_path, monkeypatch):
    """Its work is a method of the cells; what the steps make of the stream is what it was."""
    config = config_of("model=nano", "plan=grid", "sink.video=null", "stream.chunks=5")
    probed = []

    def probe(self, block, item, message, incoming):
        probed.append((item.block, item.level, item.chunk))
        return incoming

    monkeypatch.setattr(Cells, "_probe", probe, raising=False)
    found = []
    for passes in (PASSES, PASSES.also(PROBE)):
        plan = build(config.plan, replace(describe(config), passes=passes))
        engine = LocalRun(plan, config, tmp_path)
        run_all(engine.pipeline, config)
        engine.start()
        engine.wait()
        found.append(results(engine.pipeline)[0]["latents_sha256"])
    assert found[0] == found[1]
    banks = [(b, level) for worker in range(plan.workers) for b in plan.blocks_of(worker)
             for level in plan.levels_of(worker, b)]  # fmt: skip
    assert sorted(probed) == sorted((*bank, chunk) for bank in banks for chunk in range(5))


def probed_in_order(plan: Plan, done: dict[int, list[Pass]], chunks: int) -> None:
    """Every bank is probed once after every chunk, between its steps and those of the next."""
    for worker, passes in done.items():
        banks = on_banks(passes, ("step", "probe"))
        assert set(banks) == {(b, level) for b in plan.blocks_of(worker) for level in plan.levels_of(worker, b)}
        for order in banks.values():
            assert [chunk for _, chunk, _ in order] == sorted(chunk for _, chunk, _ in order)
            assert [chunk for kind, chunk, _ in order if kind == "probe"] == list(range(chunks))
            probes = [i for i, (kind, _, _) in enumerate(order) if kind == "probe"]
            assert all(order[i + 1][1] == order[i][1] + 1 for i in probes[:-1])


@pytest.mark.parametrize("context", ["same_level", "clean"])
@pytest.mark.parametrize(
    "config", [PlanConfig("timestep"), PlanConfig("layers", workers=3)], ids=["timestep", "layers"]
)
def test_and_for_costs_channels_and_predictions(config, context):
    """A pass more of the whole network along every row for each chunk, which costs what a step does."""
    plans = [plan_of(config, context=context, passes=passes) for passes in (PASSES, PASSES.also(PROBE))]
    kind = DeviceKind(memory_bytes=1e12)
    devices = [DeviceGroup(count=plans[0].processes)]
    times = [StageTimes(model="any", step_s=1.0)]
    machine = Cluster.of(ClusterConfig(kinds={"gpu": kind}, devices=devices, times=times), Subject("any"))
    loads = [Costs(plan, machine).load() for plan in plans]
    for worker, (before, after) in enumerate(zip(*loads, strict=True)):
        more = sum(len(plans[0].blocks[b]) * len(plans[0].levels_of(worker, b)) / 4 for b in plans[0].blocks_of(worker))
        assert after - before == pytest.approx(more)
    assert {(plans[1].tail, row[0]) for row in plans[1].rows if row[0] != plans[1].tail} <= set(plans[1].channels)
    periods = [simulated(Costs(plan, machine), Demand()).period_s for plan in plans]
    assert periods[1] > periods[0]


def test_what_enters_for_a_chunk():
    versions = (Version(-1, 0), Version(0, 4))
    plan = plan_of(PlanConfig("timestep", workers=4), versions=versions)
    assert entering(plan, 7, 0) == [
        (3, Pass("sidecar", 7, 0)),
        *((row, Pass("prefill", 7, 0, step=row)) for row in range(3)),
        (0, Pass("step", 7, 0)),
    ]
    assert entering(plan, 7, 4) == [(3, Pass("sidecar", 7, 4)), (0, Pass("step", 7, 4))]
    clean = plan_of(PlanConfig("layers", workers=2), context="clean", recache_chunks=4)
    assert entering(clean, 0, 5, epoch=5) == [
        (1, Pass("sidecar", 0, 5)), (0, Pass("recache", 0, 5, epoch=5)), (0, Pass("step", 0, 5, epoch=5)),
    ]  # fmt: skip
    assert [item.kind for _, item in entering(clean, 0, 6, epoch=5)] == ["sidecar", "step"]


@pytest.mark.parametrize("config", [PlanConfig("timestep", workers=3), PlanConfig("grid", grid=[3, 2])], ids=str)
def test_a_stream_goes_on_where_a_state_left_it(config):
    """Banks wait for nothing but what is in force only from then on."""
    plan = plan_of(config, versions=(Version(-1, 0), Version(0, 6)))
    schedule = Schedule(plan, 0)
    schedule.open(0)
    schedule.resume(0, 6)
    schedule.arrive(Pass("step", 0, 6))
    assert schedule.next() is None
    schedule.arrive(Pass("prefill", 0, 6))
    assert schedule.next()[0].kind == "prefill"
    schedule.done(Pass("prefill", 0, 6))
    assert schedule.next()[0] == Pass("step", 0, 6)
    assert schedule.waiting == 0


def test_a_table_is_a_value():
    plan = plan_of(PlanConfig("timestep", workers=3))
    other = replace(plan, workload=replace(plan.workload, passes=PASSES.also(PROBE)))
    assert plan != other and "probe" not in PASSES and "probe" in other.workload.passes
    assert PASSES.on(ROWS) == ("prefill", "recache", "commit")


def ordered(plan: Plan, *arrivals: tuple[Pass, float | None]) -> list[tuple[int, int, int]]:
    """(stream, chunk, step) of passes of one worker, in the order in which it takes them."""
    schedule = Schedule(plan, 0)
    for stream in sorted({item.stream for item, _ in arrivals}):
        schedule.open(stream)
        schedule.resume(stream, 1)
    for item, due in arrivals:
        schedule.arrive(item, None, *([] if due is None else [due]))
    found = []
    while (taken := schedule.next()) is not None:
        found.append((taken[0].stream, taken[0].chunk, taken[0].step))
    return found


def test_the_earliest_due_goes_first_and_what_is_never_due_last():
    """However far the others are: what came first, or has fewer steps to go, may have more time."""
    plan = plan_of(PlanConfig("sequential"))
    arrivals = [
        (Pass("step", 0, 1, 2), None), (Pass("step", 1, 1, 1), 9.0), (Pass("step", 2, 1, 0), 7.5),
        (Pass("step", 3, 1, 0), 8.0),
    ]  # fmt: skip
    assert ordered(plan, *arrivals) == [(2, 1, 0), (3, 1, 0), (1, 1, 1), (0, 1, 2)]


def test_of_what_is_due_together_or_never_the_furthest_goes_first():
    plan = plan_of(PlanConfig("sequential"))
    for due in (None, 5.0):
        arrivals = [(Pass("step", 0, 1, 0), due), (Pass("step", 1, 1, 2), due), (Pass("step", 2, 1, 2), due)]
        assert ordered(plan, *arrivals) == [(1, 1, 2), (2, 1, 2), (0, 1, 0)]


def test_a_chunk_takes_along_when_it_is_due_as_long_as_it_has_steps_to_go():
    config = config_of("model=nano")
    messages = Messages(build(config.plan, describe(config)), torch.device("cpu"), Guard(None, "worker 0"))
    entry = Entry(0, 0, {"x": torch.zeros(1)}, moments={"entered": 1.0, DUE: 7.0})
    sent = {message.kind: message for _, message in messages.entering(entry)}
    assert sent["step"].moments == {DUE: 7.0} and sent["sidecar"].moments == entry.moments
    first = Pass("step", 0, 0)
    assert messages.following(first, first._replace(step=1), sent["step"]).moments == {DUE: 7.0}
    sent["step"].tensors |= {LATENTS: torch.zeros(1, 1, 1, 1, 1), FINITE: torch.zeros(1)}
    assert messages.following(first, Pass("stage", 0, 0, 4), sent["step"]).moments == {}

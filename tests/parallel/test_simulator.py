"""Virtual time: the workers' own order, and what follows from it."""

import threading
from fractions import Fraction
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conf.schema import PlanConfig
from parallel.builders import build
from parallel.capacity import Service, lateness, most_streams, share_on_time
from parallel.passes import Pass
from parallel.plan import Plan, Version, Workload
from parallel.simulator import Chunk, Simulator
from parallel.timeline import Periods
from runtime.local import LocalRun
from runtime.pipeline import run_all
from runtime.worker import Worker
from runtime.workload import describe
from tests.helpers import config_of


class Given:
    """Whole numbers: a step of all layers takes 12 per step, hops 1, encode 2, decode what is said."""

    def __init__(self, plan: Plan, decode: int = 3, hop: int = 1):
        self.plan, self.decode, self.hop = plan, decode, hop

    def work(self, worker: int, item: Pass) -> int:
        if item.kind == "stage":
            return {"decode": self.decode, "output": 0}[self.plan.stage_of(item)]
        if item.kind == "end":
            return 0
        return 12 * len(self.plan.blocks[item.block]) // self.plan.workload.layers

    def sample(self, stream: int, chunk: int) -> int:
        return 0

    def encode(self, stream: int, chunk: int) -> int:
        return 2

    def handling(self, worker: int) -> int:
        return 0

    def travel(self, source: int, target: int, item: Pass) -> tuple[int, int]:
        return 0, self.hop

    def shown(self, item: Pass) -> int:
        return 1


def plan_of(config: PlanConfig, **changes) -> Plan:
    return build(config, Workload(**{"steps": 4, "layers": 6} | changes))


def run(plan: Plan, chunks: int, durations=None, streams: int = 1) -> list[Chunk]:
    simulator = Simulator(plan, durations or Given(plan))
    for stream in range(streams):
        simulator.open(stream, 0, chunks)
    simulator.run(lambda: False)
    return simulator.chunks


def test_the_first_chunk_takes_its_way_and_others_follow_at_the_pace_of_the_slowest():
    plan = plan_of(PlanConfig("timestep"))
    chunks = run(plan, 30)
    # Encode, four steps, four hops (three between steps, one to the decoder), decode.
    assert (chunks[0].sampled, chunks[0].left) == (0, 2 + 4 * 12 + 4 + 3)
    assert chunks[0].shown == chunks[0].left - 2
    gaps = [b.left - a.left for a, b in pairwise(chunks[10:])]
    # The first worker also encodes.
    assert set(gaps) == {14}


@pytest.mark.parametrize("plan", [PlanConfig("layers", layers=[3, 3], workers=3), PlanConfig("grid")], ids=str)
def test_what_returns_meets_nothing_new(plan):
    """A chunk takes its way and no more, though others follow it round a ring of two."""
    plan = plan_of(plan)
    chunks = run(plan, 20)
    way = 2 + 4 * 12 + 3 + len(plan.route)  # encode, steps, decode, and a hop behind every cell
    assert chunks[0].left == way
    assert all(chunk.left - chunk.sampled <= way + 12 / 2 for chunk in chunks)


def test_a_slow_decoder_sets_the_pace():
    plan = plan_of(PlanConfig("timestep"))
    chunks = run(plan, 60, Given(plan, decode=20))
    assert chunks[-1].left - chunks[-2].left == 20
    # And latency stays near the sum of stages: what enters is paced.
    stages = 2 + 4 * 12 + 20
    assert chunks[-1].left - chunks[-1].granted <= stages + 5 + 20


@settings(deadline=None, max_examples=40)
@given(
    st.sampled_from([PlanConfig("timestep", workers=3), PlanConfig("layers", workers=3), PlanConfig("grid")]),
    st.sampled_from(["same_level", "clean"]),
    st.sampled_from([(), (Version(-1, 0), Version(0, 4)), (Version(0, 1, "commit"),)]),
    st.integers(1, 3),
)
def test_every_chunk_of_every_stream_leaves_once_and_in_order(config, context, versions, streams):
    versions = tuple(v for v in versions if v.kind == "prefill" or context == "same_level")
    plan = plan_of(config, context=context, versions=versions)
    simulator = Simulator(plan, Given(plan), spans=True)
    for stream in range(streams):
        simulator.open(stream, 5 * stream, 8)
    simulator.run(lambda: False)
    for stream in range(streams):
        assert [c.number for c in simulator.chunks if c.stream == stream] == list(range(8))
    for worker in range(plan.workers):
        own = sorted((s.start, s.end) for s in simulator.spans if s.worker == worker and s.item.step <= 4)
        assert all(a[1] <= b[0] for a, b in pairwise(own))


@pytest.mark.parametrize(
    "plan",
    [
        ("plan=timestep", "model.recalibrate_chunk=4"),
        ("plan=timestep", "model.context=clean"),
        ("plan=layers", "model.context=clean", "stream.chunks=5"),
        ("plan=grid", "model.context=clean", "model.prompt_switch=recache", "stream.events=[{chunk: 4, prompt: new}]"),
    ],
    ids=str,
)
def test_its_order_is_the_real_workers(tmp_path, monkeypatch, plan):
    """Where the order of passes is settled by what they wait for, both do the same ones in the same order."""
    config = config_of("model=nano", "sink.video=null", "stream.chunks=9", *plan)
    built = build(config.plan, describe(config))
    real: dict[int, list[Pass]] = {w: [] for w in range(built.workers)}
    execute, lock = Worker._execute, threading.Lock()

    def remembered(self, item, message):
        with lock:
            real[self.index].append(item)
        execute(self, item, message)

    monkeypatch.setattr(Worker, "_execute", remembered)
    engine = LocalRun(built, config, tmp_path)
    run_all(engine.pipeline, config)
    engine.start()
    engine.wait()
    simulator = Simulator(built, Periods(built), spans=True)
    prompts = [event.chunk for event in config.stream.events]
    simulator.open(0, Fraction(0), config.stream.chunks, prompts=prompts)
    simulator.run(lambda: False)
    for worker, passes in real.items():
        # When latents are finished beside steps is free.
        def route(items):
            return [i for i in items if i.kind not in ("stage", "end")]

        assert route(passes) == route(s.item for s in simulator.spans if s.worker == worker)
        assert [i.chunk for i in passes if i.kind == "recache"] == prompts * len(built.blocks_of(worker))
        finals = [i for i in passes if i.kind == "stage"]
        assert finals == [s.item for s in simulator.spans if s.worker == worker and s.item.kind == "stage"]


def test_lateness_is_counted_from_the_first_frame():
    chunks = [Chunk(0, k, 0, 0, shown, left) for k, (shown, left) in enumerate([(10, 12), (21, 23), (40, 42)])]
    assert lateness(chunks, 10) == [23 - 20, 42 - 30]


def test_a_pipeline_serves_as_many_streams_as_fit_its_pace():
    """One worker at 14 per chunk and a screen of 60 per chunk: four streams fit, a fifth does not."""
    plan = plan_of(PlanConfig("timestep"))
    service = Service(play_s=60, buffer_s=60, on_time=0.99, seconds=2400)
    assert share_on_time(plan, Given(plan), 4, service) == 1.0
    assert share_on_time(plan, Given(plan), 5, service) < 0.9
    assert most_streams(plan, lambda: Given(plan), service, limit=9) == 4
    assert most_streams(plan, lambda: Given(plan, decode=70), service, limit=9) == 0

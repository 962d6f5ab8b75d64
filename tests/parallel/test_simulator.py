"""Virtual time: the workers' own order, and what follows from it."""

from collections import Counter
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
    """Whole numbers: a step of all layers takes 12 per step, hops 1, encode 2, decode what is said, post 4, and output
    what is said of the stream."""

    def __init__(self, plan: Plan, decode: int = 3, hop: int = 1, outputs: dict[int, int] | None = None):
        self.plan, self.decode, self.hop, self.outputs = plan, decode, hop, outputs or {}

    def work(self, worker: int, item: Pass) -> int:
        if item.kind == "stage":
            output = self.outputs.get(item.stream, 0)
            return {"decode": self.decode, "post": 4, "output": output}[self.plan.stage_of(item)]
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


@settings(max_examples=40)
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
    assert not any(worker.schedule.streams for worker in simulator.workers)
    for worker in range(plan.workers):
        own = sorted((s.start, s.end) for s in simulator.spans if s.worker == worker and s.item.step <= 4)
        assert all(a[1] <= b[0] for a, b in pairwise(own))


@pytest.mark.parametrize(
    "placed", [{"decode": 0, "post": 1}, {"decode": 4, "post": 5}, {"decode": 3, "post": 0}], ids=str
)
def test_stages_share_their_workers_device_and_go_first(placed):
    plan = plan_of(PlanConfig("timestep", steps=[1, 1, 1, 1], **placed), posts=True)
    simulator = Simulator(plan, Given(plan), spans=True)
    simulator.open(0, chunks=20)
    simulator.run(lambda: False)
    assert [chunk.number for chunk in simulator.chunks] == list(range(20))
    for stage, (name, worker) in enumerate(plan.stages[:-1]):
        own = [s for s in simulator.spans if s.item.kind == "stage" and s.item.step == 4 + stage]
        assert [(s.worker, s.item.chunk, s.end - s.start) for s in own] == [
            (worker, chunk, {"decode": 3, "post": 4}[name]) for chunk in range(20)
        ]
    for worker in range(plan.workers):
        own = [(s.start, s.end) for s in simulator.spans if s.worker == worker and s.item.step < 6]
        assert all(a[1] <= b[0] for a, b in pairwise(own))
    # A worker with cells and a stage does both for every chunk; where they collide, that costs something more.
    loads = [12 * len(plan.blocks_of(w)) + 2 * (w == plan.encode) for w in range(plan.workers)]
    for name, worker in plan.stages[:-1]:
        loads[worker] += {"decode": 3, "post": 4}[name]
    steady = simulator.chunks[8:17]
    assert max(loads) <= (steady[-1].left - steady[0].left) / 8 <= 1.25 * max(loads)


@pytest.mark.parametrize("plan", [PlanConfig("timestep"), PlanConfig("layers", workers=3), PlanConfig("grid")], ids=str)
def test_a_slow_output_slows_its_own_stream_alone(plan):
    """Beside a stream whose output takes five steps of time, another has what the first one leaves."""
    plan = plan_of(plan)
    slow = Given(plan, outputs={0: 60})

    def rates(streams: list[int], durations: Given) -> dict[int, float]:
        simulator = Simulator(plan, durations)
        for stream in streams:
            simulator.open(stream)
        # From when rooms have been measured on.
        simulator.run(lambda: simulator.now > 6000)
        left = [c.stream for c in simulator.chunks if c.left > 2000]
        return {stream: left.count(stream) / 4000 for stream in streams}

    alone, both = rates([1], Given(plan)), rates([0, 1], slow)
    # It takes its turn in the shared room, so its output is not always busy.
    assert 0.8 / 60 <= both[0] <= 1 / 60 + 1 / 4000
    assert both[1] >= alone[1] / 2
    # Together they use all there is.
    assert sum(both.values()) >= 0.97 * alone[1]
    # Alone, too, its output sets its pace, and nothing waits before it for long.
    simulator = Simulator(plan, slow)
    simulator.open(0, chunks=60)
    simulator.run(lambda: False)
    assert simulator.chunks[-1].left - simulator.chunks[-2].left == pytest.approx(60, abs=1)
    way = simulator.chunks[0].left - simulator.chunks[0].granted
    assert all(chunk.left - chunk.granted <= way + 60 for chunk in simulator.chunks[20:])


class Drawn(Given):
    """Work of any length, on workers of any speed."""

    def __init__(self, plan: Plan, draw):
        super().__init__(plan)
        self._draw = draw
        self._speed = [draw(st.sampled_from([1, 1, 1, 10, 40])) for _ in range(plan.workers)]
        self._random = draw(st.randoms(use_true_random=False))

    def work(self, worker: int, item: Pass) -> int:
        if item.kind == "stage":
            return self._random.choice([0, 3, 30, 300])
        return 0 if item.kind == "end" else 12 * self._speed[worker] * self._random.choice([1, 1, 2])

    def encode(self, stream: int, chunk: int) -> int:
        return self._random.choice([0, 2, 50])

    def handling(self, worker: int) -> int:
        return self._random.choice([0, 1])

    def travel(self, source: int, target: int, item: Pass) -> tuple[int, int]:
        return self._random.choice([0, 1]), 1


@settings(max_examples=60)
@given(
    st.sampled_from([
        PlanConfig("timestep"), PlanConfig("timestep", workers=3), PlanConfig("layers", workers=3), PlanConfig("grid"),
        PlanConfig("timestep", steps=[2, 1, 1], encode=3, decode=2), PlanConfig("grid", decode=0),
    ]),
    st.sampled_from(["same_level", "clean"]),
    st.sampled_from([(), (Version(-1, 0),), (Version(-1, 0), Version(0, 4)), (Version(0, 1, "commit"),)]),
    st.booleans(),
    st.lists(st.tuples(st.integers(0, 9), st.sampled_from([0, 0, 5, 100]), st.booleans()), min_size=1, max_size=16),
    st.data(),
)  # fmt: skip
def test_no_channel_ever_holds_more_than_its_credits(config, context, versions, decodes, streams, data):
    """Of every kind of message, ends and references of many streams at once included; and nothing is left in the end.

    So no worker waits for another to take messages in, and a ring of workers cannot wait for each other.
    """
    versions = tuple(v for v in versions if v.kind == "prefill" or context == "same_level")
    plan = plan_of(config, context=context, versions=versions, decodes=decodes, recache_chunks=3 * (context == "clean"))
    simulator = Simulator(plan, Drawn(plan, data.draw))
    for stream, (chunks, at, live) in enumerate(streams):
        source = (lambda chunk, at=at: at + 40 * chunk) if live else None
        simulator.open(stream, at, chunks, source, prompts=(2, 3))
    simulator.run(lambda: False)
    for stream, (chunks, _, _) in enumerate(streams):
        assert [c.number for c in simulator.chunks if c.stream == stream] == list(range(chunks))
    assert max(simulator.most_held.values(), default=0) <= plan.credits(len(streams))
    assert simulator.pacer.lanes == {} and simulator.pacer.in_flight == 0
    assert not any(worker.schedule.streams for worker in simulator.workers)


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
    followed = Worker._followed

    def remembered(self, item, message):
        real[self.index].append(item)  # of a worker's own thread
        followed(self, item, message)

    monkeypatch.setattr(Worker, "_followed", remembered)
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
    tried = []
    assert most_streams(plan, lambda: tried.append(0) or Given(plan), service, limit=4) == 4
    assert len(tried) == 1, "what is possible at most is tried first"


plans = st.sampled_from(
    [
        PlanConfig("timestep"), PlanConfig("timestep", steps=[2, 1, 1], encode=4), PlanConfig("layers", layers=[3, 3]),
        PlanConfig("grid", grid=[2, 2]), PlanConfig("timestep", workers=4, decode=0),
    ]
)  # fmt: skip


@settings(max_examples=25)
@given(plans, st.data(), st.integers(1, 2), st.integers(0, 20))
def test_a_device_does_one_thing_at_a_time_for_all_its_workers(config, data, streams, decode):
    plan = plan_of(config)
    devices = [(data.draw(st.integers(0, 2)),) for _ in range(plan.workers)]
    simulator = Simulator(plan, Given(plan, decode=decode), spans=True, devices=devices)
    for stream in range(streams):
        simulator.open(stream, 0, 40)
    simulator.run(lambda: False)
    assert len(simulator.chunks) == 40 * streams
    output = plan.workload.steps + len(plan.stages) - 1
    work = [s for s in simulator.spans if s.item.step != output]
    for device in set(devices):
        mine = sorted((s.start, s.end) for s in work if devices[s.worker] == device)
        assert all(a[1] <= b[0] for a, b in pairwise(mine))
    # So chunks come no faster than the busiest device does what all its workers do for one.
    load, encode = plan.load({"step": 12, "decode": decode}), 2
    busiest = max(
        sum(load[w] for w in range(plan.workers) if devices[w] == device) + encode * (devices[plan.encode] == device)
        for device in set(devices)
    )
    left = [chunk.left for chunk in simulator.chunks]
    assert left[-1] >= busiest * len(left)
    # And none waits for who has something to do and does not do it.
    assert left[-1] <= busiest * len(left) + 40 * 12 * plan.workers + 1000


@pytest.mark.parametrize("config", [PlanConfig("timestep"), PlanConfig("grid", grid=[2, 2])], ids=lambda c: c.name)
def test_a_device_for_every_worker_is_as_before(config):
    plan = plan_of(config)
    own = Simulator(plan, Given(plan), devices=[(7 - worker,) for worker in range(plan.workers)])
    own.open(0, 0, 20)
    own.run(lambda: False)
    assert own.chunks == run(plan, 20)


def test_who_has_waited_longest_has_the_device_next():
    plan = plan_of(PlanConfig("timestep"))
    simulator = Simulator(plan, Given(plan), spans=True, devices=[(0,)] * plan.workers)
    simulator.open(0, 0, 30)
    simulator.run(lambda: False)
    steps = Counter(s.worker for s in simulator.spans if s.item.kind == "step" and 10 * 50 < s.start < 20 * 50)
    assert max(steps.values()) - min(steps.values()) <= 2

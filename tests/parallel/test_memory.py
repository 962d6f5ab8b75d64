"""Bytes on devices, added up by hand."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conf.schema import PlanConfig
from conf.schema.cluster import ClusterConfig, DeviceGroup, DeviceKind, StageTimes
from parallel.builders import build
from parallel.cluster import Cluster, Subject
from parallel.cost import Costs
from parallel.memory import Memory
from parallel.plan import StageBytes, Taken, Workload
from runtime.loading import load_parts
from runtime.workload import describe
from tests.helpers import config_of
from tests.runtime.test_lingbot_runs import BASE as WORLD

LATENTS, HIDDEN, PEER = 2_000_000, 20_000_000, 4e6


def memory_of(
    config: PlanConfig, placement=None, streams: int = 1, devices: int = 5, peer_bytes=PEER, **changes
) -> Memory:
    workload = {"steps": 4, "layers": 6, "layer_bytes": (100,) * 6, "bank_bytes": 10, "states_bytes": 7} | changes
    kind = DeviceKind(memory_bytes=1e9, reserve_bytes=1e8, context_bytes=5e7, peer_bytes=peer_bytes)
    config_of_cluster = ClusterConfig(
        kinds={"gpu": kind}, devices=[DeviceGroup(count=devices)],
        times=[StageTimes(model="test", step_s=1.0, decode_bytes=3e6, step_bytes=2e5)],
    )  # fmt: skip
    sized = Workload(**{"latent_bytes": LATENTS, "hidden_bytes": HIDDEN} | workload)
    return Memory(Costs(build(config, sized), Cluster.of(config_of_cluster, Subject("test")), placement), streams)


@pytest.mark.parametrize("streams", [1, 3])
def test_text_is_there_twice_while_a_prompt_changes(streams):
    held = memory_of(PlanConfig("timestep"), streams=streams).of(0)
    assert held.weights == 600
    # One level of six layers, and two epochs of their text.
    assert held.banks == streams * 6 * (10 + 2 * 7)
    blocks = memory_of(PlanConfig("layers", layers=[4, 2]), streams=streams).of(1)
    assert blocks.banks == streams * 2 * (4 * 10 + 2 * 7)


def joined(config: PlanConfig, placement=None, **changes) -> list[float]:
    """How many others each worker's first process is joined with."""
    with_them = memory_of(config, placement, **changes)
    without = memory_of(config, placement, peer_bytes=0.0, **changes)
    return [(with_them.passes(w) - without.passes(w)) / PEER for w in range(with_them.plan.workers)]


def test_every_channel_with_large_bodies_has_a_communicator():
    # Latents come from the step before and go to the next; of a sidecar, and that a chunk has left, headers suffice.
    assert joined(PlanConfig("timestep")) == [1, 2, 2, 2, 1]
    assert joined(PlanConfig("timestep"), latent_bytes=1000) == [0] * 5
    # On one device there are none.
    assert joined(PlanConfig("timestep"), (0, 1, 2, 3, 3)) == [1, 2, 2, 1, 0]
    passes = PlanConfig("sequential", sequence_parallel=2, workers=2)
    assert joined(passes, heads=4, tokens_per_frame=4) == [1]
    steps = memory_of(PlanConfig("timestep"))
    assert steps.passes(1) == 2e5 + 2 * 2 * LATENTS + 2 * PEER


def test_what_is_recorded_has_a_workspace_and_text_of_its_own():
    plain, recorded = (memory_of(PlanConfig("sequential"), recorded=flag) for flag in (False, True))
    assert recorded.of(0).passes - plain.of(0).passes == 2e5
    assert recorded.of(0).banks - plain.of(0).banks == 6 * 7


@pytest.mark.parametrize("streams", [1, 3])
def test_stages_keep_of_every_stream_and_work_for_one_at_a_time(streams):
    taken = StageBytes(Taken(10, 100), Taken(1000, 10_000), Taken(0, 50_000), Taken(200_000, 0))
    memory = memory_of(PlanConfig("timestep"), streams=streams, taken=taken)
    assert [memory.stages(worker) for worker in (1, 2, 3)] == [0, 0, 0]
    assert memory.stages(0) == streams * 10 + 100
    # What decoding takes was measured there, for one stream.
    assert memory.stages(4) == streams * (3e6 + 200_000)
    assert memory.of(0).total - memory.of(1).total == pytest.approx(
        memory.stages(0) + memory.passes(0) - memory.passes(1)
    )
    beside = memory_of(PlanConfig("sequential"), streams=streams, taken=taken, posts=True)
    assert beside.stages(0) == streams * (10 + 3e6 + 200_000) + 100 + 50_000
    # Who shares passes has no stages.
    shared = {"heads": 4, "tokens_per_frame": 4, "taken": taken}
    degree = memory_of(PlanConfig("sequential", sequence_parallel=2, workers=2), streams=streams, **shared)
    assert degree._held(0) - degree._held(1) == degree.stages(0) > 0


def test_who_shares_a_device_leaves_less_of_it():
    plan = PlanConfig("timestep")
    alone = memory_of(plan)
    assert alone.usable(3) == 9e8
    shared = memory_of(plan, placement=(0, 1, 2, 3, 3))
    assert shared.usable(3) == 9e8 - 5e7 - shared.of(4).total
    assert shared.usable(4) == 9e8 - 5e7 - shared.of(3).total
    # Both say of their device that as much is missing, or left.
    assert shared.short(3) == pytest.approx(shared.short(4))


@given(st.lists(st.integers(0, 2), min_size=5, max_size=5), st.integers(1, 4))
def test_all_that_is_on_a_device_adds_up(placement, streams):
    memory = memory_of(PlanConfig("timestep"), tuple(placement), streams, devices=3)
    for device in set(placement):
        there = [worker for worker in range(5) if placement[worker] == device]
        total = sum(memory.of(worker).total for worker in there) + 5e7 * (len(there) - 1)
        assert [memory.short(worker) for worker in there] == pytest.approx([total - 9e8] * len(there))


@pytest.mark.parametrize("model", [("model=nano",), WORLD], ids=["nano", "world"])
@pytest.mark.parametrize("plan", ["sequential", "timestep", "layers"])
def test_what_was_foreseen_is_what_a_worker_holds(plan, model):
    """Weights, and what one more stream needs: exactly."""
    config = config_of(*model, f"plan={plan}", "plan.workers=null", "device=cpu")
    made = build(config.plan, describe(config))
    for worker in range(made.workers):
        parts = load_parts(made, worker, config)
        layers = sum(len(made.blocks[b]) for b in made.blocks_of(worker))
        states = 2 * layers * made.workload.states_bytes
        assert made.bank_bytes(worker) + states == parts.stream_bytes - parts.decoder_bytes
        if worker != made.encode:
            assert made.weight_bytes(worker) == parts.weight_bytes

"""Predictions on cases small enough to work out by hand."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from conf.schema import PlanConfig
from conf.schema.cluster import ClusterConfig, DeviceGroup, DeviceKind, Link, StageTimes
from parallel.builders import build
from parallel.cluster import Cluster, Subject
from parallel.cost import Costs
from parallel.plan import Version, Workload
from parallel.predict import Demand, predict
from parallel.simulated import simulated

near = pytest.approx


def cluster(*speeds: float, link: Link | None = None, memory: float = 1e12, **times) -> Cluster:
    """Devices of these speeds; a step takes 1 s unless `times` says otherwise."""
    if not {"layer_s", "step_s"} & times.keys():
        times["step_s"] = 1.0
    config = ClusterConfig(
        name="test",
        kinds={"gpu": DeviceKind(memory_bytes=memory)},
        devices=[DeviceGroup(speed=speed) for speed in speeds],
        intra=link or Link(),
        times=[StageTimes(model="test", **times)],
    )
    return Cluster.of(config, Subject("test"))


def workload(**changes) -> Workload:
    return Workload(**{"steps": 4, "layers": 6, "layer_bytes": (0,) * 6} | changes)


def predicted(plan: PlanConfig, devices: Cluster, demand: Demand | None = None, **changes):
    return predict(Costs(build(plan, workload(**changes)), devices), demand or Demand())


def test_one_device_does_everything_in_turn():
    p = predicted(PlanConfig("sequential"), cluster(1, decode_s=0.5, encode_s=0.25))
    assert (p.period_s, p.fps) == (near(4.75), near(12 / 4.75))
    assert (p.first_frame_s, p.chunk_latency_s, p.in_flight) == (near(4.75), near(4.75), 1)
    # A control waits for the next chunk, then for all of it.
    assert (p.control_mean_s, p.control_worst_s) == (near(4.75 * 1.5), near(4.75 * 2))


def test_steps_overlap_and_a_chunk_still_takes_all_of_them():
    p = predicted(PlanConfig("timestep"), cluster(*[1] * 5, decode_s=0.5))
    assert (p.period_s, p.first_frame_s) == (near(1.0), near(4.5)) and p.bound == "worker 0"
    # The head is never idle, so it samples a chunk just before beginning it.
    assert (p.in_flight, p.chunk_latency_s) == (5, near(4.5))
    assert (p.control_mean_s, p.control_worst_s) == (near(5.0), near(5.5))


def test_what_the_viewer_paces_waits_for_nobody():
    costs = Costs(build(PlanConfig("timestep"), workload()), cluster(*[1] * 5, decode_s=0.5))
    live, slow = Demand(frames=12, fps=6, paced=True), Demand(frames=12, fps=16, paced=True)
    p, done = predict(costs, live), simulated(costs, live)
    assert (p.chunk_latency_s, p.control_mean_s, p.control_worst_s) == (near(4.5), near(5.5), near(6.5))
    assert (done.period_s, done.control_mean_s, done.control_worst_s) == (near(2.0), near(5.5), near(6.5))
    # What sets the pace is the viewer, or the plan where that is slower.
    assert (done.bound, simulated(costs, slow).bound) == ("how fast it is watched", "worker 0")


def test_frames_that_leave_as_they_are_made_show_sooner():
    p = predicted(PlanConfig("sequential"), cluster(1, decode_s=0.6, shown_s=0.2))
    assert p.first_frame_s == near(4.2)
    assert p.control_worst_s == near(4.6 + 4.2)


def test_output_is_beside_the_device_and_sets_the_pace_of_its_stream():
    p = predicted(PlanConfig("timestep"), cluster(*[1] * 5, decode_s=0.5, output_s=0.75))
    # On the way of a chunk, and no worker's load.
    assert (p.period_s, p.load[4], p.first_frame_s) == (near(1.0), near(0.5), near(5.25))
    slow = cluster(*[1] * 5, decode_s=0.5, output_s=2.0)
    p = predicted(PlanConfig("timestep"), slow)
    assert (p.period_s, p.bound, p.chunk_latency_s) == (near(2.0), "output", near(6.5))
    # Each stream has its own: two together are held back by the pipeline again.
    assert predicted(PlanConfig("timestep"), slow, Demand(streams=2)).period_s == near(1.0)
    # Nothing is made of latents that are only kept.
    assert predicted(PlanConfig("timestep"), slow, decodes=False).period_s == near(1.0)


def test_post_is_a_stage_where_the_plan_puts_it():
    times, more = {"decode_s": 0.5, "post_s": 0.75}, {"posts": True, "picture_bytes": 1_000_000}
    beside = predicted(PlanConfig("timestep"), cluster(*[1] * 5, **times), **more)
    assert (beside.load[4], beside.first_frame_s) == (near(1.25), near(5.25))
    link = Link(bandwidth=10e6)
    apart = predicted(PlanConfig("timestep", post=5), cluster(*[1] * 6, link=link, **times), **more)
    assert (apart.load[3:], apart.first_frame_s) == (near((1.0, 0.5, 0.75)), near(5.35))


@pytest.mark.parametrize("more", [{"decode_s": 0.04, "output_s": 0.05}, {"decode_s": 0.04, "output_s": 0.25}], ids=str)
@pytest.mark.parametrize("config", [PlanConfig("timestep"), PlanConfig("timestep", post=5)], ids=["beside", "apart"])
def test_formulas_and_execution_agree_about_the_last_stages(config, more):
    w = workload(posts=True, picture_bytes=400_000, latent_bytes=400_000)
    made = build(config, w)
    link = Link(latency_s=0.001, bandwidth=1e9)
    costs = Costs(made, cluster(*[1] * made.processes, link=link, step_s=0.1, post_s=0.03, hop_s=0.0002, **more))
    said, done = predict(costs, Demand()), simulated(costs, Demand())
    for value in ("period_s", "first_frame_s", "chunk_latency_s", "control_mean_s"):
        assert getattr(said, value) == near(getattr(done, value), rel=0.02), value


def test_the_slowest_worker_sets_the_pace():
    p = predicted(PlanConfig("timestep"), cluster(1, 1, 0.5, 1, 1))
    assert (p.period_s, p.first_frame_s) == (near(2.0), near(5.0)) and p.bound == "worker 2"
    # Two and a half in flight: the head is idle, and lets a chunk in when worker 2 will be free for it.
    assert (p.in_flight, p.chunk_latency_s) == (3, near(5.0))


def test_messages_cost_latency_and_the_pace_of_a_round_trip():
    link = Link(latency_s=0.01, bandwidth=10e6)
    p = predicted(PlanConfig("timestep", workers=4), cluster(*[1] * 4, link=link), latent_bytes=100_000)
    hop = 0.01 + 0.01
    assert p.first_frame_s == near(4 + 3 * hop)
    # A fifth chunk fills what messages take of the way, and no more: nothing waits for it.
    assert (p.in_flight, p.period_s, p.chunk_latency_s) == (5, near(1.0), near(4 + 3 * hop))
    few = PlanConfig("timestep", workers=4, in_flight=4)
    p = predicted(few, cluster(*[1] * 4, link=link), latent_bytes=100_000)
    # The head hears of it one message later, and has let only four in.
    assert p.period_s == near((4 + 3 * hop + 0.01) / 4)
    assert p.bound == "a chunk's round trip, 4 in flight"


def test_a_slow_link_sets_the_pace():
    p = predicted(PlanConfig("layers", workers=2), cluster(1, 1, link=Link(bandwidth=1e6)), hidden_bytes=1_000_000)
    assert p.period_s == near(4.0)  # four megabytes per chunk from worker 0 to worker 1
    assert p.bound in ("link from worker 0 to 1", "a chunk's round trip, 2 in flight")


def test_handling_a_message_is_work():
    p = predicted(PlanConfig("timestep", workers=2), cluster(1, 1, hop_s=0.1))
    # Worker 1: latents and a sidecar in; out, that a chunk has left the shared stages and that it is out.
    assert p.load == near((2 + 0.4, 2 + 0.4))


def test_clean_context_serialises_one_stream():
    alone = predicted(PlanConfig("sequential"), cluster(1), context="clean")
    assert (alone.period_s, alone.chunk_latency_s) == (near(5.0), near(4.0))
    steps = predicted(PlanConfig("timestep", workers=4), cluster(*[1] * 4), context="clean")
    assert steps.period_s == near(5.0)
    ring = predicted(PlanConfig("layers", layers=[3, 3], workers=2), cluster(1, 1), context="clean")
    # The second block's commit runs beside the next chunk's first step.
    assert ring.period_s == near(4.5)


@pytest.mark.parametrize("streams", [1, 2, 3])
def test_streams_fill_a_clean_ring(streams):
    p = predicted(
        PlanConfig("layers", layers=[2, 2, 2], workers=3), cluster(1, 1, 1), Demand(streams=streams), context="clean"
    )
    assert p.period_s == near(max((4 + 1 / 3) / streams, 5 / 3))


def test_chunk_0_waits_for_its_reference():
    versions = (Version(-1, 0),)
    times = {"prefill_s": 0.5}
    one = predicted(PlanConfig("sequential"), cluster(1, **times), versions=versions)
    assert one.first_frame_s == near(4 * 0.5 + 4)  # a pass for every level
    four = predicted(PlanConfig("timestep", workers=4), cluster(*[1] * 4, **times), versions=versions)
    assert four.first_frame_s == near(0.5 + 4)  # side by side


def test_an_attention_sink_of_generated_frames_idles_the_head():
    versions = (Version(0, 4),)
    p = predicted(PlanConfig("timestep"), cluster(*[1] * 5), versions=versions)
    assert p.idle == {versions[0]: near(1.0)}  # final after 4, prefilled after 5, needed at 4
    late = predicted(PlanConfig("timestep"), cluster(*[1] * 5), versions=(Version(0, 5),))
    assert late.idle == {Version(0, 5): 0.0}


def test_chunks_enter_a_ring_in_bursts():
    p = predicted(PlanConfig("layers", layers=[3, 3], workers=2), cluster(1, 1))
    assert (p.period_s, p.in_flight) == (near(2.0), 2)
    # Two enter half a second apart, the next after 3.5: mean wait (0.25 + 12.25) / 8.
    assert p.control_worst_s == near(3.5 + 4.0)
    assert p.control_mean_s == near(12.5 / 8 + 4.0)


def test_sequence_parallel_divides_work_and_pays_for_exchanges():
    link = Link(latency_s=0.001, bandwidth=1e9)
    p = predicted(
        PlanConfig("sequential", sequence_parallel=2), cluster(1, 1, link=link, serial=0.1), heads=4,
        tokens_per_frame=8, hidden_bytes=4_000_000, decodes=False,
    )  # fmt: skip
    exchanged = 6 * (2 * 0.001 + 4 * 1e6 / 1e9) + 0.001 + 2e6 / 1e9
    assert p.period_s == near(4 * (0.1 + 0.9 / 2 + exchanged))
    # Two slow links make it slower than one device.
    slow = predicted(
        PlanConfig("sequential", sequence_parallel=2), cluster(1, 1, link=Link(bandwidth=1e6), serial=0.1), heads=4,
        tokens_per_frame=8, hidden_bytes=4_000_000, decodes=False,
    )  # fmt: skip
    assert slow.period_s > 4


def test_a_group_is_as_fast_as_its_slowest_device_and_measured_groups_are_believed():
    shared = PlanConfig("sequential", sequence_parallel=2)
    more = {"heads": 4, "tokens_per_frame": 8, "decodes": False}
    assert predicted(shared, cluster(1, 0.5, serial=0.0), **more).period_s == near(4.0)
    config = ClusterConfig(
        kinds={"gpu": DeviceKind(memory_bytes=1e12)}, devices=[DeviceGroup(count=2)],
        times=[StageTimes(model="test", step_s=1.0), StageTimes(model="test", step_s=0.7, degree=2)],
    )  # fmt: skip
    assert predicted(shared, Cluster.of(config, Subject("test")), **more).period_s == near(2.8)


@given(st.lists(st.floats(0.01, 1.0), min_size=6, max_size=6), st.floats(0, 1), st.floats(0.01, 1))
def test_uneven_layers_and_pass_costs_add_up(layer_s, pass_s, last_s):
    devices = cluster(1, 1, layer_s=layer_s, pass_s=pass_s, last_s=last_s)
    p = predicted(PlanConfig("layers", layers=[4, 2], workers=2), devices, decodes=False)
    assert p.load == near((4 * (sum(layer_s[:4]) + pass_s), 4 * (sum(layer_s[4:]) + pass_s + last_s)))
    assert np.isclose(p.first_frame_s, sum(p.load)) or p.first_frame_s > sum(p.load)  # in a ring chunks meet


def test_the_first_pass_of_a_chunk_over_a_bank_makes_what_all_of_them_have():
    clean = {"context": "clean", "decodes": False}
    p = predicted(PlanConfig("sequential"), cluster(1, once_s=0.5), **clean)
    assert (p.period_s, p.first_frame_s, p.control_worst_s) == (near(5.5), near(4.5), near(5.5 + 4.5))
    # Every worker makes it for itself: for its layers, for its bank of finished chunks, for every level's.
    layers = predicted(PlanConfig("layers", layers=[4, 2], workers=2), cluster(1, 1, once_s=0.6), **clean)
    assert (layers.load, layers.first_frame_s) == (near((5 * 2 / 3 + 0.4, 5 / 3 + 0.2)), near(4.6))
    steps = predicted(PlanConfig("timestep", steps=[3, 1], workers=2), cluster(1, 1, once_s=0.5), **clean)
    assert (steps.load, steps.first_frame_s) == (near((4.5, 2.5)), near(5.0))
    levels = predicted(PlanConfig("timestep", steps=[3, 1], workers=2), cluster(1, 1, once_s=0.5), decodes=False)
    assert (levels.load, levels.first_frame_s) == (near((4.5, 1.5)), near(6.0))
    # Of those that share a pass each makes its tokens' part.
    shared = PlanConfig("sequential", sequence_parallel=2)
    p = predicted(shared, cluster(1, 1, once_s=0.5, serial=0.0), heads=4, tokens_per_frame=8, **clean)
    assert p.period_s == near(2.75)


@pytest.mark.parametrize("once_s", [0.0, 0.07])
@pytest.mark.parametrize("context", ["same_level", "clean"])
@pytest.mark.parametrize(
    "plan",
    [
        PlanConfig("sequential"), PlanConfig("timestep"), PlanConfig("timestep", workers=4),
        PlanConfig("timestep", steps=[2, 1, 1]), PlanConfig("layers", layers=[3, 3], workers=2),
    ],
    ids=lambda plan: f"{plan.name} {plan.steps or plan.workers or ''}",
)  # fmt: skip
def test_formulas_agree_with_execution_where_passes_do_not_collide(plan, context, once_s):
    link = Link(latency_s=0.001, bandwidth=1e9)
    w = workload(context=context, latent_bytes=400_000, versions=(Version(-1, 0),))
    made = build(plan, w)
    times = {"step_s": 0.1, "once_s": once_s, "decode_s": 0.0, "hop_s": 0.0005}
    costs = Costs(made, cluster(*[1] * made.processes, link=link, **times))
    said, done = predict(costs, Demand()), simulated(costs, Demand())
    assert said.period_s == near(done.period_s, rel=0.02)
    assert said.first_frame_s == near(done.first_frame_s, rel=0.02)
    assert said.chunk_latency_s == near(done.chunk_latency_s, rel=0.02)
    assert said.control_mean_s == near(done.control_mean_s, rel=0.02)


JOINT = {"context": "joint_window", "steps": 3, "latent_bytes": 900_000, "hidden_bytes": 3_000_000}


@pytest.mark.parametrize(
    "plan",
    [
        PlanConfig("sequential"), PlanConfig("layers", layers=[3, 3], workers=2),
        PlanConfig("sequential", sequence_parallel=2, workers=2),
        PlanConfig("layers", layers=[2, 4], workers=4, sequence_parallel=2),
    ],
    ids=lambda plan: f"{plan.name} {plan.layers or ''} {plan.sequence_parallel}",
)  # fmt: skip
@pytest.mark.parametrize("streams", [1, 2])
def test_formulas_agree_with_execution_of_chunks_that_are_denoised_together(plan, streams):
    w = workload(**JOINT, undivided="chunks see each other", heads=4, tokens_per_frame=8)
    made, link = build(plan, w), Link(latency_s=0.001, bandwidth=1e9)
    times = {"step_s": 0.3, "commit_s": 0.1, "decode_s": 0.02, "hop_s": 0.0005, "serial": 0.0}
    costs = Costs(made, cluster(*[1] * made.processes, link=link, **times))
    said, done = predict(costs, Demand(streams=streams)), simulated(costs, Demand(streams=streams))
    for value in ("period_s", "first_frame_s", *(["chunk_latency_s", "control_mean_s"] if streams == 1 else [])):
        assert getattr(said, value) == near(getattr(done, value), rel=0.05), value


def test_windows_that_fill_are_shorter_and_what_is_sampled_leaves_behind_others():
    p = predicted(PlanConfig("sequential"), cluster(1, step_s=3.0, commit_s=1.0), **JOINT)
    # A third, two thirds and all of a step; then one step and one clean pass for every chunk.
    assert (p.first_frame_s, p.period_s, p.chunk_latency_s) == (near(6.0), near(4.0), near(3.0))
    # It is sampled two windows before its own.
    assert (p.control_mean_s, p.control_worst_s) == (near(2 + 3 + 8), near(4 + 3 + 8))
    # What is driven live waits for its window to be played.
    paced = Demand(frames=12, fps=1.0, paced=True)
    assert predicted(
        PlanConfig("sequential"), cluster(1, step_s=3.0, commit_s=1.0), paced, **JOINT
    ).control_worst_s == (near(12 + 3 + 24))


def test_a_finished_chunks_messages_are_of_one_chunk():
    """Of three that are denoised together: their latents go to where layers begin, and one chunk's on from there."""
    link = Link(bandwidth=1e6)
    costs = Costs(build(PlanConfig("layers", workers=2, layers=[3, 3]), workload(**JOINT)), cluster(1, 1, link=link))
    sizes = sorted(size for _, _, size in costs.traffic if size)
    # To the first block all latents; on to the second hidden states of three chunks in a step and of one in a commit.
    assert sizes == sorted([900_000, 900_000 + 3_000_000, 300_000 + 1_000_000])

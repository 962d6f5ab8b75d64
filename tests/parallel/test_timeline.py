"""A plan simulated: how it fills, what overlaps, what waits."""

from fractions import Fraction
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conf.schema import PlanConfig
from parallel.builders import build
from parallel.plan import Plan, Version, Workload
from parallel.timeline import draw, entries, marks, pace_of, period_steps, simulate


def plan_of(config: PlanConfig, **changes) -> Plan:
    return build(config, Workload(**{"steps": 4, "layers": 6} | changes))


def busy(plan: Plan, at: Fraction, periods: int = 10) -> dict[int, int]:
    """Chunk by worker, of steps that are running at a moment."""
    return {s.worker: s.chunk for s in simulate(plan, periods) if s.what == "step" and s.start <= at < s.end}


def test_four_steps_fill_in_four_periods():
    plan = plan_of(PlanConfig("timestep", workers=4))
    assert busy(plan, Fraction(2)) == {0: 2, 1: 1, 2: 0}
    assert busy(plan, Fraction(3)) == {0: 3, 1: 2, 2: 1, 3: 0}
    assert busy(plan, Fraction(9)) == {0: 9, 1: 8, 2: 7, 3: 6}
    assert pace_of(plan) == 1
    assert draw(plan, 5) == [
        "period    0   1   2   3   4",
        "worker 0| 0 | 1 | 2 | 3 | 4 |",
        "worker 1| . | 0 | 1 | 2 | 3 |",
        "worker 2| . | . | 0 | 1 | 2 |",
        "worker 3| . | . | . | 0 | 1 |",
    ]


@pytest.mark.parametrize("config", [PlanConfig("sequential"), PlanConfig("layers", layers=[4, 2], workers=2)])
def test_a_clean_pass_of_one_chunk_takes_its_share_of_a_step_of_all(config):
    """Of four that are denoised together: of five quarters of a step the clean pass is one."""
    plan = plan_of(config, context="joint_window", undivided="chunks see each other")
    parts = [Fraction(len(block), 6) for block in plan.blocks]
    assert plan.load() == pytest.approx([float(Fraction(5, 4) * part) for part in parts])
    spans = [span for span in simulate(plan, 12) if span.chunk == 5 and span.what in ("step", "commit")]
    step, commit = (sum(s.end - s.start for s in spans if s.what == what) for what in ("step", "commit"))
    assert commit / step == Fraction(1, 4)


def test_clean_is_one_chunk_at_a_time():
    plan = plan_of(PlanConfig("timestep", workers=4), context="clean")
    spans = simulate(plan, 20)
    steps = [s for s in spans if s.what == "step"]
    assert all(s.end <= t.start or s.chunk == t.chunk for s in steps for t in steps if s.chunk <= t.chunk)
    for chunk, start in list(enumerate(entries(plan, 6)))[1:]:
        commits = [s for s in spans if (s.what, s.chunk) == ("commit", chunk - 1)]
        assert {s.worker for s in commits} == {0, 1, 2, 3}
        assert all(s.end <= start for s in commits if s.worker == plan.head)
    # Four steps and a commit, where the slowest worker has one of each.
    assert pace_of(plan) == Fraction(5, 2)


def test_a_ring_of_layers_overlaps():
    plan = plan_of(PlanConfig("layers", workers=2))
    assert set(busy(plan, Fraction(1)).values()) == {0, 1}
    assert pace_of(plan) == 1


def test_the_reference_comes_first_and_a_recalibration_costs_what_the_plan_predicts():
    versions = (Version(-1, 0), Version(0, 4))
    plan, without = (plan_of(PlanConfig("timestep"), versions=v) for v in (versions, versions[:1]))
    assert entries(plan, 1) == [1]
    delays = [a - b for a, b in zip(entries(plan, 8), entries(without, 8), strict=True)]
    assert delays == [0] * 4 + [plan.idle_periods(versions[1])] * 4


def test_the_first_chunk_as_sink_drains_the_pipeline_once():
    version = Version(0, 1, "commit")
    plan = plan_of(PlanConfig("timestep", workers=4), versions=(version,))
    assert entries(plan, 3) == [0, 1 + plan.idle_periods(version), 2 + plan.idle_periods(version)]


def test_a_short_span_is_still_seen():
    plan = plan_of(PlanConfig("layers", layers=[5, 1], workers=2))
    assert all(mark != "." for mark in marks(plan, 4)[1][2])


plans = st.one_of(
    st.builds(lambda n: PlanConfig("timestep", workers=n), st.integers(1, 5)),
    st.builds(lambda n: PlanConfig("layers", workers=n), st.integers(1, 6)),
    st.builds(lambda g, b: PlanConfig("grid", grid=[g, b]), st.integers(1, 4), st.integers(1, 3)),
    st.just(PlanConfig("sequential")),
)
sinks = st.sampled_from(
    [(), (Version(-1, 0),), (Version(-1, 0), Version(0, 3)), (Version(0, 1, "commit"), Version(1, 2, "commit"))]
)


@settings(max_examples=60)
@given(plans, st.sampled_from(["same_level", "clean"]), sinks)
def test_every_plan_runs_on_and_obeys_order(config, context, versions):
    plan = plan_of(config, context=context, versions=versions)
    assert pace_of(plan) >= 1 or context == "clean"
    spans = simulate(plan, 3 * plan.workers + 9)
    for worker in range(plan.workers):
        own = sorted((s for s in spans if s.worker == worker), key=lambda s: s.start)
        assert all(a.end <= b.start for a, b in pairwise(own)), "one thing at a time"
    share = sum(len(b) for b in plan.blocks) / period_steps(plan) / plan.workload.layers
    took = {}
    for span in spans:
        if span.what == "step":
            took[span.chunk] = took.get(span.chunk, 0) + span.end - span.start
    assert took[0] == plan.workload.steps * share
    starts = entries(plan, len(took))
    assert starts == sorted(starts)
    # No more chunks on their way than the plan allows.
    ends = {c: max(s.end for s in spans if s.chunk == c and s.what in ("step", "decode")) for c in took}
    for chunk, start in enumerate(starts):
        assert sum(starts[c] <= start < ends[c] for c in range(chunk + 1)) <= plan.in_flight


@pytest.mark.parametrize("periods", [1, 3, 12])
def test_a_drawing_has_a_row_per_worker_and_a_cell_per_period(periods):
    lines = draw(plan_of(PlanConfig("grid"), versions=(Version(-1, 0),)), periods)
    assert len(lines) == 6
    assert all(line.count("|") == periods + 1 for line in lines[1:])
    assert len({len(line) for line in lines[1:]}) == 1


def test_a_version_that_is_far_away_changes_nothing_that_is_drawn():
    far, none = (
        plan_of(PlanConfig("timestep", workers=4), versions=v)
        for v in ((Version(-1, 0), Version(0, 10**15)), (Version(-1, 0),))
    )
    assert pace_of(far) == pace_of(none)

"""Plans as data: what they cover, what they predict, what they refuse."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conf.errors import UserError
from conf.schema import PlanConfig
from parallel.builders import build, split_evenly
from parallel.plan import Cell, Hop, Member, Version, Workload, pace, whole


def workload(**changes) -> Workload:
    return Workload(**{"steps": 4, "layers": 6, "layer_bytes": (10,) * 6, "range_bytes": 3} | changes)


plans = st.one_of(
    st.builds(lambda n: PlanConfig("timestep", workers=n), st.integers(1, 5)),
    st.builds(lambda n: PlanConfig("layers", workers=n), st.integers(1, 7)),
    st.builds(lambda g, b: PlanConfig("grid", grid=[g, b]), st.integers(1, 4), st.integers(1, 6)),
    st.just(PlanConfig("sequential")),
)


@given(plans, st.sampled_from(["same_level", "clean"]), st.booleans())
def test_every_cell_has_one_owner_and_every_worker_something_to_do(config, context, decodes):
    if config.name == "timestep" and config.workers == 5:
        decodes = True
    if config.name == "layers" and config.workers == 7:
        decodes = True
    plan = build(config, workload(context=context, decodes=decodes))
    assert [i for block in plan.blocks for i in block] == list(range(6))
    assert len(plan.route) == 4 * len(plan.blocks)
    used = {plan.owner(cell) for cell in plan.route} | {plan.encode, plan.decode}
    assert used == set(range(plan.workers))
    # The route visits every cell once, in order of step and block.
    walked, cell = [], Cell(0, 0)
    while cell is not None:
        walked.append(cell)
        cell = plan.after(cell)
    assert tuple(walked) == plan.route
    # Rows are disjoint, cover all blocks, and every bank is on one of them.
    assert all(len(row) == len(plan.blocks) for row in plan.rows)
    for worker in range(plan.workers):
        for block in plan.blocks_of(worker):
            assert sum(row[block] == worker for row in plan.rows) == 1
    # Where something travels there is a channel, and a message never goes to its sender.
    assert all(a != b for a, b in plan.channels)
    assert 1 <= plan.in_flight <= len(used)


def test_named_plans():
    five = build(PlanConfig("timestep"), workload())
    assert (five.workers, five.decode, [row[0] for row in five.owners]) == (5, 4, [0, 1, 2, 3])
    four = build(PlanConfig("timestep", workers=4), workload())
    assert (four.workers, four.decode) == (4, 3)
    three = build(PlanConfig("timestep", workers=3), workload())
    assert [row[0] for row in three.owners] == [0, 0, 1, 2]
    ring = build(PlanConfig("layers", layers=[5, 1], workers=2), workload())
    assert ring.blocks == (range(0, 5), range(5, 6))
    assert ring.channels == ((0, 1), (1, 0))
    grid = build(PlanConfig("grid"), workload())
    assert (grid.workers, grid.owners) == (5, ((0, 1), (0, 1), (2, 3), (2, 3)))


STAGED = {"posts": True, "encode_bytes": 1, "decode_bytes": 5, "post_bytes": 9, "picture_bytes": 77, "latent_bytes": 3}


@pytest.mark.parametrize("name", ["timestep", "layers", "grid"])
@pytest.mark.parametrize(
    "placed", [(0, 0, 0), (1, 2, 0), (4, 0, 2), (0, 4, None), (0, 4, 5), (4, 5, 6), (4, 4, 4)], ids=str
)
def test_stages_are_beside_cells_or_alone_under_every_plan(name, placed):
    encode, decode, post = placed
    more = {"layers": {"layers": [2, 2, 1, 1]}, "grid": {"grid": [2, 2]}}.get(name, {})
    plan = build(PlanConfig(name, encode=encode, decode=decode, post=post, **more), workload(**STAGED))
    post = decode if post is None else post
    assert [tuple(stage) for stage in plan.stages] == [("decode", decode), ("post", post), ("output", post)]
    assert plan.workers == max(4, *(worker + 1 for worker in (encode, decode, post)))
    assert len({worker for row in plan.owners for worker in row}) == 4
    # Channels for what goes to and between the stages, and back from where a chunk leaves.
    due = {(plan.tail, decode), (decode, post), (encode, decode), (encode, post), (post, encode)}
    assert {(a, b) for a, b in due if a != b} <= set(plan.channels)
    assert (Hop(decode, post, "pictures", 77) in plan.hops) == (decode != post)
    stages = [(encode, 1), (decode, 5), (post, 9)]
    cells = build(PlanConfig(name, encode=encode, decode=decode, **more), workload(latent_bytes=3))
    for worker in range(plan.workers):
        own = sum(size for at, size in stages if at == worker)
        assert plan.stage_bytes(worker) == own
        held = cells.weight_bytes(worker) if worker < cells.workers else 0
        assert plan.weight_bytes(worker) == held + own
    assert plan.in_flight <= plan.workers
    # The same by the number of workers.
    assert build(
        PlanConfig(name, workers=plan.workers, encode=encode, decode=decode, post=post, **more), plan.workload
    ) == (replace(plan, post=post))


@pytest.mark.parametrize("name", ["sequential", "timestep", "layers", "grid"])
@pytest.mark.parametrize("setting", ["encode", "decode", "post"])
def test_a_stage_on_a_worker_that_there_is_not_is_refused(name, setting):
    workers = None if name == "sequential" else 5
    with pytest.raises(UserError, match=rf"plan\.{setting}=7.*use plan\.{setting}="):
        build(PlanConfig(name, workers=workers, **{setting: 7}), workload(**STAGED))


def test_a_post_stage_that_there_is_not_is_refused():
    with pytest.raises(UserError, match=r"plan\.post=1: there is no post stage"):
        build(PlanConfig("timestep", post=1), workload())


@pytest.mark.parametrize(("workers", "more", "cells"), [
    (6, {}, 5), (6, {"decode": 0}, 6), (6, {"encode": 4}, 4), (6, {"encode": 5}, 4), (6, {"encode": 5, "decode": 5}, 5),
    (6, {"encode": 4, "decode": 5}, 4), (6, {"post": 3, "encode": 4, "decode": 5}, 3), (2, {}, 2), (1, {}, 1),
])  # fmt: skip
def test_layers_go_to_workers_that_were_named_for_nothing(workers, more, cells):
    plan = build(PlanConfig("layers", workers=workers, **more), workload(posts="post" in more))
    assert (len(plan.blocks), plan.workers) == (cells, workers)


def test_without_pictures_output_is_the_only_stage():
    plan = build(PlanConfig("timestep"), workload(decodes=False))
    assert [tuple(stage) for stage in plan.stages] == [("output", 3)]
    assert plan.leaves == plan.tail == 3


def test_weights_are_counted_once_per_holder():
    plan = build(PlanConfig("layers", layers=[4, 2], workers=2), workload(first_bytes=5, last_bytes=7, encode_bytes=1))
    assert [plan.weight_bytes(i) for i in (0, 1)] == [3 + 40 + 5 + 1, 3 + 20 + 7]
    steps = build(PlanConfig("timestep", workers=4), workload(first_bytes=5, last_bytes=7))
    assert {steps.weight_bytes(i) for i in range(4)} == {3 + 60 + 5 + 7}


def test_banks_go_with_levels():
    w = workload(bank_bytes=100)
    assert [build(PlanConfig("timestep", workers=3), w).bank_bytes(i) for i in range(3)] == [1200, 600, 600]
    clean = workload(bank_bytes=100, context="clean")
    assert [build(PlanConfig("timestep", workers=3), clean).bank_bytes(i) for i in range(3)] == [600, 600, 600]


def test_idle_periods_of_a_recalibration():
    """Live Avatar: chunk 0 is final after four periods, chunk 4 waits for one prefill at most."""
    plan = build(PlanConfig("timestep"), workload(versions=(Version(-1, 0), Version(0, 4))))
    assert plan.idle_periods(Version(-1, 0)) == 0
    assert plan.idle_periods(Version(0, 4)) == 1
    assert plan.idle_periods(Version(0, 1)) == 4
    assert plan.idle_periods(Version(0, 6)) == 0


def test_pace_is_sum_over_slowest_and_whole_chunks_round_it_up():
    assert pace([1, 1, 1, 1]) == 4
    assert pace([1, 1, 1, 1, 2]) == 3
    assert pace([1, 1], 0.5) == 2.5
    assert whole(pace([1.0, 1.01, 0.99, 1.0])) == 4
    assert (whole(2.01), whole(2.1), whole(0.5)) == (2, 3, 1)
    assert pace([5]) == 1


@pytest.mark.parametrize(
    ("config", "line"),
    [
        (PlanConfig("timestep", workers=6), "plan.workers=6: plan=timestep here is 4 workers, or 5 with decode"),
        (PlanConfig("timestep", steps=[2, 1]), "plan.steps=[2, 1]: must be sizes above zero that add up to 4 steps"),
        (PlanConfig("layers", layers=[3, 4]), "plan.layers=[3, 4]: must be sizes above zero that add up to 6 layers"),
        (PlanConfig("layers", workers=9), "plan.workers=9: there are 6 layers; use plan.workers=7 or fewer"),
        (PlanConfig("grid", grid=[2]), "plan.grid=[2]: is two numbers"),
        (PlanConfig("grid", grid=[5, 1]), "plan.grid=[5, 1]: there are 4 steps; use 1 to 4"),
        (PlanConfig("sequential", workers=2), "plan.workers=2: plan=sequential is one worker"),
        (
            PlanConfig("timestep", sequence_parallel=2, workers=7, steps=[2, 2]),
            "plan.workers=7: plan=timestep here is 4 workers in groups of 2, or 5 with decode on its own",
        ),
        (PlanConfig("layers", sequence_parallel=4, workers=3), "here is 4 workers in groups of 4"),
        (PlanConfig("sequential", sequence_parallel=2, workers=1), "plan=sequential here is 2 workers in one group"),
    ],
    ids=lambda v: v if isinstance(v, str) else "",
)
def test_refusals(config, line):
    with pytest.raises(UserError) as error:
        build(config, workload())
    assert line in str(error.value)


@pytest.mark.parametrize(
    ("heads", "tokens", "degree", "remedy"),
    [(40, 1560, 3, "2 or 4"), (12, 15, 2, "1 or 3"), (2, 16, 4, "use 2"), (5, 16, 2, "use 1"), (12, 1560, 5, "4 or 6")],
)
def test_uneven_degrees_are_refused_with_the_nearest_that_fit(heads, tokens, degree, remedy):
    config = PlanConfig("sequential", sequence_parallel=degree)
    with pytest.raises(UserError) as error:
        build(config, workload(heads=heads, tokens_per_frame=tokens))
    assert str(error.value).endswith(remedy)
    assert f"{heads} heads" in str(error.value)
    assert f"{tokens} tokens of a frame" in str(error.value)


shared_plans = st.builds(
    lambda name, degree, spare: PlanConfig(name, sequence_parallel=degree, workers=3 * degree + spare),
    st.sampled_from(["timestep", "layers"]),
    st.integers(2, 4),
    st.booleans(),
)


@given(shared_plans)
def test_processes_of_shared_plans(config):
    """Every owner of cells is a group of neighbours, the last stage alone is one process, and each has its number."""
    degree, spare = config.sequence_parallel, config.workers % config.sequence_parallel
    plan = build(config, workload(heads=12, tokens_per_frame=24, bank_bytes=1200, encode_bytes=1, decode_bytes=7))
    assert (plan.processes, plan.workers) == (config.workers, 3 + spare)
    assert plan.members[: degree + 1] == (*(Member(0, rank) for rank in range(degree)), Member(1, 0))
    assert [len(plan.group(w)) for w in range(plan.workers)] == [degree] * 3 + [1] * spare
    assert all(plan.members[n] == (w, r) for w in range(plan.workers) for r, n in enumerate(plan.group(w)))
    alone = build(PlanConfig(config.name, workers=3 + spare), plan.workload)
    if alone.owners == plan.owners and alone.workers == plan.workers:
        assert [plan.bank_bytes(w) * degree for w in range(3)] == [alone.bank_bytes(w) for w in range(3)]
        assert [plan.weight_bytes(w) for w in range(3)] == [alone.weight_bytes(w) for w in range(3)]
    assert plan.weight_bytes(0, rank=1) == plan.weight_bytes(0) - 1
    assert plan.in_flight >= 1


def test_degree_one_is_a_process_per_worker():
    plan = build(PlanConfig("timestep"), workload())
    assert plan.members == tuple(Member(w) for w in range(5))
    assert [str(m) for m in (Member(2), Member(2, 1))] == ["2", "2.1"]
    four = build(PlanConfig("sequential", sequence_parallel=4), workload())
    assert (four.workers, four.processes, four.channels) == (1, 4, ())


def test_even_splits():
    assert split_evenly(4, 3) == [2, 1, 1]
    assert split_evenly(40, 4) == [10] * 4

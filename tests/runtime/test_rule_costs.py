"""What history rules cost by count is what passes of a small model really do, and what planners say follows from it."""

from collections import Counter
from dataclasses import replace
from itertools import islice

import pytest
import torch

from benchmarks.counting import count
from conf.schema import ModelConfig
from launch.planning import cluster_of, demand, subject, workload_of
from parallel.builders import build
from parallel.cost import Costs
from parallel.planner import rank
from parallel.predict import predict
from parallel.simulated import simulated
from runtime import arithmetic
from runtime.rule_costs import Counting, Work, passes, period
from stages.denoise import bank
from stages.denoise.bank_pass import SelectingPass
from stages.denoise.denoiser import Denoiser
from stages.denoise.layout import Layout
from stages.models.wan.network import Network
from tests.helpers import config_of
from tests.stages.denoise.test_banks import COLUMNS, NETWORK, ROWS, TEXT
from tests.stages.denoise.test_banks import build as denoiser_of
from tests.stages.denoise.test_history_rules import (
    RULES as PUBLISHED,
)
from tests.stages.denoise.test_history_rules import (
    Stream,
    compressed,
    deep,
    model_of,
    reward,
    rolling,
)

TOKENS = ROWS * COLUMNS
FLOAT = 4
RULES = PUBLISHED | {
    "plain": model_of(window_frames=9, positions="abs"),
    "plain, sink by slot": reward(None),
    "a window of no whole chunks": model_of(window_frames=10, sink_frames=2, positions="slot"),
    "compressed, every third chunk": compressed(7, window=24, sink=6, budget=16, recent=5),
    "rolling, ring of odd chunks": rolling(window=20, sink=2),
}
LENGTHS = {
    "reward": 2, "deep sink": 7, "compressed": 2, "compressed, reuse 1": 2, "rolling": 7, "plain": 3,
    "plain, sink by slot": 2, "a window of no whole chunks": 8, "compressed, every third chunk": 3,
    "rolling, ring of odd chunks": 20,
}  # fmt: skip
"""Chunks until a ring has turned to where it was, or what is chosen is chosen anew."""


class Watched:
    """A stream's real attention and copies, token by token.

    Attributes:
        attended: products of queries and keys, of a layer, by chunk.
        turned: channels of a head of tokens that are rotated in banks, of keys as they are without positions.
        chosen_from: candidates of choices.
    """

    def __init__(self, model: ModelConfig, monkeypatch: pytest.MonkeyPatch):
        self.denoiser = denoiser_of(model)
        self.layers, self.chunk = model.network.layers, 0
        self.attended, self.turned, self.chosen_from = Counter(), Counter(), Counter()
        core, rotate, best = self.denoiser.core, bank.rotate, SelectingPass._best

        def attend(q, k, v, mask):
            self.attended[self.chunk] += q.shape[1] * k.shape[1]
            return core(q, k, v, mask)

        def turn(x, table, **more):
            self.turned[self.chunk] += x.shape[1] * x.shape[-1]
            return rotate(x, table, **more)

        def choose(of, queries, keys, uses):
            self.chosen_from[self.chunk] += keys.shape[1]
            return best(of, queries, keys, uses)

        self.denoiser.core = attend
        monkeypatch.setattr(bank, "rotate", turn)
        monkeypatch.setattr(SelectingPass, "_best", choose)

    def run(self, chunks: int) -> None:
        stream = Stream(self.denoiser)
        for i in range(chunks):
            self.chunk = i
            next(iter(stream.run(range(i, i + 1))))


@pytest.mark.parametrize("rule", RULES)
def test_counted_reads_moves_and_choices_are_what_passes_do(rule, monkeypatch):
    model = RULES[rule]
    layout, counting = Layout.of(model, TOKENS), Counting(model, TOKENS, FLOAT)
    steady = period(model, layout)
    chunks = steady[-1][0].chunk + 1
    watched = Watched(model, monkeypatch)
    watched.run(chunks)
    for passed in islice(passes(model, layout), chunks):
        chunk = passed[0].chunk
        attended = sum(len(one.place.frames) * TOKENS * counting.keys(one.place) for one in passed)
        assert watched.attended[chunk] == attended * watched.layers
        frames = sum(one.turned + (one.moved + 2 * len(one.place.merges)) * counting.moving for one in passed)
        assert watched.turned[chunk] == frames * TOKENS * model.network.head_dim * watched.layers
        # A choice is among what is there but the attention sink and the latest frames.
        assert (watched.chosen_from[chunk] > 0) == any(one.place.selects for one in passed)


@pytest.mark.parametrize("rule", RULES)
def test_places_come_back_after_a_period(rule):
    model = RULES[rule]
    steady = period(model, layout := Layout.of(model, TOKENS))
    first, length = steady[0][0].chunk, len(steady)
    later = list(islice(passes(model, layout), first + 3 * length))[first:]
    for i, passed in enumerate(later):
        same = steady[i % length]
        assert [replace(one.place, frames=range(0)) for one in passed] == [
            replace(one.place, frames=range(0)) for one in same
        ]
        assert [(one.turned, one.moved) for one in passed] == [(one.turned, one.moved) for one in same]
    assert length == LENGTHS[rule]


@pytest.mark.parametrize("rule", RULES)
def test_operations_and_bytes_of_a_layer_are_those_that_torch_counts(rule):
    """Of a whole period, as the difference that one layer more makes; on the meta device, at sizes where scores are
    larger than any other operand."""
    model, tokens = RULES[rule], 64
    rows, columns = 8, 8

    def counted(layers: int):
        own = replace(NETWORK, layers=layers, dim=32, heads=2, ffn_dim=64, text_tokens=64)
        sized = replace(model, network=own, attention="sdpa")
        with torch.device("meta"):
            network = Network(sized.network).eval()
        denoiser = Denoiser(sized, network, rows, columns)
        steady = period(sized, Layout.of(sized, tokens))
        banks = denoiser.open()
        denoiser.set_states(banks, {"text": TEXT.to("meta")})
        fresh = {"device": "meta", "dtype": torch.float32}

        def work() -> None:
            for one in (one for passed in steady for one in passed):
                x = torch.empty(1, NETWORK.in_channels, len(one.place.frames), 2 * rows, 2 * columns, **fresh)
                run = denoiser.commit if one.step < 0 else lambda b, c, x, g, s=one.step: denoiser.step(b, s, c, x, g)
                run(banks, one.chunk, x, {})

        return count(work), Counting(sized, tokens, FLOAT).chunk(), len(steady)

    (three, said, length), (two, *_) = counted(3), counted(2)
    plain = sum((said.step.layers[0].times(said.steps), said.commit.layers[0]), Work())
    assert three.flops - two.flops == pytest.approx(length * plain.flops, rel=1e-12)
    assert three.bytes - two.bytes == pytest.approx(length * plain.bytes, rel=1e-12)


def test_what_a_rule_does_besides_by_hand():
    """In frames' worth of keys of a layer's bank, a chunk of 3 frames."""
    frame = TOKENS * NETWORK.dim

    def of(model: ModelConfig) -> Work:
        return Counting(model, TOKENS, FLOAT).chunk().rule.times(1 / (frame * NETWORK.layers))

    assert of(RULES["plain"]) == Work(0, 0)
    # Three frames of the attention sink are turned once a chunk, from one buffer to another.
    assert of(reward(None)) == pytest.approx(Work(9, 6 * FLOAT))
    # Before that three frames are turned back and averaged: keys and values of two are read, of one are written. What
    # is averaged is turned at once, and not read again for that.
    assert of(reward(0.5)) == pytest.approx(Work(9 + 9 + 18, (3 + 18) * FLOAT))
    assert of(deep(14)) == pytest.approx(Work(3 * 14, 2 * 14 * FLOAT))
    # Every second chunk 10 frames are turned; 8 of 22 are candidates, 4 ask, 6 are moved. Every chunk one is recalled.
    every = Work((3 * 10 + 4 + 2 * 8) / 2, ((2 * 10 + 4 + 8 + 4 * 6) / 2 + 2) * FLOAT)
    assert of(compressed(7)) == pytest.approx(every)
    # Every pass compares the attention sink's three frames with the new one, whose keys it copies.
    adapting = config_of("model=stream_diffusion_v2_1_3b").model
    assert adapting.step_count == 2
    cost, values = Counting(adapting, TOKENS, FLOAT).chunk(), TOKENS * adapting.network.dim * adapting.network.layers
    assert cost.rule.times(1 / values) == pytest.approx(Work(2 * 2 * 4, 2 * (2 * 4 + 2) * FLOAT))
    assert Counting(replace(adapting, adaptive_sink=None), TOKENS, FLOAT).chunk().rule == Work(0, 0)
    # Keys and values of 21 frames are joined.
    assert of(rolling()) == pytest.approx(Work(9, (6 + 4 * 21) * FLOAT))


def test_a_joint_pass_goes_over_all_chunks_once_for_each_that_leaves():
    said = Counting(rolling(), TOKENS, FLOAT).chunk()
    loop = Counting(model_of([1000, 800, 600, 400, 200], window_frames=21, sink_frames=3), TOKENS, FLOAT).chunk()
    assert (said.steps, loop.steps) == (1, 5)
    # A window of 15 frames reads 21, and so do five steps of 3: no less arithmetic, only longer passes.
    assert said.step.layers[0].flops == pytest.approx(5 * loop.step.layers[0].flops)
    assert said.commit == loop.commit


# -- what planners make of it -------------------------------------------------------------------------------------

PLANS = {
    "sequential": ("plan=sequential",),
    "shared": ("plan=sequential", "plan.workers=2", "plan.sequence_parallel=2"),
    "layers": ("plan=layers", "plan.workers=4"),
    "shared layers": ("plan=layers", "plan.workers=4", "plan.sequence_parallel=2"),
}
MODELS = ("reward_forcing", "deep_forcing", "rolling_forcing")
VALUES = ("period_s", "first_frame_s", "chunk_latency_s", "control_mean_s", "control_worst_s")


def costs_of(*overrides: str):
    config = config_of(*overrides, "sink.video=null")
    return Costs(build(config.plan, workload_of(config)), cluster_of(config)), demand(config)


@pytest.mark.parametrize("cluster", ["h100x4", "h800x5"])
@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("model", [*MODELS, "lingbot_world_fast"])
def test_formulas_agree_with_execution(model, plan, cluster):
    costs, asked = costs_of(f"model={model}", *PLANS[plan], f"cluster={cluster}")
    said, done = predict(costs, asked), simulated(costs, asked)
    for value in VALUES:
        assert getattr(said, value) == pytest.approx(getattr(done, value), rel=0.05), value


@pytest.mark.parametrize("cluster", ["h100x4", "h800x5"])
@pytest.mark.parametrize("model", MODELS)
def test_plans_are_found_and_keep_together_what_belongs_together(model, cluster):
    config = config_of(f"model={model}", "plan=auto", f"cluster={cluster}")
    workload = workload_of(config)
    found = rank(workload, cluster_of(config), demand(config))
    assert found[0].prediction.fps > config.model.fps
    groups = {len(set(choice.plan.owners)) for choice in found}
    assert groups == {1} if workload.undivided else max(groups) > 1
    assert bool(workload.undivided) == (model != "reward_forcing")


def test_windows_that_fill_take_their_share_and_what_is_sampled_leaves_later():
    costs, asked = costs_of("model=rolling_forcing", "plan=sequential", "cluster=h100x4")
    said, step, commit = predict(costs, asked), costs.pass_s("step", 0, 0), costs.pass_s("commit", 0, 0)
    # One, two, ... five chunks.
    assert said.first_frame_s == pytest.approx(step * 15 / 5)
    assert said.chunk_latency_s == pytest.approx(step) and said.period_s == pytest.approx(step + commit)
    # It joins behind four others.
    assert said.control_worst_s == pytest.approx(5 * said.period_s + step)
    assert said.control_mean_s == pytest.approx(4.5 * said.period_s + step)
    alone, asked = costs_of("model=rolling_forcing", "model.context=clean", "plan=sequential", "cluster=h100x4")
    loop = predict(alone, asked)
    assert loop.control_worst_s == pytest.approx(loop.period_s + loop.chunk_latency_s)


def test_times_are_derived_from_what_passes_read_and_rules_copy():
    config = config_of("model=rolling_forcing", "cluster=h100x4")
    told, kind = subject(config), cluster_of(config).devices[0].sheet
    times = cluster_of(config).times["h100", 1]
    cost = arithmetic.rule_cost(config)
    assert told.layer_flops == tuple(work.flops for work in cost.step.layers)
    expected = cost.step.layers[0].flops / kind.flops + cost.step.rule.bytes / kind.memory_bandwidth
    assert times.layer_s == pytest.approx([expected] * 30)
    assert times.commit_s == pytest.approx(30 * cost.commit.layers[0].flops / kind.flops)
    unknown = cluster_of(
        config_of("model=rolling_forcing", "cluster=h100x4", "cluster.kinds.h100.memory_bandwidth=null")
    )
    assert unknown.times["h100", 1].layer_s == pytest.approx([cost.step.layers[0].flops / kind.flops] * 30)
    # A model of levels has no clean pass in steady running.
    assert subject(config_of("model=live_avatar_14b")).commit_flops == ()


def test_a_wide_window_is_counted_too():
    model = model_of(window_frames=3 * 300, positions="abs")
    assert len(period(model, Layout.of(model, TOKENS))) == 300
    assert Counting(model, TOKENS, FLOAT).chunk().step.rule == Work()

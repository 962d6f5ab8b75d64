"""Every history rule gives what its published description, written straight down, gives.

The other side (`straight_history`) knows nothing of banks, places or schedules and computes in float64, so what it
agrees with is the rule and not the way it is built. Streams last at least three windows, so that all that rolls, moves
or is chosen has done so many times.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
import torch

from conf.schema import ModelConfig
from conf.schema.history import Compress
from stages.denoise.attention import backend
from stages.denoise.bank import PLACED, USES, Bank
from stages.denoise.bank_pass import BankPass, SelectingPass
from stages.denoise.denoiser import Denoiser, StreamBanks
from stages.denoise.draws import Draws
from stages.denoise.finished import Finished
from stages.denoise.graphs import Graphs
from stages.denoise.history import Place
from stages.denoise.layout import Layout
from stages.denoise.rope import Rope
from tests.stages.denoise.straight_history import Compression, DeepSink, RewardForcing, RollingForcing, Wan, levels
from tests.stages.denoise.tape import Replays
from tests.stages.denoise.test_banks import COLUMNS, NETWORK, NONE, ROWS, TEXT, build
from tests.stages.denoise.test_share import shared

C = 3
BAR = 1e-5
"""Of the largest value: float32 against float64, over a stream. A wrong rule is off by 1e-4 and more."""
SELF_FORCING, ROLLING = [1000, 750, 500, 250], [1000, 800, 600, 400, 200]
REUSES = [7, 2, 1, None]


def model_of(timesteps: list[int] = SELF_FORCING, **changes) -> ModelConfig:
    settings = {"context": "clean", "sampler": "renoise", "shift": 5.0, "steps": None} | changes
    return ModelConfig(network=NETWORK, timesteps=[float(t) for t in timesteps], **settings)


def reward(alpha: float | None, **changes) -> ModelConfig:
    return model_of(**{"window_frames": 9, "sink_frames": 3, "positions": "slot", "sink_ema": alpha} | changes)


def deep(sink: int, window: int = 21, **changes) -> ModelConfig:
    return model_of(window_frames=window, sink_frames=sink, deep_sink=True, **changes)


def compressed(reuse: int | None, window: int = 21, sink: int = 10, budget: int = 16, recent: int = 4) -> ModelConfig:
    return deep(sink, window, compress=Compress(budget, recent, reuse))


def rolling(timesteps: list[int] = ROLLING, window: int = 21, sink: int = 3) -> ModelConfig:
    return model_of(timesteps, context="joint_window", window_frames=window, sink_frames=sink)


def plain() -> ModelConfig:
    """The clean-pass loop in which nothing leaves the window, and all stand at their own places."""
    return model_of(window_frames=60, positions="abs")


RULES = {
    "reward": reward(0.5), "deep sink": deep(14), "compressed": compressed(7), "compressed, reuse 1": compressed(1),
    "rolling": rolling(),
}  # fmt: skip


def chunks_of(model: ModelConfig, windows: int = 3) -> int:
    return windows * model.window_frames // C + 1


def noise(chunk: int, step: int) -> torch.Tensor:
    return Draws(3, "rules").noise(chunk, step, (1, NETWORK.in_channels, C, 2 * ROWS, 2 * COLUMNS))


class Stream:
    """A stream chunk by chunk, through one denoiser or several that hold its layers one after the other.

    Attributes:
        parts: they, each with its banks.
        passes: what entered every pass and what left it, if `records`: (name, step, chunk, entered, left).
    """

    def __init__(self, *denoisers: Denoiser, records: bool = False):
        self.parts: list[tuple[Denoiser, StreamBanks]] = [(d, d.open()) for d in denoisers]
        self._begin()
        self.schedule, self.sampler = denoisers[0].schedule, denoisers[0].sampler
        self.finished = Finished(self.schedule.kept, [])
        self.passes: list[tuple] = []
        self.records = records

    def _begin(self) -> None:
        for denoiser, banks in self.parts:
            denoiser.set_states(banks, {"text": TEXT})

    def begin_again(self) -> None:
        """Another stream, in the same banks."""
        for _, banks in self.parts:
            banks.clear()
        self._begin()
        self.finished = Finished(self.schedule.kept, [])

    def run(self, chunks: range) -> Iterator[torch.Tensor]:
        """Final latents of each chunk."""
        for i in chunks:
            entering = torch.cat([noise(j, 0) for j in self.schedule.joins(i)], 2)
            x = self.finished.entering(i, entering)
            for step in range(self.schedule.first_step(i), self.sampler.steps):
                together = self.schedule.together(step)
                v = self._step(step, i, x[:, :, : len(together) * C])
                x = self.sampler.advance(together, C, x, v, lambda behind, to, i=i: noise(i + behind, to))
            x, carry = x[:, :, :C], x[:, :, C:] if self.schedule.joint else None
            self._commit(i, x)
            self.finished.add(i, x, NONE, carry)
            yield x

    def _step(self, step: int, chunk: int, x: torch.Tensor) -> torch.Tensor:
        entered = x
        for denoiser, banks in self.parts:
            x = denoiser.step(banks, step, chunk, x, NONE)
        if self.records:
            self.passes.append(("step", step, chunk, entered, x))
        return x

    def _commit(self, chunk: int, x: torch.Tensor) -> None:
        entered = x
        for denoiser, banks in self.parts:
            x = denoiser.commit(banks, chunk, x, NONE)
        if self.records:
            self.passes.append(("commit", None, chunk, entered, x))


def product(model: ModelConfig, chunks: int) -> list[torch.Tensor]:
    return list(Stream(build(model)).run(range(chunks)))


def straight(rule: Callable, model: ModelConfig, *args, **named):
    """A rule of the other side, over the same weights, text, levels and noise."""
    rows = torch.cat([TEXT[0], torch.zeros(NETWORK.text_tokens - TEXT.shape[1], NETWORK.text_dim)])
    weights = build(model).network.state_dict()
    net = Wan(weights, NETWORK.heads, NETWORK.layers, ROWS, COLUMNS, rows)
    return rule(net, levels([int(t) for t in model.timesteps], model.shift), noise, *args, **named)


def error(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).abs().max() / expected.abs().max())


def worst(found: list[torch.Tensor], expected: list[torch.Tensor]) -> float:
    return max(error(a, b) for a, b in zip(found, expected, strict=True))


def equal(found: list[torch.Tensor], expected: list[torch.Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


# -- each rule is the published one ------------------------------------------------------------------------------------


@pytest.mark.parametrize("alpha", [0.5, 0.999])
def test_an_averaging_sink_is_reward_forcings(alpha):
    model = reward(alpha)
    chunks = chunks_of(model, windows=5)
    found = product(model, chunks)
    assert worst(found, list(straight(RewardForcing, model, alpha).run(chunks))) <= BAR
    # Even the published share, which moves it by a thousandth, is told from a frozen one.
    assert worst(found, product(reward(None), chunks)) > 10 * BAR


@pytest.mark.parametrize(("window", "sink"), [(21, 14), (21, 10), (21, 15), (12, 4)])
def test_a_deep_sink_is_deep_forcings(window, sink):
    model = deep(sink, window)
    chunks = chunks_of(model)
    assert worst(product(model, chunks), list(straight(DeepSink, model, sink, window).run(chunks))) <= BAR


@pytest.mark.parametrize("reuse", REUSES)
def test_compression_is_deep_forcings(reuse):
    """The tokens that are kept are the same ones: they have been kept as often. What decides is not a near tie."""
    model = compressed(reuse)
    chunks = chunks_of(model, windows=4)
    stream, told = Stream(build(model)), straight(Compression, model, reuse)
    assert worst(list(stream.run(range(chunks))), list(told.run(chunks))) <= BAR
    assert min(choice.margin for choice in told.choices) > 1e-4
    assert any(choice.barred for choice in told.choices) == (reuse is not None)

    places = told.places
    ((_, banks),) = stream.parts
    for layer in range(NETWORK.layers):
        kept = told.cache[layer][10 * ROWS * COLUMNS :][:places]
        assert banks.banks[0].choice[USES][layer].tolist() == [token.kept for token in kept]


@pytest.mark.parametrize("recent", [3, 5, 6])
@pytest.mark.parametrize(("window", "sink", "budget"), [(20, 7, 16), (12, 2, 11), (15, 3, 15)])
def test_compression_of_other_sizes(window, sink, budget, recent):
    """Frames that are no whole chunks, and chunks of which every one is a choice."""
    sizes = {"window": window, "sink": sink, "budget": min(budget, sink + recent + C), "recent": recent}
    model = compressed(2, **sizes)
    chunks = chunks_of(model)
    told = straight(Compression, model, 2, **sizes)
    assert worst(product(model, chunks), list(told.run(chunks))) <= BAR
    assert min(choice.margin for choice in told.choices) > 1e-5


@pytest.mark.parametrize(
    ("timesteps", "window"), [(ROLLING, 21), (ROLLING, 18), (ROLLING, 26), (ROLLING[:2], 9), (ROLLING[:1], 21)]
)
def test_a_joint_window_is_rolling_forcings(timesteps, window):
    """The straight stream ends later, so that its shorter last windows are not seen."""
    model = rolling(timesteps, window)
    chunks = chunks_of(model)
    told = straight(RollingForcing, model, chunks + len(timesteps), window).run()
    assert worst(product(model, chunks), [next(told) for _ in range(chunks)]) <= BAR


def test_a_joint_window_never_drains():
    """A stream that ends finishes its last S - 1 chunks in shorter windows; the others do not depend on its end."""
    model, chunks = rolling(), 12
    found, told = product(model, chunks), list(straight(RollingForcing, model, chunks).run())
    drained = len(ROLLING) - 1
    assert worst(found[:-drained], told[:-drained]) <= BAR
    assert all(error(a, b) > 10 * BAR for a, b in zip(found[-drained:], told[-drained:], strict=True))


# -- what rules have in common -----------------------------------------------------------------------------------------


def test_a_sink_that_keeps_all_of_itself_is_frozen():
    chunks = chunks_of(reward(1.0))
    assert equal(product(reward(1.0), chunks), product(reward(None), chunks))


def test_a_sink_that_keeps_nothing_is_the_chunk_that_left_last():
    """With it right before the window, that is a window without an attention sink."""
    chunks = chunks_of(reward(0.0))
    assert worst(product(reward(0.0), chunks), product(reward(None, sink_frames=0), chunks)) <= BAR


def test_a_huge_reuse_limit_is_none():
    chunks = chunks_of(compressed(None), windows=4)
    unlimited = product(compressed(None), chunks)
    assert equal(product(compressed(100_000), chunks), unlimited)
    assert not equal(product(compressed(1), chunks), unlimited)


def test_a_choice_with_room_for_all_drops_nothing():
    """No settings say so, since a choice comes when a chunk does not fit; a pass can be told to make one all the same:
    its output and its bank are those of a pass that makes none."""
    n, heads, width = ROWS * COLUMNS, NETWORK.heads, NETWORK.head_dim
    layout, generator = Layout(n, reference=0, sink=1, ring=5), torch.Generator().manual_seed(1)
    old, new = (torch.randn(3, 1, f * n, heads, width, generator=generator) for f in (3, C))
    # Slot 0 is the attention sink; 1 and 2 are candidates, and as many are kept; 3 to 5 are written.
    frames, runs, reads = range(3, 6), ((0, 3, C),), ((0, 6),)
    core, table = backend("sdpa", "cpu", torch.float32), Rope(width, ROWS, COLUMNS).table(frames)

    def passed(kind: type[BankPass], selects: bool, **named) -> tuple[torch.Tensor, Bank]:
        bank = Bank(layout, [0], heads, width, torch.float32, "cpu", recalled=1, chosen=2)
        bank.keys[0][:, : 3 * n], bank.values[0][:, : 3 * n] = old[0], old[1]
        place = Place(frames, runs, reads, selects=selects)
        return kind(bank, table, place, core, **named)(0, *new.clone()), bank

    expected, untouched = passed(BankPass, False)
    found, bank = passed(SelectingPass, True, reuse=1, all_heads=lambda x: x)
    assert torch.equal(found, expected)
    assert torch.equal(bank.keys[0], untouched.keys[0])
    assert torch.equal(bank.values[0], untouched.values[0])
    assert bank.choice[USES][0].tolist() == [1] * (2 * n)


def test_a_joint_window_of_one_step_is_a_chunk_loop():
    """Without an attention sink both of its passes see what a window's do. With one, its steps do, and so does its
    clean pass while nothing has left the window."""
    one = ROLLING[:1]
    loop = {"window_frames": 21, "positions": "slot"}
    chunks = chunks_of(rolling(one))
    assert worst(product(rolling(one, sink=0), chunks), product(model_of(one, **loop), chunks)) <= BAR
    before = 21 // C
    found, expected = product(rolling(one), chunks), product(model_of(one, **loop, sink_frames=3), chunks)
    assert equal(found[:before], expected[:before])
    assert error(found[before], expected[before]) <= BAR
    assert error(found[-1], expected[-1]) > 10 * BAR


@pytest.mark.parametrize("name", [name for name in RULES if name != "rolling"])
def test_before_the_first_eviction_a_rule_is_the_plain_loop(name):
    model = RULES[name]
    fit = model.window_frames // C
    found, expected = product(model, fit + 1), product(plain(), fit + 1)
    assert equal(found[:fit], expected[:fit])
    assert error(found[fit], expected[fit]) > 10 * BAR


# -- however a rule is run ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", RULES)
def test_block_ranges_with_their_own_banks_equal_the_whole(name):
    """Each range averages, moves and chooses in its own layers, by its own count of what began."""
    model = RULES[name]
    chunks = chunks_of(model)
    parts = build(model, range(0, 2)), build(model, range(2, 3))
    assert equal(list(Stream(*parts).run(range(chunks))), product(model, chunks))


@pytest.mark.parametrize("name", RULES)
def test_a_step_that_is_run_again_changes_nothing(name):
    """What a rule does to a bank it does when the chunk's first pass begins there, and once."""
    model = RULES[name]

    class Twice(Stream):
        def _step(self, step: int, chunk: int, x: torch.Tensor) -> torch.Tensor:
            once = super()._step(step, chunk, x)
            assert torch.equal(super()._step(step, chunk, x), once)
            return once

    chunks = chunks_of(model, windows=2)
    assert equal(list(Twice(build(model)).run(range(chunks))), product(model, chunks))


@pytest.mark.parametrize("name", RULES)
def test_a_stream_that_moves_goes_on_the_same(name):
    """What is exported is all that a rule goes by: averages, choices, and the queries that will choose."""
    model = RULES[name]
    chunks = chunks_of(model)
    found, stream = [], Stream(build(model))
    for i in range(chunks):
        found += stream.run(range(i, i + 1))
        moved = Stream(build(model))
        moved.finished = stream.finished
        for (_, old), (_, new) in zip(stream.parts, moved.parts, strict=True):
            content = {name: tensor.clone() for name, tensor in old.banks[0].export().items()}
            new.banks[0].restore(content, i + 1)
        stream = moved
    assert equal(found, product(model, chunks))


@pytest.mark.parametrize("name", RULES)
def test_a_second_stream_in_the_same_banks_finds_nothing_of_the_first(name):
    """The published compression does: its queries, its counters and the place of its attention sink are never reset."""
    model = RULES[name]
    chunks, stream = range(chunks_of(model, windows=2)), Stream(build(model))
    first = list(stream.run(chunks))
    stream.begin_again()
    assert equal(list(stream.run(chunks)), first)


class Records(Replays):
    """A recorder that leaves the bank as it was, as a CUDA graph's does: that only records, and a tape runs the work.
    Most passes may run twice, but one that makes a choice may not."""

    bank: Bank

    def __call__(self, work: Callable) -> Callable:
        memory = [t for name, t in self.bank.export().items() if name != PLACED]
        saved = [t.clone() for t in memory]
        replay = super().__call__(work)
        for tensor, before in zip(memory, saved, strict=True):
            tensor.copy_(before)
        return replay


@pytest.mark.parametrize("name", RULES)
def test_recorded_passes_do_what_the_rule_says(name):
    """A pass that is recorded has its slots in it, and no numbers of the chunk it was recorded with."""
    model, recorder = RULES[name], Records()
    chunks, denoiser = chunks_of(model, windows=4), build(model)
    denoiser.runner = Graphs(recorder, must=True)
    stream = Stream(denoiser)
    ((_, banks),) = stream.parts
    recorder.bank = banks.banks[0]
    assert equal(list(stream.run(range(chunks))), product(model, chunks))
    assert recorder.replayed > recorder.recorded > 0


@pytest.mark.parametrize(("name", "heads"), [("compressed", 2), ("compressed", 4), ("compressed, reuse 1", 2)])
def test_members_that_share_the_heads_choose_the_same(name, heads):
    """All heads choose together, so two members must agree on every token. They are given what entered one alone."""
    model = replace(RULES[name], network=replace(NETWORK, heads=heads))
    alone = Stream(build(model), records=True)
    list(alone.run(range(chunks_of(model))))
    ((_, banks),) = alone.parts
    choice = banks.banks[0].choice[USES]

    def work(share):
        denoiser = build(model)
        denoiser.share = share
        member = Stream(denoiser)
        ((_, own),) = member.parts
        found = []
        for kind, step, chunk, x, _ in alone.passes:
            if kind == "step":
                found.append(denoiser.step(own, step, chunk, x, NONE))
            else:
                found.append(denoiser.commit(own, chunk, x, NONE))
        return found, own.banks[0].choice[USES]

    (found, first), (others, second) = shared(2, work)
    assert equal(found, [left for *_, left in alone.passes])
    assert others == [None] * len(found)
    for layer, uses in choice.items():
        assert torch.equal(first[layer], uses)
        assert torch.equal(second[layer], uses)

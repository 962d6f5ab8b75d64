"""Banks of slots give what StreamDiffusionV2's loop, written straight down, gives: with a bank for each step, and with
one for all; with an attention sink that stays, and with one that adapts.

The other side (`straight_stream_batch`) computes in float64. Streams last for 60 chunks, in which slots are written
many times over and positions begin anew at least three times.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
import torch

from conf.errors import UserError
from conf.schema import ModelConfig
from stages.denoise.bank import QUEUE, Bank
from stages.denoise.denoiser import Denoiser, StreamBanks
from stages.denoise.draws import Draws
from stages.denoise.graphs import Graphs
from stages.denoise.sampler import nearest_sigma, steps_of
from tests.stages.denoise.straight_history import Wan
from tests.stages.denoise.straight_stream_batch import StreamBatch, looked_up
from tests.stages.denoise.tape import Replays
from tests.stages.denoise.test_banks import COLUMNS, NETWORK, NONE, ROWS, TEXT, build
from tests.stages.denoise.test_history_rules import BAR, equal, error, worst
from tests.stages.denoise.test_share import shared

CHUNKS = 60
TIMESTEPS = [700.0, 500.0, 400.0, 200.0]
SHIFT = 8.0
THRESHOLD = 0.3
"""Of an attention sink that adapts now and then: the least like of one stream's frames is as like as -0.4 to 0.7."""
MARGIN = 1e-5
"""What decides is no near tie: both sides agree on likeness to 1e-6."""


def model_of(steps: int = 2, batch: bool = True, **changes) -> ModelConfig:
    settings = {
        "steps": None, "timesteps": TIMESTEPS[:steps], "shift": SHIFT, "warp": False, "sampler": "renoise",
        "positions": "abs", "chunk_frames": 1, "first_chunk_frames": 2, "window_frames": 6, "sink_frames": 3,
        "refresh_frames": 12, "stream_batch": batch,
    }  # fmt: skip
    return ModelConfig(network=NETWORK, **settings | changes)


def adaptive(steps: int = 2, batch: bool = True, **changes) -> ModelConfig:
    return model_of(steps, batch, **{"adaptive_sink": THRESHOLD} | changes)


RULES = {
    "batch": model_of(3), "one bank": model_of(3, batch=False), "batch, adaptive": adaptive(3),
    "one bank, adaptive": adaptive(3, batch=False),
}  # fmt: skip


def noise(chunk: int, step: int) -> torch.Tensor:
    frames = 1 if chunk else 2
    return Draws(3, "rules").noise(chunk, step, (1, NETWORK.in_channels, frames, 2 * ROWS, 2 * COLUMNS))


class Stream:
    """A stream chunk by chunk, as the oracle runs it, through one denoiser or several that hold its layers one after
    the other.

    Attributes:
        parts: they, each with its banks.
        passes: what entered every pass: (kind, step, chunk, entered).
    """

    def __init__(self, *denoisers: Denoiser):
        self.parts: list[tuple[Denoiser, StreamBanks]] = [(d, d.open()) for d in denoisers]
        self.passes: list[tuple] = []
        self.begin()

    def begin(self) -> None:
        for denoiser, banks in self.parts:
            banks.clear()
            denoiser.set_states(banks, {"text": TEXT})

    def run(self, chunks: range) -> Iterator[torch.Tensor]:
        """Final latents of each chunk."""
        schedule, sampler = self.parts[0][0].schedule, self.parts[0][0].sampler
        for i in chunks:
            x = noise(i, 0)
            for step in range(sampler.steps):
                entered = x
                v = self._through("step", step, i, x)
                x = sampler.advance(range(step, step + 1), 1, x, v, lambda _, to, i=i: noise(i, to))
            if schedule.commits(i):
                self._through("commit", None, i, entered)
            yield x

    def _through(self, kind: str, step: int | None, chunk: int, x: torch.Tensor) -> torch.Tensor:
        self.passes.append((kind, step, chunk, x))
        for denoiser, banks in self.parts:
            x = passed(denoiser, banks, kind, step, chunk, x)
        return x


def passed(
    denoiser: Denoiser, banks: StreamBanks, kind: str, step: int | None, chunk: int, x: torch.Tensor
) -> torch.Tensor | None:
    if kind == "step":
        return denoiser.step(banks, step, chunk, x, NONE)
    return denoiser.commit(banks, chunk, x, NONE)


def product(model: ModelConfig, chunks: int = CHUNKS) -> list[torch.Tensor]:
    return list(Stream(build(model)).run(range(chunks)))


def straight(model: ModelConfig, chunks: int = CHUNKS) -> tuple[list[torch.Tensor], StreamBatch]:
    """What the other side gives over the same weights, text and noise, and it."""
    rows = torch.cat([TEXT[0], torch.zeros(NETWORK.text_tokens - TEXT.shape[1], NETWORK.text_dim)])
    net = Wan(build(model).network.state_dict(), NETWORK.heads, NETWORK.layers, ROWS, COLUMNS, rows)
    told = StreamBatch(
        net, model.timesteps, model.shift, noise, refresh=model.refresh_frames, sink=model.sink_frames,
        threshold=model.adaptive_sink, capacity=model.window_frames,
    )  # fmt: skip
    return list((told.batched if model.stream_batch else told.sequential)(chunks)), told


def queues(banks: StreamBanks) -> dict[tuple[int, int], list[int]]:
    """By row and layer: slots in the order in which they are written next, each once."""
    found = {}
    for level, bank in banks.banks.items():
        for layer, queue in bank.choice[QUEUE].items():
            turn, *waiting = queue.tolist()
            kept, ring = 3, bank.layout.ring
            rolling = [kept + (turn + i) % (ring - kept) for i in range(ring - kept)]
            found[level, layer] = [slot - 1 for slot in waiting if slot] + rolling
    return found


# -- each is the published one -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("timestep", "sigma"), [(700, 0.700232), (500, 0.499719), (400, 0.400260), (200, 0.198347)])
def test_noise_levels_are_those_of_the_published_table(timestep, sigma):
    assert round(nearest_sigma(timestep, SHIFT), 6) == sigma


def test_every_timestep_finds_the_nearest_level():
    for timestep in range(1, 1001, 7):
        assert nearest_sigma(timestep, SHIFT) == pytest.approx(looked_up(timestep, SHIFT), abs=1e-12)


def test_the_network_is_told_the_list_as_it_is():
    steps = steps_of(model_of(4))
    assert [step.timestep for step in steps] == TIMESTEPS
    assert [step.sigma for step in steps] == [step.renoised for step in steps]
    assert all(step.sigma != step.timestep / 1000 for step in steps)


@pytest.mark.parametrize("batch", [True, False])
@pytest.mark.parametrize("steps", [1, 2, 3, 4])
def test_slots_are_stream_diffusions(steps, batch):
    model = model_of(steps, batch)
    found = product(model)
    assert worst(found, straight(model)[0]) <= BAR
    # Positions that go on for ever are told from it, from the first one that begins anew.
    endless = product(replace(model, refresh_frames=None))
    assert equal(found[:11], endless[:11])
    assert error(found[11], endless[11]) > 10 * BAR


@pytest.mark.parametrize("batch", [True, False])
@pytest.mark.parametrize("steps", [1, 2, 3, 4])
def test_an_adaptive_sink_is_stream_diffusions(steps, batch):
    """The same frames take the places of the same others, in every layer and bank."""
    model = adaptive(steps, batch)
    stream = Stream(build(model))
    found = list(stream.run(range(CHUNKS)))
    expected, told = straight(model)
    assert worst(found, expected) <= BAR
    assert queues(stream.parts[0][1]) == {
        (r, i): cache.queue for r, row in enumerate(told.rows) for i, cache in enumerate(row)
    }
    decisive(told)
    replaced = [slot for _, _, _, slot in told.written if slot < 3]
    assert set(replaced) == {0, 1, 2} and len(replaced) < 0.6 * len(told.written)
    # The third slot of the attention sink is still empty when the first frame comes, and is as like as nothing.
    first = [check for check in told.checks if check.chunk == 1 and not check.held]
    assert {check.slot for check in first} == {2}


def decisive(told: StreamBatch) -> None:
    """All comparisons have clear results, of which there are both, and layers and rows do not agree on all."""
    for check in told.checks:
        assert abs(check.least - told.threshold) > MARGIN
        assert not check.queued or check.second - check.least > MARGIN
    full = [check for check in told.checks if check.held and check.chunk >= 6]
    assert 0.02 < sum(check.queued for check in full) / len(full) < 0.9
    by_layer = [[c.queued for c in told.checks if c.layer == layer] for layer in range(NETWORK.layers)]
    assert by_layer[0] != by_layer[1] != by_layer[2]


@pytest.mark.parametrize("batch", [True, False])
@pytest.mark.parametrize("threshold", [None, THRESHOLD])
@pytest.mark.parametrize(("window", "sink"), [(5, 2), (4, 3), (7, 4), (6, 5), (8, 1)])
def test_slots_of_other_sizes(window, sink, threshold, batch):
    model = model_of(2, batch, window_frames=window, sink_frames=sink, adaptive_sink=threshold)
    expected, told = straight(model)
    assert worst(product(model), expected) <= BAR
    assert all(abs(check.least - threshold) > MARGIN for check in told.checks)


@pytest.mark.parametrize("batch", [True, False])
def test_three_slots_stay_whatever_the_attention_sink(batch):
    found = product(model_of(batch=batch))
    for sink in range(3):
        assert equal(product(model_of(batch=batch, sink_frames=sink)), found)


@pytest.mark.parametrize("batch", [True, False])
def test_nothing_is_less_like_than_opposite(batch):
    """A threshold that no cosine is below is none."""
    assert equal(product(adaptive(batch=batch, adaptive_sink=-1.0)), product(model_of(batch=batch)))


def test_what_waited_longest_is_forgotten_where_there_is_no_room(monkeypatch):
    """With one bank more frames may have slots wait than leave the queue. Those behind are not seen before all in front
    of them have left, which they do not while every frame adds more."""
    model = adaptive(3, batch=False, adaptive_sink=1.0)
    expected, told = straight(model, 30)
    assert told.deepest > 30
    monkeypatch.setattr("conf.schema.model.WAITING", 0)
    stream = Stream(build(model))
    assert worst(list(stream.run(range(30))), expected) <= BAR
    assert all(len(q) == 1 + model.window_frames for q in stream.parts[0][1].banks[0].choice[QUEUE].values())


@pytest.mark.parametrize("window", [6, 9])
def test_a_bank_of_one_step_never_lacks_room(window):
    """Where all is unlike, one slot more waits with each frame until the bank is full, and from then on none more."""
    model = adaptive(2, adaptive_sink=1.0, window_frames=window)
    expected, told = straight(model)
    assert worst(product(model), expected) <= BAR
    assert told.deepest - (window - 3) < model.choice["waiting"]


def test_one_bank_for_one_step_is_a_stream_batch():
    for make in (model_of, adaptive):
        assert equal(product(make(1, batch=False)), product(make(1)))
        assert not equal(product(make(2, batch=False)), product(make(2)))


# -- however it is run -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", RULES)
def test_block_ranges_with_their_own_banks_equal_the_whole(name):
    model = RULES[name]
    parts = build(model, range(0, 2)), build(model, range(2, 3))
    assert equal(list(Stream(*parts).run(range(CHUNKS))), product(model))


@pytest.mark.parametrize("name", RULES)
def test_a_stream_that_moves_goes_on_the_same(name):
    """What is exported is all that it goes by, queues of slots with it."""
    model, chunks = RULES[name], 40
    found, stream = [], Stream(build(model))
    for i in range(chunks):
        found += stream.run(range(i, i + 1))
        moved = Stream(build(model))
        for (_, old), (_, new) in zip(stream.parts, moved.parts, strict=True):
            for level, bank in old.banks.items():
                new.banks[level].restore({key: t.clone() for key, t in bank.export().items()}, i + 1)
        stream = moved
    assert equal(found, product(model, chunks))


@pytest.mark.parametrize("name", RULES)
def test_the_size_of_a_bank_is_known_before(name):
    model = RULES[name]
    ((_, banks),) = Stream(build(model)).parts
    bank, sizes = banks.banks[0], (NETWORK.layers, NETWORK.heads, NETWORK.head_dim, torch.float32)
    assert bank.nbytes == Bank.bytes_needed(bank.layout, *sizes, **model.choice)


@pytest.mark.parametrize("name", RULES)
def test_a_second_stream_in_the_same_banks_finds_nothing_of_the_first(name):
    """The published code's does: its queues are never emptied."""
    stream = Stream(build(RULES[name]))
    first = list(stream.run(range(30)))
    stream.begin()
    assert equal(list(stream.run(range(30))), first)


@pytest.mark.parametrize("name", RULES)
def test_recorded_passes_do_the_same(name):
    """A pass that is recorded asks the host for no slot: of a full bank that adapts there is one for each step."""
    model, recorder = RULES[name], Replays()
    denoiser = build(model)
    denoiser.runner = Graphs(recorder, must=True)
    assert equal(list(Stream(denoiser).run(range(CHUNKS))), product(model))
    assert recorder.replayed > recorder.recorded > 0


@pytest.mark.parametrize(("batch", "heads"), [(True, 2), (False, 4)])
def test_members_that_share_the_heads_write_the_same_slots(batch, heads, monkeypatch):
    """All heads are compared as one vector, so members must agree. They are given what entered one alone.

    Each has six tokens: torch multiplies matrices of three rows by another kernel.
    """
    monkeypatch.setitem(globals(), "COLUMNS", 6)
    monkeypatch.setattr("tests.stages.denoise.test_banks.COLUMNS", 6)
    model = replace(adaptive(batch=batch), network=replace(NETWORK, heads=heads))
    alone = Stream(build(model))
    list(alone.run(range(CHUNKS)))
    ((_, banks),) = alone.parts

    def work(share) -> tuple[dict, dict]:
        denoiser = build(model)
        denoiser.share = share
        member = Stream(denoiser)
        ((_, own),) = member.parts
        for one in alone.passes:
            passed(denoiser, own, *one)
        keys = {level: {i: k.clone() for i, k in bank.keys.items()} for level, bank in own.banks.items()}
        return keys, queues(own)

    found = shared(2, work)
    assert all(of == queues(banks) for _, of in found)
    for level, bank in banks.banks.items():
        for i, keys in bank.keys.items():
            assert torch.equal(torch.cat([of[level][i] for of, _ in found], 2), keys)


# -- what cannot be ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "changes", "line"),
    [
        (model_of, {"window_frames": 3, "sink_frames": 0}, "use 4 or more"),
        (model_of, {"window_frames": 5, "sink_frames": 5}, "window_frames=5"),
        (model_of, {"refresh_frames": 5}, "use 6 or more, or null"),
        (adaptive, {"adaptive_sink": 1.2}, "use -1 to 1"),
        (adaptive, {"sink_frames": 0}, "needs sink_frames=1 or more"),
        (adaptive, {"first_chunk_frames": None}, "needs first_chunk_frames=2 or more"),
        (adaptive, {"stream_batch": None}, "is for context=stream_batch"),
    ],
)
def test_what_slots_cannot_be_is_said(make: Callable[..., ModelConfig], changes: dict, line: str):
    with pytest.raises(UserError, match=line):
        make(**changes)

"""Streaming through banks equals one forward over the whole clip, whatever the window, sink and positions."""

from itertools import pairwise, product

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from conf.schema import ModelConfig
from stages.denoise.bank import Bank
from stages.denoise.denoiser import Denoiser
from stages.denoise.layout import Layout, runs_of
from stages.denoise.passes import ClipPass, same_level_views
from stages.denoise.rope import Rope, rotate
from stages.dit.network import Drive, TimeTerms
from stages.models.wan.network import Network
from stages.models.wan.sizes import Sizes
from stages.weights import initialise

ROWS, COLUMNS = 2, 3
NETWORK = Sizes(dim=48, ffn_dim=96, heads=2, layers=3, in_channels=4, out_channels=4, text_dim=16)
NONE = {}


def model_of(**changes) -> ModelConfig:
    return ModelConfig(network=NETWORK, window_frames=9, **{"steps": 2, **changes})


def build(model: ModelConfig, layers: range | None = None) -> Denoiser:
    network = Network(model.network, layers).eval()
    initialise(network, seed=3)
    return Denoiser(model, network, ROWS, COLUMNS)


def latents(count: int, seed: int, frames: int = 3):
    g = torch.Generator().manual_seed(seed)
    return [torch.randn(1, 4, frames, 2 * ROWS, 2 * COLUMNS, generator=g) for _ in range(count)]


TEXT = torch.randn(1, 5, 16, generator=torch.Generator().manual_seed(9))


def stream(denoiser: Denoiser, model: ModelConfig, noisy, clean, reference, step: int):
    """Velocities of every chunk at one step, chunk by chunk through banks."""
    banks = denoiser.open()
    denoiser.set_states(banks, {"text": TEXT})
    if reference is not None:
        denoiser.prefill(banks, {"reference": reference})
    velocities = []
    for i, (x, x0) in enumerate(zip(noisy, clean, strict=True)):
        velocities.append(denoiser.step(banks, step, i, x, NONE, model.sink_shift.distance_min))
        if denoiser.schedule.commits(i):
            denoiser.commit(banks, i, x0, NONE, model.sink_shift.distance_min)
    return torch.cat(velocities, 2)


def per_frame_terms(network: Network, timesteps: list[float]) -> TimeTerms:
    return network.time_terms(network.time_embeddings(torch.tensor([timesteps])))


class Masked:
    """One plain masked attention over the sequence: every token at its frame's position, `allowed[q, k]` by frame."""

    def __init__(self, rope: Rope, positions: list[int], allowed: torch.Tensor):
        self.table = rope.table(positions)
        n = len(rope.spatial)
        self.mask = allowed.repeat_interleave(n, 0).repeat_interleave(n, 1)

    def __call__(self, layer, q, k, v, adapter=""):
        q, k, v = (t.transpose(1, 2) for t in (rotate(q, self.table), rotate(k, self.table), v))
        return F.scaled_dot_product_attention(q, k, v, attn_mask=self.mask).transpose(1, 2)


@pytest.mark.parametrize("chunks", [2, 8])
@pytest.mark.parametrize("sink", [0, 3])
@pytest.mark.parametrize("context", ["same_level", "clean"])
@torch.no_grad()
def test_banks_equal_one_masked_forward(context, sink, chunks):
    """The sequence is [clean copies of all chunks | noisy chunks]; the mask alone says who may read what."""
    model, step, c = model_of(context=context, sink_frames=sink, positions="abs"), 1, 3
    denoiser = build(model)
    noisy, clean = latents(chunks, 1), latents(chunks, 2)
    found = stream(denoiser, model, noisy, clean, None, step)

    n = chunks * c
    allowed = torch.zeros(2 * n, 2 * n, dtype=torch.bool)
    for f in range(n):
        end = f // c * c + c
        for g in range(end):
            in_window, in_sink = g >= max(sink, end - model.ring_frames), g < sink
            if context == "clean":
                # A clean frame was committed over the clean history; a noisy one reads it and its own chunk.
                allowed[f, g] = in_window or in_sink
                own = g >= end - c
                allowed[n + f, n + g if own else g] = in_window or in_sink
            else:
                # Clean copies exist of attention-sink chunks only, and read no noisy frame.
                allowed[f, g] = in_sink and (f < sink or g == f)
                noisy_sink = in_sink and g >= end - c
                allowed[n + f, g] = in_sink and not noisy_sink
                allowed[n + f, n + g] = in_window or noisy_sink
        allowed[f, f] = True
    network = denoiser.network
    time = per_frame_terms(network, [0.0] * n + [denoiser.sampler.timestep(step)] * n)
    attend = Masked(denoiser.rope, [*range(n), *range(n)], allowed)
    everything = network(torch.cat([*clean, *noisy], 2), Drive(time, network.text_states(TEXT)), attend)
    assert (found - everything[:, :, n:]).abs().max() <= 1e-5 * found.abs().max()


@pytest.mark.parametrize("positions", ["abs", "slot", "sink_shift"])
@pytest.mark.parametrize(("sink", "with_reference"), [(0, False), (0, True), (3, False), (3, True)])
@torch.no_grad()
def test_banks_equal_the_training_clip(positions, sink, with_reference):
    """`same_level_views`, which training uses, is the bank's rule for every position rule."""
    model = model_of(sink_frames=sink, positions=positions, reference=with_reference)
    model.sink_shift.start, model.sink_shift.distance_min = 7, 5
    step, chunks = 0, 7
    denoiser = build(model)
    noisy, clean = latents(chunks, 1), latents(chunks, 2)
    reference = latents(1, 5, frames=1)[0] if with_reference else None
    found = stream(denoiser, model, noisy, clean, reference, step)

    network, prefix = denoiser.network, [reference] if with_reference else []
    prefix += [clean[0]] if sink else []
    count = sum(p.shape[2] for p in prefix)
    time = per_frame_terms(network, [0.0] * count + [denoiser.sampler.timestep(step)] * chunks * 3)
    attend = ClipPass(denoiser.rope, same_level_views(model, chunks), denoiser.core)
    whole = network(torch.cat([*prefix, *noisy], 2), Drive(time, network.text_states(TEXT)), attend)
    assert (found - whole[:, :, count:]).abs().max() <= 1e-5 * found.abs().max()


@torch.no_grad()
def test_block_ranges_with_their_own_banks_equal_the_whole():
    model = model_of(sink_frames=3, reference=True)
    whole, parts = build(model), [build(model, range(0, 2)), build(model, range(2, 3))]
    noisy, clean, reference = latents(6, 1), latents(6, 2), latents(1, 5, frames=1)[0]
    expected = stream(whole, model, noisy, clean, reference, 1)
    banks = [p.open() for p in parts]
    found = []
    for part, bank in zip(parts, banks, strict=True):
        part.set_states(bank, {"text": TEXT})
    # A prefill follows the block route too: hidden states travel.
    hidden = {"reference": reference}
    for part, bank in zip(parts, banks, strict=True):
        hidden = part.prefill(bank, hidden)
    for i, x in enumerate(noisy):
        for part, bank in zip(parts, banks, strict=True):
            x = part.step(bank, 1, i, x, NONE)
        found.append(x)
        if i == 0:
            hidden = clean[0]
            for part, bank in zip(parts, banks, strict=True):
                hidden = part.commit(bank, 0, hidden, NONE)
    assert torch.equal(torch.cat(found, 2), expected)


@torch.no_grad()
def test_rewriting_a_chunk_changes_nothing():
    model = model_of(context="clean")
    denoiser = build(model)
    noisy = latents(6, 1)
    banks = denoiser.open()
    denoiser.set_states(banks, {"text": TEXT})
    for i, x in enumerate(noisy):
        once = denoiser.step(banks, 0, i, x, NONE)
        assert torch.equal(denoiser.step(banks, 0, i, x, NONE), once)


@torch.no_grad()
def test_streams_that_take_turns_make_no_table_twice(monkeypatch):
    """On a device a table is an upload and some kernels."""
    model, made, table = model_of(reference=False), [], Rope.table
    monkeypatch.setattr(Rope, "table", lambda rope, positions: made.append(positions) or table(rope, positions))
    denoiser = build(model)
    made.clear()
    streams = [denoiser.open() for _ in range(2)]
    for banks in streams:
        denoiser.set_states(banks, {"text": TEXT})
    [x] = latents(1, 3)
    for chunk, step, (ahead, banks) in product(range(3), range(2), enumerate(streams)):
        denoiser.step(banks, step, chunk + ahead, x, NONE, 0)
    assert made == [range(0, 3), range(3, 6), range(6, 9), range(9, 12)]


def test_export_restores_to_the_same_stream_and_size_is_known_beforehand():
    model = model_of(sink_frames=3, reference=True)
    denoiser = build(model)
    noisy, reference = latents(8, 1), latents(1, 5, frames=1)[0]
    banks = denoiser.open()
    denoiser.set_states(banks, {"text": TEXT})
    denoiser.prefill(banks, {"reference": reference})
    for i in range(6):
        denoiser.step(banks, 1, i, noisy[i], NONE)
    moved = denoiser.open()
    denoiser.set_states(moved, {"text": TEXT})
    for level, bank in banks.banks.items():
        moved.banks[level].restore(bank.export(), 6)
        known = Bank.bytes_needed(denoiser.layout, NETWORK.layers, NETWORK.heads, NETWORK.head_dim, torch.float32)
        assert bank.nbytes == known
    for i in (6, 7):
        assert torch.equal(denoiser.step(banks, 1, i, noisy[i], NONE), denoiser.step(moved, 1, i, noisy[i], NONE))


@given(
    sink=st.integers(0, 7), ring=st.integers(3, 13), reference=st.integers(0, 2), chunk=st.integers(1, 3),
    chunks=st.integers(1, 40),
)  # fmt: skip
@settings(max_examples=200)
def test_every_attended_frame_exactly_once(sink, ring, reference, chunk, chunks):
    """After chunk i: the sink and the last `ring` frames, each in one slot, filling a prefix without holes."""
    layout = Layout(1, reference, sink, ring)
    held: dict[int, object] = {s: ("ref", s) for s in range(reference)}
    for i in range(chunks):
        first, end = i * chunk, (i + 1) * chunk
        runs = runs_of(range(first, end), layout.slot)
        assert sum(n for *_, n in runs) == chunk
        for offset, slot, n in runs:
            held.update({slot + j: first + offset + j for j in range(n)})
        seen = [held[s] for s in range(layout.visible(end))]
        expected = {("ref", s) for s in range(reference)} | set(range(min(sink, end)))
        expected |= set(range(layout.window_start(end), end))
        assert len(seen) == len(set(seen))
        assert set(seen) == expected


def test_positions_are_relative_for_ever():
    """A shift of all positions leaves attention unchanged, also a billion frames into a stream."""
    rope = Rope(24, ROWS, COLUMNS)
    g = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, 5 * ROWS * COLUMNS, 2, 24, generator=g) for _ in range(3))

    def attention(shift):
        table = rope.table([shift + p for p in range(5)])
        rotated = [rotate(t, table).transpose(1, 2) for t in (q, k)]
        return F.scaled_dot_product_attention(*rotated, v.transpose(1, 2))

    assert (attention(0) - attention(10**9)).abs().max() < 1e-5


def test_re_rotation_composes():
    rope = Rope(24, 1, 1)
    k = torch.randn(1, 1, 2, 24, generator=torch.Generator().manual_seed(0))
    spatial_free = rope.table([7]) * rope.table([0]).conj()
    assert torch.allclose(rotate(rotate(k, rope.table([5])), spatial_free), rotate(k, rope.table([12])), atol=1e-5)


def test_modulation_is_constant_per_step():
    """What `Denoiser` computes at load is what a forward would compute, for every step and for t = 0."""
    denoiser = build(model_of())
    network, sampler = denoiser.network, denoiser.sampler
    times = [*(sampler.timestep(step) for step in range(sampler.steps)), 0.0]
    assert len(denoiser._constants) == len(times)
    for time, constants in zip(times, denoiser._constants, strict=True):
        kept = constants.terms
        with torch.no_grad():
            fresh = network.time_terms(network.time_embeddings(torch.full((1, 1), time)))
        assert kept.layers.keys() == fresh.layers.keys() == set(network.layers)
        for i in network.layers:
            assert all(torch.equal(a, b) for a, b in zip(fresh.layers[i], kept.layers[i], strict=True))
        assert all(torch.equal(a, b) for a, b in zip(fresh.head, kept.head, strict=True))
    for one, other in pairwise(denoiser._constants):
        assert not any(torch.equal(a, b) for a, b in zip(one.terms.layers[0], other.terms.layers[0], strict=True))

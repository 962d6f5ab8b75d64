"""Adapters' histories equal plain attention over what the window holds, alone and with shared passes."""

import threading

import pytest
import torch

from conf.schema import Adapter, ModelConfig
from parallel.exchange import local_group
from stages.denoise.attention import backend
from stages.denoise.bank import Bank
from stages.denoise.bank_pass import AdapterPass, BankPass
from stages.denoise.history import Place, Window
from stages.denoise.layout import LATENT, PLACE, TOKEN, Layout
from stages.denoise.rope import Rope, rotate
from stages.denoise.share import Ulysses
from stages.models.wan.sizes import Sizes
from tests.patience import PATIENT_S

C, TOKENS, HEADS, WIDTH, CHUNKS = 3, 4, 2, 8, 7
CPU = torch.device("cpu")
CORE = backend("sdpa", CPU, torch.float32, WIDTH)


def model_of(**changes) -> ModelConfig:
    network = Sizes(dim=48, heads=2, layers=2)
    return ModelConfig(network=network, chunk_frames=C, window_frames=9, positions="slot", **changes)


def random(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def banks(model: ModelConfig, each: str) -> Bank:
    adapter = Adapter("keys", (0,), HEADS, WIDTH, each)
    own = Bank(Layout.of_adapter(model, adapter, TOKENS), [0], HEADS, WIDTH, torch.float32, CPU, each)
    return Bank(Layout.of(model, TOKENS), [0], 2, 24, torch.float32, CPU, adapters={"keys": own})


def entries(each: str) -> int:
    return TOKENS if each == PLACE else 1


def attended(bank: Bank, model: ModelConfig, chunk: int, q, k, v) -> torch.Tensor:
    """One chunk's pass over the adapter's bank, as the denoiser makes it."""
    own, frames, rope = bank.adapters["keys"], range(chunk * C, (chunk + 1) * C), Rope(WIDTH, 1, 1)

    def table(positions) -> torch.Tensor:
        return rope.table(positions).repeat_interleave(own.layout.tokens, 0)

    own.place(table, own.layout.sink_positions(model.positions, frames.start, C, model.sink_shift, 0))
    attend = AdapterPass(own, table(frames), Window(model, own.layout).step(chunk, 0, True), CORE)
    outer = BankPass(bank, Rope(24, 2, 2).table(frames), Place(frames, (), ()), CORE, adapters={"keys": attend})
    return outer(0, q.clone(), k.clone(), v.clone(), "keys")


def drawn(each: str, chunk: int) -> tuple[torch.Tensor, ...]:
    q = random(chunk, 1, C * TOKENS, HEADS, WIDTH)
    return q, *(random(100 * s + chunk, 1, C * entries(each), HEADS, WIDTH) for s in (1, 2))


@pytest.mark.parametrize("sink", [0, 3])
@pytest.mark.parametrize("each", [LATENT, PLACE])
def test_a_bank_is_the_window_of_plain_attention(each, sink):
    model = model_of(sink_frames=sink)
    bank, n = banks(model, each), entries(each)
    layout, rope = bank.adapters["keys"].layout, Rope(WIDTH, 1, 1)
    keys, values = [], []
    for chunk in range(CHUNKS):
        q, k, v = drawn(each, chunk)
        found = attended(bank, model, chunk, q, k, v)
        keys.append(k.unflatten(1, (C, n)))
        values.append(v.unflatten(1, (C, n)))
        end = (chunk + 1) * C
        kept = [*range(min(sink, end)), *range(layout.window_start(end), end)]
        at = [*layout.sink_positions("slot", chunk * C, C, model.sink_shift, 0)]
        positions = [at[f] if f < len(at) else f for f in kept]
        all_keys, all_values = torch.cat(keys, 1)[:, kept], torch.cat(values, 1)[:, kept]
        for place in range(TOKENS):
            mine = place if each == PLACE else 0
            own_q = rotate(q.unflatten(1, (C, TOKENS))[:, :, place], rope.table(range(chunk * C, end)))
            own_k = rotate(all_keys[:, :, mine], rope.table(positions))
            expected = CORE(own_q, own_k, all_values[:, :, mine], None)
            assert (found.unflatten(1, (C, TOKENS))[:, :, place] - expected).abs().max() <= 1e-5


@pytest.mark.parametrize("each", [LATENT, PLACE])
def test_members_hold_their_own_places_or_all_and_a_state_is_whole(each):
    """What two members keep is, joined, what one alone keeps; and each takes its part back."""
    model, alone = model_of(), banks(model_of(), each)
    for chunk in range(CHUNKS):
        attended(alone, model, chunk, *drawn(each, chunk))
    own = alone.adapters["keys"]
    members, found = local_group(0, 2, timeout_s=PATIENT_S), {}

    def work(member) -> None:
        share = Ulysses(member)
        part = share.part(own.keys[0], each, own.layout.frames)
        assert share.part(own.raw[0], each, 0).numel() == 0 and (share.whole(own.raw[0], each, 0) is None) == bool(
            member.rank
        )
        heads = alone.raw[0].shape[2]
        assert share.part(alone.raw[0], TOKEN, 0).shape == (1, 0, heads // 2, 24)
        whole = share.whole(share.part(alone.raw[0], TOKEN, 0), TOKEN, 0)
        assert (whole is None) if member.rank else whole.shape == (1, 0, heads, 24)
        found[member.rank] = part, share.whole(part, each, own.layout.frames)

    threads = [threading.Thread(target=work, args=(member,)) for member in members]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert torch.equal(found[0][1], own.keys[0]) and found[1][1] is None
    assert found[0][0].shape[1] == own.keys[0].shape[1] // (2 if each == PLACE else 1)


def test_copies_and_sizes_count_adapters():
    model = model_of(sink_frames=3)
    one, other = banks(model, PLACE), banks(model, PLACE)
    attended(one, model, 0, *drawn(PLACE, 0))
    other.copy_sink(one)
    mine, its = one.adapters["keys"], other.adapters["keys"]
    span = mine.layout.span(0, mine.layout.anchored)
    assert torch.equal(mine.keys[0][:, span], its.keys[0][:, span]) and its.placed == mine.placed
    assert one.nbytes == Bank.bytes_needed(one.layout, 1, 2, 24, torch.float32) + Bank.bytes_needed(
        mine.layout, 1, HEADS, WIDTH, torch.float32
    )
    one.clear()
    assert mine.placed == [None] * 3

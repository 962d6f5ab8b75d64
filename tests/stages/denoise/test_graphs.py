"""A runner that records: with a recorder that replays the same work over the same buffers, streams do not change.

All but the recording itself is what runs on CUDA: which passes are recorded, what is copied in, what is kept.
"""

import gc

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from conf.errors import UserError
from stages.denoise.denoiser import Denoiser
from stages.denoise.graphs import Graphs, attach
from tests.stages.denoise.test_s2v import TEXT, build, latents, model_of, normal

aten = torch.ops.aten
WAITS = (aten.item.default, aten.is_nonzero.default, aten._local_scalar_dense.default)
"""Operations that give the host a number."""


class Tape(TorchDispatchMode):
    """The operations of some work, with the tensors and numbers they were given. Playing it runs no Python of the
    work again: it reads and writes the same memory, as a CUDA graph does, and every number of the host stays what it
    was when it was recorded."""

    def __init__(self):
        super().__init__()
        self.operations = []

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        if operation in WAITS:
            raise RuntimeError("a graph cannot wait for the device")
        made = operation(*args, **(kwargs or {}))
        self.operations.append((operation, args, kwargs or {}, made))
        return made

    def play(self):
        for operation, args, kwargs, recorded in self.operations:
            made = operation(*args, **kwargs)
            for new, place in zip(tree_leaves(made), tree_leaves(recorded), strict=True):
                if isinstance(new, torch.Tensor) and new.data_ptr() != place.data_ptr():
                    place.copy_(new)


class Replays:
    """Records like a CUDA graph: the work's Python runs once, its operations run again on the tensors it was given."""

    def __init__(self):
        self.recorded = self.replayed = 0

    def __call__(self, work):
        self.recorded += 1
        with Tape() as tape:
            out = work()

        def replay():
            self.replayed += 1
            tape.play()
            return out

        return replay


def run(graphs, bank, work, x):
    with torch.inference_mode():
        return graphs(bank, "key", work, {}, {"x": x})


def test_the_recorder_shows_what_is_baked_in():
    """Numbers of the host are; tensors that enter, and memory that the work reads in place, are not."""
    host, memory, bank = [1.0], torch.zeros(3), build(model_of()).open([0]).banks[0]
    graphs = Graphs(Replays())

    def work(text, entering):
        return entering["x"] * 2 + memory + host[0]

    for i in range(4):
        memory.fill_(10.0 * i)
        host[0] = float(i)
        out = run(graphs, bank, work, torch.full((3,), float(i)))
        baked = max(i, 1) if i < 2 else 1  # the first runs as it is, the second is recorded
        assert torch.equal(out, torch.full((3,), 2.0 * i + 10.0 * i + (baked if i else 0)))


def test_the_recorder_refuses_to_wait():
    graphs, bank = Graphs(Replays()), build(model_of()).open([0]).banks[0]

    def work(text, entering):
        return entering["x"] * entering["x"].sum().item()

    run(graphs, bank, work, torch.ones(3))
    with pytest.raises(RuntimeError, match="cannot wait"):
        run(graphs, bank, work, torch.ones(3))


def stream(denoiser: Denoiser, chunks: int, levels=(0,), width: int = 48) -> list[torch.Tensor]:
    """Chunks of one stream, with another reference from chunk 6 and another prompt from chunk 9."""
    banks = denoiser.open(levels)
    denoiser.set_states(banks, {"text": TEXT})
    denoiser.prefill(banks, {"reference": latents(1, 1), "motion": latents(1 + 50, 19)})
    outs = []
    for i in range(chunks):
        if i == 6:
            denoiser.prefill(banks, {"reference": latents(2, 1), "motion": latents(2 + 50, 19)})
        if i == 9:
            denoiser.set_states(banks, {"text": normal(10, 1, 6, 16)})
        for level in levels:
            sound = normal(20 + i, 1, 3, 6, width)
            outs.append(denoiser.step(banks, level, i, latents(40 + i, 3), {"audio": sound}, 4 + i % 7))
    return outs


def test_a_stream_is_the_same():
    plain, recorded = build(model_of()), build(model_of())
    recorder = Replays()
    recorded.runner = Graphs(recorder)
    for ours, exact in zip(stream(recorded, 14, (0, 2)), stream(plain, 14, (0, 2)), strict=True):
        assert torch.equal(ours, exact)
    # A ring of four: chunks 0 to 6 run as they are (0 to 2 while it fills), four slots are recorded for each level.
    assert recorder.recorded == 2 * 4
    assert recorder.replayed == 2 * (14 - 7)


def test_results_are_not_overwritten():
    denoiser = build(model_of())
    denoiser.runner = Graphs(Replays())
    outs = stream(denoiser, 12)
    assert len({out.data_ptr() for out in outs}) == len(outs)


def test_what_a_graph_reads_stays_where_it_is():
    denoiser = build(model_of())
    denoiser.runner = Graphs(Replays())
    banks = denoiser.open([0])
    denoiser.set_states(banks, {"text": TEXT})
    denoiser.prefill(banks, {"reference": latents(1, 1), "motion": latents(1 + 50, 19)})
    places = set()
    for i in range(12):
        denoiser.set_states(banks, {"text": normal(i, 1, 6, 16)})
        denoiser.step(banks, 0, i, latents(i, 3), {"audio": normal(i, 1, 3, 6, 48)})
        if i >= 7:
            (held,) = denoiser.runner.held.values()
            (kept,) = held.entering.values()
            (states,) = held.states.values()
            text = [t for pair in states.values() for t in pair]
            places.add(tuple(t.data_ptr() for t in [*kept.values(), *text]))
            assert all(torch.equal(a, b) for p, q in zip(states.values(), banks.states.values(), strict=True)
                       for a, b in zip(p, q, strict=True))  # fmt: skip
    assert len(places) == 1


def test_graphs_go_with_their_stream():
    denoiser = build(model_of())
    denoiser.runner = Graphs(lambda work: lambda: None)  # holds nothing of the work, as a CUDA graph does not
    stream(denoiser, 9)
    gc.collect()
    assert not denoiser.runner.held


def test_graphs_need_cuda():
    denoiser = build(model_of())
    runner = denoiser.runner
    attach(denoiser, "auto")
    assert denoiser.runner is runner
    with pytest.raises(UserError, match=r"device.graphs=always: CUDA graphs are for CUDA devices, not cpu"):
        attach(denoiser, "always")

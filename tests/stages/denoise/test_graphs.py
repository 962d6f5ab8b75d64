"""A runner that records: with a recorder that replays the same work over the same buffers, streams do not change.

All but the recording itself is what runs on CUDA: which passes are recorded, what is copied in, what is kept.
"""

import gc

import pytest
import torch

from conf.errors import UserError
from stages.denoise.denoiser import ChunkConditioning, Denoiser
from stages.denoise.graphs import Graphs, attach
from tests.stages.denoise.test_s2v import TEXT, build, latents, model_of, normal


class Replays:
    """Records like a CUDA graph: work is told once, runs later on the tensors it was told with, into one result."""

    def __init__(self):
        self.recorded = self.replayed = 0

    def __call__(self, work):
        self.recorded += 1
        out = []

        def replay():
            self.replayed += 1
            made = work()
            if not out:
                out.append(made.clone())
            return out[0].copy_(made)

        return replay


def stream(denoiser: Denoiser, chunks: int, levels=(0,), width: int = 48) -> list[torch.Tensor]:
    """Chunks of one stream, with another reference from chunk 6 and another prompt from chunk 9."""
    banks = denoiser.open(levels)
    denoiser.set_text(banks, TEXT)
    denoiser.prefill(banks, latents(1, 20))
    outs = []
    for i in range(chunks):
        if i == 6:
            denoiser.prefill(banks, latents(2, 20))
        if i == 9:
            denoiser.set_text(banks, normal(10, 1, 6, 16))
        for level in levels:
            sound = normal(20 + i, 1, 3, 6, width)
            outs.append(denoiser.step(banks, level, i, latents(40 + i, 3), ChunkConditioning(audio=sound), 4 + i % 7))
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
    denoiser.set_text(banks, TEXT)
    denoiser.prefill(banks, latents(1, 20))
    places = set()
    for i in range(12):
        denoiser.set_text(banks, normal(i, 1, 6, 16))
        denoiser.step(banks, 0, i, latents(i, 3), ChunkConditioning(audio=normal(i, 1, 3, 6, 48)))
        if i >= 7:
            (held,) = denoiser.runner.held.values()
            (kept,) = held.entering.values()
            text = [t for pair in held.text.values() for t in pair]
            places.add(tuple(t.data_ptr() for t in [*kept.values(), *text]))
            assert all(torch.equal(a, b) for p, q in zip(held.text.values(), banks.text.values(), strict=True)
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

"""A runner that records: with a recorder that replays the same work over the same buffers, streams do not change.

All but the recording itself is what runs on CUDA: which passes are recorded, what is copied in, what is kept. Whole
runs, of every family and rule, are in tests/runtime/test_recorded_runs.py.
"""

import gc
import logging
import weakref

import pytest
import torch

from conf.errors import UserError
from stages.denoise.denoiser import Denoiser, PassKey, StreamBanks
from stages.denoise.graphs import TRIES, Graphs, attach
from tests.stages.denoise.tape import Replays
from tests.stages.denoise.test_s2v import TEXT, build, latents, model_of, normal

KEY = PassKey(0, 2, ((0, 4, 3),), 13)


def run(graphs, banks, work, x, key=KEY):
    with torch.inference_mode():
        return graphs(banks, key, work, {"x": x})


def test_the_recorder_shows_what_is_baked_in():
    """Numbers of the host are; tensors that enter, and memory that the work reads in place, are not."""
    host, memory, banks = [1.0], torch.zeros(3), StreamBanks({})
    graphs = Graphs(Replays())

    def work(states, entering):
        return entering["x"] * 2 + memory + host[0]

    for i in range(4):
        memory.fill_(10.0 * i)
        host[0] = float(i)
        out = run(graphs, banks, work, torch.full((3,), float(i)))
        # The first runs as it is; the second is recorded, with the number that held then.
        assert torch.equal(out, torch.full((3,), 2.0 * i + 10.0 * i + min(i, 1)))


def test_a_chunk_number_that_the_work_reads_is_caught(monkeypatch):
    """A planted fault: latents of a stream whose passes ask the host which chunk it is are other ones when recorded."""
    enter = type(build(model_of()).network).enter

    def faulty(network, x, given):
        return enter(network, x, given) + 0.001 * network.chunk

    monkeypatch.setattr(type(build(model_of()).network), "enter", faulty)
    plain, recorded = build(model_of()), build(model_of())
    recorded.runner = Graphs(Replays())
    for denoiser in (plain, recorded):
        step = denoiser.step

        def told(banks, number, chunk, *args, denoiser=denoiser, step=step):
            denoiser.network.chunk = chunk
            return step(banks, number, chunk, *args)

        denoiser.step = told
        denoiser.network.chunk = 0
    pairs = zip(stream(recorded, 13), stream(plain, 13), strict=True)
    # Chunk 11 is the first that runs what was recorded of another chunk, of chunk 7.
    assert [torch.equal(ours, exact) for ours, exact in pairs] == [True] * 11 + [False] * 2


def test_nothing_of_a_recording_is_taken_for_a_result():
    """A recording computes nothing: the recorder spoils what the work made, and yet the first result is right."""
    graphs, banks = Graphs(Replays()), StreamBanks({})
    for _ in range(2):
        assert torch.equal(
            run(graphs, banks, lambda _, entering: entering["x"] + 1, torch.ones(3)), torch.full((3,), 2.0)
        )


def wait(states, entering):
    """Work that no graph can hold."""
    return entering["x"] * entering["x"].sum().item()


def test_a_pass_that_cannot_be_recorded_runs_as_it_is_and_says_so_once(caplog):
    recorder = Replays()
    graphs, banks = Graphs(recorder), [StreamBanks({}), StreamBanks({})]
    with caplog.at_level(logging.WARNING):
        outs = [run(graphs, banks[i % 2], wait, torch.full((3,), float(i))) for i in range(6)]
        other = [
            run(graphs, banks[0], lambda _, entering, i=i: entering["x"] + i, torch.ones(3), KEY._replace(step=3))
            for i in range(3)
        ]
    assert [out[0].item() for out in outs] == [3.0 * i * i for i in range(6)]
    assert [out[0].item() for out in other] == [1.0, 2.0, 3.0]  # nothing else is recorded either
    assert recorder.recorded == 1 and graphs.recorded == 0
    assert [record.getMessage() for record in caplog.records] == [
        "step 2 into slots 4 to 6 of bank 0 cannot be recorded as a CUDA graph (a graph cannot wait for the device); "
        "passes run without from now on"
    ]


class Full(Replays):
    """A recorder for which memory lacks, so many times."""

    def __init__(self, times: int):
        super().__init__()
        self.times = times

    def __call__(self, work):
        if self.times:
            self.times -= 1
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB\nand much more")
        return super().__call__(work)


def plus(_, entering):
    return entering["x"] + 1


def test_a_pass_for_which_memory_lacks_runs_as_it_is_and_is_recorded_later(caplog):
    recorder, banks = Full(TRIES - 1), StreamBanks({})
    graphs = Graphs(recorder)
    outs = [run(graphs, banks, plus, torch.full((3,), float(i))) for i in range(TRIES + 3)]
    assert [out[0].item() for out in outs] == [i + 1.0 for i in range(TRIES + 3)]
    assert graphs.recorded == 1 and recorder.replayed == 3 and not caplog.records


def test_only_a_pass_for_which_memory_lacks_again_and_again_is_given_up(caplog):
    recorder, banks = Full(TRIES), StreamBanks({})
    graphs = Graphs(recorder)
    for i in range(TRIES + 4):
        assert run(graphs, banks, plus, torch.full((3,), float(i)))[0] == i + 1
    assert recorder.times == graphs.recorded == 0
    assert [record.getMessage() for record in caplog.records] == [
        "step 2 into slots 4 to 6 of bank 0 is not recorded as a CUDA graph, and runs without: memory lacks (CUDA out "
        "of memory. Tried to allocate 2 GiB)"
    ]
    for _ in range(2):
        run(graphs, banks, plus, torch.ones(3), KEY._replace(step=3))
    assert graphs.recorded == 1


def test_graphs_that_are_a_must_are_an_error_where_they_cannot_be():
    graphs, banks = Graphs(Replays(), must=True), StreamBanks({})
    run(graphs, banks, wait, torch.ones(3))
    with pytest.raises(
        UserError, match=r"device.graphs=always: step 2 into slots 4 to 6 of bank 0 cannot be recorded: a "
    ):
        run(graphs, banks, wait, torch.ones(3))


def test_what_was_recorded_before_a_failure_is_still_used():
    recorder = Replays()
    graphs, banks = Graphs(recorder), StreamBanks({})
    for _ in range(2):
        run(graphs, banks, lambda _, entering: entering["x"] + 1, torch.ones(3))
        run(graphs, banks, wait, torch.ones(3), KEY._replace(step=3))
    before = recorder.replayed
    run(graphs, banks, lambda _, entering: entering["x"] + 1, torch.ones(3))
    assert recorder.replayed == before + 1


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
    banks = denoiser.open([0, 1])
    denoiser.set_states(banks, {"text": TEXT})
    denoiser.prefill(banks, {"reference": latents(1, 1), "motion": latents(1 + 50, 19)})
    places = set()
    for i in range(12):
        denoiser.set_states(banks, {"text": normal(i, 1, 6, 16)})
        for step in range(2):
            denoiser.step(banks, step, i, latents(i, 3), {"audio": normal(i, 1, 3, 6, 48)})
        if i >= 7:
            (held,) = banks.kept.values()
            (states,) = held.states.values()  # one for both levels
            (entering,) = denoiser.runner._entering.values()
            (leaving,) = denoiser.runner._leaving.values()
            text = [t for pair in states.values() for t in pair]
            places.add(tuple(t.data_ptr() for t in [*entering.values(), leaving, *text]))
            assert all(torch.equal(a, b) for p, q in zip(states.values(), banks.states.values(), strict=True)
                       for a, b in zip(p, q, strict=True))  # fmt: skip
    assert len(places) == 1


def test_levels_of_one_set_may_be_at_different_epochs():
    """Around a change of prompt a level is at the new one while another is at the old one, by turns."""
    texts, outs = [normal(3, 1, 6, 16), normal(4, 1, 6, 16)], []
    for records in (False, True):
        denoiser = build(model_of())
        denoiser.runner = Graphs(Replays()) if records else denoiser.runner
        banks = denoiser.open([0, 2])
        states = [denoiser.network.states({"text": text}) for text in texts]
        denoiser.set_states(banks, {"text": texts[0]})
        denoiser.prefill(banks, {"reference": latents(1, 1), "motion": latents(1 + 50, 19)})
        outs.append(
            [
                denoiser.step(
                    banks.view(level, states[(i + level // 2) % 2]),
                    level,
                    i,
                    latents(i, 3),
                    {"audio": normal(i, 1, 3, 6, 48)},
                )
                for i in range(13)
                for level in (0, 2)
            ]
        )
    assert all(torch.equal(*pair) for pair in zip(*outs, strict=True))


def test_banks_that_are_free_hold_no_states_of_a_stream():
    denoiser = build(model_of())
    denoiser.runner = Graphs(Replays())
    banks = denoiser.open([0])
    denoiser.set_states(banks, {"text": TEXT})
    first = next(iter(banks.states.values()))[0]
    held = weakref.ref(first)
    for i in range(9):
        denoiser.step(banks, 0, i, latents(i, 3), {"audio": normal(i, 1, 3, 6, 48)})
    del first
    banks.clear()
    gc.collect()
    assert held() is None


def test_a_set_that_comes_later_is_recorded_at_once_since_shapes_are_warm():
    denoiser, recorder = build(model_of()), Replays()
    denoiser.runner = Graphs(recorder)
    stream(denoiser, 14)
    assert recorder.recorded == 4
    stream(denoiser, 14)
    assert recorder.recorded == 4 + 7
    assert denoiser.runner.recorded == recorder.recorded


def test_graphs_go_with_their_banks():
    denoiser = build(model_of())
    denoiser.runner = Graphs(lambda work: lambda: None)  # holds nothing of the work, as a CUDA graph does not
    banks = denoiser.open([0])
    denoiser.set_states(banks, {"text": TEXT})
    for i in range(9):
        denoiser.step(banks, 0, i, latents(i, 3), {"audio": normal(i, 1, 3, 6, 48)})
    (held,) = banks.kept.values()
    gone = weakref.ref(held)
    del held, banks
    gc.collect()
    assert gone() is None


def test_graphs_need_cuda():
    denoiser = build(model_of())
    runner = denoiser.runner
    attach(denoiser, "auto")
    assert denoiser.runner is runner
    with pytest.raises(UserError, match=r"device.graphs=always: CUDA graphs are for CUDA devices, not cpu"):
        attach(denoiser, "always")

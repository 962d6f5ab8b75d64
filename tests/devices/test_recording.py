"""Recording graphs on a card, with torch's module for it played by one that keeps its rules."""

import gc

import pytest
import torch

from devices import accelerator
from devices.accelerator import Accelerator


class Module:
    """As much of `torch.cuda` as recording asks for: a thread's stream, pools, a recording that may not end."""

    def __init__(self):
        self.current, self.recording, self.fails, self.replayed, self.pools = "own", None, False, 0, 0
        module = self

        class CUDAGraph:
            def replay(self):
                module.replayed += 1

        class graph:  # noqa: N801 (torch's name)
            def __init__(self, graph, pool, stream, capture_error_mode):
                self.stream, self.mode, self.pool, self.graph = stream, capture_error_mode, pool, graph

            def __enter__(self):
                assert accelerator._RECORDING.locked() and module.recording is None
                self.before, module.current, module.recording = module.current, self.stream, self

            def __exit__(self, *_):
                module.recording = None
                if module.fails:
                    raise RuntimeError("operation failed due to a previous error during capture")
                module.current = self.before

        self.CUDAGraph, self.graph = CUDAGraph, graph

    def Stream(self, device, priority):  # noqa: N802 (torch's name)
        return f"recorder's on {device}"

    def graph_pool_handle(self):
        self.pools += 1
        return 0, self.pools

    def current_stream(self, device):
        return self.current

    def set_stream(self, stream):
        self.current = stream

    def synchronize(self, device):
        assert accelerator._RECORDING.locked()


@pytest.fixture
def module(monkeypatch):
    made = Module()
    monkeypatch.setattr(torch, "get_device_module", lambda device: made)
    return made


def test_each_card_records_on_a_stream_of_its_own(module):
    """torch's own is made once per process, on the card that records first."""
    for card in ("cuda:0", "cuda:1"):
        record, seen = Accelerator(torch.device(card)).recorder(), []
        record(lambda seen=seen: seen.append((module.current, module.recording.mode)))
        assert seen == [(f"recorder's on {card}", "thread_local")]
        assert module.current == "own"


def test_what_is_recorded_gives_the_same_tensor_each_time(module):
    out = torch.zeros(3)
    replay = Accelerator(torch.device("cuda:0")).recorder()(lambda: out)
    assert replay() is out and replay() is out and module.replayed == 2


def test_nobody_waits_for_a_card_while_one_records(module):
    Accelerator(torch.device("cuda:0")).synchronize()
    assert not accelerator._RECORDING.locked()


@pytest.mark.parametrize("ended", [False, True])
def test_a_recording_that_does_not_end_leaves_nothing_behind(module, monkeypatch, ended):
    """The thread has its own stream again, and the allocator does not serve the graphs' pool any more."""
    given_back = []

    def end(index, pool):
        given_back.append((index, pool))
        if ended:
            raise RuntimeError("not recording to this pool")

    monkeypatch.setattr(torch._C, "_cuda_endAllocateToPool", end, raising=False)
    record, module.fails = Accelerator(torch.device("cuda:1")).recorder(), True
    with pytest.raises(RuntimeError, match="previous error"):
        record(lambda: None)
    assert module.current == "own" and given_back == [(1, (0, 1))]
    assert not accelerator._RECORDING.locked() and gc.isenabled()
    module.fails = False
    record(lambda: None)


def pool_of(module, record):
    """The pool that is recorded to next."""
    pools = []
    record(lambda: pools.append(module.recording.pool))
    return pools[0]


def test_what_went_wrong_is_told_and_not_that_the_recording_did_not_end(module, monkeypatch):
    monkeypatch.setattr(torch._C, "_cuda_endAllocateToPool", lambda *_: None, raising=False)
    record, module.fails = Accelerator(torch.device("cuda:1")).recorder(), True

    def work():
        raise torch.OutOfMemoryError("no memory is left")

    with pytest.raises(torch.OutOfMemoryError, match="no memory is left"):
        record(work)
    module.fails = False
    with pytest.raises(torch.OutOfMemoryError, match="no memory is left"):
        record(work)


def test_a_graph_that_was_spoilt_stays_and_nothing_is_recorded_to_its_pool(module, monkeypatch):
    monkeypatch.setattr(torch._C, "_cuda_endAllocateToPool", lambda *_: None, raising=False)
    card = Accelerator(torch.device("cuda:1"))
    record, spoilt = card.recorder(), []
    first = pool_of(module, record)
    assert pool_of(module, record) == first
    module.fails = True
    with pytest.raises(RuntimeError, match="previous error"):
        record(lambda: spoilt.append(module.recording.graph))
    assert card.spoilt == spoilt
    module.fails = False
    second = pool_of(module, record)
    assert second != first and pool_of(module, record) == second


def test_a_pool_of_a_recording_that_failed_first_is_not_asked_for_again(module):
    """Its graph is gone, and torch refuses pools that no graph holds."""
    record, pools = Accelerator(torch.device("cuda:1")).recorder(), []

    def work():
        pools.append(module.recording.pool)
        raise RuntimeError("no")

    with pytest.raises(RuntimeError, match="no"):
        record(work)
    assert pool_of(module, record) not in pools


@pytest.mark.parametrize("collects", [True, False])
def test_nothing_is_collected_while_a_graph_is_recorded(module, collects):
    """And it is as before afterwards."""
    before, found = gc.isenabled(), []
    (gc.enable if collects else gc.disable)()
    try:
        Accelerator(torch.device("cuda:0")).recorder()(lambda: found.append(gc.isenabled()))
        assert found == [False] and gc.isenabled() is collects
    finally:
        (gc.enable if before else gc.disable)()

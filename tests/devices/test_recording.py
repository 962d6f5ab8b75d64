"""Recording graphs on a card, with torch's module for it played by one that keeps its rules."""

import pytest
import torch

from devices import accelerator
from devices.accelerator import Accelerator


class Module:
    """As much of `torch.cuda` as recording asks for: a thread's stream, a recording that may not end."""

    def __init__(self):
        self.current, self.recording, self.fails, self.replayed = "own", None, False, 0
        module = self

        class CUDAGraph:
            def replay(self):
                module.replayed += 1

        class graph:  # noqa: N801 (torch's name)
            def __init__(self, graph, pool, stream, capture_error_mode):
                self.stream, self.mode = stream, capture_error_mode

            def __enter__(self):
                assert accelerator._RECORDING.locked() and module.recording is None
                self.before, module.current, module.recording = module.current, self.stream, self

            def __exit__(self, *_):
                module.recording = None
                if module.fails:
                    raise RuntimeError("operation failed due to a previous error during capture")
                module.current = self.before

        self.CUDAGraph, self.graph = CUDAGraph, graph

    def Stream(self, device):  # noqa: N802 (torch's name)
        return f"recorder's on {device}"

    def graph_pool_handle(self):
        return 0, 7

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
    assert module.current == "own" and given_back == [(1, (0, 7))]
    assert not accelerator._RECORDING.locked()
    module.fails = False
    record(lambda: None)

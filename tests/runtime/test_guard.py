"""What is raised for one stream ends that stream; what is a peer's passes through."""

import pytest
import torch

from conf.errors import UserError
from parallel.builders import build
from parallel.channels import ChannelError
from parallel.message import Message
from runtime.board import PeerLost
from runtime.guard import Guard
from runtime.messages import Messages
from runtime.workload import describe
from tests.helpers import config_of


class Reasons:
    def __init__(self):
        self.told = []

    def refuse(self, stream, reason):
        self.told.append((stream, reason))


@pytest.mark.parametrize(
    "error",
    [
        UserError("a=1", "is wrong", "mend it"),
        ValueError("v"),
        OSError("o"),
        MemoryError(),
        torch.OutOfMemoryError("m"),
    ],
)
def test_an_error_ends_its_stream_and_is_told_once(error):
    guard = Guard(Reasons(), "worker 3")
    for _ in range(2):
        with guard(7, "step2 of chunk 5"):
            raise error
    ((stream, reason),) = guard.board.told
    assert (stream, reason.kind, reason.where) == (7, type(error).__name__, "worker 3, step2 of chunk 5")
    assert reason.user == isinstance(error, UserError)
    assert guard.hollow == {7}


@pytest.mark.parametrize("error", [ChannelError(2, "is gone"), PeerLost("worker 2 is lost")])
def test_a_lost_peer_is_no_streams_fault(error):
    guard = Guard(Reasons(), "worker 3")
    with pytest.raises(type(error)), guard(7, "step0 of chunk 0"):
        raise error
    assert not guard.board.told and not guard.hollow


def test_messages_of_hollow_streams_are_emptied():
    guard = Guard(Reasons(), "worker 0")
    guard.hollow.add(1)
    full, empty = (guard.mark(Message("step", stream=s, tensors={"x": torch.zeros(1)})) for s in (0, 1))
    assert (full.hollow, list(full.tensors)) == (False, ["x"])
    assert (empty.hollow, list(empty.tensors)) == (True, [])
    guard.forget(1)
    assert not guard.mark(Message("step", stream=1)).hollow


def test_a_recalibration_that_there_is_no_room_for_comes_hollow(monkeypatch):
    """The chunks behind it wait for it, and the end behind these."""

    def full(*_):
        raise torch.OutOfMemoryError("no room")

    config, guard = config_of("model=nano", "plan=timestep", "model.recalibrate_chunk=4"), Guard(Reasons(), "worker 0")
    messages = Messages(build(config.plan, describe(config)), torch.device("cpu"), guard)
    there = [(worker, m.step) for worker, m in messages.again(0, 4, {"x": torch.zeros(1)})]
    monkeypatch.setattr(messages, "placed", full)
    found = list(messages.again(0, 4, {"x": torch.zeros(1)}))
    assert there and [(worker, m.step) for worker, m in found] == there
    assert all(m.hollow and not m.tensors for _, m in found)
    assert [stream for stream, _ in guard.board.told] == [0]

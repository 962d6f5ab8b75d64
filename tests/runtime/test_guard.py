"""What is raised for one stream ends that stream; what is a peer's passes through."""

import pytest
import torch

from conf.errors import UserError
from parallel.channels import ChannelError
from parallel.message import Message
from runtime.board import PeerLost
from runtime.guard import Guard


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

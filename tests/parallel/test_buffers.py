"""Memory that is used again, and never while somebody can still read it."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from parallel.buffers import READY, Buffers, Leases


def host(size: int) -> torch.Tensor:
    return torch.empty(size, dtype=torch.uint8)


def test_what_was_given_back_last_is_taken_first():
    buffers = Buffers(host)
    first, second = buffers.take(8), buffers.take(8)
    buffers.give(first)
    buffers.give(second)
    assert [buffers.take(8).data_ptr(), buffers.take(4).data_ptr()] == [second.data_ptr(), first.data_ptr()]
    assert buffers.take(0) is None


def test_what_is_foreseen_is_there_from_the_start():
    buffers = Buffers(host, 100)
    ready = {buffers._free[i].data_ptr() for i in range(READY)}
    assert {buffers.take(100).data_ptr() for _ in range(READY)} == ready


def test_a_buffer_that_is_too_small_is_dropped():
    buffers = Buffers(host, 10)
    assert buffers.take(11).numel() == 11
    assert buffers.take(10).numel() == 10


def test_a_lease_ends_with_the_last_tensor_that_refers_to_it():
    leases = Leases()
    taken = leases.take(64)
    place, part = taken.data_ptr(), taken[16:32].view(torch.float32).view(2, 2)
    del taken
    assert leases.take(64).data_ptr() != place
    with torch.inference_mode():
        row = part[0]
    del part
    assert leases.take(64).data_ptr() != place
    del row
    assert place in {leases.take(64).data_ptr()}


@given(st.lists(st.integers(0, 3), max_size=60))
def test_no_two_live_leases_share_memory(ends):
    leases, live = Leases(8), []
    for number, end in enumerate(ends):
        live.append((number % 251, leases.take(8).fill_(number % 251)))
        if end < len(live):
            del live[end]
        assert all((tensor == value).all() for value, tensor in live)

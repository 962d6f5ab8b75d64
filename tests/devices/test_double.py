"""The device of host memory finds what it is for: a planted fault of every kind is told, with its lines, and what is in
order is not.
"""

import pytest
import torch

import devices
from devices import Span
from tests.double import KIND, module

HERE = "tests/devices/test_double.py"


@pytest.fixture
def card(twin):
    """Card 0, behind the class that GPUs have."""
    return devices.of(f"{KIND}:0")


def ones(card) -> torch.Tensor:
    return torch.ones(4, device=card.torch)


# -- placement --------------------------------------------------------------------------------------------------------


def test_host_tensors_and_two_cards_do_not_mix(twin, card):
    x, y = ones(card), torch.ones(4, device=f"{KIND}:1")
    for other in (torch.ones(4), y, card.pinned(4).view(torch.float32).expand(4)):
        with pytest.raises(RuntimeError, match="expected all tensors to be on the same device"):
            x + other
    with pytest.raises(RuntimeError, match="same device"):
        torch.cat([x, torch.ones(4)])
    assert (x + torch.tensor(2.0) + y.to(x.device)).tolist() == [4.0] * 4


def test_values_are_the_processors(card):
    host = torch.arange(12.0).view(3, 4)
    x = card.upload(host)
    x[1:] += 1
    assert x.device == card.torch and torch.equal(x.T.contiguous().cpu(), (host + torch.tensor([[0.0], [1], [1]])).T)


# -- waits of the host ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "act"),
    [
        ("item", lambda card, x: x.sum().item()),
        ("item", lambda card, x: int(x[0])),
        ("item", lambda card, x: bool(x[0] > 0)),
        ("to host", lambda card, x: x.tolist()),
        ("to host", lambda card, x: x.cpu()),
        ("to host", lambda card, x: torch.empty(4).copy_(x, non_blocking=True)),
        ("from host", lambda card, x: torch.ones(4).to(card.torch, non_blocking=True)),
        ("from host", lambda card, x: torch.tensor(1.0, device=card.torch)),
        ("from host", lambda card, x: x.copy_(torch.ones(4))),
        ("from host", lambda card, x: x[[0, 2]]),
        ("nonzero", lambda card, x: x[x > 0]),
        ("aten::nonzero", lambda card, x: x.nonzero()),
        ("aten::equal", lambda card, x: torch.equal(x, x)),
        ("event", lambda card, x: card.mark().wait()),
        ("event", lambda card, x: Span(card).end().seconds),
        ("device", lambda card, x: card.synchronize()),
    ],
)
def test_a_wait_is_told_with_the_line_that_made_it(twin, card, kind, act):
    x = ones(card)
    act(card, x)
    [wait] = twin.waits
    assert wait.kind == kind and wait.thread == "MainThread"
    assert wait.within(HERE, "test_a_wait_is_told_with_the_line_that_made_it") and not wait.within("Stream.use")


def test_what_waits_for_nothing_is_not_told(twin, card):
    x = card.upload(torch.ones(4)) * 2 + 1
    staged = card.pinned(16).view(torch.float32)
    staged.copy_(x, non_blocking=True)
    x.copy_(staged, non_blocking=True)
    queue = card.queue()
    mark = card.mark()
    queue.use()
    card.follow(mark, x)
    x.to(f"{KIND}:1")
    assert not mark.reached() and twin.waits == []
    mark.wait()
    mark.wait()
    assert len(twin.waits) == 1


# -- order ------------------------------------------------------------------------------------------------------------


def crossed(card, before=None, after=None):
    """Memory written on one queue and read on another, with the edge that the two functions make between them."""
    one, other = card.queue(), card.queue()
    one.use()
    early = card.mark()
    x = ones(card)
    mark = before(card) if before else early
    other.use()
    if after:
        after(card, mark, x)
    return x, x + 1


def test_a_missing_edge_is_told_with_both_lines(twin, card):
    x, _ = crossed(card)
    [fault] = twin.found()
    assert fault.count(HERE) >= 2 and "add.Tensor reads" in fault and "no edge" in fault
    del x  # and its memory goes back while the other queue reads it
    [fault] = twin.found()
    assert "given back" in fault and fault.count(HERE) >= 2


def test_an_event_that_was_recorded_too_early_is_no_edge(twin, card):
    _ = crossed(card, None, lambda card, mark, x: card.follow(mark, x))
    assert len(twin.found()) == 1


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (lambda card: card.mark(), lambda card, mark, x: card.follow(mark, x)),
        (lambda card: card.mark(), lambda card, mark, x: mark.wait()),
        (lambda card: card.synchronize(), lambda card, mark, x: None),
        (lambda card: card.mark(), lambda card, mark, x: [mark.reached() for _ in range(8)]),
    ],
    ids=["followed", "waited for", "synchronized", "seen"],
)
def test_every_kind_of_edge_is_one(twin, card, before, after):
    x, _ = crossed(card, before, after)
    card.synchronize()
    del x
    assert twin.found() == []


def test_reading_a_clock_is_no_edge(twin, card):
    _ = crossed(card, Span, lambda card, span, x: span.end().seconds)
    assert len(twin.found()) == 1
    card.synchronize()


def test_memory_that_another_queue_reads_is_not_written_without_an_edge(twin, card):
    one, other = card.queue(), card.queue()
    one.use()
    x = ones(card)
    mark = card.mark()
    other.use()
    card.follow(mark, x)
    _ = x + 1
    one.use()
    x.zero_()
    [fault] = twin.found()
    assert "zero_ writes" in fault and "add.Tensor reads" in fault


@pytest.mark.parametrize("kept", [True, False])
def test_memory_given_back_early(twin, card, kept):
    """Unless its owner's allocator knows of the other queue, or the owner follows it."""
    one, other = card.queue(), card.queue()
    one.use()
    x = ones(card)
    mark = card.mark()
    other.use()
    card.follow(mark, *([x] if kept else []))
    _ = x + 1
    del x
    assert len(twin.found()) == (0 if kept else 1)
    one.use()
    x = ones(card)
    with other.after(card.mark(), x):
        _ = x + 1
    del x
    assert twin.found() == []


def test_pinned_memory_that_the_host_touches_early(twin, card):
    staged, x = card.pinned(16).view(torch.float32), ones(card)
    staged.copy_(x, non_blocking=True)
    assert staged.tolist() == [1.0] * 4
    assert "tolist reads" in twin.found()[0]
    card.mark().wait()
    assert staged.numpy().sum() == 4 and twin.found() == []
    y = staged.to(card.torch, non_blocking=True)
    staged.zero_()
    assert "zero_ writes" in twin.found()[0]
    card.mark().wait()
    staged.fill_(2)
    assert twin.found() == [] and y.shape == (4,)
    early = x.to("cpu", non_blocking=True)
    assert early.sum() == 4 and "sum reads" in twin.found()[0]


def test_copies_between_cards_are_in_order_with_both(twin, card):
    x, other = ones(card), torch.zeros(4, device=f"{KIND}:1")
    other.add_(1)
    other.copy_(x)
    assert (other + 1).tolist() == [2.0] * 4
    x.zero_()


# -- queues that come and go ------------------------------------------------------------------------------------------


@pytest.fixture
def made(monkeypatch):
    """Priorities of all streams that torch was asked for; it has 32 of each, and begins again then."""
    found, stream = [], module.Stream

    def one(device, priority=0):
        found.append(priority)
        return stream(device, priority)

    monkeypatch.setattr(module, "Stream", one)
    return found


def test_queues_that_were_closed_are_used_again(twin, made, card):
    """A hundred viewers, three at a time."""
    streams, open_now = set(), []
    for _ in range(100):
        queue = card.queue()
        queue.use()
        assert module.current_stream(card.torch).line.number not in [number for _, number in open_now]
        open_now.append((queue, module.current_stream(card.torch).line.number))
        streams.add(open_now[-1][1])
        if len(open_now) == 3:
            open_now.pop(0)[0].close()
    assert len(streams) == len(made) == 3


def test_a_queue_that_is_closed_twice_is_given_to_one(twin, made, card):
    queue = card.queue()
    for _ in range(2):
        queue.close()
    card.queue(), card.queue()
    assert len(made) == 2


def test_queues_of_passes_are_of_another_supply(twin, made, card):
    card.queue().close()
    passes = card.queue(passes=True)
    assert made == [0, -1]
    passes.close()
    card.queue()
    assert made == [0, -1]


# -- time, and figures ------------------------------------------------------------------------------------------------


def test_events_complete_late_and_have_the_devices_time(twin, card):
    span, x = Span(card), ones(card)
    for _ in range(9):
        x.add_(1)
    span.end()
    assert not span.over and twin.waits == []
    assert span.seconds >= 9e-3 and span.over
    short = Span(card).end()
    assert short.seconds < span.seconds
    asked = card.mark()
    assert [asked.reached() for _ in range(4)] == [False, False, False, True]
    start, end = card.moment(), card.moment()
    with pytest.raises(RuntimeError, match="not ready"):
        start.elapsed_time(end)


def test_bytes_are_counted(card):
    free = card.free_bytes()
    card.start_peak()
    at_first = card.peak_bytes()
    x = torch.empty(1 << 20, dtype=torch.uint8, device=card.torch)
    view = x.view(2, -1)
    assert free - card.free_bytes() == card.peak_bytes() - at_first == 1 << 20
    del x
    assert card.free_bytes() == free - (1 << 20)
    del view
    assert card.free_bytes() == free and card.peak_bytes() == at_first + (1 << 20)


def test_it_is_what_the_configuration_means(twin, card):
    assert devices.choose("auto").type == KIND and devices.choose("cpu").type == "cpu"
    assert devices.choose("auto", 3) == torch.device(KIND, 1)
    assert card.where() != devices.of(f"{KIND}:1").where()
    assert not card.immediate and card.recorder() is None and card.total_bytes() >= card.free_bytes() > 0

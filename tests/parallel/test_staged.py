"""Bodies through the hosts' memories: what a device computes later arrives as it was computed, bit for bit, with the
times that it took, and no worker's thread waits for it.
"""

from __future__ import annotations

import queue
import threading
from itertools import chain

import pytest
import torch

import devices
from devices import Span
from parallel import p2p
from parallel.channels import Arrival, Closed, Failure, Inbox
from parallel.exchange import GroupExchange
from parallel.local import LocalChannel
from parallel.message import Message
from tests.parallel import late
from tests.patience import PATIENT_S
from tests.processes import workers

CPU = torch.device("cpu")
SIZES = (3, 70_000, 5, 70_000, 0)
"""Of bodies: within the room that was foreseen, beyond it, within what was made then, and none."""


def message_of(device: late.Late, index: int) -> Message:
    """Message `index`, whose tensors are computed when somebody waits for them: `index` works between two moments."""
    tensors = {name: torch.zeros(SIZES[index % len(SIZES)]) for name in ("x", "y") if SIZES[index % len(SIZES)]}
    span = Span(device)
    for number in range(index):
        device.later(lambda number=number: [x.fill_(number + 1) for x in tensors.values()])
    return Message("step", chunk=index, tensors=tensors, spans=[(7, span.end())])


def is_right(message: Message) -> bool:
    """Whether it is what `message_of` computes. The second moment is a work, too."""
    numel = SIZES[message.chunk % len(SIZES)]
    right = [x.tolist() == [message.chunk] * numel for x in message.tensors.values()]
    return len(right) == 2 * bool(numel) and all(right) and message.times == {7: message.chunk + 1}


def talk(me: int, store, count: int) -> dict:
    """Worker 0 sends `count` messages to worker 1; each says what it saw."""
    device, spied, inbox = late.install(), [], queue.SimpleQueue()
    link = p2p.connect(store, me, 1 - me, "staged", CPU, PATIENT_S, expected=64)
    call = "post" if me else "begin"
    plain = getattr(link, call)
    setattr(link, call, lambda tensor, tag: spied.append((tensor.data_ptr(), tensor.numel())) or plain(tensor, tag))
    wrong = []
    if me == 0:
        sender = link.sender(inbox)
        for index in range(count):
            sender.send(message_of(device, index))
        sender.close()
    else:
        receiver = link.receiver(inbox)
        while isinstance(arrival := inbox.get(timeout=PATIENT_S), Arrival):
            assert arrival.borrowed == bool(arrival.message.tensors)
            message = arrival.take()
            wrong += [] if is_right(message) else [(message.chunk, message.times)]
        assert arrival == Closed(0), arrival
        receiver.close()
    pinned = [size for place, size in spied if any(place in (pin, pin + 4096) for pin in device.pins)]
    waited = {what for what, thread in device.notes if thread == threading.current_thread().name}
    return {"wrong": wrong, "pinned": sorted(pinned)[-1], "waited": waited, "host": link.host}


def test_what_is_computed_later_arrives_right_and_through_pinned_memory():
    with workers(talk, range(2), 20) as (_, _, join):
        sent, received = join()
    assert sent["wrong"] == received["wrong"] == []
    assert sent["host"] and received["host"]
    # The longest transfers that began and ended in pinned memory are those of the longest bodies.
    assert min(sent["pinned"], received["pinned"]) > 2 * 4 * max(SIZES)
    assert sent["waited"] == set(), "a worker's thread does not wait for what it sends"


# --- exchanges


def meet(me: int, store) -> list:
    """All kinds of exchange; a member's results as lists, and what happened in which order."""
    device, order = late.install(), []
    exchange = GroupExchange(store, 5, me, 3, CPU, PATIENT_S)
    plain = exchange._do
    exchange._do = lambda begin: order.append("exchanged") or plain(begin)
    x = (torch.arange(3).view(3, 1) + 10 * me).expand(3, 2).to(torch.bfloat16).contiguous()
    buffer = torch.full((7,), 9 if me == 0 else 0, dtype=torch.uint8)
    found = []
    for exchanged in (exchange.all_to_all, exchange.gather):
        device.later(lambda: order.append("computed"))
        found.append(exchanged(x))
    exchange.broadcast(buffer)
    empty = exchange.gather(x[:0])
    exchange.close()
    assert (empty is None) == bool(me) and (me or empty.shape == (3, 0, 2))
    return [*(None if each is None else each.tolist() for each in (*found, buffer)), order[:4]]


def test_members_of_a_group_that_share_a_card_exchange_what_is_computed():
    with workers(meet, range(3)) as (_, _, join):
        found = join()
    for me, (parts, gathered, buffer, order) in enumerate(found):
        assert parts == [[me + 10 * other] * 2 for other in range(3)]
        assert gathered == (None if me else [[[i + 10 * other] * 2 for i in range(3)] for other in range(3)])
        assert buffer == [9] * 7
        assert order == ["computed", "exchanged"] * 2


# --- threads of one process


@pytest.fixture
def device(monkeypatch) -> late.Late:
    monkeypatch.setitem(devices.KINDS, "cpu", late.Late)
    monkeypatch.setattr("devices.kinds._MADE", {})
    return devices.of("cpu")


def test_between_threads_a_message_is_delivered_when_it_is_computed(device):
    inbox, order = Inbox(), []
    inbox.at_once = lambda item: order.append(item.message.chunk if isinstance(item, Arrival) else "closed")
    channel = LocalChannel(3, 4, inbox, credits=20)
    for index in range(20):
        span = Span(device)
        device.later(lambda index=index: order.append(f"computed {index}"))
        tensors = {"x": torch.full((3,), index)} if index % 3 else {}
        channel.sender.send(Message("step", chunk=index, tensors=tensors, spans=[(7, span.end())]))
    assert not any(what == "wait" for what, thread in device.notes if thread == threading.current_thread().name)
    channel.sender.close()
    assert order == [*chain(*((f"computed {index}", index) for index in range(20))), "closed"]
    for index in range(20):
        message = inbox.get().take()
        assert message.times == {7: 2}
        assert [x.tolist() for x in message.tensors.values()] == ([[index] * 3] if index % 3 else [])


def test_between_threads_the_reader_says_what_its_queue_reads(device, monkeypatch):
    inbox, said = queue.SimpleQueue(), []
    channel = LocalChannel(3, 4, inbox)
    channel.sender.send(Message("step", tensors={"x": torch.ones(2)}))
    arrival = inbox.get(timeout=PATIENT_S)
    monkeypatch.setattr(late.Late, "follow", lambda self, mark, *used: said.extend(used))
    x = arrival.take().tensors["x"]
    assert [tensor.untyped_storage().data_ptr() for tensor in said] == [x.untyped_storage().data_ptr()]
    channel.sender.close()


def test_what_fails_while_it_is_computed_breaks_the_channel_and_is_told_once(device):
    inbox = queue.SimpleQueue()
    channel = LocalChannel(3, 4, inbox)

    def fail() -> None:
        raise RuntimeError("an illegal memory access")

    device.later(fail)
    channel.sender.send(Message("step", tensors={"x": torch.ones(2)}))
    failure = inbox.get(timeout=PATIENT_S)
    assert isinstance(failure, Failure) and failure.peer == 3
    assert "an illegal memory access" in str(failure.error)
    channel.sender.close()
    assert inbox.get(timeout=PATIENT_S) == Closed(3) and inbox.empty()


def test_on_the_processor_there_is_no_courier():
    channel = LocalChannel(3, 4, queue.SimpleQueue())
    span = Span(devices.of("cpu")).end()
    channel.sender.send(Message("step", tensors={"x": torch.ones(2)}, spans=[(1, span)]))
    assert not any("courier" in thread.name for thread in threading.enumerate())

"""Messages and exchanges between devices that are late: in order, right, and held up by nobody who computes."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.distributed import FileStore

import devices
from devices import Span
from devices.accelerator import Accelerator
from parallel import p2p
from parallel.channels import Arrival, Closed, Receiver, Sender
from parallel.exchange import Exchange, GroupExchange, local_group
from parallel.local import LocalChannel
from parallel.message import Message
from tests.double import KIND
from tests.patience import PATIENT_S

CARDS = [(0, 0), (0, 1)]
COUNT = 9


def card(number: int) -> torch.device:
    return torch.device(KIND, number)


def together(works: list[Callable[[], Any]]) -> list[Any]:
    """Do all at once, each in a thread; returns what they return."""
    found: dict[int, Any] = {}
    threads = [
        threading.Thread(target=lambda i=i, work=work: found.update({i: work()})) for i, work in enumerate(works)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENT_S)
    return [found[i] for i in range(len(works))]


def linked(cards: tuple[int, int], inbox: queue.SimpleQueue, folder) -> tuple[Sender, Receiver]:
    """The ends of a channel as between processes."""

    def end(me: int) -> Sender | Receiver:
        store = FileStore(f"{folder}/store", 2)
        link = p2p.connect(store, me, 1 - me, "x", card(cards[me]), PATIENT_S, expected=100)
        return link.receiver(inbox) if me else link.sender()

    return tuple(together([lambda: end(0), lambda: end(1)]))


def threaded(cards: tuple[int, int], inbox: queue.SimpleQueue, folder) -> tuple[Sender, Receiver]:
    channel = LocalChannel(0, 1, inbox, device=card(cards[1]))
    return channel.sender, channel.receiver


def travelled(cards: tuple[int, int], sender: Sender, receiver: Receiver, inbox: queue.SimpleQueue) -> list[Message]:
    """Messages whose tensors are computed on one queue, and read on another."""

    def send() -> None:
        device = devices.of(card(cards[0]))
        device.queue().use()
        for index in range(COUNT):
            span = Span(device)
            x = torch.arange(1 + 30_000 * (index % 2), device=device.torch) + index
            tensors = {"x": x * 2, "y": x.float()} if index % 3 else {}
            sender.send(Message("step", chunk=index, tensors=tensors, spans=[(5, span.end())]))
            del x, tensors
        sender.close()

    def read() -> list[Message]:
        devices.of(card(cards[1])).queue().use()
        found = []
        while isinstance(arrival := inbox.get(timeout=PATIENT_S), Arrival):
            message = arrival.take()
            message.tensors = {name: tensor + 1 for name, tensor in message.tensors.items()}
            found.append(message)
        assert isinstance(arrival, Closed), arrival
        for message in found:
            message.tensors = {name: tensor.cpu() for name, tensor in message.tensors.items()}
        receiver.close()
        return found

    return together([send, read])[1]


@pytest.mark.parametrize("cards", CARDS)
@pytest.mark.parametrize("channel", [linked, threaded])
def test_messages_arrive_in_order_and_nobody_who_computes_waits(twin, tmp_path, channel, cards):
    inbox = queue.SimpleQueue()
    found = travelled(cards, *channel(cards, inbox, tmp_path), inbox)
    assert [message.chunk for message in found] == list(range(COUNT))
    for index, message in enumerate(found):
        x = torch.arange(1 + 30_000 * (index % 2)) + index
        expected = {"x": x * 2 + 1, "y": x.float() + 1} if index % 3 else {}
        assert message.tensors.keys() == expected.keys()
        assert all(message.tensors[name].equal(expected[name]) for name in expected)
        assert message.times[5] > 0
    assert [str(wait) for wait in twin.waits if wait.within("travelled.<locals>.send", "Arrival.take")] == []


@pytest.mark.parametrize("channel", [linked, threaded])
def test_a_body_that_is_read_before_it_is_computed_is_found(twin, tmp_path, monkeypatch, channel):
    inbox = queue.SimpleQueue()
    ends = channel((0, 0), inbox, tmp_path)
    plain = Accelerator.follow
    monkeypatch.setattr(Accelerator, "follow", lambda self, mark, *used: plain(self, None, *used))
    travelled((0, 0), *ends, inbox)
    assert any("no edge" in fault for fault in twin.found())


def swapped(exchange: Exchange, device: torch.device) -> list[Any]:
    """What all kinds of exchange give a member that computes what it sends, and then writes over it."""
    devices.of(device).queue().use()
    x = (torch.arange(2, device=device).view(2, 1) + 10 * exchange.rank).expand(2, 3).contiguous()
    parts = exchange.all_to_all(x)
    gathered = exchange.gather(x)
    x.zero_()
    buffer = torch.full((5,), 7 - 7 * exchange.rank, dtype=torch.uint8, device=device)
    exchange.broadcast(buffer)
    return [None if each is None else each.cpu().tolist() for each in (parts, gathered, buffer)]


@pytest.mark.parametrize("cards", CARDS)
@pytest.mark.parametrize("near", [True, False], ids=["threads", "processes"])
def test_exchanges_are_in_order(twin, tmp_path, cards, near):
    places = [card(number) for number in cards]

    def member(rank: int) -> Exchange:
        return GroupExchange(FileStore(f"{tmp_path}/store", 2), 3, rank, 2, places[rank], PATIENT_S)

    members = local_group(3, 2, PATIENT_S) if near else together([lambda: member(0), lambda: member(1)])
    found = together([lambda i=i: swapped(members[i], places[i]) for i in range(2)])
    for rank, (parts, gathered, buffer) in enumerate(found):
        assert parts == [[rank + 10 * other] * 3 for other in range(2)]
        assert gathered == (None if rank else [[[i + 10 * other] * 3 for i in range(2)] for other in range(2)])
        assert buffer == [7] * 5


def test_threads_that_do_not_wait_for_each_others_queues_are_found(twin, monkeypatch):
    monkeypatch.setattr(Accelerator, "follow", lambda *_: None)
    members = local_group(3, 2, PATIENT_S)
    together([lambda i=i: swapped(members[i], card(0)) for i in range(2)])
    assert any("no edge" in fault for fault in twin.found())

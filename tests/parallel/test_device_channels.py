"""Channels and exchanges as on CUDA, over fakes: nothing that is wrong is delivered or sent on, every thread uses its
device, and a good end shuts NCCL down.
"""

from __future__ import annotations

import queue
import threading

import pytest
import torch
from torch.distributed import HashStore

from devices import Span
from parallel.channels import Arrival, ChannelError, Closed, Failure
from parallel.ends import BODY, FRAME
from parallel.exchange import GroupExchange, local_group
from parallel.message import Message, pack, unpack
from parallel.p2p import Link
from tests.parallel import fake_nccl
from tests.parallel.late import Late
from tests.patience import PATIENT_S


def connected() -> list[Link]:
    """Both sides, which have compared clocks and made the communicator."""
    links = fake_nccl.pair(PATIENT_S)
    threads = [threading.Thread(target=link.meet) for link in links]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return links


def calls(links: list[Link]) -> list[list[str]]:
    return [link._bodies.calls for link in links]


def kinds_sent(link: Link) -> list[str]:
    """Kinds of the messages that left and were not received."""
    return [unpack(header, torch.empty(1 << 16, dtype=torch.uint8)).kind for header in link._group.wire.sent[0, FRAME]]


def test_bodies_arrive_in_order_and_a_good_end_shuts_both_sides_down():
    links, inbox = connected(), queue.SimpleQueue()
    sender, receiver = links[0].sender(), links[1].receiver(inbox)
    for index in range(20):
        sender.send(Message("step", chunk=index, tensors={"x": torch.full((index + 1,), index)} if index % 3 else {}))
        arrival = inbox.get(timeout=PATIENT_S)
        message = arrival.take()
        assert message.chunk == index
        assert all(x.tolist() == [index] * (index + 1) for x in message.tensors.values())
        assert len(message.tensors) == bool(index % 3)
    sender.close()
    assert inbox.get(timeout=PATIENT_S) == Closed(0)
    receiver.close()
    assert calls(links) == [["shutdown"], ["shutdown"]]


def test_what_is_wrong_with_a_message_is_told_where_it_is_sent():
    links = connected()
    sender, receiver = links[0].sender(), links[1].receiver(queue.SimpleQueue())
    with pytest.raises(ValueError, match="complex64"):
        sender.send(Message("step", tensors={"x": torch.zeros(1, dtype=torch.complex64)}))
    many = [(worker, Span(links[0].device).end()) for worker in range(1000)]
    with pytest.raises(ValueError, match="times of 1000 workers"):
        sender.send(Message("step", spans=many))
    sender.send(Message("step"))
    sender.close()
    receiver.close()


def announced(link: Link) -> None:
    """Send a header whose body does not come."""
    header, _ = pack(Message("step", tensors={"x": torch.ones(4)}))
    link.send(header, FRAME)


def test_a_body_that_was_aborted_is_not_delivered():
    links, inbox = connected(), queue.SimpleQueue()
    links[1]._bodies.waits.clear()
    receiver = links[1].receiver(inbox)
    announced(links[0])
    assert links[1]._bodies.waits.wait(PATIENT_S)
    links[1].cut()
    failure = inbox.get(timeout=PATIENT_S)
    assert isinstance(failure, Failure), failure
    assert "cut off" in str(failure.error)
    receiver.close()
    assert inbox.empty()
    assert links[1]._bodies.calls == ["abort"]


def test_a_body_is_not_delivered_once_the_group_reports_an_error():
    links, inbox = connected(), queue.SimpleQueue()
    links[1]._bodies.error.name = "COMM_ERROR"
    receiver = links[1].receiver(inbox)
    announced(links[0])
    links[0].send(torch.zeros(64, dtype=torch.uint8), BODY)
    failure = inbox.get(timeout=PATIENT_S)
    assert isinstance(failure, Failure), failure
    assert "NCCL reports COMM_ERROR" in str(failure.error)
    receiver.close()
    assert inbox.empty()


@pytest.mark.parametrize("broken", [False, True])
def test_what_was_computed_is_checked_when_it_is_there_and_before_it_leaves(broken):
    links, inbox, exchange = connected(), queue.SimpleQueue(), local_group(3, 2)[0]
    computed, sender = threading.Event(), links[0].sender(inbox, check=exchange.check)
    links[0].device.later(computed.wait)
    sender.send(Message("step", tensors={"x": torch.ones(4)}))
    if broken:  # after it was sent, while it is still being computed
        exchange.abort()
    computed.set()
    if not broken:
        arrivals = queue.SimpleQueue()
        receiver = links[1].receiver(arrivals)
        assert isinstance(arrivals.get(timeout=PATIENT_S), Arrival)
        sender.close()
        receiver.close()
        return
    failure = inbox.get(timeout=PATIENT_S)
    assert str(failure.error) == "worker 3: among its 2 processes: an exchange was cut off"
    assert set(kinds_sent(links[0])) <= {"beat"}
    with pytest.raises(ChannelError, match="an exchange was cut off"):
        sender.send(Message("step"))
    sender.close()


def test_every_thread_of_a_channel_uses_its_queue_first():
    links = fake_nccl.pair(PATIENT_S)
    sender, receiver = links[0].sender(), links[1].receiver(queue.SimpleQueue())
    sender.close()
    receiver.close()
    for link in links:
        first = {thread: what for what, thread in reversed(link.device.notes)}
        assert first == {f"fake {loop}": "use" for loop in ("_receive_all", "_send_all")}


# --- exchanges


class DeviceExchange(GroupExchange):
    """A member with a card of its own, over a fake."""

    def __init__(self, nccl: fake_nccl.Nccl):
        self.nccl = nccl
        super().__init__(HashStore(), 3, 0, 1, torch.device("cpu"), PATIENT_S)

    def _connect(self, store, timeout):
        self._nccl, self.size = True, 2
        return self.nccl


@pytest.fixture
def exchange() -> DeviceExchange:
    return DeviceExchange(fake_nccl.Nccl(fake_nccl.Wire(), 0, Late(torch.device("cpu"))))


def test_an_exchange_that_came_out_well_is_shut_down(exchange):
    exchange.check()
    exchange.close()
    assert exchange.nccl.calls == ["shutdown"]


def test_an_aborted_exchange_says_so(exchange):
    exchange.abort()
    with pytest.raises(ChannelError, match=r"^worker 3: among its 2 processes: an exchange was cut off"):
        exchange.check()
    exchange.close()
    assert exchange.nccl.calls == ["abort"]


def test_an_exchange_whose_group_reports_an_error_says_so(exchange):
    exchange.nccl.error.name = "REMOTE_ERROR"
    with pytest.raises(ChannelError, match="an exchange was cut off"):
        exchange.check()


def test_whoever_is_woken_by_an_abort_finds_the_exchange_failed():
    first, second = local_group(1, 2, PATIENT_S)
    found = []

    def wait() -> None:
        with pytest.raises(ChannelError, match="has ended or stands still"):
            first.all_to_all(torch.zeros(2, 1))
        with pytest.raises(ChannelError, match="cut off") as raised:
            first.check()
        found.append(raised.value.peer)

    thread = threading.Thread(target=wait)
    thread.start()
    second.check()
    second.abort()
    thread.join(PATIENT_S)
    assert found == [1]

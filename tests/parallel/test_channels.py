"""Channels between threads and between real processes: order, bits, bounds, failures, and the way they end."""

from __future__ import annotations

import os
import queue
import resource
import signal
import sys
import threading
import time

import pytest
import torch
import torch.distributed as dist
from torch.distributed import TCPStore

from parallel import ends, p2p
from parallel.channels import CREDITS, Arrival, ChannelError, Closed, Failure, Inbox
from parallel.local import LocalChannel
from parallel.message import Message
from parallel.offset import Offset
from tests.patience import PATIENT_S
from tests.processes import PROCESSES, store_at, workers


def channel_threads() -> list[str]:
    return [t.name for t in threading.enumerate() if t.name.endswith(("_send_all", "_receive_all"))]


def message_of(index: int, way: str) -> Message:
    """Message `index` of a channel: its kind, size and dtypes vary, and it is the same wherever it is made."""
    generator = torch.Generator().manual_seed(index * 1000 + sum(map(ord, way)))
    count = int(torch.randint(1, 40_000, (1,), generator=generator))
    noise = torch.randn(count, generator=generator)
    tensors = [
        {},
        {"latents": noise.view(1, -1)},
        {"latents": noise.bfloat16(), "ids": torch.arange(index % 7), "empty": torch.empty(0, 3)},
        {"context": noise.half()[::2]},
    ][index % 4]
    kind = ("step", "commit", "done", "sound")[index % 4]
    return Message(kind, stream=1, chunk=index, step=index % 5, times={0: index / 4}, tensors=tensors)


def same(a: Message, b: Message) -> bool:
    fields = [(m.kind, m.stream, m.chunk, m.step, m.times, list(m.tensors)) for m in (a, b)]
    return fields[0] == fields[1] and all(
        x.dtype == y.dtype and x.equal(y) for x, y in zip(a.tensors.values(), b.tensors.values(), strict=True)
    )


# --- threads of one process


def test_a_message_that_there_is_no_room_for_gives_its_credit_back(monkeypatch):
    """At both ends: a copy that cannot be made costs the message's tensors, and the channel nothing."""

    def full(*_, **__):
        raise torch.OutOfMemoryError("no room")

    inbox, given = queue.Queue(), []
    channel = LocalChannel(3, 4, inbox, credits=1, timeout_s=0.1)
    with monkeypatch.context() as m, pytest.raises(torch.OutOfMemoryError):
        m.setattr("parallel.local.pack_body", full)
        channel.sender.send(message_of(1, "full"))
    channel.sender.send(message_of(1, "full"))
    message = inbox.get(timeout=PATIENT_S).take()
    borrowed = Arrival(3, message, lambda: given.append(True), borrowed=True)
    with monkeypatch.context() as m, pytest.raises(torch.OutOfMemoryError):
        m.setattr(torch.Tensor, "clone", full)
        borrowed.take()
    assert given == [True] and message.tensors == {}


def test_local_channel_delivers_in_order_and_closes():
    inbox = queue.Queue()
    channel = LocalChannel(3, 4, inbox)
    thread = threading.Thread(target=lambda: [channel.sender.send(message_of(i, "local")) for i in range(40)])
    thread.start()
    for index in range(40):
        arrival = inbox.get(timeout=PATIENT_S)
        assert arrival.peer == 3
        assert same(arrival.message, message_of(index, "local"))
        assert inbox.qsize() < CREDITS
        arrival.release()
    thread.join()
    channel.sender.close()
    channel.sender.close()
    assert inbox.get(timeout=PATIENT_S) == Closed(3)
    assert inbox.empty()


def test_local_credits_bound_the_sender_and_a_second_release_gives_nothing():
    inbox = queue.Queue()
    sender = LocalChannel(0, 1, inbox, credits=2, timeout_s=0.05).sender
    for index in range(2):
        sender.send(Message("step", chunk=index))
    with pytest.raises(ChannelError, match=r"^worker 1: has released none of 2 messages for 0\.05 s$"):
        sender.send(Message("step"))
    first = inbox.get()
    first.release()
    first.release()
    sender.send(Message("step"))
    with pytest.raises(ChannelError):
        sender.send(Message("step"))


def test_what_was_sent_may_be_written_again():
    inbox = queue.Queue()
    latents = torch.ones(4)
    LocalChannel(0, 1, inbox).sender.send(Message("step", tensors={"latents": latents}))
    latents.zero_()
    assert inbox.get().message.tensors["latents"].eq(1).all()


def test_a_closed_local_receiver_wakes_the_sender():
    channel = LocalChannel(0, 1, queue.Queue(), credits=1, timeout_s=PATIENT_S)
    channel.sender.send(Message("step"))
    threading.Timer(0.05, channel.receiver.close).start()
    with pytest.raises(ChannelError, match="worker 1: has closed the channel"):
        channel.sender.send(Message("step"))


def test_what_a_receiver_does_at_once_and_fails_is_no_failure_of_its_peer():
    inbox, error = Inbox(), KeyError("a bug")

    def fail(item: object) -> None:
        raise error

    inbox.at_once = fail
    LocalChannel(0, 1, inbox).sender.send(Message("step", chunk=3))
    assert inbox.get() is error
    assert inbox.get().message.chunk == 3


def test_workers_do_not_send_beats():
    with pytest.raises(ValueError, match="beat"):
        LocalChannel(0, 1, queue.Queue()).sender.send(Message("beat"))


# --- processes


def _exchange(me: int, store, count: int) -> list:
    """Send and receive `count` messages each way at once; nothing but arrivals and the close may come."""
    inbox, peer = queue.Queue(), 1 - me
    links = p2p.connect_all(store, me, {"0 to 1": peer, "1 to 0": peer}, "cpu", PATIENT_S)
    ways = ["0 to 1", "1 to 0"]
    sender = links[ways[me]].sender(inbox)
    receiver = links[ways[peer]].receiver(inbox)
    thread = threading.Thread(target=lambda: [sender.send(message_of(i, ways[me])) for i in range(count)])
    thread.start()
    for index in range(count):
        arrival = inbox.get(timeout=PATIENT_S)
        assert isinstance(arrival, Arrival), arrival
        assert arrival.peer == peer
        assert same(arrival.message, message_of(index, ways[peer])), index
        arrival.release()
    thread.join()
    sender.close()
    last = inbox.get(timeout=PATIENT_S)
    receiver.close()
    return [last, inbox.qsize(), channel_threads()]


def test_two_channels_carry_mixed_messages_in_order_and_bit_exact_and_close():
    with workers(_exchange, range(2), 200) as (_, _, join):
        assert join() == [[Closed(1), 0, []], [Closed(0), 0, []]]


def _slow(me: int, store, sent, taken, numel: int) -> tuple[int, int]:
    """(most messages between the two, growth of peak memory in bytes): worker 1 takes its time."""
    inbox, most = queue.Queue(), 0
    link = p2p.connect(store, me, 1 - me, "slow", "cpu", PATIENT_S)
    if me == 0:
        sender, x = link.sender(inbox), torch.zeros(numel)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        for index in range(30):
            sender.send(Message("step", chunk=index, tensors={"x": x}))
            sent.value = index + 1
            most = max(most, sent.value - taken.value)
        sender.close()
    else:
        link.receiver(inbox)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        while isinstance(arrival := inbox.get(timeout=PATIENT_S), Arrival):
            time.sleep(0.02)
            most = max(most, 1 + sum(isinstance(event, Arrival) for event in list(inbox.queue)))
            taken.value += 1
            arrival.release()
    return most, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024


def test_a_slow_receiver_bounds_the_sender_and_the_memory():
    numel = 4_000_000
    counts = [PROCESSES.Value("i", 0) for _ in range(2)]
    with workers(_slow, range(2), *counts, numel) as (_, _, join):
        for most, growth in join():
            # `taken` is counted just before the release, so the sender never sees more than its credits.
            assert most <= CREDITS
            assert growth < (CREDITS + 2) * numel * 4, "the 480 MB that were sent must not be in memory at once"


def _silent(me: int, store, timeout_s: float) -> None:
    """A peer with both ends that does nothing until it is told to stop or killed."""
    inbox = queue.Queue()
    links = p2p.connect_all(store, me, {"0 to 1": 0, "1 to 0": 0}, "cpu", timeout_s)
    sender, receiver = links["1 to 0"].sender(), links["0 to 1"].receiver(inbox)
    while isinstance(event := inbox.get(), Arrival):
        event.release()
    assert event == Closed(0), event
    sender.close()
    receiver.close()


def _both_ends(port: int, timeout_s: float):
    inbox = queue.Queue()
    links = p2p.connect_all(store_at(port), 0, {"0 to 1": 1, "1 to 0": 1}, "cpu", timeout_s)
    return inbox, links["0 to 1"].sender(inbox), links["1 to 0"].receiver(inbox)


@pytest.mark.parametrize(
    ("sign", "timeout_s", "words"),
    # A death is seen at once, and not when the time is up: it is called a death.
    [(signal.SIGKILL, 2 * PATIENT_S, "the process died"), (signal.SIGSTOP, 4.0, "no sign of life for 4 s")],
)
def test_a_dead_or_stopped_peer_is_reported_once_by_name(sign, timeout_s, words):
    with workers(_silent, range(1, 2), timeout_s) as (port, (process,), _):
        inbox, sender, receiver = _both_ends(port, timeout_s)
        sender.send(Message("step", chunk=7))
        assert inbox.empty()
        os.kill(process.pid, sign)
        failures = [inbox.get(timeout=PATIENT_S), inbox.get(timeout=PATIENT_S)]
        for failure in failures:
            assert isinstance(failure, Failure)
            assert failure.peer == 1
            assert str(failure.error).startswith("worker 1: channel ")
            assert words in str(failure.error)
        assert {str(failure.error).split(": ")[1] for failure in failures} == {"channel 0 to 1", "channel 1 to 0"}
        with pytest.raises(ChannelError, match="worker 1: "):
            sender.send(Message("step"))
        sender.close()
        receiver.close()
        assert inbox.empty()
        assert channel_threads() == []


def test_idle_for_longer_than_the_timeout_is_no_failure_and_the_close_is_clean(capfd, monkeypatch):
    timeout_s, hear, beats = 4.0, Offset.hear, queue.SimpleQueue()
    with workers(_silent, range(1, 2), timeout_s) as (port, _, join):
        inbox, sender, receiver = _both_ends(port, timeout_s)
        monkeypatch.setattr(Offset, "hear", lambda *said: (hear(*said), beats.put(said[-1])))
        enough = beats.get(timeout=PATIENT_S) + 1.25 * timeout_s
        while beats.get(timeout=PATIENT_S) < enough:
            assert inbox.empty()
        sender.close()
        assert inbox.get(timeout=PATIENT_S) == Closed(1)
        receiver.close()
        assert inbox.empty()
        assert channel_threads() == []
        with pytest.raises(ChannelError, match="this end of the channel is closed"):
            sender.send(Message("step"))
        assert join() == [None]
    assert capfd.readouterr().err == ""


HOURS = 3600.0
AHEAD = (5 * HOURS, -70 * HOURS)
"""Seconds by which the clocks of two workers are ahead."""
SLACK_S = 1e-3
"""By which a bound grows in a minute."""


def _clocks(me: int, store, ahead: tuple[float, float]) -> tuple[list[Message], float, float]:
    """(what came, offset of the peer's clock, its bound): each end sends moments by a clock of its own."""
    inbox, peer = queue.Queue(), 1 - me
    links = p2p.connect_all(
        store, me, {"0 to 1": peer, "1 to 0": peer}, "cpu", PATIENT_S, clock=lambda: time.perf_counter() + ahead[me]
    )
    there, back = links[f"{me} to {peer}"], links[f"{peer} to {me}"]
    bound = max(there.offset.bound, back.offset.bound)  # of what follows, too: a worse measurement is not used
    sender, receiver = there.sender(inbox), back.receiver(inbox)
    sender.send(Message("step", sent=ahead[me] + 1.0, moments={"entered": ahead[me] + 2.0, "due": ahead[me] + 9e9}))
    sender.send(Message("step"))
    came = [inbox.get(timeout=PATIENT_S) for _ in range(2)]
    assert [arrival.at <= back.clock() for arrival in came] == [True, True]
    store.set(f"came{me}", "1")
    store.wait([f"came{peer}"])
    assert sender.offset == pytest.approx(receiver.offset, abs=2 * bound + SLACK_S)
    sender.close()
    receiver.close()
    return [arrival.take() for arrival in came], receiver.offset, bound + SLACK_S


def test_moments_arrive_by_the_receivers_clock_when_clocks_are_hours_apart():
    with workers(_clocks, range(2), AHEAD) as (_, _, join):
        for me, ((first, second), offset, bound) in enumerate(join()):
            assert offset == pytest.approx(AHEAD[me] - AHEAD[1 - me], abs=bound)
            assert bound < 60.0, "of hours"
            moments = {"entered": first.sent + 1.0, "due": first.sent + 9e9 - 1}
            assert first.moments == pytest.approx(moments, abs=1e-6)
            assert first.sent == pytest.approx(AHEAD[me] + 1.0, abs=bound)
            assert (second.sent, second.moments) == (0.0, {})


def test_moments_of_one_clock_arrive_unchanged():
    with workers(_clocks, range(2), (7.0, 7.0)) as (_, _, join):
        for (first, _), offset, _ in join():
            assert offset == 0.0
            assert (first.sent, first.moments) == (8.0, {"entered": 9.0, "due": 7.0 + 9e9})


def _sends_for_ever(me: int, store) -> str:
    inbox = queue.Queue()
    sender = p2p.connect(store, me, 0, "endless", "cpu", PATIENT_S).sender(inbox)
    with pytest.raises(ChannelError) as raised:
        while True:
            sender.send(Message("step", tensors={"x": torch.zeros(1000)}))
    assert inbox.get(timeout=PATIENT_S) == Closed(0)
    sender.close()
    assert channel_threads() == []
    return str(raised.value)


def test_a_receiver_may_close_first():
    with workers(_sends_for_ever, range(1, 2)) as (port, _, join):
        inbox = queue.Queue()
        receiver = p2p.connect(store_at(port), 0, 1, "endless", "cpu", PATIENT_S).receiver(inbox)
        inbox.get(timeout=PATIENT_S)
        receiver.close()
        assert join() == ["worker 0: has closed the channel"]


def _leaves(me: int, store) -> None:
    receiver = p2p.connect(store, me, 0, "left", "cpu", PATIENT_S).receiver(queue.Queue())
    store.wait(["connected"])  # leave a channel that both have, not one that is being made
    sys.stdout.flush()
    assert receiver.peer == 0


def test_a_process_that_forgets_to_close_ends_at_once_and_is_a_failure():
    with workers(_leaves, range(1, 2)) as (port, _, join):
        inbox = queue.Queue()
        store = store_at(port)
        sender = p2p.connect(store, 0, 1, "left", "cpu", PATIENT_S).sender(inbox)
        store.set("connected", "1")
        failure = inbox.get(timeout=PATIENT_S)
        assert "worker 1: channel left: the connection is closed" in str(failure.error)
        assert join() == [None]
        sender.close()


RING = 6


def _ring(me: int, store) -> set:
    """Worker `me` of a ring with cross channels both ways: connect all, say hello on each, and hear all."""
    pairs = [(i, (i + 1) % RING) for i in range(RING)]
    pairs += [(i, (i + 3) % RING) for i in range(RING)] + [(0, 2), (2, 0)]
    mine = {f"{a} to {b}": b if a == me else a for a, b in pairs if me in (a, b)}
    # Backwards on purpose: connect_all must put it right.
    links = p2p.connect_all(store, me, dict(sorted(mine.items(), reverse=True)), "cpu", PATIENT_S)
    inbox = queue.Queue()
    ends = []
    for name, link in links.items():
        ends.append(link.sender() if name.startswith(f"{me} ") else link.receiver(inbox))
    for end in ends:
        if hasattr(end, "send"):
            end.send(Message("step", stream=me))
    senders = {a for a, b in pairs if b == me}
    heard = set()
    while heard != senders:
        arrival = inbox.get(timeout=PATIENT_S)
        if isinstance(arrival, Arrival):
            assert arrival.message.stream == arrival.peer
            heard.add(arrival.peer)
            arrival.release()
        else:
            assert isinstance(arrival, Closed), arrival
    for end in ends:
        end.close()
    return heard


def test_a_ring_with_cross_channels_connects_without_deadlock():
    with workers(_ring, range(RING)) as (_, _, join):
        assert join()[2] == {1, 5, 0}


def test_a_peer_that_does_not_come_is_named():
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    with pytest.raises(ChannelError, match=r"^worker 9: channel lonely not connected in 0\.3 s \("):
        p2p.connect(store, 2, 9, "lonely", "cpu", 0.3)
    with pytest.raises(ValueError, match="talks to itself"):
        p2p.connect(store, 2, 2, "self", "cpu", 0.3)


def test_packing_megabytes_does_not_hold_the_sender_and_keeps_the_order(monkeypatch):
    store, links = dist.HashStore(), {}

    def connect(side: int) -> None:
        links[side] = p2p.link(store, side, 1 - side, "large", torch.device("cpu"), PATIENT_S, expected=2 << 20)

    threads = [threading.Thread(target=connect, args=(side,)) for side in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    may, pack = threading.Event(), ends.pack_body

    def packed(*args):
        assert may.wait(PATIENT_S)
        return pack(*args)

    monkeypatch.setattr(ends, "pack_body", packed)
    inbox = queue.SimpleQueue()
    sender, receiver = links[0].sender(credits=8), links[1].receiver(inbox)
    for index in range(8):
        sender.send(message_of(index, "large"))  # returns, though nothing is packed
    may.set()
    assert all(same(inbox.get(timeout=PATIENT_S).take(), message_of(index, "large")) for index in range(8))
    sender.close()
    receiver.close()

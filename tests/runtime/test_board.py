"""The board: orders and events are read once, in order, and leave nothing behind, on every kind of store."""

import queue
import threading

import pytest
import torch.distributed as dist

from conf.errors import UserError
from parallel.channels import Inbox
from runtime.board import DRIVER, Board, Box, BoxReader, OrderReader
from runtime.orders import Cancel, Close, Prompt, Status, Stop
from runtime.reasons import Reason
from tests.patience import PATIENT_S

STORES = {
    "threads": dist.HashStore,
    "processes": lambda: dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False),
    "torchrun": lambda: dist.PrefixStore(
        "attempt_0", dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    ),
}


@pytest.fixture(params=STORES)
def store(request):
    return STORES[request.param]()


def none_expected():
    raise AssertionError("the store is there")


def test_who_comes_in_the_place_of_one_that_loaded_knows_its_orders(store):
    board, inbox = Board(store, DRIVER, 1), Inbox()
    given = [board.give(Stop(0), range(1))]
    assert OrderReader(Board(store, 0, 1), Inbox()).orders() == given, "it dies before it begins"
    given.append(board.give(Stop(1), range(1)))
    reader = OrderReader(Board(store, 0, 1), inbox)
    assert reader.orders() == given
    reader.start()
    assert [inbox.get(timeout=PATIENT_S) for _ in given] == given
    reader.close()
    assert OrderReader(Board(store, 0, 1), Inbox()).orders() == [], "nobody else begins with them"


def test_every_worker_reads_all_orders_in_one_order(store):
    """Numbered as they were given, by those that were given before it listened, too; nothing stays in the store."""
    board, inboxes = Board(store, DRIVER, 3), [Inbox() for _ in range(3)]
    readers = [OrderReader(Board(store, worker, 3), inbox) for worker, inbox in enumerate(inboxes)]
    given = [board.give(Stop(stream), range(3)) for stream in range(3)]
    assert readers[0].orders() == given
    before = board.keys()
    for reader in readers:
        reader.start()
    given += [board.give(Cancel(stream), range(3)) for stream in range(3)]
    for inbox in inboxes:
        assert [inbox.get(timeout=PATIENT_S) for _ in given] == given
    assert [order.number for order in given] == list(range(6))
    for reader in readers:
        reader.close()
    assert board.keys() == before - 7  # what two of them had not taken yet, and what the other had noted


def test_a_reader_delivers_what_was_posted_before_it_was_closed(store):
    box, got = Box(store, DRIVER), []
    reader = BoxReader(box, got.append, none_expected)
    reader.start()
    texts = [str(number) for number in range(50)]
    for text in texts:
        box.post(text)
    reader.close()
    assert got == texts and len(box) == 0


def test_what_at_once_raises_reaches_the_worker_and_later_orders_are_heard(store):
    board, inbox = Board(store, DRIVER, 1), Inbox()

    def at_once(item):
        if isinstance(item, Prompt):
            raise KeyError(item.stream)

    inbox.at_once = at_once
    reader = OrderReader(Board(store, 0, 1), inbox)
    reader.start()
    prompt = board.give(Prompt(5, "hi", 0.0), [0])
    after = board.give(Close(), [0])
    error = inbox.get(timeout=PATIENT_S)
    assert isinstance(error, KeyError) and error.args == (5,)
    assert inbox.get(timeout=PATIENT_S).number == prompt.number
    assert inbox.get(timeout=PATIENT_S) == after
    reader.close()


def test_a_text_that_is_no_order_is_skipped(store, caplog):
    board, inbox = Board(store, DRIVER, 1), Inbox()
    reader = OrderReader(Board(store, 0, 1), inbox)
    reader.start()
    Box(store, 0).post('{"order": "format", "disk": "c"}')
    after = board.give(Status(0), [0])
    assert inbox.get(timeout=PATIENT_S) == after
    reader.close()
    (record,) = caplog.records
    assert record.getMessage().startswith('an order was skipped: order="format": there is no such order')


def test_workers_whose_driver_is_gone_finish_what_they_have():
    """The store was the driver's: with it, whoever could wait for the streams is gone."""
    gate = threading.Event()

    class Gone(dist.HashStore):
        def clone(self):
            return self

        def set_timeout(self, timeout):
            pass

        def queue_pop(self, key, block=True):
            gate.wait()
            raise dist.DistNetworkError("connection was closed")

    inbox = Inbox()
    reader = OrderReader(Board(Gone(), 0, 1), inbox)
    reader.start()
    gate.set()
    assert [inbox.get(timeout=PATIENT_S) for _ in range(2)] == [Stop(), Close()]
    reader.close()


def test_events_of_all_workers_reach_the_driver_once(store):
    board, got = Board(store, DRIVER, 4), queue.SimpleQueue()
    before = board.keys()
    reader = board.events(got.put, none_expected)
    reader.start()

    def tell(worker):
        for number in range(25):
            Board(store, worker, 4).event({"event": "status", "worker": worker, "number": number})

    threads = [threading.Thread(target=tell, args=(worker,)) for worker in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    reader.close()
    found = [got.get(timeout=PATIENT_S) for _ in range(100)]
    for worker in range(4):
        assert [e["number"] for e in found if e["worker"] == worker] == list(range(25))
    assert board.keys() - before <= 1  # one for all that was ever posted


def test_the_first_reason_stays_until_it_is_forgotten(store):
    board = Board(store, 1, 2)
    assert board.refused(7) is None
    first = Reason.of(UserError("a", "b", "c"), "worker 1, opening")
    board.refuse(7, first)
    board.refuse(7, Reason.of(ValueError("later")))
    assert board.refused(7) == first
    board.forget("refused/7")
    board.forget("refused/7")
    assert board.refused(7) is None

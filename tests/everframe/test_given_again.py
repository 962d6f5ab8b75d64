"""What a program gives to a live source, when the stage that took it is gone and another has come."""

import threading
from types import SimpleNamespace

from everframe.pipeline import Stream
from stages.link import Door, connect
from tests.patience import PATIENT_S


def test_what_is_given_goes_to_the_stage_that_is_there_and_nobody_waits_for_one_that_is_not():
    stream, door = object.__new__(Stream), Door("127.0.0.1")
    stream.id, stream._doors, stream._number = "a", {"actions": door}, 0
    stream._pipeline = SimpleNamespace(until=lambda test, timeout_s: False)  # it lives
    with connect("source.actions", door.address) as first:
        stream._give("actions", b"one\n")
        assert first.recv(16) == b"one\n"
    coming = connect("source.actions", door.address)
    with coming:
        stream._give("actions", b"two\n")
        assert coming.recv(16) == b"two\n"
    giving = threading.Thread(target=lambda: [stream._give("actions", b"three\n") for _ in range(4)])
    giving.start()
    giving.join(PATIENT_S)
    assert not giving.is_alive()
    door.close()

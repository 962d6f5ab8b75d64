"""Who holds the device next."""

import threading

from runtime.turn import CELL, STAGE, Turn
from tests.patience import PATIENT_S


def test_a_stage_goes_before_cells_that_asked_earlier():
    turn, order, waiting = Turn(), [], []

    def take(urgency, name):
        with turn(urgency):
            order.append(name)

    with turn(CELL):
        for urgency, name in ((CELL, "first cell"), (CELL, "second cell"), (STAGE, "stage")):
            thread = threading.Thread(target=take, args=(urgency, name))
            thread.start()
            waiting.append(thread)
            while len(turn._waiting) < len(waiting):
                pass  # until it has asked
    for thread in waiting:
        thread.join(PATIENT_S)
    assert order == ["stage", "first cell", "second cell"]


def test_what_is_raised_gives_the_device_back():
    turn = Turn()
    for _ in range(2):
        try:
            with turn(CELL):
                raise ValueError
        except ValueError:
            pass
    with turn(STAGE):
        pass

"""A call that waits for live bytes, and what it gives once it is released: no test needs to sleep."""

import threading

from tests.patience import PATIENT_S

"""Only a test that fails waits as long."""


def settle(live, size):
    """Wait until `size` bytes have arrived."""
    with live._changed:
        assert live._changed.wait_for(lambda: len(live._buffer) >= size, PATIENT_S), "they do not arrive"


class Blocked:
    """Starts `call` in a thread, once `size` bytes have arrived, and waits until it is about to wait for more.

    Calling it releases the call by `act` and gives what the call returned.
    """

    def __init__(self, live, call, size=0):
        settle(live, size)
        self._made, waits, changed = [], threading.Event(), live._changed
        wait = changed.wait

        def noted(timeout=None):
            if threading.current_thread() is self._thread:
                waits.set()
            return wait(timeout)

        changed.wait = noted
        self._thread = threading.Thread(target=lambda: self._made.append(call()), daemon=True)
        self._thread.start()
        assert waits.wait(PATIENT_S), "it does not wait"

    def __call__(self, act):
        act()
        self._thread.join(PATIENT_S)
        assert self._made, "it is not released"
        return self._made[0]

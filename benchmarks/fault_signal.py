"""An exception in a worker's loop when a signal comes: as of a device that does nothing more.

The product knows nothing of it: processes of a case arm themselves, by the hook of `benchmarks.faults`.
"""

import signal
import threading

import torch

RAISE = signal.SIGRTMIN + 3


def arm() -> None:
    """Raise in this process's loop when the signal comes, whatever it is at."""

    def failed(*_: object) -> None:
        raise torch.AcceleratorError("a device fault, injected")

    if threading.current_thread() is threading.main_thread():
        signal.signal(RAISE, failed)

"""The guard round everything that is done for one stream: what it raises ends that stream, and no other.

What cannot belong to one stream (a lost peer, a broken channel) passes through, and ends the run.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch

import devices
from parallel.channels import ChannelError
from parallel.message import Message
from runtime.board import Abandoned, Board, PeerLost
from runtime.reasons import Reason

log = logging.getLogger(__name__)

CPU = torch.device("cpu")

OF_THE_RUN = (ChannelError, PeerLost, Abandoned, torch.AcceleratorError)
"""A peer's end, or an error after which a device does nothing more: never one stream's doing."""


class Guard:
    """Ends streams whose work raises. May be used from any thread.

    Args:
        board: told why a stream cannot go on; whoever drives then has every worker drop it.
        name: of this worker, as reasons say it.
        device: of this worker.

    Attributes:
        hollow: streams that were cancelled or have failed, and have not ended here yet: nothing is computed for them.
    """

    def __init__(self, board: Board, name: str, device: torch.device = CPU):
        self.board, self.name, self.device = board, name, device
        self.hollow: set[int] = set()
        self._failed: set[int] = set()
        self._lock = threading.Lock()

    @contextmanager
    def __call__(self, stream: int, what: str) -> Iterator[None]:
        """Do something for a stream.

        Args:
            what: in words, e.g. `step2 of chunk 7`.
        """
        try:
            yield
        except OF_THE_RUN:
            raise
        except Exception as error:
            self.fail(stream, what, error)

    def fail(self, stream: int, what: str, error: Exception) -> None:
        """A stream cannot go on."""
        with self._lock:
            known = stream in self._failed
            self._failed.add(stream)
            self.hollow.add(stream)
        if known:
            log.debug("stream %d failed again: %s", stream, error)
            return
        if isinstance(error, torch.OutOfMemoryError):
            devices.of(self.device).trim()  # what the pass had taken is free again, for the others
        self.board.refuse(stream, Reason.of(error, f"{self.name}, {what}"))

    def mark(self, message: Message) -> Message:
        """Empty a message of a stream that is hollow; returns it."""
        if message.stream in self.hollow:
            message.hollow, message.tensors = True, {}
        return message

    def forget(self, stream: int) -> None:
        """A stream has ended here."""
        with self._lock:
            self._failed.discard(stream)
            self.hollow.discard(stream)

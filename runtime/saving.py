"""Writing states beside the work: a thread of each worker puts snapshots on disk, and one makes each state whole.

A mark cuts every bank, decoder and output of a stream at its own moment, and each cut is a *part*: a name and tensors
that nothing changes any more. The mark goes on at once; the part is written here, and the board is told how it went.
Where the mark ends, all parts are awaited, and the state is renamed into place or removed.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import devices
from devices import Mark
from runtime.board import Board
from runtime.state import Keep

log = logging.getLogger(__name__)

LOOK_S = 0.05
"""How often parts that others write are looked for."""

Write = Callable[[], dict[str, str]]
"""Writes files of a state; returns their names and sha256. Raises OSError."""


@dataclass
class Whole:
    """A state that waits for its parts.

    Attributes:
        stream, chunk, keep: which state.
        parts: names of all parts that others write.
        files: of the parts that are known already, name and sha256.
        content: for `state.json`.
        ready: whether the video so far is on disk, so that who goes on from the state finds all frames before it.
        then: called in the end, with whether the state is whole.
    """

    stream: int
    chunk: int
    keep: Keep
    parts: set[str]
    files: dict[str, str]
    content: dict[str, Any]
    then: Callable[[bool], None]
    ready: threading.Event = field(default_factory=threading.Event)
    failure: str | None = None


class Saver(threading.Thread):
    """Writes the parts of one worker, in the order in which they were cut, and completes the states that end here.

    Args:
        board: where workers tell each other of parts.
        device: of the tensors.
    """

    def __init__(self, board: Board, device: devices.Device):
        super().__init__(name="saver", daemon=True)
        self.board, self.device, self._queue = board, device, device.queue()
        self._jobs: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._waiting: list[Whole] = []
        self._lock, self._wait, self._over = threading.Lock(), True, False

    def part(self, stream: int, chunk: int, name: str, write: Write | None) -> None:
        """Write a part of a state; None: there is nothing to write, and the state does not become whole."""
        self._jobs.put(partial(self._write, key(stream, chunk, name), name, write, self.device.mark()))

    def complete(self, whole: Whole) -> None:
        """Make a state whole once its parts are there and `whole.ready` is set. States of a stream come in order."""
        with self._lock:
            if not self._over:
                self._jobs.put(partial(self._waiting.append, whole))
                return
        self._drop(whole)

    def close(self, wait: bool = True) -> None:
        """Write what was cut, and stop.

        Args:
            wait: for parts that others still write, so that states become whole; else those are given up.
        """
        self._wait = wait
        self._jobs.put(None)
        if self.is_alive():
            self.join()

    def run(self) -> None:
        self._queue.use()
        try:
            self._work()
        except RuntimeError:
            log.warning("no state is saved any more: the board cannot be reached")
        finally:
            self._give_up()  # or streams would wait for their states for ever
            self._queue.close()

    def _work(self) -> None:
        while True:
            try:
                job = self._jobs.get(timeout=LOOK_S if self._waiting else None)
            except queue.Empty:
                self._look()
                continue
            if job is None:
                break
            job()
            self._look()
        for whole in self._waiting:
            whole.ready.set()
        while self._look() and self._wait:
            time.sleep(LOOK_S)

    def _give_up(self) -> None:
        """Drop what is left, and from now on whatever is asked for."""
        with self._lock:
            self._over = True
        while not self._jobs.empty():
            job = self._jobs.get()
            if job is not None and job.func == self._waiting.append:
                job()
        for whole in self._waiting:
            self._drop(whole)
        self._waiting.clear()

    def _drop(self, whole: Whole) -> None:
        whole.keep.drop(whole.chunk)
        whole.then(False)

    def _write(self, where: str, name: str, write: Write | None, cut: Mark | None) -> None:
        try:
            with self._queue.after(cut):
                told = {"files": write()} if write else {"failure": NOTHING}
        except Exception as error:  # whatever it is, it costs this state and nothing else
            told = {"failure": f"{name}: {error}"}
        self.board.tell(where, told)

    def _look(self) -> bool:
        """Complete what can be completed; returns whether something is left."""
        blocked: set[int] = set()
        for whole in list(self._waiting):
            if whole.stream in blocked or not self._settled(whole):
                blocked.add(whole.stream)
                continue
            self._finish(whole)
            self._waiting.remove(whole)
        return bool(self._waiting)

    def _settled(self, whole: Whole) -> bool:
        """Whether every part has been told of; what was told is taken off the board."""
        for name in sorted(whole.parts):
            where = key(whole.stream, whole.chunk, name)
            if (told := self.board.told(where)) is not None:
                self.board.forget(where)
                whole.parts.discard(name)
                whole.files |= told.get("files", {})
                whole.failure = whole.failure or told.get("failure")
        return not whole.parts and whole.ready.is_set()

    def _finish(self, whole: Whole) -> None:
        try:
            if whole.failure is None:
                whole.keep.complete(whole.chunk, whole.files, whole.content)
        except Exception as error:  # as in `_write`
            whole.failure = str(error)
        if whole.failure is not None:
            if whole.failure != NOTHING:
                whole.keep.complain(whole.failure)
            whole.keep.drop(whole.chunk)
        whole.then(whole.failure is None)


NOTHING = "the stream was given up"
"""Why a state does not become whole that nobody need hear of."""


def key(stream: int, chunk: int, part: str) -> str:
    """Where a part is told of."""
    return f"saved/{stream}/{chunk}/{part}"


def parts(blocks: Iterable[tuple[int, int, int]], decodes: bool) -> set[str]:
    """Names of a state's parts beside those of the head and the output.

    Args:
        blocks: (worker, block, level) of every bank.
        decodes: whether a decoder has a part.
    """
    return {bank_part(*bank) for bank in blocks} | ({DECODER_PART} if decodes else set())


DECODER_PART = "decoder"


def bank_part(worker: int, block: int, level: int) -> str:
    """The name of a bank's part."""
    return f"bank.{worker}.{block}.{level}"

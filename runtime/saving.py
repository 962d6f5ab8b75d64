"""Saving beside the work: a thread of each process writes its parts of cuts in memory, and one makes each cut whole.

A mark cuts every bank, decoder and output of a stream at its own moment, and each gives a *part*: a name and tensors
that nothing changes any more, or that nothing changes before they are copied (`Saver.copy`). The mark goes on at once;
the part is written here, into its log (`runtime.cut_log`), and the board is told how it went. Where the mark ends all
parts are awaited. Then the cut is whole, which the board is told of; and where a state is due, it is written out to
disk (`runtime.banks`), and renamed into place or removed.
"""

from __future__ import annotations

import json
import logging
import queue
import shutil
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

import devices
from devices import Mark as Point
from runtime import cuts
from runtime.banks import write_out
from runtime.board import Board
from runtime.cut_log import Brought, Log, Read
from runtime.snapshot import CONDITIONING, DECODER, OUTPUT
from runtime.state import Keep
from stages.inputs import Given

log = logging.getLogger(__name__)

LOOK_S = 0.05
"""How often parts that others write are looked for."""

Told = dict[str, str]
Write = Callable[[], Told]
"""Writes a part; returns names and sha256 of files of a state, where it has written such. Raises OSError."""


@dataclass(frozen=True)
class Mark:
    """What a mark says to all whom it passes.

    Attributes:
        whole: the chunk before which the newest whole cut was made: older ones are let go of; -1: there is none.
        state: the folder in which a state is being made (`Keep.part`); empty: none is due.
    """

    whole: int = -1
    state: str = ""

    @property
    def disk(self) -> bool:
        """Whether a state is due."""
        return bool(self.state)

    @staticmethod
    def of(note: str) -> Mark:
        """From a message's note."""
        return Mark(**json.loads(note))

    @property
    def note(self) -> str:
        """For a message."""
        return json.dumps(asdict(self))


@dataclass
class Whole:
    """A cut that waits for its parts.

    Attributes:
        stream, chunk, keep: which state.
        parts: names of all parts that others write.
        files: of the parts that are known already, name and sha256.
        content: what holds for all of it, as for `state.json`.
        ready: whether the video so far is on disk, so that who goes on from the state finds all frames before it.
        then: called in the end, with whether all is done: the cut is whole, and the state on disk where one is due.
        cut: the stream's folder of cuts; None: its parts are files of a state already.
        disk: whether a state is due.
        made: whether the cut is whole.
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
    cut: Path | None = None
    disk: bool = True
    made: bool = False

    def __post_init__(self):
        self.names = frozenset(self.parts)


class Saver(threading.Thread):
    """Writes the parts of one worker, in the order in which they were cut, and completes the states that end here.

    Args:
        board: where workers tell each other of parts.
        device: of the tensors.
        root: where the run's folder of cuts is made, unless the board says where it is.
        generation: of the run: what was told of parts in an earlier one means nothing now.
    """

    def __init__(self, board: Board, device: devices.Device, root: str = "/dev/shm", generation: int = 0):
        super().__init__(name="saver", daemon=True)
        self.root, self._held, self._makes, self._generation = root, None, None, generation
        self._logs: dict[tuple[int, str], Log] = {}
        self._logs_lock = threading.Lock()
        self.board, self.device, self._queue = board, device, device.queue()
        self._jobs: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._waiting: list[Whole] = []
        self._lock, self._wait, self._over, self._turns = threading.Lock(), True, False, False

    # -- parts ------------------------------------------------------------------------------------------------------

    def part(self, stream: int, chunk: int, name: str, write: Write | None, after: Point | None = None) -> None:
        """Write a part of a cut, behind `after` and what this thread's queue was given so far.

        Args:
            write: None: there is nothing to write, and the cut does not become whole.
        """
        marks = (self.device.mark(), after)
        self._jobs.put(partial(self._write, self._key(stream, chunk, name), name, write, marks))

    def take(self, stream: int, chunk: int, name: str, tensors: Given, content: Any, mark: Mark) -> None:
        """Write a part that is made of tensors which nothing changes any more, all of them anew; `content`: in JSON."""
        held = dict(tensors)

        def write() -> dict[str, str]:
            host = {key: tensor.detach().to("cpu") for key, tensor in held.items()}
            return self.write(stream, chunk, name, host, None, {"content": content, "order": list(host)}, mark)

        self.part(stream, chunk, name, write)

    def write(
        self,
        stream: int,
        chunk: int,
        name: str,
        pieces: Given,
        names: Any,
        content: Any,
        mark: Mark,
        brought: Iterable[Brought] = (),
    ) -> Told:
        """Add a cut to a part's log, on this thread (`Log.write`); and where states are made on another host, to the
        folder of the one that is due, which all hosts share. Raises OSError."""
        self.log(stream, name).write(chunk, pieces, names, content, mark.whole, brought)
        if mark.disk and self._elsewhere():
            Read(self.folder(stream), chunk, name).copy(Path(mark.state))
        return {}

    def puts_out(self) -> None:
        """States are made here. Where there is no place for cuts, each of them says so."""
        with suppress(OSError):
            self._hold()
            self.board.tell(HOST, self._held.host)

    def _elsewhere(self) -> bool:
        """Whether states are made on another host."""
        if self._makes is None:
            self.board.wait(HOST, PATIENCE_S)
            self._makes = self.board.told(HOST)
        return self._makes != self._held.host

    def _key(self, stream: int, chunk: int, part: str) -> str:
        """Where a part is told of."""
        return f"saved/{self._generation}/{stream}/{chunk}/{part}"

    def log(self, stream: int, name: str) -> Log:
        """The log of a stream's part, for as long as the stream lasts here."""
        with self._logs_lock:
            if (stream, name) not in self._logs:
                self._logs[stream, name] = Log(partial(self.folder, stream), name)
            return self._logs[stream, name]

    def folder(self, stream: int) -> Path:
        """A stream's folder of cuts. Raises OSError."""
        self._hold()
        folder = cuts.of_stream(self._held.path, stream)
        folder.mkdir(mode=0o700, exist_ok=True)
        return folder

    def _hold(self) -> None:
        with self._logs_lock:
            if self._over:
                raise OSError("nothing is saved here any more")
            if self._held is None:
                self._held = cuts.hold(self.board.first(CUTS, cuts.name(self.root)))

    # -- copies -----------------------------------------------------------------------------------------------------

    def copy(self, log: Log, tensors: Given, *used: Tensor) -> Point | None:
        """Bring a log tensors for its next cut, on a queue of the saver's own, behind what the calling thread's queue
        was given so far. Nobody waits, and nobody may write them before the point that is returned; None: nothing is
        saved any more.

        What is in the host's memory is copied straight into the log. A device copies to pinned memory, which torch
        keeps for the next copies of that size, and from there the saver's thread copies it into the log.

        Args:
            used: those of `tensors` whose memory is given back to the device when nobody here has them.
        """
        brought, held = log.bring(tensors), dict(tensors)
        with self._lock:
            if self._over:
                return None
            if self.device.immediate:
                brought.copied = self._queue.give(partial(log.store, brought, held))
            else:
                brought.copied = self._staged(log, brought, held, used)
        return brought.copied

    def _staged(self, log: Log, brought: Brought, tensors: Given, used: tuple[Tensor, ...]) -> Point:
        staged: dict[str, Tensor] = {}

        def stage() -> None:
            for name, tensor in tensors.items():
                staged[name] = self.device.download(tensor)

        point = self._queue.give(stage, *used)
        self._jobs.put(partial(self._store, log, brought, staged, point))
        return point

    @staticmethod
    def _store(log: Log, brought: Brought, staged: Given, point: Point) -> None:
        try:
            point.wait()
        except Exception as error:
            brought.failure = error
            return
        log.store(brought, staged)

    def forget(self, stream: int, start: str = "") -> None:
        """A stream has ended here, or parts of it have, whose names begin with `start`: their logs are let go of when
        what was cut is written."""
        self._jobs.put(partial(self._forget, stream, start))

    def _forget(self, stream: int, start: str) -> None:
        with self._logs_lock:
            for where in [where for where in self._logs if where[0] == stream and where[1].startswith(start)]:
                self._logs.pop(where).close()

    def remove(self, stream: int) -> None:
        """A stream has ended for all: its cuts go."""
        self._jobs.put(partial(self._remove, stream))

    def _remove(self, stream: int) -> None:
        if self._held is not None:
            self.board.forget(whole_key(stream))
            shutil.rmtree(cuts.of_stream(self._held.path, stream), ignore_errors=True)

    # -- whole cuts -------------------------------------------------------------------------------------------------

    def complete(self, whole: Whole) -> None:
        """Make a cut whole once its parts are there and `whole.ready` is set. Cuts of a stream come in order."""
        with self._lock:
            if not self._over:
                self._jobs.put(partial(self._waiting.append, whole))
                return
        self._drop(whole)

    def close(self, wait: bool = True, turns: bool = False) -> None:
        """Write what was cut, and stop.

        Args:
            wait: for parts that others still write, so that states become whole; else those are given up.
            turns: whether streams go on in another generation: what has not left does not count as seen then.
        """
        self._wait, self._turns = wait, turns
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
            with self._logs_lock:
                for one in self._logs.values():
                    one.close()
                held, self._held = self._held, None
            if held is not None:
                held.close()

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
        for whole in self._waiting if not self._turns else ():
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
        if whole.disk:
            whole.keep.drop(whole.chunk)
        if whole.cut is not None and not whole.made:
            cuts.give_up(whole.cut, whole.chunk)
        whole.then(False)

    def _write(self, where: str, name: str, write: Write | None, marks: tuple[Point | None, Point | None]) -> None:
        try:
            with self._queue.after(marks[0]), self._queue.after(marks[1]):
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
            where = self._key(whole.stream, whole.chunk, name)
            if (told := self.board.told(where)) is not None:
                self.board.forget(where)
                whole.parts.discard(name)
                whole.files |= told.get("files", {})
                whole.failure = whole.failure or told.get("failure")
        return not whole.parts and whole.ready.is_set()

    def _finish(self, whole: Whole) -> None:
        try:
            if whole.failure is None:
                self._make(whole)
        except Exception as error:  # as in `_write`
            whole.failure = str(error)
        if whole.failure is None:
            whole.then(True)
            return
        if whole.failure != NOTHING:
            self._complain(whole)
        self._drop(whole)

    def _make(self, whole: Whole) -> None:
        keep, chunk = whole.keep, whole.chunk
        if whole.cut is not None:
            content = whole.content | {"mark": keep.mark, "seen_from": keep.folder}
            cut = cuts.complete(whole.cut, chunk, whole.names, content, keep.part(chunk))
            whole.made = True
            self.board.tell(whole_key(whole.stream), whole.content | {"chunk": chunk})
            cuts.supersede(cut)
            if whole.disk:
                whole.files |= write_out(cut, keep.part(chunk))
        if whole.disk:
            keep.complete(chunk, whole.files, whole.content)

    @staticmethod
    def _complain(whole: Whole) -> None:
        if whole.disk:
            whole.keep.complain(whole.failure)
        else:
            log.warning("the cut before chunk %d was given up: %s", whole.chunk, whole.failure)


CUTS, HOST = "cuts", "cuts/host"
"""Under which the board says where the run's folder of cuts is on every host, and on which host states are made."""
PATIENCE_S = 60.0
"""Longest wait for whoever makes states to say where it is."""
NOTHING = "the stream was given up"
"""Why a state does not become whole that nobody need hear of."""


def whole_key(stream: int) -> str:
    """Where the newest whole cut of a stream is told of."""
    return f"whole/{stream}"


def parts(blocks: Iterable[tuple[int, int, int]], decodes: bool, degree: int = 1) -> set[str]:
    """Names of a cut's parts.

    Args:
        blocks: (worker, block, level) of every bank.
        decodes: whether a decoder has a part.
        degree: how many processes each worker is.
    """
    banks = {bank_part(*bank, rank) for bank in blocks for rank in range(degree)}
    return banks | {CONDITIONING, OUTPUT} | ({DECODER_PART} if decodes else set())


DECODER_PART, BANK = DECODER, cuts.BANK


def bank_part(worker: int, block: int, level: int, rank: int = 0) -> str:
    """The name of a bank's part; `rank`: of the process, among those of the worker."""
    return f"bank.{worker}.{block}.{level}.{rank}"

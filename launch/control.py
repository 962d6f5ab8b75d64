"""Orders for a running pipeline as JSON lines, from a file, a named pipe or standard input (`control=-`).

    {"open": "a", "seconds": 30, "prompt": "a happy person", "source": {"audio": "a.wav"}, "sink": {"video": "a.mp4"}}
    {"prompt": "a sad person", "stream": "a"}
    {"open": "b", "resume": "DIR"}   go on from a state that was saved (of a stream of the same name)
    {"stop": "a"}      drain: what is under way is finished (and the state saved, if that is asked for); null: all
    {"cancel": "a"}    at once; null: every stream
    {"plan": {"workers": 3}}               another plan for all streams, which go on with it: keys are those of `plan`
    {"plan": "timestep", "workers": 5}     the same with its name in front
    {"wait": "a"}      read on when the stream has ended
    {"status": true}   print plan, generation, streams and workers, as one JSON line

An opened stream is what the configuration says with the given changes; its files get its name, which is free again once
the stream has ended. The end of the lines closes the pipeline: it ends when its streams have. A wrong line is skipped
with a warning, whatever it holds. A gateway gives the same orders over a connection: see `launch.remote`.
"""

from __future__ import annotations

import json
import logging
import os
import select
import stat
import threading
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

from conf.errors import UserError
from conf.schema import Config
from conf.secret import is_address, told
from launch import restarting
from launch.orders import Orders, open_stream, parsed, refuse_rest
from launch.remote import called
from runtime.pipeline import Pipeline, run_all
from runtime.reasons import Reason
from stages.sources.live import PATIENCE_S, standard_input

__all__ = ["Control", "Lines", "begin", "open_stream"]

log = logging.getLogger(__name__)

LONGEST_LINE = 1 << 20
"""Bytes of a line; the rest of a longer one is read and thrown away."""
BLOCK = 1 << 16


def begin(pipeline: Pipeline, config: Config) -> None:
    """Open a run's streams: those of its configuration, or, with `control`, those that are ordered from now on.

    Raises:
        UserError: a stream cannot be opened, the orders cannot be read, or nobody gives them at that address.
    """
    if config.control is None:
        run_all(pipeline, config, restarting.orders(config) if restarting.again(config) else None)
        return
    given = told("control", config.control)
    if is_address(given):
        called(pipeline, config, given)
    elif given != config.control:
        raise UserError(f"control={config.control}", "holds no address", "write tcp://HOST:PORT/TOKEN there, alone")
    else:
        Control(pipeline, config).start()


class Control(threading.Thread):
    """Gives a pipeline the orders of a file, line by line, until the lines end or the pipeline is closed.

    Args:
        pipeline: who takes them.
        config: where the file is, and what streams are unless a line says otherwise.

    Raises:
        UserError: the file cannot be read.
    """

    def __init__(self, pipeline: Pipeline, config: Config):
        super().__init__(name="control", daemon=True)
        self.pipeline, self.config = pipeline, config
        self.lines = Lines(config.control)
        self.orders = Orders(pipeline, config, wait=self._wait)
        # The writer of a pipe may be idle, or never come.
        pipeline.closers.append(self.lines.stop)

    def run(self) -> None:
        """Read to the end, then close the pipeline."""
        try:
            for number, line in enumerate(self.lines, 1):
                if self.pipeline.closed:
                    return
                self.take(number, line)
        except OSError as error:
            log.warning("control=%s ended early: %s", self.config.control, error.strerror)
        finally:
            self.lines.close()
            self.pipeline.close()

    def take(self, number: int, line: bytes | None) -> None:
        """Obey a line, or skip it with one warning; None stands for one that was too long to keep."""
        try:
            if line is None:
                raise UserError("the line", f"is longer than {LONGEST_LINE} bytes", "give one order a line")
            if line.strip():
                self.obey(line)
        except UserError as error:
            log.warning("control line %d skipped: %s", number, error)
        except Exception as error:
            # Whatever it may bring about, lines behind it are read. That workers are lost is told by who runs them.
            if not self.pipeline.closed:
                log.warning("control line %d skipped: %s", number, Reason.of(error).line)

    def obey(self, line: bytes | str) -> None:
        """Give one order.

        Raises:
            UserError: the line says nothing that can be done.
        """
        said = self.orders.give(parsed(line))
        if isinstance(said, dict):
            print(json.dumps(said), flush=True)

    def _wait(self, name: Any, rest: dict[str, Any]) -> None:
        refuse_rest(rest, "wait")
        stream = self.pipeline.number(name)
        self.pipeline.until(lambda: self.pipeline.ended(stream) or self.pipeline.closed)


class Lines:
    """Lines of a file, a named pipe or standard input, as bytes without their end; None for one that is too long.

    Args:
        path: of the file; `-`: standard input.

    Raises:
        UserError: it cannot be read.
    """

    def __init__(self, path: str):
        name = self._unsaid = f"control={path}"
        self._lock = threading.Lock()
        self._wake = self._stop = None
        if path == "-":
            standard_input(name)  # if it is closed, whatever was opened first has its descriptor
        try:
            # A pipe without a writer does not hold us up: its writer may come later, or never.
            self._file = 0 if path == "-" else os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        except FileNotFoundError as error:
            raise UserError(name, "there is no such file", "make it (mkfifo), or use -") from error
        except OSError as error:
            raise UserError(name, f"cannot be read ({error.strerror})", "give a file or a named pipe") from error
        if stat.S_ISDIR(os.fstat(self._file).st_mode):
            self.close()
            raise UserError(name, "is a folder", "give a file or a named pipe")
        self._wake, self._stop = os.pipe()

    def __iter__(self) -> Iterator[bytes | None]:
        held, too_long = bytearray(), False
        while block := self._read():
            *lines, rest = block.split(b"\n")
            for line in lines:
                whole = bytes(held) + line
                yield None if too_long or len(whole) > LONGEST_LINE else whole
                held, too_long = bytearray(), False
            held += rest
            if len(held) > LONGEST_LINE:
                held, too_long = bytearray(), True
        if held or too_long:
            yield None if too_long else bytes(held)

    def _read(self) -> bytes:
        """What comes next; empty at the end, and when stopped."""
        waiting = select.poll()
        waiting.register(self._file, select.POLLIN)
        waiting.register(self._wake, select.POLLIN)
        while True:
            ready = [file for file, _ in waiting.poll(PATIENCE_S * 1000 if self._unsaid else None)]
            if self._unsaid and not ready:
                log.warning("%s: no order has come yet, waiting for whoever writes into it", self._unsaid)
            self._unsaid = ""
            if self._wake in ready:
                return b""
            if not ready:
                continue
            with suppress(BlockingIOError):
                return os.read(self._file, BLOCK)

    def stop(self) -> None:
        """End the lines here, also for whoever waits for the next one; from any thread."""
        with self._lock:
            if self._stop is not None:
                os.write(self._stop, b"\n")

    def close(self) -> None:
        """Let go of the file; for whoever reads."""
        with self._lock:
            for file in (self._file, self._wake, self._stop):
                if file:  # standard input stays open
                    os.close(file)
            self._file = self._wake = self._stop = None

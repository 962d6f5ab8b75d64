"""Orders for a running pipeline as JSON lines, from a file, a named pipe or standard input (`control=-`).

    {"open": "a", "seconds": 30, "prompt": "a happy person", "source": {"audio": "a.wav"}, "sink": {"video": "a.mp4"}}
    {"prompt": "a sad person", "stream": "a"}
    {"open": "b", "resume": "DIR"}   go on from a state that was saved (of a stream of the same name)
    {"stop": "a"}      drain: what is under way is finished (and the state saved, if that is asked for); null: all
    {"cancel": "a"}    at once; null: every stream
    {"wait": "a"}      read on when the stream has ended
    {"status": true}   print how streams and workers stand, as one JSON line

An opened stream is what the configuration says with the given changes; its files get its name, which is free again once
the stream has ended. The end of the lines closes the pipeline: it ends when its streams have. A wrong line is skipped
with a warning, whatever it holds.
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
from dataclasses import asdict
from typing import Any

from conf.errors import UserError, nearest
from conf.schema import Config
from conf.typed import shown, typed
from runtime.identity import keep_of
from runtime.outputs import numbered
from runtime.pipeline import Pipeline, run_all
from runtime.reasons import Reason
from stages.sources.live import PATIENCE_S, standard_input

log = logging.getLogger(__name__)

LONGEST_LINE = 1 << 20
"""Bytes of a line; the rest of a longer one is read and thrown away."""
BLOCK = 1 << 16


def begin(pipeline: Pipeline, config: Config) -> None:
    """Open a run's streams: those of its configuration, or, with `control`, those that are ordered from now on.

    Raises:
        UserError: a stream cannot be opened, or the orders cannot be read.
    """
    if config.control is None:
        run_all(pipeline, config)
        return
    Control(pipeline, config).start()


def open_stream(pipeline: Pipeline, config: Config, name: Any, changes: dict[str, Any]) -> int:
    """Open a stream that is what the configuration says, but for some settings; returns its number.

    Args:
        name: the stream's.
        changes: settings of the stream, and `source`, `sink` (settings of these) and `resume`.

    Raises:
        UserError: as `Pipeline.open`, or what it is to go on from cannot be used.
    """
    changes = dict(changes)
    source, sink, resume = changes.pop("source", {}), changes.pop("sink", {}), changes.pop("resume", None)
    # A length that is ordered takes the place of the configured one, whichever of the two ways it is given in.
    free = {"chunks": None, "seconds": None} if changes.keys() & {"chunks", "seconds"} else {}
    stream = _changed(config.stream, "stream", free | changes | {"id": name, "count": 1})
    sinks = _changed(numbered(config.sink, stream.id), "sink", sink)
    source = _changed(config.source, "source", source)
    keep = keep_of(config, stream, sinks, stream.id, typed(str | None, resume, "resume"))
    return pipeline.open(stream, source, sinks, keep)


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
        self.acts = {
            "open": self._open,
            "prompt": self._prompt,
            "stop": lambda name, rest: self._end(pipeline.stop, name, rest),
            "cancel": lambda name, rest: self._end(pipeline.cancel, name, rest),
            "wait": self._wait,
            "status": self._status,
        }
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
        order = _parsed(line)
        name = next((name for name in self.acts if name in order), None)
        if name is None:
            given = next(iter(order), "")
            raise UserError(f"order {shown(given)}", "is no order", nearest(given[:80], self.acts))
        self.acts[name](order.pop(name), order)

    def _open(self, name: Any, order: dict[str, Any]) -> None:
        if taken := order.keys() & {"id", "count"}:
            raise UserError(f"stream.{min(taken)}", "is not for an order to say", 'the name stands in {"open": NAME}')
        open_stream(self.pipeline, self.config, name, order)

    def _prompt(self, prompt: Any, rest: dict[str, Any]) -> None:
        stream = self.pipeline.number(rest.pop("stream", None))
        _refuse_rest(rest, "prompt", "stream")
        self.pipeline.prompt(stream, prompt)

    def _end(self, act, name: Any, rest: dict[str, Any]) -> None:
        _refuse_rest(rest, "stop and cancel")
        act(None if name is None else self.pipeline.number(name))

    def _wait(self, name: Any, rest: dict[str, Any]) -> None:
        _refuse_rest(rest, "wait")
        stream = self.pipeline.number(name)
        self.pipeline.until(lambda: self.pipeline.ended(stream) or self.pipeline.closed)

    def _status(self, _: Any, rest: dict[str, Any]) -> None:
        _refuse_rest(rest, "status")
        streams = {
            name: {"ended": self.pipeline.ended(number)} | (self.pipeline.progress(number) or {})
            for name, number in self.pipeline.names.items()
        }
        print(json.dumps({"streams": streams, "workers": self.pipeline.status()}), flush=True)


def _parsed(line: bytes | str) -> dict[str, Any]:
    """A line's order as plain values."""

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(found := dict(pairs)) < len(pairs):
            raise ValueError("a key stands twice in it")
        return found

    def finite(word: str) -> float:
        raise ValueError(f"{word} is no number")

    try:
        order = json.loads(line, object_pairs_hook=once, parse_constant=finite)
    except (ValueError, RecursionError) as error:
        text = line.decode(errors="replace") if isinstance(line, bytes) else line
        raise UserError(
            shown(text.strip()), f"is not JSON ({error})", 'one order a line, e.g. {"stop": "a"}'
        ) from error
    if not isinstance(order, dict):
        raise UserError(shown(order), "is no order", 'give an object, e.g. {"stop": "a"}')
    return order


def _changed(settings: Any, group: str, changes: Any) -> Any:
    """Settings with some changed; refused where there is no such setting, or a value is of another type."""
    kind = type(settings)
    typed(dict[str, Any], changes, group)
    return typed(kind, asdict(settings) | changes, group)


def _refuse_rest(rest: dict[str, Any], name: str, *known: str) -> None:
    for key in rest:
        remedy = nearest(key[:80], known) if known else "leave it out"
        raise UserError(f"{name}: {shown(key)}", "there is no such key", remedy)


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

"""Orders for a running pipeline as JSON lines, from a file, a named pipe or standard input (`control=-`).

    {"open": "a", "seconds": 30, "prompt": "a happy person", "source": {"audio": "a.wav"}, "sink": {"video": "a.mp4"}}
    {"prompt": "a sad person", "stream": "a"}
    {"open": "b", "resume": "DIR"}   go on from a state that was saved (of a stream of the same name)
    {"stop": "a"}      drain: what is under way is finished (and the state saved, if that is asked for); null: all
    {"cancel": "a"}    at once; null: every stream
    {"wait": "a"}      read on when the stream has ended
    {"status": true}   print how streams and workers stand, as one JSON line

An opened stream is what the configuration says with the given changes; its files get its name. The end of the lines
closes the pipeline: it ends when its streams have. A wrong line is skipped with a warning.
"""

from __future__ import annotations

import json
import logging
import re
import sys
import threading
from collections.abc import Iterator
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from conf.errors import UserError, nearest
from conf.schema import Config, Event
from runtime.identity import keep_of
from runtime.outputs import numbered
from runtime.pipeline import Pipeline, run_all

log = logging.getLogger(__name__)

ORDERS = ("open", "prompt", "stop", "cancel", "wait", "status")


def begin(pipeline: Pipeline, config: Config) -> None:
    """Open a run's streams: those of its configuration, or, with `control`, those that are ordered from now on.

    Raises:
        UserError: the file of orders cannot be read.
    """
    if config.control is None:
        run_all(pipeline, config)
        return
    control = Control(pipeline, config)
    threading.Thread(target=control.run, name="control", daemon=True).start()


class Control:
    """Gives a pipeline the orders of a file, line by line.

    Args:
        pipeline: who takes them.
        config: where the file is, and what streams are unless a line says otherwise.
    """

    def __init__(self, pipeline: Pipeline, config: Config):
        self.pipeline, self.config = pipeline, config
        self.numbers: dict[str, int] = {}
        """Streams by name."""
        if config.control != "-" and not Path(config.control).exists():
            raise UserError(f"control={config.control}", "there is no such file", "make it (mkfifo), or use -")
        if config.control == "-" and "-" in (config.source.audio, config.source.actions):
            raise UserError("control=-", "a source reads standard input too", "give one of the two as a named pipe")

    def run(self) -> None:
        """Read to the end, then close the pipeline."""
        try:
            for number, line in enumerate(self._lines(), 1):
                if line.strip():
                    try:
                        self.obey(line)
                    except UserError as error:
                        log.warning("control line %d skipped: %s", number, error)
        except OSError as error:
            log.warning("control=%s ended early: %s", self.config.control, error.strerror)
        finally:
            self.pipeline.close()

    def _lines(self) -> Iterator[str]:
        if self.config.control == "-":
            yield from sys.stdin
            return
        # A named pipe opens when its writer does.
        with Path(self.config.control).open() as file:
            yield from file

    def obey(self, line: str) -> None:
        """Give one order.

        Raises:
            UserError: the line says nothing that can be done.
        """
        try:
            order = json.loads(line)
        except ValueError as error:
            raise UserError(line.strip()[:80], "is not JSON", 'one order a line, e.g. {"stop": "a"}') from error
        name = next((name for name in ORDERS if isinstance(order, dict) and name in order), None)
        if name is None:
            raise UserError(line.strip()[:80], "is no order", f"use one of {', '.join(ORDERS)}")
        value = order.pop(name)
        if name == "open":
            self._open(value, order)
        elif name == "prompt":
            self.pipeline.prompt(self._number(order.get("stream")), str(value))
        elif name == "wait":
            self.pipeline.wait(self._number(value))
        elif name == "status":
            print(json.dumps(self._status()), flush=True)
        else:
            act = self.pipeline.stop if name == "stop" else self.pipeline.cancel
            act(None if value is None else self._number(value))

    def _open(self, name: Any, order: dict[str, Any]) -> None:
        if not isinstance(name, str) or not re.fullmatch(r"[\w-]+", name) or name in self.numbers:
            raise UserError(f"open={name}", "must be a new name of letters, digits, _ and -", 'e.g. {"open": "b"}')
        config = self.config
        source, sink, resume = order.pop("source", {}), order.pop("sink", {}), order.pop("resume", None)
        if "events" in order:
            order["events"] = [_changed(Event(), "stream.events", event) for event in order["events"]]
        stream = _changed(config.stream, "stream", order | {"id": name, "count": 1})
        sinks = _changed(numbered(config.sink, name), "sink", sink)
        keep = keep_of(config, stream, sinks, name, resume)
        self.numbers[name] = self.pipeline.open(stream, _changed(config.source, "source", source), sinks, keep)

    def _number(self, name: Any) -> int:
        if name not in self.numbers:
            raise UserError(f"stream={name}", "there is no such stream", nearest(str(name), self.numbers))
        return self.numbers[name]

    def _status(self) -> dict[str, Any]:
        streams = {
            name: {"ended": self.pipeline.ended(number)} | (self.pipeline.progress(number) or {})
            for name, number in self.numbers.items()
        }
        return {"streams": streams, "workers": self.pipeline.status()}


def _changed(settings: Any, group: str, changes: dict[str, Any]) -> Any:
    """Settings with some changed; refused where there is no such setting."""
    known = [f.name for f in fields(settings)]
    for key in changes:
        if key not in known:
            raise UserError(f"{group}.{key}", "there is no such key", nearest(key, known))
    try:
        return replace(settings, **changes)
    except TypeError as error:
        raise UserError(f"{group}: {changes}", f"is of a wrong type ({error})", "give numbers and strings") from error

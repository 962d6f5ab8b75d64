"""The server's log: a line for every record on standard error, text or JSON: what happened, and its figures.

    12:30:01.250 INFO session begins session=Ab3_x9 model=nano

Figures are what is given as `extra` of a record; of `session`, an id, only the first characters are told.

Other packages' loggers come the same way. Nothing of what people say or type, no token, secret or address is in it
(`serve.redaction`). Who logs does not wait for whoever reads standard error: a thread writes, and what it cannot write
in time is counted and dropped.
"""

from __future__ import annotations

import json
import logging
import queue
import sys
import threading
import time
from collections.abc import Iterable
from contextlib import suppress
from typing import Any, TextIO

from serve.redaction import HIDDEN, SECRETS, SHOWN, SPOKEN, Hidden

WAITING = 4096
"""Lines that may wait to be written."""
FLUSH_S = 2.0
"""Longest wait for them at the end."""
QUIET = ("aiortc", "aioice", "asyncio", "websockets", "av", "libav")
"""Loggers that say of every packet where it goes: only their warnings are heard."""
STRANGERS = ("uvicorn.error", "uvicorn.access")
"""Those that say of every caller where it comes from, and warn of what it sends: only faults of ours are heard."""
ROUTED = ("uvicorn", "uvicorn.error", "uvicorn.access", "uvicorn.asgi")
"""Those that bring handlers of their own."""
_STANDARD = {*vars(logging.makeLogRecord({})), "message", "asctime", "taskName", "color_message"}
"""Attributes of a record that are not figures."""
LONGEST_LINE, LONGEST_TRACE = 2000, 16000
"""Characters of what a record says, and the last ones of a traceback."""
_NEVER = frozenset((*SECRETS, *SPOKEN, "address", "caller", "peer"))

hidden = Hidden()
"""Of this process: `setup` adds the server's secrets, the gateway those of sessions for as long as it tells of them."""


def setup(
    kind: str, secrets: Iterable[str | None] = (), level: int = logging.INFO, stream: TextIO | None = None
) -> Handler:
    """Send every logger's records to one place, in place of what was set up before. Close what is returned at the end.

    Args:
        kind: `text` or `json`, as `serve.logs`.
        secrets: the server's own.
        level: the least that is told.
        stream: None: standard error.
    """
    for secret in secrets:
        hidden.add(secret)
    handler = Handler(Json() if kind == "json" else Text(), sys.stderr if stream is None else stream)
    root = logging.getLogger()
    for old in list(root.handlers):
        root.removeHandler(old)
        if isinstance(old, Handler):
            old.close()
    root.addHandler(handler)
    root.setLevel(level)
    for name in ROUTED:
        log = logging.getLogger(name)
        log.handlers, log.propagate, log.level = [], True, logging.NOTSET
    for names, least in ((QUIET, logging.WARNING), (STRANGERS, logging.ERROR)):
        for name in names:
            logging.getLogger(name).setLevel(max(level, least) if level > logging.DEBUG else level)
    logging.captureWarnings(True)
    return handler


class Text(logging.Formatter):
    """`time LEVEL event key=value`, with a traceback below."""

    def format(self, record: logging.LogRecord) -> str:
        moment = f"{time.strftime('%H:%M:%S', time.localtime(record.created))}.{int(record.msecs):03d}"
        figures = " ".join(f"{key}={_plain(value)}" for key, value in _figures(record).items())
        # A caller's line break begins no line of the log.
        line = f"{moment} {record.levelname} {''.join(map(_visible, _said(record)))}"
        trace = _trace(self, record)
        return " ".join(filter(None, (line, figures))) + (f"\n{trace}" if trace else "")


class Json(logging.Formatter):
    """An object a line: time (UTC, RFC 3339), level, event, what was given with it, error."""

    def format(self, record: logging.LogRecord) -> str:
        moment = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z"
        told = {"time": moment, "level": record.levelname.lower(), "event": _said(record), "logger": record.name}
        told |= _figures(record)
        if trace := _trace(self, record):
            told["error"] = trace
        return json.dumps(told, ensure_ascii=False)


class Handler(logging.Handler):
    """Writes lines in a thread of its own.

    Args:
        formatter: makes a line of a record.
        stream: where they go.

    Attributes:
        dropped: lines that were not written because too many waited.
    """

    def __init__(self, formatter: logging.Formatter, stream: TextIO):
        super().__init__()
        self.setFormatter(formatter)
        self.dropped = 0
        self._stream, self._lines = stream, queue.Queue[str | threading.Event | None](WAITING)
        self._thread = threading.Thread(target=self._write, name="log", daemon=True)
        self._thread.start()

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._lines.put_nowait(self.format(record))
        except queue.Full:
            self.dropped += 1
        except Exception:
            self.handleError(record)

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802  the standard library's name
        """A record that cannot be told: what it held stays untold, too."""
        with suppress(queue.Full):
            self._lines.put_nowait(f"{record.levelname} a record of {record.name} could not be written")

    def flush(self) -> None:
        """Wait until what was logged is written, FLUSH_S at most."""
        if not self._thread.is_alive():
            return
        written = threading.Event()
        with suppress(queue.Full):
            self._lines.put(written, timeout=FLUSH_S)
            written.wait(FLUSH_S)

    def close(self) -> None:
        """Write the rest, and end the thread."""
        super().close()
        with suppress(queue.Full):
            self._lines.put(None, timeout=FLUSH_S)
            self._thread.join(FLUSH_S)

    def _write(self) -> None:
        told = 0
        while (line := self._lines.get()) is not None:
            if isinstance(line, threading.Event):
                line.set()
                continue
            if self.dropped > told:
                told, missing = self.dropped, self.dropped - told
                line = f"{line}\n{missing} lines were dropped: nobody read them in time"
            with suppress(OSError, ValueError):  # nobody reads any more
                self._stream.write(line + "\n")
                self._stream.flush()


def _addresses(record: logging.LogRecord) -> bool:
    """Whether a record may name addresses."""
    return record.levelno <= logging.DEBUG


def _said(record: logging.LogRecord) -> str:
    return hidden(record.getMessage(), _addresses(record))[:LONGEST_LINE]


def _visible(letter: str) -> str:
    return letter if letter.isprintable() else repr(letter)[1:-1]


def _figures(record: logging.LogRecord) -> dict[str, Any]:
    """What was given as `extra`, if it is a word or a number; libraries mark what is theirs with a line in front."""
    found = {}
    for key, value in vars(record).items():
        if key in _STANDARD or key.startswith("_") or not isinstance(value, bool | int | float | str):
            continue
        if key in _NEVER:
            value = HIDDEN
        elif key == "session":
            value = str(value)[:SHOWN]
        elif isinstance(value, str):
            value = hidden(value, _addresses(record))[:LONGEST_LINE]
        found[key] = round(value, 4) if isinstance(value, float) else value
    return found


def _plain(value: Any) -> str:
    """A value in a line of text: quoted where it would not be one word."""
    text = str(value)
    return text if text and text.isprintable() and not set(text) & set(' ="') else json.dumps(text, ensure_ascii=False)


def _trace(formatter: logging.Formatter, record: logging.LogRecord) -> str:
    parts = []
    if record.exc_info and record.exc_info[0] is not None:
        parts.append(formatter.formatException(record.exc_info))
    if record.stack_info:
        parts.append(formatter.formatStack(record.stack_info))
    return hidden("\n".join(parts), _addresses(record))[-LONGEST_TRACE:]

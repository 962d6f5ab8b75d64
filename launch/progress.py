"""The live line: chunk, seconds of video, frames per second, real-time factor."""

from __future__ import annotations

import json
import logging
import os
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.text import Text

from conf import disk
from conf.errors import UserError
from conf.schema import Config
from conf.secret import is_address
from launch.log import Log
from runtime.report import Progress
from runtime.running import Running

log = logging.getLogger(__name__)

STREAMS = "streams.jsonl"
SESSIONS_BYTES = 16 << 20
PLAIN_EVERY_S = 5.0
WATCH_S = 0.5


class Waiting:
    """Says every few seconds what is waited for, while the context is open.

    Args:
        console: where it is said.
        tell: what is waited for, in words; asked each time.
    """

    def __init__(self, console: Console, tell: Callable[[], str]):
        self._console, self._tell = console, tell
        self._begun, self._done = time.monotonic(), threading.Event()
        self._thread = threading.Thread(target=self._say, name="waiting", daemon=True)

    def __enter__(self) -> Waiting:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _say(self) -> None:
        while not self._done.wait(PLAIN_EVERY_S):
            with suppress(OSError):
                self._console.print(f"{self._tell()}  ({time.monotonic() - self._begun:.0f} s)", highlight=False)


class ProgressLine:
    """A line that is rewritten on a terminal, and repeated now and then elsewhere.

    Args:
        label: what is streamed.
        streams: how many there are.
        total: chunks of each to come; None: not known.
    """

    def __init__(self, label: str, streams: int, total: int | None, console: Console | None = None):
        self.label, self.streams, self.total = label, streams, total
        self.console = console or Console(stderr=True)
        self._live = Live(console=self.console, auto_refresh=False) if self.console.is_terminal else None
        self._printed = time.monotonic()

    def __enter__(self) -> ProgressLine:
        if self._live:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(OSError):  # the terminal may have been closed, which is no reason to lose a report
            if self._live:
                self._live.stop()

    def __call__(self, stream: int, at: Progress) -> None:
        """Show where a stream is."""
        label = self.label if self.streams == 1 else f"{self.label} stream {stream}"
        of = f"/{self.total}" if self.total else ""
        self.show(
            f"{label}  chunk {at.chunks}{of}  {at.frames / at.fps:.1f} s of video  {at.fps_now:.1f} fps  "
            f"{at.fps_now / at.fps:.2f}x real time",
            now=at.chunks == self.total,
        )

    def ended(self, stream: int, report: dict[str, Any]) -> None:
        """Show what came of a stream, as its report has it; nothing where no chunk was made."""
        if not report.get("fps"):
            return
        label = self.label if self.streams == 1 else f"{self.label} stream {stream}"
        seconds = report["frames"] * report["realtime_factor"] / report["fps"]
        self.show(
            f"{label}  {report['chunks']} chunks in all  {seconds:.1f} s of video  {report['fps']:.1f} fps  "
            f"{report['realtime_factor']:.2f}x real time",
            now=True,
        )

    def show(self, line: str, now: bool = False) -> None:
        """Show a line: at once on a terminal; elsewhere every few seconds, or if `now`."""
        with suppress(OSError):
            if self._live:
                self._live.update(Text(line), refresh=True)
            elif now or time.monotonic() - self._printed > PLAIN_EVERY_S:
                self._printed = time.monotonic()
                self.console.print(line, highlight=False)


class Watch:
    """The progress line of running workers while the context is open; remembers live streams alone.

    Args:
        running: the workers.
        config: the run.
        console: where the line goes.
        log: told the same.
    """

    def __init__(self, running: Running, config: Config, console: Console, log: Log):
        self.running, self.pipeline, self.log = running, running.pipeline, log
        self.line = ProgressLine(config.model.name, config.stream.count, config.stream.chunks, console)
        self._ordered, self._recovers = config.control is not None, config.launcher.in_place
        self._named: set[tuple[str, int]] = set()
        """Workers, each with the process that it was said to be."""
        self._shown: dict[int, int] = {}
        """Chunks that were shown of every live stream."""
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="progress", daemon=True)

    def __enter__(self) -> Watch:
        self.line.__enter__()
        self.pipeline.observers.append(self._ended)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()
        self.pipeline.observers.remove(self._ended)
        self.line.__exit__()

    def _watch(self) -> None:
        while not self._done.wait(WATCH_S):
            with suppress(RuntimeError):  # the store may be gone with a worker; that is told elsewhere
                self._look()

    def _look(self) -> None:
        if not self.running.begun:
            health = self.running.health()
            parts = ", ".join(f"{one.worker}: {one.at}" for one in health if not one.loaded)
            self.line.show(f"{sum(one.loaded for one in health)} of {len(health)} workers ready  ({parts})")
            return
        if self._recovers:
            self._name()
        live = [order.stream for order in self.pipeline.streams]
        self._shown = {stream: self._shown.get(stream, 0) for stream in live}
        for stream in live:
            self._show(stream, self.pipeline.progress(stream))

    def _name(self) -> None:
        """Say once which process each worker is, for who wants to end or to watch one."""
        for process in self.running.generation.processes:
            one = self.running.name(process), process
            if one not in self._named and (number := self.running.number(process)) is not None:
                self._named.add(one)
                with suppress(OSError):
                    self.line.console.print(f"{one[0]}: process {number}", highlight=False)

    def _show(self, stream: int, at: dict | None) -> None:
        if at and at["chunks"] > self._shown.get(stream, 0):
            self._shown[stream] = at["chunks"]
            self.line(stream, Progress(**at))
            self.log.chunk(stream, Progress(**at))

    def _ended(self, stream: int, report: dict) -> None:
        """A stream's last chunks may be fewer than a look apart from its end."""
        self._show(stream, self.pipeline.progress(stream))
        self._shown.pop(stream, None)
        if not self._ordered:
            self.line.ended(stream, report)


class Ended:
    """Tells of streams as they end: one line for each that ended by a fault, and, where streams come and go by orders,
    one for each in `streams.jsonl`. Of visitors' sessions that file is its owner's alone, and the latest lines are
    kept: SESSIONS_BYTES in it, and as many in `streams.jsonl.1`.

    Args:
        config: the run.
        served: whether streams are sessions of a server; None: as `control` says.

    Attributes:
        totals: of all streams so far.
        refused: why no line is written any more; None: all were.
    """

    def __init__(self, config: Config, served: bool | None = None):
        joins = config.control is not None and (config.control.startswith("@") or is_address(config.control))
        self._served = joins if served is None else served
        self._ordered = self._served or config.control is not None
        self._folder = Path(config.output_dir)
        self.refused: UserError | None = None
        self.totals = {"streams": 0, "ended_by_faults": 0, "chunks": 0, "frames": 0}

    def __call__(self, stream: int, report: dict) -> None:
        error = report.get("error")
        self.totals["streams"] += 1
        self.totals["ended_by_faults"] += error is not None
        for name in ("chunks", "frames"):
            self.totals[name] += report[name]
        if not self._ordered:
            return  # the run's own: told in its report, and by its exit code
        if error:
            log.warning("stream %s ended: %s", report["stream"], error["line"])
        try:
            with disk.writing(f"output_dir={self._folder}", STREAMS):
                self._write(json.dumps(report) + "\n")
        except UserError as error:
            self.refused = self.refused or error

    def _write(self, line: str) -> None:
        path = self._folder / STREAMS
        with open(path, "a", opener=partial(os.open, mode=0o600 if self._served else 0o666)) as lines:
            lines.write(line)
            full = self._served and lines.tell() >= SESSIONS_BYTES
        if full:
            path.replace(f"{path}.1")

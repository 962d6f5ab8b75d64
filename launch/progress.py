"""The live line: chunk, seconds of video, frames per second, real-time factor."""

from __future__ import annotations

import threading
import time
from contextlib import suppress

from rich.console import Console
from rich.live import Live
from rich.text import Text

from conf.schema import Config
from launch.log import Log
from runtime.pipeline import Pipeline
from runtime.report import Progress

PLAIN_EVERY_S = 10.0
WATCH_S = 0.5


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

    def show(self, line: str, now: bool = False) -> None:
        """Show a line: at once on a terminal; elsewhere every few seconds, or if `now`."""
        if self._live:
            self._live.update(Text(line), refresh=True)
        elif now or time.monotonic() - self._printed > PLAIN_EVERY_S:
            self._printed = time.monotonic()
            self.console.print(line, highlight=False)


class Watch:
    """The progress line of running workers, read off their board while the context is open.

    Args:
        pipeline: theirs.
        config: the run.
        console: where the line goes.
        log: told the same.
    """

    def __init__(self, pipeline: Pipeline, config: Config, console: Console, log: Log):
        self.pipeline, self.board, self.log = pipeline, pipeline.board, log
        self.line = ProgressLine(config.model.name, config.stream.count, config.stream.chunks, console)
        self._told: dict[int, int] = {}
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Watch:
        self.line.__enter__()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()
        self._look()
        self.line.__exit__()

    def _watch(self) -> None:
        while not self._done.wait(WATCH_S):
            self._look()

    def _look(self) -> None:
        with suppress(RuntimeError):  # the store may be gone with a worker; that is told elsewhere
            streams = [stream for stream in self.pipeline.known if self._told.get(stream) != -1]
            found = {stream: self.pipeline.progress(stream) for stream in streams}
            if not self._told and not any(found.values()):
                loading = [self.board.told(f"loading/{i}") for i in range(self.board.workers)]
                loaded = sum(bool(self.board.told(f"loaded/{i}")) for i in range(self.board.workers))
                parts = ", ".join(f"{i}: {what}" for i, what in enumerate(loading) if what)
                self.line.show(f"loading, {loaded} of {self.board.workers} workers ready  ({parts})")
            for stream, at in found.items():
                if at and at["chunks"] > self._told.get(stream, 0):
                    self._told[stream] = at["chunks"]
                    self.line(stream, Progress(**at))
                    self.log.chunk(stream, Progress(**at))
                elif self.pipeline.ended(stream):
                    self._told[stream] = -1  # nothing more to ask

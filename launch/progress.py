"""The live line: chunk, seconds of video, frames per second, real-time factor."""

from __future__ import annotations

import threading
import time
from contextlib import suppress

from rich.console import Console
from rich.live import Live
from rich.text import Text

from conf.schema import Config
from runtime.process import Board
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
    """The progress line of workers in other processes, read off their board while the context is open.

    Args:
        board: theirs.
        config: the run.
        console: where the line goes.
    """

    def __init__(self, board: Board, config: Config, console: Console):
        self.board, self.streams = board, config.stream.count
        self.line = ProgressLine(config.model.name, self.streams, config.stream.chunks, console)
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
            found = [self.board.told(f"progress/{i}") for i in range(self.streams)]
            if not any(found):
                loading = [self.board.told(f"loading/{i}") for i in range(self.board.workers)]
                loaded = sum(bool(self.board.told(f"loaded/{i}")) for i in range(self.board.workers))
                parts = ", ".join(f"{i}: {what}" for i, what in enumerate(loading) if what)
                self.line.show(f"loading, {loaded} of {self.board.workers} workers ready  ({parts})")
            for stream, at in enumerate(found):
                if at:
                    self.line(stream, Progress(**at))

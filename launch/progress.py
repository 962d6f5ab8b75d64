"""The live line: chunk, seconds of video, frames per second, real-time factor."""

from __future__ import annotations

import time

from rich.console import Console
from rich.live import Live
from rich.text import Text

from runtime.report import Timeline

PLAIN_EVERY_S = 10.0


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

    def __call__(self, stream: int, timeline: Timeline) -> None:
        """Show where a stream is."""
        label = self.label if self.streams == 1 else f"{self.label} stream {stream}"
        of = f"/{self.total}" if self.total else ""
        line = (
            f"{label}  chunk {timeline.chunks}{of}  {timeline.frames / timeline.fps:.1f} s of video  "
            f"{timeline.fps_now:.1f} fps  {timeline.fps_now / timeline.fps:.2f}x real time"
        )
        if self._live:
            self._live.update(Text(line), refresh=True)
        elif time.monotonic() - self._printed > PLAIN_EVERY_S or timeline.chunks == self.total:
            self._printed = time.monotonic()
            self.console.print(line, highlight=False)

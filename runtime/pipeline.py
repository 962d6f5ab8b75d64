"""A running pipeline as its user sees it: open streams, steer them, end them. Works beside the data, from any process.

A run of `launch.stream` opens `stream.count` streams and closes the pipeline; a server goes on opening.
"""

from __future__ import annotations

import time
from dataclasses import replace
from itertools import count
from typing import Any

from conf.schema import Config, SinkConfig, SourceConfig, StreamConfig
from runtime.board import Board
from runtime.identity import keep_of
from runtime.orders import Cancel, Close, Open, Prompt, Status, Stop
from runtime.outputs import numbered
from runtime.state import Keep

POLL_S = 0.05


class Pipeline:
    """Workers that run a plan. One object at a time opens streams.

    Args:
        board: the workers'.
        workers: how many there are; None: as many as processes.
    """

    def __init__(self, board: Board, workers: int | None = None):
        self.board, self.workers = board, board.workers if workers is None else workers
        self.streams: list[Open] = []
        self._questions = count()

    def open(self, stream: StreamConfig, source: SourceConfig, sink: SinkConfig, keep: Keep | None = None) -> int:
        """Begin a stream on the running workers, or go on with one; returns its number.

        Banks, seed, epochs and output are its own. If its source or sink cannot be used it ends at once, others go on,
        and `result` says why.
        """
        order = Open(len(self.streams), stream, source, sink, keep)
        self.streams.append(order)
        self.board.order(order)
        return order.stream

    def prompt(self, stream: int, prompt: str) -> None:
        """Change a stream's prompt, from the next chunk that is sampled on."""
        self.board.order(Prompt(stream, prompt, time.perf_counter()))

    def stop(self, stream: int | None = None) -> None:
        """Drain a stream, or all: nothing more is sampled, what is under way is finished."""
        self.board.order(Stop(stream))

    def cancel(self, stream: int | None = None) -> None:
        """End a stream, or all, at once: what is under way is thrown away, its files hold what had left."""
        self.board.order(Cancel(stream))

    def close(self) -> None:
        """Say that no stream will be opened any more: workers leave when those that are open have ended."""
        self.board.order(Close())

    def progress(self, stream: int) -> dict[str, Any] | None:
        """Chunks, frames, rates and the last chunk's latency of a stream; None before its first chunk has left."""
        return self.board.told(f"progress/{stream}")

    def ended(self, stream: int) -> bool:
        """Whether a stream is over and its files are finished."""
        return self.board.told(f"ended/{stream}") is not None

    def result(self, stream: int, timeout_s: float | None = None) -> dict[str, Any]:
        """A stream's part of `report.json`, once it has ended.

        Raises:
            UserError: its source or sink could not be used.
            TimeoutError: it has not ended within `timeout_s`.
        """
        self.wait(stream, timeout_s)
        refused = self.board.refused(stream)
        if refused:
            raise refused
        return self.board.told(f"ended/{stream}")

    def wait(self, stream: int, timeout_s: float | None = None) -> None:
        """Wait until a stream has ended; raises TimeoutError after `timeout_s`."""
        end = None if timeout_s is None else time.monotonic() + timeout_s
        while not self.ended(stream):
            if end is not None and time.monotonic() > end:
                raise TimeoutError(f"stream {stream} has not ended within {timeout_s:g} s")
            time.sleep(POLL_S)

    def status(self, timeout_s: float = 5.0) -> list[dict[str, Any] | None]:
        """How every worker stands: its streams, passes that wait, what it came to last. None: no answer in time."""
        question = next(self._questions)
        self.board.order(Status(question))
        end = time.monotonic() + timeout_s
        answers: dict[int, Any] = {}
        while len(answers) < self.workers and time.monotonic() < end:
            for worker in set(range(self.workers)) - answers.keys():
                if (told := self.board.told(f"status/{question}/{worker}")) is not None:
                    answers[worker] = told
            time.sleep(POLL_S)
        return [answers.get(worker) for worker in range(self.workers)]


def opens(config: Config) -> list[Open]:
    """The streams of a run: the one that was asked for, or `stream.count` with ids and files numbered from 0.

    Raises:
        UserError: `resume` names nothing that they can go on from.
    """
    several = config.stream.count > 1
    streams = [replace(config.stream, id=str(i), count=1) for i in range(config.stream.count)]
    found = []
    for i, stream in enumerate(streams if several else [config.stream]):
        sink = numbered(config.sink, i) if several else config.sink
        keep = keep_of(config, stream, sink, stream.id if several else None, config.resume)
        found.append(Open(i, stream, config.source, sink, keep))
    return found


def run_all(pipeline: Pipeline, config: Config) -> None:
    """Open every stream of a run, and say that these are all."""
    for order in opens(config):
        pipeline.open(order.config, order.source, order.sink, order.keep)
    pipeline.close()


def results(pipeline: Pipeline) -> list[dict[str, Any]]:
    """Every stream's part of `report.json`, once all have ended.

    Raises:
        UserError: the first mistake that kept a stream from its end, if there was one.
    """
    return [pipeline.result(order.stream, timeout_s=0.0) for order in pipeline.streams]

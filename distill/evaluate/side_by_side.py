"""One set of weights under every published rule that it can run, side by side.

All streams advance together, a chunk of each in turn. So their times are those of one process on one machine in the
same minutes, and what is there when a comparison is cut off is as far for each rule. Times are the processor's, which
others on the machine hardly change; with `threads=1` they are those of a free core.
"""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from conf.errors import UserError
from conf.schema.evaluate import EvaluateConfig
from distill.evaluate import faces
from distill.evaluate.rules import RULES, Rule, attended
from distill.evaluate.streams import Engine, Loop, chunks_of
from distill.evaluate.watched import TAIL, Faces, Judge, Walks, Watch
from distill.evaluate.whole import FIRST_LONG

AT = (0.0, 0.1, 0.2, 0.5, 1.0)
"""Where in the stream the pictures of a film strip are: minutes 0, 1, 2, 5 and 10 of ten."""
SKIPPED = 8
"""First chunks that no time is taken of: the window fills."""
Say = Callable[[str], None]


class Clock:
    """Times the passes of a stream, chunk by chunk, in processor seconds."""

    def __init__(self):
        self.spent = 0.0

    @contextmanager
    def __call__(self, name: str, chunk: int) -> Iterator[None]:
        began = time.process_time()
        yield
        if name != "encode":
            self.spent += time.process_time() - began

    def taken(self) -> float:
        """Seconds since it was asked last."""
        spent, self.spent = self.spent, 0.0
        return spent


@dataclass
class Row:
    """A rule that runs.

    Attributes:
        passes: processor seconds of each chunk's passes.
        whole: processor seconds of each chunk from its controls to its frames.
    """

    rule: Rule
    engine: Engine
    watches: list[Watch] = field(default_factory=list)
    passes: list[float] = field(default_factory=list)
    whole: list[float] = field(default_factory=list)

    def begin(self, watch: Watch) -> Callable[[], None]:
        """What makes and reads the next chunk of a new stream."""
        clock = Clock()
        frames = self.engine.stream(watch.case, clock)
        self.watches.append(watch)

        def chunk() -> None:
            began = time.process_time()
            made = next(frames)
            self.whole.append(time.process_time() - began)
            self.passes.append(clock.taken())
            watch.add(made)

        return chunk


class SideBySide:
    """A comparison of one model under all rules.

    Args:
        config: what to measure.
        loop: how streams are made: the runtime's sequential oracle.
        say: told what is being done.
    """

    def __init__(self, config: EvaluateConfig, loop: Loop, say: Say = lambda text: None):
        self.config, self.loop, self.say, self.model = config, loop, say, config.model
        self.rows: list[Row] = []
        self.refused: dict[str, str] = {}
        for rule in RULES:
            try:
                self.rows.append(Row(rule, Engine(rule.of(self.model), loop, rule.kind)))
            except UserError as error:
                self.refused[rule.name] = f"{error.value} {error.rule}"
        self.chunks = chunks_of(self.model, 60 * config.minutes)
        self.per = round(config.segment_s / self.chunk_s)
        if not TAIL < self.per <= self.chunks:
            raise UserError(
                f"segment_s={config.segment_s:g}",
                f"is read at its end for {TAIL * self.chunk_s:g} s, and must fit in minutes={config.minutes:g}",
                "use 60, or 12 in a stream of a minute",
            )

    @property
    def chunk_s(self) -> float:
        """Seconds that a chunk plays."""
        return self.rows[0].engine.frames_per_chunk / self.model.fps

    def judge(self, number: int) -> Judge:
        """Of a held-out case."""
        own, c = self.rows[0].engine, self.config
        if self.model.codec.statistics == "avatar":
            talk = faces.talks(self.model, 1, 60 * c.minutes, c.cases + number)[0]
            return Faces(own, talk, self._observer())
        return Walks(own, FIRST_LONG + number, self.chunks)

    def _observer(self) -> faces.Observer:
        self._made = getattr(self, "_made", None) or faces.Observer()
        return self._made

    def __call__(self, keep: Callable[[dict[str, Any]], None] = lambda report: None) -> dict[str, Any]:
        """Everything, as a report that JSON can hold; `keep` is given what there is of it after every segment."""
        c, total, done = self.config, self.chunks * self.config.long_cases, 0
        self.say(f"{len(self.rows)} rules, {c.long_cases} streams of {c.minutes:g} min each, one chunk of each in turn")
        for name, why in self.refused.items():
            self.say(f"{name} cannot run: {why}")
        marks = [max(0, round(at * self.chunks) - 1) for at in AT]
        began, report = time.perf_counter(), {}
        for number in range(c.long_cases):
            judge = self.judge(number)
            steps = [row.begin(Watch(judge, self.per, marks)) for row in self.rows]
            for chunk in range(self.chunks):
                for step in steps:
                    step()
                done += 1
                if (chunk + 1) % self.per == 0:
                    keep(report := self.report(done / self.chunks * c.minutes))
                    left = (time.perf_counter() - began) / done * (total - done) / 60
                    self.say(
                        f"minute {(chunk + 1) * self.chunk_s / 60:.1f} of {c.minutes:g}, stream {number + 1} of "
                        f"{c.long_cases}: {sum(row.whole[-1] for row in self.rows):.2f} s for a chunk of every rule, "
                        f"about {left:.0f} min left"
                    )
        return report

    def strips(self) -> dict[str, list[np.ndarray]]:
        """By rule, pictures of its first stream."""
        return {row.rule.name: row.watches[0].pictures for row in self.rows}

    # -- what comes of it ------------------------------------------------------------------------------------------

    def report(self, minutes: float) -> dict[str, Any]:
        """What is there after so many minutes of video under every rule."""
        rows = {row.rule.name: self._row(row) for row in self.rows}
        return {
            "model": self.model.name,
            "follows": self.rows[0].watches[0].judge.follows,
            "date": time.strftime("%Y-%m-%d"),
            "machine": f"{platform.machine()}, {os.cpu_count()} cores, {self.config.threads} threads",
            "minutes": round(minutes, 2),
            "streams": self.config.long_cases,
            "segment_s": self.per * self.chunk_s,
            "read closely (s of a segment)": TAIL * self.chunk_s,
            "left out": self.config.left_out,
            "rules": [
                {"name": rule.name, "says": rule.says, "settings": dict(rule.settings)}
                | (rows.get(rule.name) or {"cannot": self.refused[rule.name]})
                for rule in RULES
            ],
        }

    def _row(self, row: Row) -> dict[str, Any]:
        grid = row.engine.denoiser.layout.tokens
        under, own = row.engine.model, self.rows[0]
        of_each = [watch.numbers for watch in row.watches if watch.segments]
        numbers = {name: float(np.mean([each[name] for each in of_each])) for name in of_each[0]}
        first = min(SKIPPED, len(row.passes) - 1)
        latency = float(np.median(row.whole[first:]))
        return {
            "trained": row.rule.trained(self.model),
            "seen": numbers,
            "costs": {
                "seconds per chunk": float(np.median(row.passes[first:])),
                "over own": float(np.median(np.divide(row.passes, own.passes)[first:])),
                "attended tokens": attended(under, grid),
                # A control waits for the next chunk to begin, half of one on average, and is seen in that chunk.
                "control (chunks)": float(under.step_count if under.rule.joint else 1),
                "control (s)": max(self.chunk_s, latency) / 2 + latency,
            },
            "segments": [watch.segments for watch in row.watches],
        }

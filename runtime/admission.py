"""Whether one more stream may be opened on running workers. Asked before any of them hears of it."""

from __future__ import annotations

import os
import stat
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

from conf.errors import UserError
from conf.schema import Config
from parallel.plan import Plan
from runtime.board import Board
from runtime.encoders import Picture
from runtime.orders import Open
from runtime.outputs import OWN

STREAMS = 64
"""Streams that may be open at once: channels have room for the messages of so many."""


def most_streams(config: Config) -> int:
    """Streams of a run that may be open at once."""
    return max(STREAMS, config.stream.count)


class Admission:
    """What streams must leave to each other: names, files, standard input, bytes.

    Args:
        board: where each worker tells, as `room/{worker}`, how many bytes it has (see `runtime.room`).
        plan: the workers'.
        config: the run.
    """

    def __init__(self, board: Board, plan: Plan, config: Config):
        self.board, self.plan = board, plan
        self.model, self.picture = config.model, Picture.of(config.model, config.stream)
        self._decodes = config.sink.needs_frames
        self._stdin_given, self._most = config.control == "-", most_streams(config)
        self._rooms: dict[int, dict[str, Any]] = {}
        self._held: dict[str, dict[Hashable, str]] = {}
        """By the name of every stream that is open, what it has for itself."""

    def admit(self, order: Open, live: Sequence[Open]) -> None:
        """Take note of a stream that may be opened beside `live` ones; standard input is given once.

        Raises:
            UserError: it may not: the value, the rule, the remedy.
        """
        name = f"stream.id={order.config.id}"
        if len(live) >= self._most:
            raise UserError(name, f"{len(live)} streams are open", "wait until one has ended")
        if any(other.config.id == order.config.id for other in live):
            raise UserError(name, "a stream of that name is open", "give another name, or wait until it has ended")
        picture = Picture.of(self.model, order.config)
        if picture != self.picture:
            raise UserError(
                f"stream.height={picture.height} stream.width={picture.width}",
                f"this run makes pictures of {self.picture.height}x{self.picture.width}",
                "leave both out, or start a run of that size",
            )
        if not self._decodes:
            for sink, path in order.sink.pictures.items():
                raise UserError(
                    f"sink.{sink}={path}", "this run was started without a decoder", "start the run with a sink.video"
                )
        self._held = {other.config.id: self._held[other.config.id] for other in live}
        held = own(order, {key: who for others in self._held.values() for key, who in others.items()})
        self.check_room(name, len(live) + 1)
        if order.source.reads_stdin and self._stdin_given:
            raise UserError("source=-", "standard input is read already", "give a file or a named pipe")
        self._stdin_given |= order.source.reads_stdin
        self._held[order.config.id] = held

    def room(self, worker: int) -> dict[str, Any] | None:
        """What a worker has for streams, as `runtime.room.room` says it; None before it has loaded."""
        if worker not in self._rooms and (told := self.board.told(f"room/{worker}")):
            self._rooms[worker] = told
        return self._rooms.get(worker)

    def check_room(self, name: str, streams: int) -> None:
        """Hold what so many streams need in every memory against what was free there when the workers had loaded."""
        needed: dict[str, int] = {}
        free: dict[str, int] = {}
        for worker in range(self.plan.workers):
            if (room := self.room(worker)) is None:
                continue
            memory, more = room["memory"], max(0, streams - room["pooled"])
            needed[memory] = needed.get(memory, 0) + more * room["stream_bytes"]
            free[memory] = min(room["free_bytes"], free.get(memory, room["free_bytes"]))
            if (missing := needed[memory] - free[memory]) > 0:
                raise UserError(
                    name,
                    f"worker {worker} lacks {missing:,} bytes for {streams} streams at once",
                    "wait until a stream has ended, or use more workers",
                )


def own(order: Open, taken: Mapping[Hashable, str]) -> dict[Hashable, str]:
    """What a stream must have for itself, and its name: files that it writes, under whatever name, and named pipes that
    it reads: who else read one would take its bytes.

    Args:
        order: the stream.
        taken: the same of streams beside it.

    Raises:
        UserError: another stream, or another setting of its own, has it.
    """
    held: dict[Hashable, str] = {}

    def hold(key: Hashable, setting: str, path: str, does: str, remedy: str) -> None:
        if who := held.get(key) or taken.get(key):
            raise UserError(f"{setting}={path}", f"{who} {does} it", remedy)
        held[key] = setting

    for name in (*OWN, "timeline"):
        if path := getattr(order.sink, name):
            hold(os.path.realpath(path), f"sink.{name}", path, "writes", "give a file of its own")
    for name in ("audio", "actions"):
        path = getattr(order.source, name)
        if path and path != "-" and (pipe := _pipe(path)):
            hold(pipe, f"source.{name}", path, "reads", "give a pipe of its own")
    # The timeline is the run's: every stream names the same.
    return {key: f"stream {order.config.id}" for key, setting in held.items() if setting != "sink.timeline"}


def _pipe(path: str) -> tuple[int, int] | None:
    """Which pipe a path leads to; None: to none."""
    try:
        there = Path(path).stat()
    except OSError:
        return None  # told by who opens it
    return (there.st_dev, there.st_ino) if stat.S_ISFIFO(there.st_mode) else None

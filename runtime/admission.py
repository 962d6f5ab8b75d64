"""Whether one more stream may be opened on running workers. Asked before any of them hears of it."""

from __future__ import annotations

import os
import stat
from collections import ChainMap
from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

from conf import published
from conf.disk import kind
from conf.errors import UserError
from conf.paths import is_file, is_folder
from conf.schema import Config
from conf.schema.stream import SINKS, SOURCES
from parallel.plan import Plan
from runtime.board import Board
from runtime.encoders import Picture
from runtime.orders import Open

STREAMS = 64
"""Streams that may be open at once: channels have room for the messages of so many."""
CONFIG = "config.yaml"
RESULTS = (CONFIG, "report.json", "streams.jsonl", "streams.jsonl.1", "trace.json")
"""Files of a run's own in its output folder."""
FOLDERS = (".checkpoint", ".tokenizer", ".path")
"""How settings of a model end that may name a folder of files."""


class Full(UserError):  # noqa: N818  as the problem is called
    """There is no room for a stream beside those that are open; when one has ended there may be."""


class Hold(NamedTuple):
    """Who has a file, and what for; `shared`: others may read it as well."""

    who: str
    does: str
    shared: bool = False


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
        self._run = of_run(config)
        self._held: dict[str, dict[Hashable, Hold]] = {}
        """By the name of every stream that is open, what it has for itself."""

    def admit(self, order: Open, live: Sequence[Open]) -> None:
        """Take note of a stream that may be opened beside `live` ones; standard input is given once.

        Raises:
            UserError: it may not: the value, the rule, the remedy. `Full`: not now.
        """
        name = f"stream.id={order.config.id}"
        if len(live) >= self._most:
            raise Full(name, f"{len(live)} streams are open", "wait until one has ended")
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
        held = own(order, ChainMap(self._run, *self._held.values()))
        self.check_room(name, len(live) + 1)
        if order.source.reads_stdin and self._stdin_given:
            raise UserError("source=-", "standard input is read already", "give a file or a named pipe")
        self._stdin_given |= order.source.reads_stdin
        self._held[order.config.id] = held

    def replan(self, plan: Plan) -> None:
        """Workers of another plan run from now on."""
        self.plan = plan
        self._rooms.clear()

    def room(self, worker: int) -> dict[str, Any] | None:
        """What a worker has for streams, as `runtime.room.room` says it; None before it has loaded."""
        if worker not in self._rooms and (told := self.board.told(f"room/{worker}")):
            self._rooms[worker] = told
        return self._rooms.get(worker)

    def check_room(self, name: str, streams: int) -> None:
        """Hold what so many streams need in every memory against what was free there when the workers had loaded.

        Raises:
            Full: more than that.
        """
        needed: dict[str, int] = {}
        free: dict[str, int] = {}
        for worker in range(self.plan.workers):
            if (room := self.room(worker)) is None:
                continue
            memory, more = room["memory"], max(0, streams - room["pooled"])
            needed[memory] = needed.get(memory, 0) + more * room["stream_bytes"]
            free[memory] = min(room["free_bytes"], free.get(memory, room["free_bytes"]))
            if (missing := needed[memory] - free[memory]) > 0:
                raise Full(
                    name,
                    f"worker {worker} lacks {missing:,} bytes for {streams} streams at once",
                    "wait until a stream has ended, or use more workers",
                )


def of_run(config: Config) -> dict[Hashable, Hold]:
    """What a run has for itself, whatever its streams are: the files of its results, and those of its model."""
    results = [Path(config.output_dir) / name for name in RESULTS]
    found = {name: Hold("the run", "writes") for path in results for name in _names(path)}
    given = dict.fromkeys(path for _, path in model_files(config))
    return found | {name: Hold("the model", "reads", shared=True) for path in given for name in _names(path)}


def model_files(config: Config) -> Iterator[tuple[str, Path]]:
    """Every file that the model of a run is read from, and the setting that names it, or a folder that it is in."""
    for setting, text in _texts("model", asdict(config.model)):
        if is_file(text) or (is_folder(text) and setting.endswith(FOLDERS)):
            yield from ((setting, path) for path in published.files(text))


def _texts(name: str, value: Any) -> Iterator[tuple[str, str]]:
    """Settings that are text, by their names. A text in a list is a word; a path is in an object there."""
    if isinstance(value, str) and value:
        yield name, value
    elif isinstance(value, dict):
        yield from (one for key, part in value.items() for one in _texts(f"{name}.{key}", part))
    elif isinstance(value, list):
        yield from (one for part in value if isinstance(part, dict) for one in _texts(name, part))


def own(order: Open, taken: Mapping[Hashable, Hold]) -> dict[Hashable, Hold]:
    """What a stream has for itself: files that it writes, under whatever name, and named pipes that it reads: who else
    read one would take its bytes. Files that it reads may be read by others, and written by nobody.

    Args:
        order: the stream.
        taken: the same of the run, and of streams beside it.

    Raises:
        UserError: another has it, or another setting of the stream's own.
    """
    held: dict[Hashable, Hold] = {}

    def hold(setting: str, path: str, does: str, remedy: str, shared: bool = False) -> None:
        names = [*_names(path)]
        other = next((known[name] for known in (held, taken) for name in names if name in known), None)
        if other and not shared:
            raise UserError(f"{setting}={path}", f"{other.who} {other.does} it", remedy)
        held.update(dict.fromkeys(names, Hold(setting, does, shared)))

    for name in SOURCES:
        path = getattr(order.source, name)
        if path and path != "-":
            hold(f"source.{name}", path, "reads", "give a pipe of its own", shared=not _is_pipe(path))
    for name in SINKS:
        if path := getattr(order.sink, name):
            hold(f"sink.{name}", path, "writes", "give a file of its own")
    who = f"stream {order.config.id}"
    # The timeline is the run's: every stream names the same.
    return {name: one._replace(who=who) for name, one in held.items() if one.who != "sink.timeline"}


def _names(path: str | Path) -> Iterator[Hashable]:
    """What is the same of two paths that lead to one file, or that will."""
    yield os.path.realpath(path)
    with suppress(OSError):  # nothing is there yet, or it is told by who opens it
        there = Path(path).stat()
        if there.st_nlink > 1 and not stat.S_ISDIR(there.st_mode):
            yield there.st_dev, there.st_ino


def _is_pipe(path: str) -> bool:
    with suppress(OSError):
        return kind(path) == "pipe"
    return False

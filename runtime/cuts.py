"""Cuts: what streams remember between two chunks, in the memory of every host, where it outlives the process.

    /dev/shm/everframe-1f9c02ab/            of one run; whoever belongs to it holds a shared lock on LOCK
        LOCK
        stream.0/                           of one stream
            bank.1.0.2.0.7f3a.log           pieces of one part (`runtime.cut_log`)
            000005/                         the cut before chunk 5
                bank.1.0.2.0.json           the index of one part
                whole.json                  when all parts are there: which they are, and what holds for all

Memory of a file system outlives a process by itself, and the kernel says by the lock whether anybody of a run lives: so
nobody has to keep anything, and what a killed run has left is swept away by the next that starts.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import re
import shutil
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from secrets import token_hex
from typing import Any

from torch import Tensor

from runtime.cut_banks import layer_of
from runtime.cut_log import Read, write_json
from runtime.snapshot import CONDITIONING, DECODER, FINISHED, OUTPUT, Snapshot

log = logging.getLogger(__name__)

START, LOCK, WHOLE = "everframe-", "LOCK", "whole.json"
YOUNG_S = 60.0
"""A folder without a lock may be one that is just being made, so long."""
TOKEN = re.compile(rb"[0-9a-f]{32}")
"""What a lock holds."""
BANK, OF_LAYER = "bank.", re.compile(r"bank\.level(\d+)\.layer(\d+)")


# -- a run's folder -----------------------------------------------------------------------------------------------


class Hold:
    """A run's folder on this host, for as long as it is held. Made where it is not there; the last who lets go of it
    removes it.

    Args:
        path: of the folder.

    Attributes:
        host: tells this host's folder from another's of the same path.

    Raises:
        OSError: the folder cannot be made.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self._lock: int | None = _locked(self.path)
        self.host = os.pread(self._lock, 64, 0).decode()

    def close(self) -> None:
        """Let go of it; a second call does nothing."""
        lock, self._lock = self._lock, None
        if lock is not None:
            os.close(lock)  # first: of two who let go at the same time, each would see that the other holds it
            _swept(self.path)

    def __enter__(self) -> Hold:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def name(root: str) -> str:
    """A path for a run's folder that no other has."""
    return str(Path(root).absolute() / f"{START}{token_hex(4)}")


def hold(path: str | Path) -> Hold:
    """Belong to a run whose folder has this path on every host; raises as `Hold` does."""
    sweep(Path(path).parent)
    return Hold(path)


@contextmanager
def folder(root: str) -> Iterator[Path]:
    """A new run's folder, held while the context is open; raises as `Hold` does."""
    with hold(name(root)) as held:
        yield held.path


def sweep(root: Path) -> None:
    """Remove folders that killed runs have left: those of which nobody holds the lock."""
    for path in root.glob(f"{START}*"):
        _swept(path)


def _swept(path: Path) -> None:
    """Remove a folder that nobody holds; those of other users stay, and so does whatever else has such a name: a run's
    folder has a lock of `_make_lock` before it has anything else."""
    with suppress(OSError):
        try:
            lock = os.open(path / LOCK, os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            if time.time() - path.stat().st_mtime > YOUNG_S:
                for made in path.glob(f"{LOCK}.*"):
                    made.unlink()
                path.rmdir()  # unless there is anything in it
            return
        try:
            if TOKEN.fullmatch(os.pread(lock, 64, 0)) and _try(lock, fcntl.LOCK_EX):
                shutil.rmtree(path, ignore_errors=True)
        finally:
            os.close(lock)


def _try(lock: int, kind: int) -> bool:
    try:
        fcntl.flock(lock, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _locked(path: Path) -> int:
    """A shared lock of a folder that is there, whoever else makes or sweeps it now."""
    while True:
        try:
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
        except FileExistsError:  # it was there, and is being removed
            if path.exists() and not path.is_dir():
                raise
            continue
        try:
            lock = os.open(path / LOCK, os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            _make_lock(path)
            continue
        # One that somebody is removing has no name any more.
        if _try(lock, fcntl.LOCK_SH) and os.fstat(lock).st_nlink and (path / LOCK).exists():
            return lock
        os.close(lock)
        time.sleep(0.001)


def _make_lock(path: Path) -> None:
    """A lock has its name only once it is held, so nobody finds one that nobody holds yet."""
    made = path / f"{LOCK}.{token_hex(4)}"
    with suppress(FileNotFoundError):  # the folder is being removed
        lock = os.open(made, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            _try(lock, fcntl.LOCK_SH)
            os.write(lock, token_hex(16).encode())
            with suppress(FileExistsError):
                os.link(made, path / LOCK)
        finally:
            os.close(lock)
            made.unlink(missing_ok=True)


# -- a stream's cuts ----------------------------------------------------------------------------------------------


def of_stream(run: Path, stream: int) -> Path:
    """A stream's folder of cuts."""
    return run / f"stream.{stream}"


def complete(
    stream: Path, chunk: int, parts: Iterable[str], content: dict[str, Any], beside: Path | None = None
) -> Cut:
    """Make a cut whole. Older ones stay until `supersede`. Raises OSError.

    Args:
        beside: where parts of other hosts are.
    """
    write_json(stream / f"{chunk:06d}" / WHOLE, {"chunk": chunk, "parts": sorted(parts)} | content)
    return Cut(stream, chunk, beside)


def supersede(made: Cut) -> None:
    """Remove what only older cuts have, of whichever plan they were. Call it when whoever may go on from one knows of
    the new one: a process may be killed at any moment, and what others know of must be there. Raises OSError."""
    logs = {part.log for part in made.parts}
    for path in made.folder.iterdir():
        if path.suffix == ".log" and path.name not in logs:
            path.unlink(missing_ok=True)
        elif path.name.isdecimal() and int(path.name) < made.number:
            shutil.rmtree(path, ignore_errors=True)


def give_up(stream: Path, chunk: int) -> None:
    """Remove what there is of a cut that does not become whole."""
    shutil.rmtree(stream / f"{chunk:06d}", ignore_errors=True)


def newest(stream: Path) -> int | None:
    """The chunk of the newest whole cut; None: there is none."""
    found = [int(path.parent.name) for path in stream.glob(f"*/{WHOLE}")]
    return max(found, default=None)


@dataclass(frozen=True)
class Cut(Snapshot):
    """A whole cut: has the files of a state on disk, put together from parts of any plan.

    Attributes:
        folder: the stream's.
        number: the chunk that comes next.
        beside: where parts are that are not there.
    """

    folder: Path
    number: int
    beside: Path | None = None

    @cached_property
    def content(self) -> dict[str, Any]:
        return json.loads((self.folder / f"{self.number:06d}" / WHOLE).read_text())

    @property
    def video(self) -> Path | None:
        path, seen = self.content["video"], self.content["seen_from"]
        return Path(os.path.normpath(Path(seen).absolute() / path)) if path else None

    @cached_property
    def parts(self) -> list[Read]:
        """Its parts, in the order of their names."""
        return [found for part in self.content["parts"] if (found := self._part(part))]

    def _part(self, name: str) -> Read | None:
        for folder in (self.folder, self.beside):
            if folder and (folder / f"{self.number:06d}" / f"{name}.json").exists():
                return Read(folder, self.number, name)
        return None

    @cached_property
    def names(self) -> list[str]:
        """Its files, in order."""
        layers = {
            f"bank.level{level}.layer{int(key.rpartition('.')[2]):02d}"
            for part in self._banks()
            for level, key in ((part.content["level"], key) for key in part.content["layers"])
        }
        single = {part.part for part in self.parts if part.part in (CONDITIONING, DECODER, OUTPUT)}
        return sorted(layers | single | ({FINISHED} if self._finished() else set()))

    def _banks(self) -> list[Read]:
        return [part for part in self.parts if part.part.startswith(BANK)]

    def _finished(self) -> Read | None:
        return next((part for part in self._banks() if part.content["finished"]), None)

    def read(self, name: str) -> tuple[dict[str, Tensor], Any]:
        if found := OF_LAYER.fullmatch(name):
            return self._layer(int(found[1]), int(found[2])), None
        if name == FINISHED:
            if (part := self._finished()) is None:
                raise KeyError(name)
            start = f"{FINISHED}/"
            tensors = part.tensors(key for key in part.pieces if key.startswith(start))
            return {key.removeprefix(start): tensors[start + key] for key in part.content["finished"]}, None
        part = next((part for part in self.parts if part.part == name), None)
        if part is None:
            raise KeyError(name)
        tensors = part.tensors()
        return {key: tensors[key] for key in part.content["order"]}, part.content["content"]

    def _layer(self, level: int, layer: int) -> dict[str, Tensor]:
        """A layer's tensors: of all processes that have heads of it, once."""
        members: dict[int, Any] = {}
        for part in self._banks():
            if part.content["level"] == level and str(layer) in part.content["layers"]:
                members.setdefault(part.content["rank"], part)
        if not members or len(members) != members[min(members)].content["parts"]:
            raise KeyError(f"level {level}, layer {layer}")
        held = []
        for _, part in sorted(members.items()):
            own = [key for key in part.pieces if key.split("/")[1] == str(layer) and key.count("/") == 2]
            held.append((part.content, part.tensors(own)))
        return layer_of(layer, held)

"""The log of one part of a stream's cuts: pieces in a memory-mapped file, and an index beside it for every cut.

    stream.0/bank.1.0.2.0.7f3a.log          pieces: a slot of a layer, a finished chunk, a tensor of the decoder's
    stream.0/000005/bank.1.0.2.0.json       the cut before chunk 5: where each of its tensors lies in the log

A piece is written once and stays as it is while a cut refers to it that is kept, so a cut costs what has changed since
the one before, and the last whole one is never written over. Cuts are kept from the newest whole one on. Room that no
cut refers to is used again for pieces of the same size.

Pieces may come before their cut: what a log is *brought* lies in the file until the next cut's index refers to it. So
they are copied when it suits the passes, and a cut is only its index.
"""

from __future__ import annotations

import json
import mmap
import os
import threading
from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from secrets import token_hex
from typing import Any, NamedTuple

import torch
from torch import Tensor

from devices import Mark

LEAST, PAGE = 64, mmap.PAGESIZE


class Piece(NamedTuple):
    """Where a tensor lies.

    Attributes:
        at: in the log's file; its strides are in the order of `order`, as `runtime.state.write` has it.
        shape: as it lies there.
    """

    at: int
    dtype: str
    shape: tuple[int, ...]
    order: tuple[int, ...]

    @property
    def size(self) -> int:
        """Bytes that it takes."""
        bytes_ = getattr(torch, self.dtype).itemsize
        for length in self.shape:
            bytes_ *= length
        return bytes_


@dataclass
class Brought:
    """Pieces for the next cut.

    Attributes:
        names: of them.
        copied: when their tensors may be written again; None: there is nothing to wait for.
        pieces: where they lie, once there is room for them.
        failure: why they are not there.
    """

    names: frozenset[str]
    copied: Mark | None = None
    pieces: dict[str, Piece] = field(default_factory=dict)
    failure: Exception | None = None


class Log:
    """Writes one part. Pieces are chosen by whoever makes the cut (`missing`, `bring`), copied by another thread
    (`store`), and the cut is added by a third one (`write`).

    Args:
        folder: gives the stream's folder of cuts; asked when the first piece is stored. Raises OSError.
        part: its name.
    """

    def __init__(self, folder: Callable[[], Path], part: str):
        self._folder, self.part = folder, part
        self._given: frozenset[str] = frozenset()
        self._ahead: list[Brought] = []
        """What was brought since the latest cut."""
        self._lost: frozenset[str] = frozenset()
        """Pieces that were given and could not be stored: they are to be given again."""
        self._cuts: dict[int, dict[str, Piece]] = {}
        """Those that are kept, by chunk."""
        self._last: dict[str, Piece] = {}
        self._lock, self._closed = threading.Lock(), False
        """The lock is of all below, and nobody copies while it is held."""
        self._stored: dict[int, Brought] = {}
        """What no cut has yet, by identity."""
        self._whole = self._cleared = -1
        """The newest whole cut, and that at which room was looked for last."""
        self._file: int | None = None
        self.name = ""
        """Of the log's file, once there is one."""
        self._size = 0
        self._rest = range(0)
        """Bytes at the end of the latest piece of the file that no room has."""
        self._maps: list[tuple[int, Tensor, mmap.mmap]] = []
        """Pieces of the file: (first byte, its bytes, what keeps them)."""
        self._used: dict[int, int] = {}
        """Room of every piece that is stored, by place."""
        self._free: defaultdict[int, list[int]] = defaultdict(list)

    @property
    def nbytes(self) -> int:
        """Of the file."""
        return self._size

    # -- whoever makes the cut ----------------------------------------------------------------------------------------

    def missing(self, names: Iterable[str], changed: Iterable[str]) -> set[str]:
        """Which of its pieces a cut has to bring; they count as given.

        Args:
            names: all that it consists of.
            changed: those that may not be what an earlier cut brought.
        """
        names = frozenset(names)
        lost = self._lost
        found = (names & (frozenset(changed) | lost)) | (names - self._given)
        self._given = names
        return set(found)

    def withdraw(self, names: Iterable[str]) -> None:
        """They were not given after all."""
        self._given -= frozenset(names)

    def bring(self, names: Iterable[str]) -> Brought:
        """Pieces that the next cut has, as they are now, are about to be stored; they count as given."""
        brought = Brought(frozenset(names))
        self._given |= brought.names
        self._ahead.append(brought)
        return brought

    def brought(self) -> list[Brought]:
        """What was brought for the cut that is made now, in order; it is the cut's from here on."""
        ahead, self._ahead = self._ahead, []
        return ahead

    def let_go(self, whole: int) -> None:
        """Cuts before the newest whole one need not be kept: what is stored next may take their room."""
        self._whole = max(self._whole, whole)

    # -- the thread that copies ---------------------------------------------------------------------------------------

    def store(self, brought: Brought, tensors: Mapping[str, Tensor]) -> None:
        """Copy what is brought into the file, from wherever it is on the host. Where there is no room, that is noted,
        and the cut fails that was to have it."""
        try:
            laid = {name: _laid(tensor) for name, tensor in tensors.items()}
            with self._lock:
                targets = self._room(brought, laid)
            # In one call: each takes and gives back the interpreter, for which the loop would wait.
            sources = [laid[name][0].view(-1).view(torch.uint8) for name in targets]
            if targets:
                torch._foreach_copy_(list(targets.values()), sources)
        except Exception as error:
            brought.failure = error

    # -- the thread that writes ---------------------------------------------------------------------------------------

    def write(
        self,
        chunk: int,
        pieces: Mapping[str, Tensor],
        names: Iterable[str] | None,
        content: Any,
        whole: int,
        brought: Iterable[Brought] = (),
    ) -> None:
        """Add a cut.

        Args:
            chunk: before which.
            pieces: what is still to be stored of it.
            names: all that it consists of; None: `pieces`.
            content: anything that JSON can say.
            whole: the newest whole cut: older ones are let go of.
            brought: what was brought for it and is stored, in order: of what came twice the later one counts.

        Raises:
            OSError: there was no room, or what an earlier cut was to bring is not there. What this one brings is to be
                brought again then; nothing else changes.
        """
        names = set(pieces if names is None else names)
        self.let_go(whole)
        own = Brought(frozenset(pieces))
        self.store(own, pieces)
        brought = [*brought, own]
        came = frozenset().union(*(one.names for one in brought))
        try:
            with self._lock:
                for one in brought:
                    self._stored.pop(id(one), None)
                self._add(chunk, names, brought)
        except BaseException:
            self._lost |= came
            with self._lock:
                self._clear()  # of what this one brought
            raise
        self._lost -= came
        self._tell(chunk, content)

    def _add(self, chunk: int, names: set[str], brought: list[Brought]) -> None:
        index = {name: piece for name, piece in self._last.items() if name not in self._lost}
        failure = None
        for one in brought:
            for name in one.names:
                index.pop(name, None)
            failure = failure or one.failure
            index |= {} if one.failure else one.pieces
        if lacking := names - index.keys():
            raise failure or OSError(f"{len(lacking)} of its pieces were in one that was given up")
        self._last = self._cuts[chunk] = {name: index[name] for name in sorted(names)}

    def _tell(self, chunk: int, content: Any) -> None:
        folder = self._folder() / f"{chunk:06d}"
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_json(folder / f"{self.part}.json", {"log": self.name, "content": content}, self._last)

    def close(self) -> None:
        """Let go of the file; it stays, and nothing more is stored."""
        with self._lock:
            self._closed = True
            self._maps.clear()
            if self._file is not None:
                os.close(self._file)
            self._file = None

    # -- room ---------------------------------------------------------------------------------------------------------

    def _clear(self) -> None:
        """Find room that nothing refers to any more."""
        self._cleared = self._whole
        self._cuts = {chunk: index for chunk, index in self._cuts.items() if chunk >= self._whole}
        # The latest stay, whatever is kept: the next cut refers to them, and to what was brought for it.
        held = (*self._cuts.values(), self._last, *(one.pieces for one in self._stored.values()))
        kept = {piece.at for index in held for piece in index.values()}
        for at in self._used.keys() - kept:
            self._free[self._used.pop(at)].append(at)

    def _room(self, brought: Brought, laid: Mapping[str, tuple[Tensor, tuple[int, ...]]]) -> dict[str, Tensor]:
        """Give pieces their places; returns the bytes there, of those that have any."""
        if self._closed:
            raise OSError(f"{self.part} is not written any more")
        if self._cleared < self._whole:
            self._clear()
        places, targets = self._places(t.nbytes for t, _ in laid.values()), {}
        self._stored[id(brought)] = brought
        for name, (tensor, order) in laid.items():
            at = places[tensor.nbytes].pop() if tensor.nbytes else 0
            brought.pieces[name] = Piece(at, str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape), order)
            if tensor.nbytes:
                self._used[at] = room_of(tensor.nbytes)
                targets[name] = self._bytes(at, tensor.nbytes)
        return targets

    def _places(self, sizes: Iterable[int]) -> dict[int, list[int]]:
        """A place for every piece, by size; raises OSError where the file cannot grow."""
        wanted = Counter(size for size in sizes if size)
        lacking = Counter()
        for size, count in wanted.items():
            lacking[room_of(size)] += count
        for room in lacking:
            lacking[room] = max(0, lacking[room] - len(self._free[room]))
        self._grow(lacking)
        return {size: [self._free[room_of(size)].pop() for _ in range(count)] for size, count in wanted.items()}

    def _grow(self, rooms: Counter[int]) -> None:
        self._carve(rooms)
        more = sum(room * count for room, count in rooms.items())
        if not more:
            return
        more = -(-more // PAGE) * PAGE
        if self._file is None:
            folder = self._folder()
            self.name = f"{self.part}.{token_hex(4)}.log"
            self._file = os.open(folder / self.name, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        # Reserved before it is written: a page of a map that lacks memory would end the process.
        try:
            os.posix_fallocate(self._file, self._size, more)
        except OSError:
            with suppress(OSError):
                os.ftruncate(self._file, self._size)
            raise
        mapped = mmap.mmap(self._file, more, offset=self._size)
        self._maps.append((self._size, torch.frombuffer(mapped, dtype=torch.uint8), mapped))
        self._rest = range(self._size, self._size + more)
        self._size += more
        self._carve(rooms)

    def _carve(self, rooms: Counter[int]) -> None:
        """Take what still fits from the rest of the file."""
        for room in sorted(rooms, reverse=True):
            count = min(rooms[room], len(self._rest) // room)
            self._free[room] += self._rest[: count * room : room]
            self._rest = self._rest[count * room :]
            rooms[room] -= count

    def _bytes(self, at: int, size: int) -> Tensor:
        start, held, _ = self._maps[bisect_right(self._maps, at, key=lambda piece: piece[0]) - 1]
        return held[at - start : at - start + size]


def room_of(size: int) -> int:
    """Bytes that a piece of a size is given: sizes that are near each other have the same, so that what varies is
    written over as well."""
    if size >= 1 << 20:
        return -(-size // PAGE) * PAGE
    step = max(LEAST, 1 << max(0, size.bit_length() - 3))
    return -(-size // step) * step


def write_json(path: Path, *content: Any) -> None:
    """A file of lines that is there whole, or not at all. Raises OSError."""
    part = path.with_name(f"{path.name}.{token_hex(4)}")
    try:
        part.write_text("\n".join(map(json.dumps, content)))
        part.rename(path)
    except BaseException:
        with suppress(OSError):
            part.unlink()
        raise


def _laid(tensor: Tensor) -> tuple[Tensor, tuple[int, ...]]:
    """A tensor with its dimensions in the order of its strides, in one piece, and that order."""
    tensor, strides = tensor.detach(), tensor.stride()
    order = tuple(sorted(range(len(strides)), key=lambda d: -strides[d]))
    return (tensor if order == tuple(range(len(order))) else tensor.permute(order)).contiguous(), order


class Read:
    """A part of a cut.

    Args:
        folder: the stream's.
        chunk, part: which.
    """

    def __init__(self, folder: Path, chunk: int, part: str):
        self.folder, self.chunk, self.part = folder, chunk, part
        said, self._pieces = (folder / f"{chunk:06d}" / f"{part}.json").read_bytes().split(b"\n")
        said = json.loads(said)
        self.content, self.log = said["content"], said["log"]

    @cached_property
    def pieces(self) -> dict[str, Piece]:
        """Where its tensors lie, by name; most readers of a part want its log alone."""
        found = json.loads(self._pieces)
        return {name: Piece(at, dtype, tuple(s), tuple(o)) for name, (at, dtype, s, o) in found.items()}

    def copy(self, folder: Path) -> None:
        """Write it to another stream's folder. Raises OSError."""
        made = Log(lambda: folder, self.part)
        try:
            made.write(self.chunk, self.tensors(), None, self.content, -1)
        finally:
            made.close()

    def tensors(self, names: Iterable[str] | None = None) -> dict[str, Tensor]:
        """Copies of its tensors; None: of all."""
        names = list(self.pieces if names is None else names)
        if not any(self.pieces[name].size for name in names):
            return {name: _empty(self.pieces[name]) for name in names}
        with (self.folder / self.log).open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY) as held:
            return {name: _copied(self.pieces[name], held) for name in names}


def _empty(piece: Piece) -> Tensor:
    return _ordered(torch.empty(piece.shape, dtype=getattr(torch, piece.dtype)), piece)


def _copied(piece: Piece, held: mmap.mmap) -> Tensor:
    if not piece.size:
        return _empty(piece)
    found = torch.empty(piece.shape, dtype=getattr(torch, piece.dtype))
    target = memoryview(found.view(-1).view(torch.uint8).numpy())
    target[:] = memoryview(held)[piece.at : piece.at + piece.size]
    return _ordered(found, piece)


def _ordered(tensor: Tensor, piece: Piece) -> Tensor:
    return tensor.permute(sorted(range(len(piece.order)), key=piece.order.__getitem__))

"""A stream's complete state on disk: what it remembers between two chunks, and nothing of how it was spread.

    output_dir/state/chunk.000020/          of several streams: output_dir/state/ID/chunk.000020/
        bank.level0.layer00.safetensors     keys and values of one level and layer, in physical slot order
        conditioning.safetensors            sources, sound in step, prompts: where the next chunk is sampled from
        decoder.safetensors                 what the decoder keeps from chunk to chunk, where there is one
        output.safetensors                  hash in progress, frames, the frame that a recalibration waits for
        finished.safetensors                latents and conditioning of chunks that a new prompt would run again
        state.json                          what the stream is, how far it is, sha256 of every file

A state is written under another name (`chunk.000020.part`) by all workers, `state.json` last, and renamed when it is
whole; then the stream's older ones go. Random draws are functions of (seed, stream id, chunk, step), so nothing of
them is kept.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import shutil
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from conf import disk
from conf.errors import UserError
from conf.paths import is_file, is_folder
from runtime.cuts import Cut
from runtime.snapshot import Snapshot

log = logging.getLogger(__name__)

FORMAT = 3
EARLIER = {1: {"decoder": "finish", "output": "finish"}, 2: {}}
"""Formats that are read as well, and the file of each that holds what another holds now."""
FOLDER, CONTENT = "state", "state.json"
NAME = re.compile(r"chunk\.(\d{6,})")
OTHERS = re.compile(r"chunk\.(\d{6,})(\.part|\.old)?")
"""What a stream may leave beside its state: states, whole or being written, and one that made room for another."""


# -- files ------------------------------------------------------------------------------------------------------


def write(folder: Path, name: str, tensors: dict[str, Tensor], content: Any = None) -> dict[str, str]:
    """Write tensors and JSON content as `name.safetensors`; returns its name and sha256. Raises OSError.

    Tensors keep their strides' order: what they feed may choose its kernels by it.
    """
    path, orders, laid = folder / f"{name}.safetensors", {}, {}
    for key, tensor in tensors.items():
        orders[key] = sorted(range(tensor.ndim), key=lambda d, t=tensor: -t.stride(d))
        laid[key] = tensor.detach().permute(orders[key]).contiguous().cpu()
    # One entry: several would be written in any order, and equal states should be equal files.
    try:
        save_file(laid, path, {"state": json.dumps({"content": content, "orders": orders})})
    except SafetensorError as error:
        raise OSError(str(error)) from error
    return {path.name: _sha256(path)}


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        os.fsync(file.fileno())
        return hashlib.file_digest(file, "sha256").hexdigest()


@dataclass(frozen=True)
class State(Snapshot):
    """A whole state on disk.

    Attributes:
        folder: where it is.
    """

    folder: Path

    @cached_property
    def content(self) -> dict[str, Any]:
        """What `state.json` says."""
        return json.loads((self.folder / CONTENT).read_text())

    @property
    def video(self) -> Path | None:
        """Where the stream's video was."""
        path = self.content["video"]
        return Path(os.path.normpath(self.folder.absolute().parent / path)) if path else None

    def read(self, name: str) -> tuple[dict[str, Tensor], Any]:
        """(tensors, content) of a file of it."""
        name = EARLIER.get(self.content["format"], {}).get(name, name)
        with safe_open(self.folder / f"{name}.safetensors", framework="pt") as file:
            metadata, found = json.loads(file.metadata()["state"]), {}
            for key, order in metadata["orders"].items():
                back = sorted(range(len(order)), key=order.__getitem__)
                found[key] = file.get_tensor(key).permute(back)
            return found, metadata["content"]

    def refuse(self, rule: str, remedy: str) -> UserError:
        """The one line that says why a run cannot go on from here."""
        return UserError(f"resume={self.folder}", rule, remedy)

    def check(self, identity: dict[str, Any]) -> None:
        """Refuse a state that is damaged, of another format, or of another stream than `identity` describes."""
        whole = "save it again, or give another"
        try:
            if self.content["format"] not in (FORMAT, *EARLIER):
                raise self.refuse(f"has format {self.content['format']}, this Everframe reads 1 to {FORMAT}", whole)
            files, saved = self.content["files"], self._before(self.content["identity"])
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise self.refuse(f"its {CONTENT} is damaged ({type(error).__name__})", whole) from error
        mine = self._before(identity)
        # What an earlier format did not say yet, or said in other words, cannot be compared.
        keys = saved.keys() | mine.keys() if self.content["format"] == FORMAT else saved.keys() & mine.keys()
        for key in sorted(keys):
            if saved.get(key) != mine.get(key):
                had, has = (_short(values.get(key)) for values in (saved, mine))
                raise self.refuse(f"was saved with {key}={had}, this run has {has}", "give what it was saved with")
        for name, digest in files.items():
            try:
                found = _sha256(self.folder / name)
            except OSError as error:
                raise self.refuse(f"lacks {name} ({error.strerror})", whole) from error
            if found != digest:
                raise self.refuse(f"{name} is damaged: its sha256 is not the one of {CONTENT}", whole)

    def _before(self, identity: dict[str, Any]) -> dict[str, Any]:
        """An identity as dotted keys, without the events that are still to come."""
        found = flat(identity)
        events = {key: int(key.rsplit(".", 1)[1]) for key in found if key.startswith("stream.events.")}
        return {key: value for key, value in found.items() if events.get(key, -1) < self.chunk}


def flat(content: Any, prefix: str = "") -> dict[str, Any]:
    """Nested dictionaries to dotted keys."""
    if not isinstance(content, dict):
        return {prefix: content}
    return {k: v for key, part in content.items() for k, v in flat(part, f"{prefix}.{key}".strip(".")).items()}


def _short(value: Any) -> str:
    text = "null" if value is None else str(value)
    return text if len(text) <= 40 else f"{text[:37]}..."


def states(root: Path) -> list[State]:
    """Whole states right under a folder, the newest first."""
    beside = root.glob("chunk.*") if is_folder(root) else ()
    found = [path for path in beside if NAME.fullmatch(path.name) and is_file(path / CONTENT)]
    return [State(path) for path in sorted(found, key=lambda path: -int(NAME.fullmatch(path.name)[1]))]


def candidates(where: str, stream: str | None = None) -> list[State]:
    """The states that a user may mean, the newest first: the one whose folder that is, or those of an output folder; if
    its last run has left none, those of the run before.

    Args:
        where: given by the user.
        stream: of several in the folder, the name of the one to go on with.

    Raises:
        UserError: there is none.
    """
    folder = Path(where).absolute()
    if stream is None and is_file(folder / CONTENT):
        return [State(folder)]
    for root in (folder / FOLDER, folder, *(earlier / FOLDER for earlier in disk.earlier(folder))):
        if found := states(root if stream is None else root / stream):
            return found
    of = "" if stream is None else f" of stream {stream}"
    raise UserError(
        f"resume={where}",
        f"there is no whole state{of} in it",
        "give a state's folder, or an output_dir that holds one",
    )


def find(where: str, stream: str | None, identity: dict[str, Any]) -> State:
    """The newest whole state that a user may mean, of the stream that `identity` describes. Arguments as of
    `candidates`, and its error.

    Raises:
        UserError: all are damaged, or of other streams: why the newest is refused.
    """
    refused, found = [], candidates(where, stream)
    for state in found:
        if error := _refusal(state, identity):
            refused.append(error)
            continue
        for error in refused:
            log.warning("%s", error)
        if refused or any(part in state.folder.parents for part in disk.earlier(Path(where).absolute())):
            log.warning("resume=%s goes on from %s", where, state.folder)
        return state
    beside = (state for state in states(found[0].folder.parent) if state not in found)
    if other := next((state for state in beside if not _refusal(state, identity)), None):
        raise UserError(refused[0].value, refused[0].rule, f"give resume={other.folder}, which is whole")
    raise refused[0]


def _refusal(state: State, identity: dict[str, Any]) -> UserError | None:
    try:
        state.check(identity)
    except UserError as error:
        return error
    return None


def snapshot(folder: str, cut: int = -1) -> Snapshot:
    """What a stream goes on from.

    Args:
        folder: of a state on disk; or a stream's folder of cuts in memory.
        cut: the chunk that comes next, of a cut; -1: it is a state on disk.
    """
    return State(Path(folder)) if cut < 0 else Cut(Path(folder), cut)


# -- keeping ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Keep:
    """How one stream's state is kept; travels with the order that opens the stream.

    Attributes:
        folder: where its states go.
        identity: what decides its latents; a state is only taken up by a stream with the same.
        every: chunks between two states; None: no state on the way.
        on_stop: whether a stream that is stopped leaves one.
        resume: the folder of the state that it goes on from; None: it begins with chunk 0.
        first, frames: the first chunk to be made, and video frames made before it. Said here, since who cannot read the
            state must know them as well.
        cut: the stream's folder of cuts in memory; it goes on from the one before chunk `first`. None: from none.
        journal: the stream's folder of cuts, where it is noted what its chunks are sampled from; None: nowhere.
        began: the first chunk that the run makes, whatever it goes on from meanwhile.
        mark: drawn when the stream begins; its states and videos carry it, and are told by it from those of others.
    """

    folder: str
    identity: dict[str, Any]
    every: int | None = None
    on_stop: bool = False
    resume: str | None = None
    first: int = 0
    frames: int = 0
    mark: str | None = None
    cut: str | None = None
    journal: str | None = None
    began: int = 0

    @property
    def place(self) -> tuple[str, int] | None:
        """Where what the stream goes on from is: arguments of `snapshot`; None: it begins."""
        if self.cut:
            return self.cut, self.first
        return (self.resume, -1) if self.resume else None

    @property
    def saves(self) -> bool:
        """Whether the stream has states on disk, or goes on from one."""
        return bool(self.every or self.on_stop or self.resume)

    @cached_property
    def state(self) -> Snapshot | None:
        """What the stream goes on from."""
        return snapshot(*self.place) if self.place else None

    def due(self, chunk: int, stopped: bool = False) -> bool:
        """Whether the state before `chunk` is to be saved; `stopped`: the stream is ended there from outside."""
        if chunk <= self.first:
            return False
        return bool(stopped and (self.on_stop or self.every)) or bool(self.every and chunk % self.every == 0)

    def part(self, chunk: int) -> Path:
        """Where the state before `chunk` is written."""
        return Path(self.folder) / f"chunk.{chunk:06d}.part"

    def begin(self, chunk: int) -> Path:
        """Make room for a new state; what an earlier run left unfinished there goes."""
        part = self.part(chunk)
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        return part

    def drop(self, chunk: int) -> None:
        """Remove what was written of a state that does not become whole."""
        shutil.rmtree(self.part(chunk), ignore_errors=True)

    def complain(self, error: object) -> None:
        """Say that a state could not be saved; the stream goes on."""
        log.warning("the state in %s was not saved: %s", self.folder, error)

    def complete(self, chunk: int, files: dict[str, str], content: dict[str, Any]) -> Path:
        """Make what was written a state, and remove the others of this stream."""
        root, part = Path(self.folder), self.part(chunk)
        content = {"format": FORMAT, "chunk": chunk, "mark": self.mark, "identity": self.identity, **content}
        with (part / CONTENT).open("w") as file:
            json.dump(content | {"files": files}, file, indent=2)
            file.flush()
            os.fsync(file.fileno())
        target = root / f"chunk.{chunk:06d}"
        if target.exists():
            if not self._owns(target):
                disk.keep_aside(root, [target])
            else:
                aside = root / f"chunk.{chunk:06d}.old"
                shutil.rmtree(aside, ignore_errors=True)
                target.rename(aside)
        part.rename(target)
        for other in root.glob("chunk.*"):
            found = OTHERS.fullmatch(other.name)  # all else is somebody's own
            later = found and found[2] == ".part" and int(found[1]) > chunk  # being written now
            if found and other != target and not later and self._owns(other):
                shutil.rmtree(other, ignore_errors=True)
        return target

    def _owns(self, folder: Path) -> bool:
        """Whether a state is of this stream; one that was never whole is nobody's, and so counts as its own."""
        try:
            return not is_file(folder / CONTENT) or State(folder).mark == self.mark
        except (OSError, ValueError, AttributeError):
            return False

"""What was sampled for every chunk of a stream, as a file that another run can be driven by.

A line of JSON for each chunk, appended when the chunk is sampled:

    {"chunk": 7, "prompt": "...", "sound": "...", "actions": [1, 1, ...], "pictures": {"jpeg": [...], "shown": [...]},
     "fit": {"height": 64, "width": 64, "how": "letterbox"},
     "views": {"poses": [[[1, 0, 0, 0], ...], ...], "intrinsics": [[0.5, ...], ...]}}

`prompt` is there where one begins with the chunk; `sound` is the 16 kHz mono PCM that was read from the source for it,
as base64 of 16-bit little-endian samples; `actions` is a row for each video frame (`stages.controls`): an index, or a
list of numbers where keys may be held together. `pictures` are those of a
session's camera: `jpeg`, in base64, those that were decoded for the chunk, and `shown` an index in it for each video
frame, -1 for grey; `fit` beside them is the size and the way in which they came to it (`source.fit`): another stream
would show other pixels. `views` are what `source.camera` said of each video frame: its pose, and intrinsics in widths
and heights of the picture; those of a camera that is driven follow from `actions`. Where the stream ended there is a
last line `{"end": 40}`: chunks before it were all that was made. A run driven by the file makes the same latents.
"""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from conf import disk
from conf.errors import UserError
from conf.typed import typed
from runtime.filmed import RecordedFrames
from stages.controls import Controls, Row, row_of
from stages.inputs import Views
from stages.sources.audio import RATE, Pcm
from stages.sources.film import Shots
from stages.sources.fitting import Fit
from stages.sources.poses import recorded_poses

SCALE = 32768
"""Samples in [-1, 1] come from 16-bit integers divided by this, so multiplying gives the integers back exactly."""
LONGEST_LINE = 1 << 25
"""Bytes: a prompt of the longest there is, minutes of sound, and 90 of the largest pictures that a session takes."""


class Tap:
    """A source of sound that remembers what was read since it was asked last.

    Args:
        source: where the sound comes from.
    """

    def __init__(self, source: Pcm):
        self.source, self.rate, self.duration_s = source, source.rate, source.duration_s
        self._read: list[np.ndarray] = []

    def read(self, samples: int) -> np.ndarray:
        """The next samples, float32; fewer only at the end."""
        got = self.source.read(samples)
        self._read.append(got)
        return got

    def taken(self) -> np.ndarray:
        """Samples read since the last call, float32 [n]."""
        read, self._read = self._read, []
        return np.concatenate(read) if read else np.zeros(0, np.float32)

    def close(self) -> None:
        """Release the source."""
        self.source.close()


class InputsSink:
    """Writes the file, a line a chunk.

    Args:
        path: the file, made with the first line: before, weights load and nothing is written. It is replaced, or gone
            on with where `first` is above 0.
        first: the first chunk that will be sampled.
        private: whether nobody but this user may read it: it holds what others said.
        fit: how a camera's pictures come to the stream's size.

    Raises:
        UserError: it could not be made.
    """

    def __init__(self, path: str | Path, first: int = 0, private: bool = False, fit: Fit | None = None):
        self.path, self._first, self._mode = Path(path), first, 0o600 if private else 0o666
        self._fit = fit
        self._file: BinaryIO | None = None
        with self._writing():
            disk.look_file(self.path)

    def chunk(
        self,
        chunk: int,
        prompt: str | None,
        sound: np.ndarray | None,
        actions: Sequence[Row] | None,
        shots: Shots | None = None,
        views: Views | None = None,
    ) -> None:
        """What `chunk` was sampled from.

        Raises:
            UserError: the disk refuses.
        """
        line: dict[str, Any] = {"chunk": chunk}
        if prompt is not None:
            line["prompt"] = prompt
        if sound is not None:
            line["sound"] = base64.b64encode(np.round(sound * SCALE).astype("<i2").tobytes()).decode()
        if actions is not None:
            line["actions"] = list(actions)
        if shots is not None:
            line["pictures"] = shots.told()
            if self._fit:
                line["fit"] = vars(self._fit)
        if views is not None:
            line["views"] = {"poses": views.poses[1:].tolist(), "intrinsics": views.intrinsics[1:].tolist()}
        self._write(line)

    def end(self, chunk: int) -> None:
        """The stream has ended before `chunk`."""
        self._write({"end": chunk})

    def close(self) -> None:
        """Finish the file."""
        if self._file:
            self._file.close()

    def _open(self) -> BinaryIO:
        """The file, ready for the first line to come: behind those of the chunks before it, and nothing else."""
        path = disk.prepare(self.path)
        goes_on = self._first > 0 and path.exists()
        if not path.exists():
            os.close(os.open(path, os.O_CREAT | os.O_WRONLY, self._mode))
        file = path.open("r+b" if goes_on else "wb")
        if goes_on:
            file.truncate(_whole(file, self._first))
            file.seek(0, os.SEEK_END)
        return file

    def _write(self, line: dict[str, Any]) -> None:
        with self._writing():
            if self._file is None:
                self._file = self._open()
            self._file.write(json.dumps(line, separators=(",", ":")).encode() + b"\n")
            self._file.flush()

    def _writing(self) -> AbstractContextManager[None]:
        return disk.writing(f"sink.inputs={self.path}")


def _whole(file: BinaryIO, chunks: int) -> int:
    """Bytes of a file's lines of chunks 0, 1, ..., up to `chunks` of them: who goes on makes those behind them anew."""
    end = 0
    for chunk in range(chunks):
        line = file.readline(LONGEST_LINE)
        try:
            if not line.endswith(b"\n") or json.loads(line)["chunk"] != chunk:
                break
        except (ValueError, KeyError, TypeError, RecursionError):
            break
        end += len(line)
    return end


class Inputs:
    """A file of inputs, read whole: it drives a stream as the sources did that it was recorded from.

    Args:
        path: the file.

    Attributes:
        prompts: by the chunk with which each begins.
        chunks: how many there are.

    Raises:
        UserError: the file is missing, or is none of inputs.
    """

    def __init__(self, path: str | Path):
        self._name, self._path = f"source.inputs={path}", path
        self.prompts: dict[int, str] = {}
        self.chunks, sound, self._actions = 0, [], []
        self._poses: list[np.ndarray] = []
        self._intrinsics: list[np.ndarray] = []
        self._filmed: list[tuple[int, int]] = []
        """Where each line with pictures begins, and how many frames they are shown in."""
        self._fit: Fit | None = None
        disk.readable(self._name, path, "give a file of sink.inputs")
        try:
            with Path(path).open("rb") as file:
                lines, start = iter(lambda: file.readline(LONGEST_LINE), b""), 0
                for number, line in enumerate(lines, 1):
                    self._take(number, line, sound, start)
                    start += len(line)
        except OSError as error:
            raise UserError(self._name, f"cannot be read ({error.strerror})", "give a file of sink.inputs") from error
        if not self.chunks:
            raise UserError(self._name, "holds no chunk", "give a file that sink.inputs wrote")
        self.sound = Recorded(np.concatenate(sound) if sound else np.zeros(0, np.float32)) if sound else None
        views = self._poses, self._intrinsics
        self.poses = recorded_poses(self._name, *map(np.concatenate, views)) if self._poses else None

    def actions(self, controls: Controls) -> RecordedActions | None:
        """What was pressed, as a source; None: nothing was recorded.

        Raises:
            UserError: it is of a model with other controls.
        """
        if not all(map(controls.fits, self._actions)):
            raise UserError(self._name, "holds actions of another model", "give one that was recorded with this one")
        return RecordedActions(list(map(row_of, self._actions))) if self._actions else None

    @property
    def sees(self) -> bool:
        """Whether a camera was recorded."""
        return bool(self._filmed)

    def frames(self, fit: Fit) -> RecordedFrames:
        """What it saw, as a source.

        Raises:
            UserError: its pictures came to another size, or in another way.
        """
        if (had := self._fit) not in (None, fit):
            raise UserError(
                self._name,
                f"was recorded at {had.height}x{had.width} with source.fit={had.how}, this run has "
                f"{fit.height}x{fit.width} with {fit.how}",
                f"set stream.height={had.height} stream.width={had.width} source.fit={had.how}",
            )
        return RecordedFrames(self._path, self._filmed, fit)

    def _take(self, number: int, line: bytes, sound: list[np.ndarray], start: int) -> None:
        if len(line) == LONGEST_LINE:
            raise UserError(
                f"{self._name} line {number}",
                f"is longer than {LONGEST_LINE} bytes",
                "give a file that sink.inputs wrote",
            )
        if not line.endswith(b"\n"):
            return  # the run was killed while it wrote
        try:
            entry = json.loads(line)
            if "end" in entry:
                return
            if entry["chunk"] != self.chunks:
                raise ValueError(f"chunk {entry['chunk']} where {self.chunks} is due")
            if "prompt" in entry:
                self.prompts[self.chunks] = typed(str, entry["prompt"], "prompt")
            if "sound" in entry:
                sound.append(np.frombuffer(base64.b64decode(entry["sound"]), "<i2").astype(np.float32) / SCALE)
            self._actions += entry.get("actions", [])
            if "views" in entry:
                self._poses.append(np.array(entry["views"]["poses"], np.float64).reshape(-1, 4, 4))
                self._intrinsics.append(np.array(entry["views"]["intrinsics"], np.float64).reshape(-1, 4))
            if "pictures" in entry:
                self._filmed.append((start, len(entry["pictures"]["shown"])))
                self._fit = Fit(**entry["fit"]) if "fit" in entry else None
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError, UserError) as error:
            raise UserError(
                f"{self._name} line {number}", f"is no line of inputs ({error})", "give a file that sink.inputs wrote"
            ) from error
        self.chunks += 1


class Recorded:
    """Sound that was recorded, as a source."""

    rate = RATE

    def __init__(self, samples: np.ndarray):
        self._samples, self._at = samples, 0
        self.duration_s = len(samples) / RATE

    def read(self, samples: int) -> np.ndarray:
        """The next samples, float32; fewer only at the end."""
        part = self._samples[self._at : self._at + samples]
        self._at += len(part)
        return part

    def close(self) -> None:
        """Nothing to release."""


class RecordedActions:
    """Actions that were recorded, a row for each video frame, as a source."""

    accepted = None

    def __init__(self, actions: Sequence[Row]):
        self._actions = list(actions)
        self.ended = False

    def take(self, first_frame: int, count: int) -> list[Row]:
        """The row of each of `count` frames from `first_frame` on; the last one holds."""
        end = first_frame + count
        self.ended = end >= len(self._actions)
        return [self._actions[min(frame, len(self._actions) - 1)] for frame in range(max(0, first_frame), end)]

    def close(self) -> None:
        """Nothing to release."""

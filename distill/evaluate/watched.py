"""One stream of a comparison, read while it is made: per segment how it looks, whom it shows, whether it obeys.

What takes long to read (lips, the camera) is read of the last `TAIL` chunks of every segment only.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np

from distill.data import world
from distill.evaluate import camera, drift, faces, walks
from distill.evaluate.streams import Case, Engine

TAIL = 6
"""Chunks at the end of a segment that are read closely."""
LIPS, GLANCE = 3, 4
"""Lips are read in every third of those frames, and who or what it is in every fourth frame of the stream."""
DAY = 97.0
"""Mean grey value of the upper half, 0 ... 255, above which it is day; 98 % of drawn frames are told right."""
DATA_CLIPS = 24


class Judge(Protocol):
    """What reads streams of one held-out case."""

    follows: str
    """What obeying is called."""

    def case(self) -> Case:
        """The case, as new."""
        ...

    def glance(self, frames: np.ndarray) -> np.ndarray:
        """Who or what frames show, as numbers."""
        ...

    @property
    def asked(self) -> Any:
        """The number that was asked for."""
        ...

    def sharpness(self, end: int) -> float:
        """Of the data, through the codec, in the segment that ends before chunk `end`."""
        ...

    def read(self, case: Case, end: int, shown: np.ndarray) -> tuple[float, np.ndarray]:
        """Motion over that of the data, and what `obeyed` pools, of the frames before chunk `end` and one ahead."""
        ...

    def obeyed(self, pooled: np.ndarray) -> float:
        """How well a stream obeys, of such arrays joined along the last axis."""
        ...


class Faces:
    """The judge of a talking head: the sound's mouth, the asked person, motion of the generator's own clip."""

    follows = "lip sync"

    def __init__(self, engine: Engine, talk: faces.Talk, observer: faces.Observer):
        self.engine, self.talk, self.observer, self.count = engine, talk, observer, engine.frames_per_chunk
        self.truth = talk.truth(talk.chunks * self.count).frames
        self._data: dict[int, tuple[float, float]] = {}

    def case(self) -> Case:
        """A talk keeps nothing."""
        return self.talk

    def glance(self, frames: np.ndarray) -> np.ndarray:
        """People's numbers."""
        return self.observer.people.who(frames)

    @property
    def asked(self) -> int:
        """The person."""
        return self.talk.scene.identity

    def _of_data(self, end: int) -> tuple[float, float]:
        if end not in self._data:
            frames = self.engine.through(self.truth[(end - TAIL) * self.count : end * self.count])
            self._data[end] = faces.motion(frames), float(drift.look(frames)[:, 2].mean())
        return self._data[end]

    def sharpness(self, end: int) -> float:
        """Of the same talk."""
        return self._of_data(end)[1]

    def read(self, case: Case, end: int, shown: np.ndarray) -> tuple[float, np.ndarray]:
        """Mouths [1 + lags, n]: as seen, and as heard some frames before."""
        frames, start = shown[-TAIL * self.count :: LIPS], (end - TAIL) * self.count
        mouth = self.observer.read(frames, self.talk, feelings=False)["openness"]
        at = start + LIPS * np.arange(len(frames))
        heard = [self.talk.openness[np.maximum(at - lag, 0)] for lag in faces.WITHIN]
        return faces.motion(shown) / self._of_data(end)[0], np.stack([mouth, *heard])

    def obeyed(self, pooled: np.ndarray) -> float:
        """Correlation at the best lag of those allowed."""
        seen, moves = pooled[0], pooled.std(1) > 1e-6
        found = [np.corrcoef(seen, heard)[0, 1] for heard in pooled[1:][moves[1:]]]
        return float(max(found)) if found and moves[0] else 0.0


class Walks:
    """The judge of a maze: the camera against the keys, day against night, motion of the data for the same keys."""

    follows = "action following"

    def __init__(self, engine: Engine, number: int, chunks: int):
        self.number, self.chunks, size = number, chunks, engine.model.height
        self.usual = walks.usual(size, engine.through, DATA_CLIPS)
        clips = (world.sample(seed, 48, size, held_out=True) for seed in range(DATA_CLIPS))
        self.asked = int(self.case().prompt.endswith("day"))
        of_time = [c.frames for c in clips if (c.scene.time == "day") == self.asked]
        self._sharpness = float(np.mean([drift.look(engine.through(frames))[:, 2].mean() for frames in of_time]))

    def case(self) -> Case:
        """A player who has pressed nothing yet."""
        return walks.Walk(self.number, self.chunks)

    def glance(self, frames: np.ndarray) -> np.ndarray:
        """1 by day, 0 by night."""
        return (frames[:, : frames.shape[1] // 2].mean((1, 2, 3)) > DAY).astype(int)

    def sharpness(self, end: int) -> float:
        """Of clips at that time of day: of other walls."""
        return self._sharpness

    def read(self, case: Case, end: int, shown: np.ndarray) -> tuple[float, np.ndarray]:
        """Whether the camera did what was asked [1, n]."""
        asked = np.concatenate(case.pressed[-TAIL:])[-len(shown) + 1 :]
        right = camera.motion(shown) == asked
        return float(walks.change(shown).sum() / self.usual[asked].sum()), right[None].astype(float)

    def obeyed(self, pooled: np.ndarray) -> float:
        """The share of frames."""
        return float(pooled.mean())


class Watch:
    """One stream as it goes.

    Args:
        judge: of its case.
        per: chunks of a segment, more than `TAIL`.
        marks: chunks whose last frame is kept as a picture.

    Attributes:
        segments: what every segment shows, by name.
        pictures: frames uint8 [H, W, 3] at the marks so far.
    """

    def __init__(self, judge: Judge, per: int, marks: list[int]):
        self.judge, self.case, self.per, self.marks = judge, judge.case(), per, marks
        self.segments: dict[str, list[float]] = {}
        self.pictures: list[np.ndarray] = []
        self._chunks, self._last, self._usual = 0, [], None
        self._looks: list[np.ndarray] = []
        self._glances: list[np.ndarray] = []
        self._pooled: list[np.ndarray] = []
        self._first = np.zeros(3)

    def add(self, frames: np.ndarray) -> None:
        """The next chunk's frames."""
        self._looks.append(drift.look(frames))
        self._glances.append(frames[::GLANCE])
        self._last = [*self._last, frames][-TAIL - 1 :]
        self.pictures += [frames[-1]] * self.marks.count(self._chunks)
        self._chunks += 1
        if self._chunks % self.per == 0:
            for name, value in self._segment().items():
                self.segments.setdefault(name, []).append(float(value))
            self._looks, self._glances = [], []

    def _segment(self) -> dict[str, float]:
        looks, seen = np.concatenate(self._looks).mean(0), self.judge.glance(np.concatenate(self._glances))
        if self._usual is None:
            self._usual, self._first = np.bincount(seen).argmax(), looks
        shown = np.concatenate(self._last)[len(self._last[0]) - 1 :]
        motion, read = self.judge.read(self.case, self._chunks, shown)
        self._pooled.append(read)
        return {
            "drift (%)": 100 * np.abs(looks / self._first - 1).max(),
            "identity": (seen == self.judge.asked).mean(),
            "as it began": (seen == self._usual).mean(),
            "sharpness": looks[2] / self.judge.sharpness(self._chunks),
            "motion": motion,
            self.judge.follows: self.judge.obeyed(read),
        }

    @property
    def numbers(self) -> dict[str, float]:
        """Of the stream so far: drift, people and sharpness of its last segment, motion and obedience of all."""
        last = {name: values[-1] for name, values in self.segments.items()}
        whole = {"motion": float(np.mean(self.segments["motion"]))}
        return last | whole | {self.judge.follows: self.judge.obeyed(np.concatenate(self._pooled, axis=-1))}

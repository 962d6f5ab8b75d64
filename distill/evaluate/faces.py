"""The talking head's evaluation: held-out people, voices and seeds, and what their streams show."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from conf.schema import ModelConfig
from distill.data import avatar, sound
from distill.data.people import BACKGROUNDS, EMOTIONS, FPS
from distill.evaluate import gallery, portrait
from distill.evaluate.drift import Segments
from distill.evaluate.streams import Engine, chunks_of
from stages.inputs import FRAMES_PER_LATENT

PEOPLE = 50
"""References among which the right one must be the nearest."""
LAGS = range(-4, 9)
WITHIN = range(3)
"""Lags in frames at which a mouth may follow its sound."""
EVERY = 4
FELT = 8
"""Who it is in long streams, and feelings, are read from every so many frames."""


@dataclass
class Talk:
    """One stream's case: who, before what, in which mood, saying what.

    Args:
        number: of the case; everything is a function of it.
        chunks: length.
        frames_per_chunk: video frames of a chunk.
        size: of the pictures.
    """

    number: int
    chunks: int
    frames_per_chunk: int
    size: int = 64
    scene: avatar.Scene = field(init=False)

    def __post_init__(self):
        self.scene = cast(self.number + 1)[self.number]
        self.seed = 7000 + self.number
        self.heard = sound.clip(0xE7A1 + self.number, self.chunks * self.frames_per_chunk, held_out=True)
        self.mouth = sound.mouth(self.heard)
        self.openness = self.mouth[:, 0]

    @property
    def prompt(self) -> str:
        return self.scene.prompt

    def reference(self) -> np.ndarray:
        """As in training: the prompt may name another mood, another background, or both, than the picture shows."""
        mood, place = EMOTIONS, list(BACKGROUNDS)
        other_mood = mood[(mood.index(self.scene.emotion) + 1 + self.number) % len(mood)]
        other_place = place[(place.index(self.scene.background) + 1 + self.number) % len(place)]
        emotion = other_mood if self.number % 2 else None
        return avatar.reference(self.scene, self.size, emotion, other_place if self.number // 2 % 2 else None)

    def features(self, frames: range) -> np.ndarray:
        """What is heard."""
        return self.heard[frames.start : frames.stop]

    def actions(self, frames: range, seen: np.ndarray | None) -> None:
        """Nobody steers a face."""
        return None

    def truth(self, frames: int) -> avatar.AvatarClip:
        """The generator's own clip of this case."""
        start = 0x1000 + self.number
        return avatar.perform(self.scene, frames, self.mouth[:frames], self.size, start)


def cast(count: int) -> list[avatar.Scene]:
    """The first `count` held-out scenes with different people, moods and backgrounds taking turns."""
    scenes, seen, seed = [], set(), 0
    while len(scenes) < count:
        scene = avatar.scene(seed, held_out=True)
        if scene.identity not in seen:
            seen.add(scene.identity)
            mood, place = EMOTIONS[len(scenes) % len(EMOTIONS)], list(BACKGROUNDS)[len(scenes) * 3 % len(BACKGROUNDS)]
            scenes.append(avatar.Scene(scene.identity, place, mood, scene.motion))
        seed += 1
    return scenes


@dataclass
class Observer:
    """The estimators, made once."""

    people: gallery.Gallery = field(default_factory=lambda: gallery.Gallery([scene.identity for scene in cast(PEOPLE)]))

    def read(self, frames: np.ndarray, talk: Talk, feelings: bool = True) -> dict[str, np.ndarray]:
        """What frames uint8 [n, H, W, 3] of a case show: arrays of n, or of every `FELT`-th for feelings."""
        scene = talk.scene
        pose = self.people.pose(frames, scene.identity)
        face = portrait.fit(frames, scene, pose)
        found = {
            "openness": face.mouth[:, 0],
            "lids": face.blink,
            "person": self.people.who(frames) == scene.identity,
            "background": np.array([b == scene.background for b in gallery.named(gallery.background(frames))]),
        }
        if feelings:
            guessed = portrait.feelings(frames[::FELT], scene, face.best[::FELT])
            found["emotion"] = np.array([g == scene.emotion for g in guessed])
        return found


def follows(openness: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Correlation of a measured mouth [n] with its sound's [n], by lag of `LAGS`."""
    found = []
    for lag in LAGS:
        late = openness[max(lag, 0) : len(openness) + min(lag, 0)]
        early = truth[max(-lag, 0) : len(truth) + min(-lag, 0)]
        spread = late.std() * early.std()
        found.append(float(((late - late.mean()) * (early - early.mean())).mean() / spread) if spread > 1e-6 else 0.0)
    return np.array(found)


def motion(frames: np.ndarray) -> float:
    """Mean absolute difference of successive frames uint8 [n, H, W, 3], 0 ... 255."""
    return float(np.abs(np.diff(frames.astype(np.int16), axis=0)).mean())


def summary(readings: Sequence[dict[str, np.ndarray]], talks: Sequence[Talk]) -> dict[str, float]:
    """Numbers of short clips: means over frames, and over clips of the correlation at each lag."""
    pairs = [(r["openness"], t.openness[: len(r["openness"])]) for r, t in zip(readings, talks, strict=True)]
    by_lag = np.mean([follows(*pair) for pair in pairs], axis=0)
    allowed = [LAGS.index(lag) for lag in WITHIN]
    out = {
        "mouth correlation": float(by_lag[allowed].max()),
        "mouth lag (frames)": float(LAGS[int(by_lag.argmax())]),
        "identity at the end": float(np.mean([r["person"][-FPS:].mean() for r in readings])),
        "background": float(np.mean([r["background"].mean() for r in readings])),
        "blinks per minute": 60
        * FPS
        * sum(portrait.blinks(r["lids"]) for r in readings)
        / sum(len(r["lids"]) for r in readings),
    }
    if "emotion" in readings[0]:
        out["emotion"] = float(np.mean(np.concatenate([r["emotion"] for r in readings])))
    return out


def talks(model: ModelConfig, count: int, seconds: float, first: int = 0) -> list[Talk]:
    """Cases first ... first + count - 1."""
    chunks = chunks_of(model, seconds)
    return [Talk(first + i, chunks, model.chunk_frames * FRAMES_PER_LATENT, model.height) for i in range(count)]


def short(engine: Engine, cases: Sequence[Talk], seconds: float, observer: Observer) -> dict[str, float]:
    """Numbers of streams of `seconds`, one per case."""
    readings, moved, should, drawn = [], 0.0, 0.0, 0.0
    for talk in cases:
        frames = np.concatenate(list(engine.stream(talk)))[: round(seconds * engine.model.fps)]
        readings.append(observer.read(frames, talk))
        moved += motion(frames)
        truth = talk.truth(len(frames)).frames
        should += motion(engine.through(truth))
        drawn += motion(truth)
    return summary(readings, cases) | {"motion ratio": moved / should, "motion ratio to drawn data": moved / drawn}


def long(engine: Engine, talk: Talk, segment_s: float, observer: Observer) -> dict:
    """One long stream: its segments' values, their slopes, and what its last ten seconds show."""
    fps = engine.model.fps
    segments, last = Segments(round(segment_s * fps), fps), []
    tail = round(10 * fps)
    person: list[np.ndarray] = []
    for frames in engine.stream(talk):
        segments.add(frames)
        person.append(observer.people.who(frames[::EVERY]) == talk.scene.identity)
        last = [*last, frames][-(tail // len(frames) + 1) :]
    ending = np.concatenate(last)
    found = observer.read(ending, talk, feelings=True)
    truth = talk.openness[len(talk.openness) - len(ending) :]
    by_lag = follows(found["openness"], truth)
    per = max(1, round(segment_s * fps / engine.frames_per_chunk))
    return {
        "slopes": segments.slopes(),
        "segments": {name: v.tolist() for name, v in segments.values().items()}
        | {"identity": [float(np.concatenate(person[i : i + per]).mean()) for i in range(0, len(person), per)]},
        "identity at the end": float(found["person"].mean()),
        "background at the end": float(found["background"].mean()),
        "emotion at the end": float(found["emotion"].mean()),
        "mouth correlation at the end": float(by_lag[[LAGS.index(lag) for lag in WITHIN]].max()),
    }


def check(cases: Sequence[Talk], seconds: float, observer: Observer, through=None) -> dict[str, float]:
    """What the estimators find in the generator's own clips; `through` is applied to the clips first (a codec).

    Scores are shares of right answers, and for the mouth the correlation with the truth.
    """
    readings, blinked, seen = [], 0, 0
    for talk in cases:
        clip = talk.truth(round(seconds * FPS))
        frames = clip.frames if through is None else through(clip.frames)
        readings.append(observer.read(frames, talk))
        blinked += portrait.blinks(clip.blink)
        seen += portrait.blinks(readings[-1]["lids"])
    found = summary(readings, cases)
    scores = {
        "mouth": found["mouth correlation"],
        "identity": float(np.mean([r["person"].mean() for r in readings])),
        "background": found["background"],
        "emotion": found["emotion"],
    }
    return scores | {"blinks counted": float(seen), "blinks there": float(blinked)}

"""The maze's evaluation: held-out seeds, a player who sees only the picture, and how the camera moved."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from conf.schema import ModelConfig
from distill.data import world
from distill.data.maze import ACTIONS, NONE
from distill.evaluate import camera
from distill.evaluate.drift import Segments
from distill.evaluate.sight import Sighted
from distill.evaluate.streams import Engine, chunks_of

# The first chunk is dreamed from nothing while the player waits.
WAIT = NONE
DATA = 24
"""Held-out clips whose motion, per class, is what a stream's is compared with."""


@dataclass
class Walk:
    """One stream's case: a time of day, a noise, a player.

    Args:
        number: of the case; everything is a function of it.
        chunks: length.
    """

    number: int
    chunks: int
    pressed: list[np.ndarray] = field(default_factory=list)

    def __post_init__(self):
        self.seed = 7000 + self.number
        self.player = Sighted(self.number)

    @property
    def prompt(self) -> str:
        return world.Scene(0, world.TIMES[self.number % len(world.TIMES)]).prompt

    def reference(self) -> None:
        """A world begins from nothing."""
        return None

    def features(self, frames: range) -> None:
        """And hears nothing."""
        return None

    def actions(self, frames: range, seen: np.ndarray | None) -> np.ndarray:
        """What the player presses after the last chunk."""
        keys = np.full(len(frames), WAIT) if seen is None else self.player.press(len(frames), seen)
        self.pressed.append(keys)
        return keys


def walks(model: ModelConfig, count: int, seconds: float, first: int = 0) -> list[Walk]:
    """Cases first ... first + count - 1."""
    return [Walk(first + i, chunks_of(model, seconds)) for i in range(count)]


def change(frames: np.ndarray) -> np.ndarray:
    """Mean absolute difference [n - 1] of successive frames uint8 [n, H, W, 3], 0 ... 255."""
    return np.abs(np.diff(frames.astype(np.int16), axis=0)).mean(axis=(1, 2, 3))


def usual(size: int, through=None, clips: int = DATA, frames: int = 48) -> np.ndarray:
    """How much the picture changes in a frame of each action [5], in held-out clips of the generator.

    `through` is applied to the clips first: what the codec makes of them, to compare like with like.
    """
    sums, counts = np.zeros(len(ACTIONS)), np.zeros(len(ACTIONS))
    for seed in range(clips):
        clip = world.sample(seed, frames, size, held_out=True)
        np.add.at(sums, clip.motion[1:], change(clip.frames if through is None else through(clip.frames)))
        np.add.at(counts, clip.motion[1:], 1)
    return sums / np.maximum(counts, 1)


def confusion(asked: np.ndarray, found: np.ndarray) -> np.ndarray:
    """[5, 5] counts: asked by found."""
    table = np.zeros((len(ACTIONS), len(ACTIONS)), np.int64)
    np.add.at(table, (asked, found), 1)
    return table


def shares(table: np.ndarray) -> dict[str, float]:
    """Frames whose camera did what was asked: of all, and of each action."""
    per = {name: table[i, i] / table[i].sum() for i, name in enumerate(ACTIONS) if table[i].sum()}
    return {"action following": float(np.trace(table) / max(1, table.sum()))} | {
        f"following: {name}": float(v) for name, v in per.items()
    }


def short(engine: Engine, cases: Sequence[Walk], seconds: float) -> dict[str, float]:
    """Numbers of streams of `seconds`, one per case, from the second chunk on."""
    table, moved, should, raw = confusion(np.zeros(0, int), np.zeros(0, int)), 0.0, 0.0, 0.0
    size, skip = engine.model.height, engine.frames_per_chunk
    clips = DATA if len(cases) > 3 else 3 * len(cases)
    data, drawn = usual(size, engine.through, clips), usual(size, None, clips)
    for walk in cases:
        frames = np.concatenate(list(engine.stream(walk)))[: round(seconds * engine.model.fps)]
        asked = np.concatenate(walk.pressed)[: len(frames)][skip:]
        table += confusion(asked, camera.motion(frames[skip - 1 :]))
        moved += change(frames[skip - 1 :]).sum()
        should += data[asked].sum()
        raw += drawn[asked].sum()
    return shares(table) | {"motion ratio": float(moved / should), "motion ratio to drawn data": float(moved / raw)}


def long(engine: Engine, walk: Walk, segment_s: float, ending_s: float = 30.0) -> dict:
    """One long stream: its segments' values, their slopes, and how actions are followed in each segment's end."""
    fps, count = engine.model.fps, engine.frames_per_chunk
    segments, tail = Segments(round(segment_s * fps), fps), round(ending_s * fps / count)
    per, last, following = max(1, round(segment_s * fps / count)), [], []
    table, moved, should, data = None, 0.0, 0.0, usual(engine.model.height, engine.through)
    for chunk, frames in enumerate(engine.stream(walk)):
        segments.add(frames)
        last = [*last, frames][-tail - 1 :]
        at_end = chunk + 1 == walk.chunks
        if at_end or (chunk + 1) % per == 0:
            # Of every segment a few seconds, of the stream's end all that was kept.
            part = last if at_end else last[-8:]
            shown = np.concatenate(part)[count - 1 :]
            asked = np.concatenate(walk.pressed[-(len(part) - 1) :])
            table = confusion(asked, camera.motion(shown))
            following.append(float(np.trace(table) / table.sum()))
            moved, should = change(shown).sum(), data[asked].sum()
    return {
        "slopes": segments.slopes(),
        "segments": {name: v.tolist() for name, v in segments.values().items()} | {"action following": following},
        "action following at the end": float(np.trace(table) / table.sum()),
        "motion ratio at the end": float(moved / should),
        "confusion at the end": table.tolist(),
    }


def check(count: int, seconds: float, size: int, through=None) -> dict[str, float]:
    """What the estimator finds in held-out clips of the generator; `through` is applied to the clips first."""
    table = confusion(np.zeros(0, int), np.zeros(0, int))
    for seed in range(100, 100 + count):
        clip = world.sample(seed, round(seconds * 16), size, held_out=True)
        frames = clip.frames if through is None else through(clip.frames)
        table += confusion(clip.motion[1:], camera.motion(frames))
    return {"camera": float(np.trace(table) / table.sum())}

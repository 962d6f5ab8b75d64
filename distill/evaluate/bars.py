"""What a released model must reach, and whether one set of weights beats another."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

ESTIMATORS = 0.98
"""What every estimator must score on the generator's own clips before anything it says counts."""
MOTION = (0.8, 1.2)
SLOPE = 2.0
"""Percent of the first segment's value per minute."""
PSNR = {"avatar": 30.0, "world": 28.0}


@dataclass(frozen=True)
class Bar:
    """One number that was asked for. `met` is None where it was not measured or its estimator cannot be trusted."""

    name: str
    rule: str
    value: float | None
    met: bool | None

    @staticmethod
    def at_least(name: str, value: float | None, least: float, unit: str = "") -> Bar:
        """A value from `least` on."""
        return Bar(name, f">= {least:g}{unit}", value, None if value is None else bool(value >= least))

    @staticmethod
    def within(name: str, value: float | None, lo: float, hi: float) -> Bar:
        """A value from `lo` to `hi`."""
        return Bar(name, f"{lo:g} to {hi:g}", value, None if value is None else bool(lo <= value <= hi))

    @staticmethod
    def below(name: str, value: float | None, most: float, unit: str = "") -> Bar:
        """A value whose size is below `most`."""
        return Bar(name, f"< {most:g}{unit}", value, None if value is None else bool(abs(value) < most))


def _slopes(run: dict) -> list[Bar]:
    names = ("mean", "variance", "sharpness")
    return [Bar.below(f"drift: {n}", run.get(f"drift: {n}"), SLOPE, " %/min") for n in names]


def of(kind: str, run: dict[str, float], psnr: float, trusted: dict[str, bool]) -> list[Bar]:
    """The bars of an avatar or a world.

    Args:
        kind: `avatar` or `world`.
        run: the shipped weights' numbers.
        psnr: the decoder's, in dB.
        trusted: by estimator, whether it reads the generator's own clips right.
    """
    if kind == "avatar":
        lag, mouth = run.get("mouth lag (frames)"), run.get("mouth correlation")
        own = [
            Bar("mouth-sound correlation", ">= 0.85 at lag 0-2", mouth, bool(mouth >= 0.85 and 0 <= lag <= 2)),
            Bar.at_least("identity at second 5", run.get("identity at the end"), 0.95),
            Bar.at_least("identity at minute 10", run.get("late: identity"), 0.95),
            Bar.at_least("background", run.get("background"), 0.95),
        ]
        judges = ["mouth", "identity", "identity", "background"]
    else:
        own = [
            Bar.at_least("action following at second 5", run.get("action following"), 0.95),
            Bar.at_least("action following at minute 10", run.get("late: action following"), 0.95),
        ]
        judges = ["camera", "camera"]
    own = [
        bar if trusted[judge] else Bar(bar.name, bar.rule, bar.value, None)
        for bar, judge in zip(own, judges, strict=True)
    ]
    return [
        *own,
        Bar.within("motion ratio", run.get("motion ratio"), *MOTION),
        *_slopes(run),
        Bar.at_least("decoder PSNR", psnr, PSNR[kind], " dB"),
    ]


def _one(value: float) -> float:
    return abs(value - 1)


def quality(kind: str, blinks: float) -> dict[str, Callable[[float], float]]:
    """Numbers that two sets of weights are compared by: name to what is to be small.

    Args:
        kind: `avatar` or `world`.
        blinks: how often the data blinks in a minute.
    """
    both = {"motion ratio": _one} | {f"drift: {n}": abs for n in ("mean", "variance", "sharpness")}
    if kind == "world":
        return {"action following": lambda v: -v, "late: action following": lambda v: -v} | both
    rising = ("mouth correlation", "identity at the end", "background", "emotion")
    late = ("late: mouth correlation", "late: identity", "late: background", "late: emotion")
    return {n: (lambda v: -v) for n in (*rising, *late)} | {"blinks per minute": lambda v: abs(v - blinks)} | both


def compared(kind: str, ours: dict[str, float], theirs: dict[str, float], blinks: float) -> dict[str, str]:
    """By number: `better`, `equal` or `worse`, ours than theirs; only what both have."""
    out = {}
    for name, small in quality(kind, blinks).items():
        if name in ours and name in theirs:
            a, b = small(ours[name]), small(theirs[name])
            out[name] = "equal" if a == b else "better" if a < b else "worse"
    return out

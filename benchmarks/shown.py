"""What a viewer was shown, frame by frame, against an undisturbed run."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise, zip_longest
from pathlib import Path
from typing import Any

import av
import numpy as np

CODEC = 6.0
"""Mean difference of a frame's pixels from the undisturbed run's, of 255, that may be the codec's."""
SOUND_S = 0.1


def frames(video: Path) -> Iterator[tuple[float, np.ndarray]]:
    """(seconds, pixels) of every frame."""
    with av.open(str(video)) as container:
        for frame in container.decode(video=0):
            yield float(frame.pts * frame.time_base), frame.to_ndarray(format="rgb24").astype(np.int16)


def sound_s(video: Path) -> float:
    """Seconds of sound in it."""
    with av.open(str(video)) as container:
        if not container.streams.audio:
            return 0.0
        return sum(frame.samples / frame.sample_rate for frame in container.decode(audio=0))


def apart(a: np.ndarray, b: np.ndarray) -> float:
    """By how much two pictures differ, of 255."""
    return float(np.abs(a - b).mean())


def compared(video: Path, undisturbed: Path) -> dict[str, Any]:
    """A video against the undisturbed run's.

    A frame is its own where it differs by no more than the codec makes it, or is nearer to it than to those beside it.
    """
    before, worst, wrong, count, wanted, times = None, 0.0, [], 0, 0, []
    for index, (own, its) in enumerate(zip_longest(frames(video), frames(undisturbed))):
        count, wanted = count + (own is not None), wanted + (its is not None)
        if own is None or its is None:
            continue
        times.append(own[0])
        difference = apart(own[1], its[1])
        worst = max(worst, difference)
        if difference > CODEC and (before is None or difference >= apart(own[1], before)):
            wrong.append(index)
        before = its[1]
    seconds = sound_s(video), sound_s(undisturbed)
    even = uneven(times)
    return {
        "frames": count,
        "wanted": wanted,
        "wrong": wrong[:10],
        "worst": round(worst, 2),
        "sound_s": [round(one, 3) for one in seconds],
        "good": count == wanted and not wrong and not even and abs(seconds[0] - seconds[1]) <= SOUND_S,
        "uneven": even[:10],
    }


def uneven(times: list[float]) -> list[int]:
    """Frames that do not follow the one before at the rate of all."""
    if len(times) < 3:
        return []
    step = (times[-1] - times[0]) / (len(times) - 1)
    return [index for index, (a, b) in enumerate(pairwise(times), 1) if abs(b - a - step) > step / 4]

"""When a picture moves after a key was pressed, and how evenly frames come, from the frames as they were seen."""

from __future__ import annotations

import numpy as np

STILL_S, LATEST_S = 0.4, 2.2
"""How long before a press the picture is looked at as still, and after it for motion."""
MOVES = 0.4
"""Of the way from still to moving at which it moves."""
CLEAR = 3.0
"""How many times more must move than when still, or a press says nothing."""


def changes(pixels: np.ndarray) -> np.ndarray:
    """Mean absolute change [n] from each frame uint8 [n, H, W, 3] to the next; the first has 0."""
    found = np.zeros(len(pixels))
    for i in range(1, len(pixels)):
        found[i] = np.abs(pixels[i].astype(np.int16) - pixels[i - 1]).mean()
    return found


def begins(shown: np.ndarray, changed: np.ndarray, presses: list[float]) -> np.ndarray:
    """How long after each press the first frame came in which the picture moved, seconds; NaN: it cannot be told.

    Args:
        shown: [n] when each frame was on the screen.
        changed: [n], from `changes`.
        presses: when keys went down, before each of which the picture had come to rest.
    """
    found = np.full(len(presses), np.nan)
    for i, press in enumerate(presses):
        before = (shown > press - STILL_S) & (shown < press)
        after = np.flatnonzero((shown >= press) & (shown < press + LATEST_S))
        if not before.any() or not len(after):
            continue
        still, moving = np.median(changed[before]), np.percentile(changed[after], 75)
        if moving < CLEAR * max(still, 1e-3):
            continue
        # A coder touches up a still picture now and then, in one frame: motion goes on.
        moves = changed[after] > still + MOVES * (moving - still)
        lasting = np.flatnonzero(moves[:-2] & moves[1:-1] & moves[2:])
        if not len(lasting):
            continue
        found[i] = shown[after[lasting[0]]] - press
    return found


def rate(shown: np.ndarray, counts: np.ndarray) -> float:
    """Frames a second, those counted that scripts did not hear of.

    Args:
        shown: [n] when frames were on the screen, seconds.
        counts: [n] frames that had been presented by then.
    """
    return float((counts[-1] - counts[0]) / (shown[-1] - shown[0])) if len(shown) > 1 else 0.0


def lateness(shown: np.ndarray, media: np.ndarray) -> tuple[float, float]:
    """How much later frames come at the end than at the beginning, thirds compared by their medians, and by how much
    the 95th percentile of all is later than the median; seconds.

    Args:
        shown: [n] when frames were on the screen.
        media: [n] their times on the stream's own line.
    """
    late = (shown - shown[0]) - (media - media[0])
    third = max(1, len(late) // 3)
    drift = np.median(late[-third:]) - np.median(late[:third])
    return float(drift), float(np.percentile(late, 95) - np.median(late))

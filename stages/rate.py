"""Frame rates as exact fractions: whoever counts frames for hours counts in integers."""

from __future__ import annotations

from fractions import Fraction

from conf.errors import UserError


def frame_rate(fps: float | Fraction) -> Fraction:
    """Frames per second as an exact fraction: 16 -> 16, 29.97 -> 2997/100, 30000 / 1001 -> 30000/1001.

    Raises:
        UserError: not above zero, or beyond 1000 frames a second.
    """
    if not 0 < fps <= 1000:
        raise UserError(f"fps={fps}", "a frame rate is above 0 and at most 1000", "give the model's frames per second")
    return Fraction(fps).limit_denominator(1001)

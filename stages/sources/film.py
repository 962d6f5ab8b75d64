"""What chunks show of a camera: pixels made of JPEG, the last picture held, and all grey before the first one.

What a chunk showed is kept as the JPEG that was decoded (`Shots`), from which the same pixels are made again.
"""

from __future__ import annotations

import base64
import io
from typing import Any, NamedTuple

import numpy as np

from stages.sources.camera import Shot
from stages.sources.fitting import Fit

GREY = 128
"""What is seen before anything was, as where a reference is missing."""
NONE = -1
"""In place of a picture's number: grey."""
MOST_PIXELS = 1 << 22
"""Of a picture: 1920 x 1920 are fewer."""


class Shots(NamedTuple):
    """What a chunk shows.

    Attributes:
        pictures: JPEG, in the order in which they are shown; the one of before the chunk too, if it is still shown.
        shown: for each video frame the number of one of them; NONE: grey.
    """

    pictures: list[bytes]
    shown: list[int]

    def told(self) -> dict[str, Any]:
        """As JSON has it."""
        return {"jpeg": [base64.b64encode(one).decode() for one in self.pictures], "shown": self.shown}

    @classmethod
    def of(cls, told: dict[str, Any]) -> Shots:
        """What `told` gave.

        Raises:
            ValueError, KeyError, TypeError: it gave something else.
        """
        found = cls([base64.b64decode(one) for one in told["jpeg"]], [int(one) for one in told["shown"]])
        if not all(NONE <= one < len(found.pictures) for one in found.shown):
            raise ValueError("a frame shows a picture that is not there")
        return found

    @property
    def last(self) -> bytes:
        """The picture that is shown last; empty: grey is."""
        return self.pictures[self.shown[-1]] if self.shown and self.shown[-1] != NONE else b""

    def developed(self, fit: Fit) -> np.ndarray:
        """The video frames, uint8 [n, H, W, 3].

        Raises:
            OSError: a picture cannot be decoded.
        """
        pictures = [developed(one, fit) for one in self.pictures]
        return np.stack([grey(fit) if one == NONE else pictures[one] for one in self.shown])


def grey(fit: Fit) -> np.ndarray:
    """What is seen before anything was, uint8 [H, W, 3]."""
    return np.full((fit.height, fit.width, 3), GREY, np.uint8)


def developed(jpeg: bytes, fit: Fit) -> np.ndarray:
    """A picture, fitted: uint8 [H, W, 3].

    Raises:
        OSError: it is no whole JPEG, or is too large.
    """
    import av  # not above: most sources need neither
    from PIL import Image

    try:
        with Image.open(io.BytesIO(jpeg), formats=["JPEG"]) as image:
            if image.width * image.height > MOST_PIXELS:
                raise OSError(f"it has {image.width} x {image.height} pixels")
            pixels = np.asarray(image.convert("RGB"))
    except (ValueError, SyntaxError) as error:  # of what only looks like JPEG
        raise OSError(str(error)) from error
    return np.ascontiguousarray(fit(av.VideoFrame.from_ndarray(pixels, format="rgb24")))


class Film:
    """Makes chunks of what a camera has seen: decodes what is shown, and holds the last picture.

    Args:
        fit: how pictures come to the stream's size.

    Attributes:
        held: the picture that was shown last, as JPEG; empty: none was. Who goes on for another sets it.
        shots: what the latest chunk shows; None: there was none.
        first: of the latest chunk, the first picture that is new in it, and the number of its frame; None: none is.
        broken: pictures that could not be decoded, and were taken for missing.
    """

    def __init__(self, fit: Fit):
        self._fit, self.held = fit, b""
        self._last: tuple[bytes, np.ndarray] = b"", grey(fit)
        """`held`, and what it shows."""
        self.shots: Shots | None = None
        self.first: tuple[Shot, int] | None = None
        self.broken = 0

    def take(self, found: list[Shot | None]) -> np.ndarray:
        """The frames of a chunk, uint8 [n, H, W, 3].

        Args:
            found: as `Camera.read` gave it.
        """
        if self._last[0] != self.held:
            self._last = self.held, developed(self.held, self._fit)
        pictures, shown, frames = [], [], []
        number, self.first = NONE, None
        for frame, shot in enumerate(found):
            if shot is not None and (pixels := self._developed(shot)) is not None:
                self.held, self._last = shot.jpeg, (shot.jpeg, pixels)
                self.first = self.first or (shot, frame)
                number = len(pictures)
                pictures.append(shot.jpeg)
            elif number == NONE and self.held:
                number = len(pictures)
                pictures.append(self.held)
            shown.append(number)
            frames.append(self._last[1])
        self.shots = Shots(pictures, shown)
        return np.stack(frames)

    def _developed(self, shot: Shot) -> np.ndarray | None:
        try:
            return developed(shot.jpeg, self._fit)
        except OSError:
            self.broken += 1
            return None


class Grey:
    """Pictures for ever, all grey: what stands for a camera where the rate of a model is measured. Each is decoded, as
    a camera's are.

    Args:
        fit: of the stream's size.
    """

    name, accepted, count = "source.video=grey", None, None

    def __init__(self, fit: Fit):
        from PIL import Image  # as in `developed`

        self._fit, file = fit, io.BytesIO()
        # Of this grey a JPEG holds zeros alone, so it comes back as it was.
        Image.fromarray(grey(fit)).save(file, "JPEG")
        self._jpeg = file.getvalue()

    def take(self, count: int) -> np.ndarray:
        """The next `count` frames, uint8 [count, H, W, 3]."""
        return np.stack([developed(self._jpeg, self._fit) for _ in range(count)])

    def skip(self, count: int) -> None:
        """All are alike."""

    def close(self) -> None:
        """Nothing to release."""

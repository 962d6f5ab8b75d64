"""Sound to log-mel features per video frame: causal, incremental, exact for ever.

Which samples make which row is integer arithmetic on absolute sample numbers, and every row is computed alone
with the same shapes, so the features do not depend on how the sound was cut up or how many frames are asked for
at a time, to the last bit.
"""

from __future__ import annotations

import numpy as np

from conf.errors import UserError
from stages.rate import frame_rate

MAX_LOOKAHEAD_S = 0.1
LOW_HZ, HIGH_HZ = 60.0, 7600.0

# value = log10(1 + power / FLOOR) / DECADES, at most CEILING. A sine of amplitude 1 has power 1, so digital silence is
# exactly 0, anything below about -70 dBFS is close to 0, loud speech (amplitude 0.3 in a band) 1, full scale 1.17.
FLOOR, DECADES, CEILING = 1e-7, 6.0, 2.0


class LogMel:
    """Rows of log-mel energies in step with the video, `rows_per_frame` of them for each frame.

    Row h of frame k looks at the `window` samples that end before sample
    `((k * rows_per_frame + h + 1) * rate) // (fps * rows_per_frame)` plus the lookahead; the time before the stream's
    start, and after `finish()` the time after its end, is silence.

    Args:
        fps: video frames per second (an int, a float or a Fraction).
        rows_per_frame: rows for one video frame.
        bands: mel bands per row.
        window: samples under the Hann window.
        rate: samples per second.
        lookahead_s: how far a row may look past its own time, in seconds: it delays the stream by as much.

    Raises:
        UserError: `lookahead_s` is negative or above 0.1, or `fps` is no frame rate.
        ValueError: the window is too short to tell the bands apart.
    """

    def __init__(
        self,
        fps: float,
        rows_per_frame: int = 4,
        bands: int = 32,
        window: int = 512,
        rate: int = 16000,
        lookahead_s: float = 0.0,
    ):
        if not 0.0 <= lookahead_s <= MAX_LOOKAHEAD_S:
            raise UserError(
                f"lookahead_s={lookahead_s}",
                f"sound may be looked ahead between 0 and {MAX_LOOKAHEAD_S} seconds",
                f"use at most {MAX_LOOKAHEAD_S}: more of it delays the picture by as much",
            )
        self.rows_per_frame, self.bands, self.window, self.rate = rows_per_frame, bands, window, rate
        self.lookahead = round(lookahead_s * rate)
        rows_per_second = frame_rate(fps) * rows_per_frame
        # end(j) = (j + 1) * up // down
        self._up, self._down = rate * rows_per_second.denominator, rows_per_second.numerator
        self._filters = mel_filters(bands, window, rate)
        self._hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(window) / window)
        self._gain = (2.0 / self._hann.sum()) ** 2
        self._scratch = np.zeros(window)
        self._buffer = np.zeros(0, np.float32)
        self._start = 0  # absolute number of the buffer's first sample
        self._frame = 0  # next video frame
        self._finished = False

    @property
    def row_size(self) -> int:
        """Features per video frame."""
        return self.rows_per_frame * self.bands

    @property
    def buffered(self) -> int:
        """Samples held: those that coming rows still look at."""
        return len(self._buffer)

    def push(self, samples: np.ndarray) -> None:
        """Append float samples in [-1, 1], shape [n]. Raises RuntimeError after `finish()`."""
        if self._finished:
            raise RuntimeError("sound was pushed after finish()")
        self._buffer = np.concatenate([self._buffer, np.asarray(samples, np.float32).reshape(-1)])

    def finish(self) -> None:
        """The sound has ended: whatever is missing from here on is silence."""
        self._finished = True

    def skip(self, n: int) -> None:
        """Go on as if the next `n` frames had been asked for."""
        self._frame += n
        self._forget(self._end(self._frame * self.rows_per_frame) - self.window)

    @property
    def progress(self) -> tuple[dict[str, int | bool], np.ndarray]:
        """What another goes on from: (counters, samples held)."""
        return {"start": self._start, "frame": self._frame, "finished": self._finished}, self._buffer

    def resume(self, content: dict[str, int | bool], buffer: np.ndarray) -> None:
        """Go on from the progress of another of the same kind."""
        self._start, self._frame, self._finished = content["start"], content["frame"], content["finished"]
        self._buffer = buffer

    @property
    def seen(self) -> int:
        """Absolute number of the first sample that is neither held nor behind."""
        return max(self._start + len(self._buffer), self._end(self._frame * self.rows_per_frame - 1))

    def reopen(self, at: int) -> None:
        """Take `finish` back: sound comes again, from sample `at` on (at least `seen`); before it was silence."""
        self._finished = False
        self._buffer = np.pad(self._buffer, (0, at - self._start - len(self._buffer)))

    def needed(self, n: int) -> int:
        """How many samples are still missing before `frames(n)` can answer; 0 after `finish()`."""
        if self._finished or n == 0:
            return 0
        last = (self._frame + n) * self.rows_per_frame - 1
        return max(0, self._end(last) - self._start - len(self._buffer))

    def frames(self, n: int) -> np.ndarray:
        """Features of the next `n` video frames: float32 [n, rows_per_frame * bands].

        Raises:
            RuntimeError: samples are missing (see `needed`).
        """
        if missing := self.needed(n):
            raise RuntimeError(f"{missing} samples are missing for {n} frames from frame {self._frame} on")
        first = self._frame * self.rows_per_frame
        rows = np.empty((n * self.rows_per_frame, self.bands), np.float32)
        for i in range(len(rows)):
            rows[i] = self._row(self._end(first + i))
        self.skip(n)
        return rows.reshape(n, self.row_size)

    def _end(self, row: int) -> int:
        """Absolute number of the sample that row `row` of the stream no longer sees."""
        return (row + 1) * self._up // self._down + self.lookahead

    def _row(self, end: int) -> np.ndarray:
        """Log-mel energies [bands] of the window that ends before sample `end`."""
        scratch, begin = self._scratch, end - self.window
        lo = min(max(begin, self._start), end)
        hi = max(lo, min(end, self._start + len(self._buffer)))
        scratch[: lo - begin] = 0.0
        scratch[lo - begin : hi - begin] = self._buffer[lo - self._start : hi - self._start]
        scratch[hi - begin :] = 0.0
        spectrum = np.fft.rfft(scratch * self._hann)
        power = (spectrum.real**2 + spectrum.imag**2) * self._gain
        return np.clip(np.log10(1.0 + self._filters @ power / FLOOR) / DECADES, 0.0, CEILING)

    def _forget(self, before: int) -> None:
        """Drop the samples that no coming row looks at."""
        drop = min(max(0, before - self._start), len(self._buffer))
        self._buffer = self._buffer[drop:]
        self._start += drop


def mel_filters(bands: int, window: int, rate: int, low: float = LOW_HZ, high: float = HIGH_HZ) -> np.ndarray:
    """Triangles of height 1 over the power spectrum, evenly spaced in mel: float64 [bands, window // 2 + 1].

    The mel scale is the one of Slaney's Auditory Toolbox (Interval Technical Report 1998-010): linear, 200/3 Hz a mel,
    up to 1000 Hz = 15 mel; above it 27 mel for every factor of 6.4.
    """

    def to_mel(hz: float) -> float:
        return hz * 3 / 200 if hz < 1000 else 15 + 27 * np.log(hz / 1000) / np.log(6.4)

    mel = np.linspace(to_mel(low), to_mel(min(high, rate / 2)), bands + 2)
    edges = np.where(mel < 15, mel * 200 / 3, 1000 * np.exp((mel - 15) * np.log(6.4) / 27))[:, None]
    hz = np.arange(window // 2 + 1) * rate / window
    rising = (hz - edges[:-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[2:] - hz) / (edges[2:] - edges[1:-1])
    filters = np.maximum(0.0, np.minimum(rising, falling))
    if not filters.any(axis=1).all():
        raise ValueError(f"a window of {window} samples is too short for {bands} mel bands")
    return filters

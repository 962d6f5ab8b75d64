"""Write a small video in which something moves: `assets/moving.mp4` was made so.

python docs/examples/moving_video.py moving.mp4 --seconds 10
"""

import argparse
import math
from fractions import Fraction

import av
import numpy as np

WIDTH, HEIGHT, FPS = 256, 192, 24


def picture(seconds: float) -> np.ndarray:
    """What is seen at a moment, RGB, uint8 [HEIGHT, WIDTH, 3]: a ball goes round before hills that pass by."""
    y, x = np.mgrid[0:HEIGHT, 0:WIDTH].astype(np.float32)
    sky = np.stack([40 + 0.3 * y, 80 + 0.4 * y, np.full_like(y, 190)], -1)
    hills = 120 + 22 * np.sin((x + 60 * seconds) / 24) + 12 * np.sin((x + 30 * seconds) / 9)
    found = np.where((y > hills)[..., None], np.float32([56, 120, 64]), sky)
    turn = 2 * math.pi * seconds / 4
    away = np.hypot(x - WIDTH / 2 - 80 * math.cos(turn), y - HEIGHT / 2 - 50 * math.sin(turn))
    ball = np.stack([255 - 2 * away, 190 - 3 * away, 60 - away], -1)
    return np.where((away < 28)[..., None], ball, found).clip(0, 255).astype(np.uint8)


def write(path: str, seconds: float) -> None:
    """An H.264 file of so many seconds."""
    with av.open(path, "w") as file:
        track = file.add_stream("libx264", rate=FPS, options={"crf": "30", "preset": "veryslow", "threads": "1"})
        track.width, track.height, track.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        for index in range(round(seconds * FPS)):
            frame = av.VideoFrame.from_ndarray(picture(index / FPS), format="rgb24")
            frame.pts, frame.time_base = index, Fraction(1, FPS)
            file.mux(track.encode(frame))
        file.mux(track.encode())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("path", help="of the file")
    parser.add_argument("--seconds", type=float, default=10.0, help="how long it is")
    given = parser.parse_args()
    write(given.path, given.seconds)

"""What a new user gets: a fresh clone, an empty environment, `make demo`, `make test`. `python -m benchmarks.fresh`.

Bars: the demo leaves a playable mp4 whose picture and sound are equally long to a frame; a second `make install`
reinstalls nothing; the tests take under six minutes.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import av

from benchmarks.record import bar, record

ROOT = Path(__file__).parent.parent


def make(target: str, clone: Path) -> float:
    """Seconds that `make target` takes in a clone, with nothing of this environment but the search path."""
    kept = {k: os.environ[k] for k in ("PATH", "HOME", "LANG") if k in os.environ}
    start = time.perf_counter()
    subprocess.run(["make", target], cwd=clone, env=kept, check=True)
    return time.perf_counter() - start


def lengths(video: Path) -> tuple[float, float, float]:
    """(seconds of picture, seconds of sound, seconds of one frame) as decoded."""
    with av.open(str(video)) as container:
        fps = container.streams.video[0].average_rate
        frames = sum(1 for _ in container.decode(video=0))
    with av.open(str(video)) as container:
        rate = container.streams.audio[0].rate
        samples = sum(f.samples for f in container.decode(audio=0))
    return float(frames / fps), samples / rate, float(1 / fps)


def main() -> bool:
    with tempfile.TemporaryDirectory() as temporary:
        clone = Path(temporary) / "everframe"
        subprocess.run(["git", "clone", "--quiet", str(ROOT), str(clone)], check=True)
        demo_s = make("demo", clone)
        (video,) = clone.glob("outputs/*/*/video.mp4")
        picture, sound, frame = lengths(video)
        again_s = make("install", clone)
        tests_s = make("test", clone)
    measured = {
        "picture and sound of the demo": bar(
            f"{picture:.3f} s and {sound:.3f} s", f"equal to a frame ({frame:.4f} s)", abs(picture - sound) <= frame
        ),
        "second make install": bar(f"{again_s:.2f} s", "reinstalls nothing (< 2 s)", again_s < 2),
        "make test": bar(f"{tests_s:.0f} s", "< 360 s", tests_s < 360),
        "make demo, with the installation": f"{demo_s:.0f} s",
    }
    record("fresh", "python -m benchmarks.fresh", {"commit": _commit()}, measured)
    return all(m["passed"] for m in measured.values() if isinstance(m, dict))


def _commit() -> str:
    return subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True).stdout.strip()


if __name__ == "__main__":
    sys.exit(not main())

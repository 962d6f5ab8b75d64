"""Video to video from a browser's camera: `python -m benchmarks.camera [--seconds 60] [--only nano,pocket]`.

The page of `everframe serve` is opened in Chromium, whose fake camera takes 30 different pictures a second. What the
page sends up is kept there (`benchmarks/probe.js`), and the server writes down which picture every video frame was made
of (`sink.inputs`). So each picture is followed from the page to the frame that it became:

    used     different pictures that became frames, for each second of video
    doubled  frames that were made of the same picture as the one before
    lost     pictures that went up and became no frame, though later ones did

Times real time: how long a chunk plays over how long it takes, from its pictures being read to its frames being there,
browser and gateway on the same processors meanwhile. Two sizes are measured, both with random weights: `nano`, which is
`nano_video` (two steps of six layers of width 48), and `pocket`, the same with the network and the four steps of
`pocket_world`. What is missing of the browser is installed.
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import re
import signal
import sys
import tempfile
import time
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks import chromium, motion, started
from benchmarks.record import RESULTS, bar, record
from benchmarks.visits import LIVE_S, LOOK_S, MS, SEED, SETTLED_S
from conf.schema.serve import ServedConfig
from launch.cli import compose

MODEL = "nano_video"
SIZES = {
    "nano": (),
    "pocket": (
        "model.network.dim=192", "model.network.ffn_dim=768", "model.network.heads=4", "model.steps=4",
        "model.timesteps=[600,450,300,150]",
    ),
}  # fmt: skip
RATE, DOUBLED, LOST = 0.97, 0.03, 0.03
FNV = 2166136261, 16777619


def mark(jpeg: bytes) -> int:
    """What the probe knows a picture by: FNV-1a of 32 bits (RFC 9923)."""
    found, prime = FNV
    for byte in jpeg:
        found = (found ^ byte) * prime & 0xFFFFFFFF
    return found


class Followed(NamedTuple):
    """What became of pictures.

    Attributes:
        frames: that were made of pictures which the page is known to have sent.
        new: frames that are the first of their picture.
        lost: pictures between the first and the last that became frames, and did not.
        back: frames whose picture was sent before that of the frame before.
    """

    frames: int
    new: int
    lost: int
    back: int


def followed(sent: Sequence[int], shown: Sequence[int]) -> Followed:
    """Follow pictures from the page into frames.

    Args:
        sent: mark of each picture, in the order in which they went up.
        shown: mark of each frame's picture.
    """
    places = {one: place for place, one in enumerate(sent)}
    at = [places[one] for one in shown if one in places]
    steps = np.diff(at)
    return Followed(len(at), len(set(at)), at[-1] - at[0] + 1 - len(set(at)) if at else 0, int((steps < 0).sum()))


def recorded(path: Path, chunks: range) -> list[int]:
    """Marks of the frames' pictures in some chunks of a recording; grey frames have none."""
    lines = (json.loads(line) for line in path.read_text().splitlines())
    pictures = [line["pictures"] for line in lines if line.get("chunk", -1) in chunks]
    marks = [[mark(base64.b64decode(one)) for one in each["jpeg"]] for each in pictures]
    return [known[one] for known, each in zip(marks, pictures, strict=True) for one in each["shown"] if one >= 0]


class Seen(NamedTuple):
    """A session before a camera.

    Attributes:
        session: its id.
        kept: frames on the screen.
        sent: marks of the pictures that the page sent, from its beginning on.
        chunks: that were shown meanwhile.
        late: by how much each of them was late at the server, seconds.
        latencies: from a picture's being taken to its being on the screen made anew, seconds.
        making_s: from a chunk's pictures being read to its frames being there, mean.
    """

    session: str
    kept: chromium.Kept
    sent: list[int]
    chunks: range
    late: list[float]
    latencies: list[float]
    making_s: float


def making(address: str) -> tuple[float, int]:
    """(seconds in all, chunks) of making chunks, as the server has counted them."""
    with urllib.request.urlopen(f"{address}/metrics") as answer:
        told = answer.read().decode()
    of = {
        part: re.search(rf"^everframe_chunk_latency_seconds_{part}{{.*}} (\S+)$", told, re.M)
        for part in ("sum", "count")
    }
    return float(of["sum"][1]), round(float(of["count"][1]))


def see(page: Any, address: str, seconds: float) -> Seen:
    """Be before the camera for some seconds."""
    begun = time.monotonic()
    page.evaluate("wanted => everframe.start(wanted)", {"model": MODEL, "seed": SEED})
    # Not by wait_for_function, which the page's security policy forbids.
    while not page.evaluate("everframe.state === 'live' && everframe.stats().framesSeen > 0"):
        if time.monotonic() - begun > LIVE_S:
            raise SystemExit(f"{MODEL} was not live after {LIVE_S:g} s: {page.evaluate('everframe.status')}")
        page.wait_for_timeout(LOOK_S * MS)
    page.evaluate("everframe.see('camera')")
    page.wait_for_timeout(SETTLED_S * MS)
    since, before, first = page.evaluate("performance.now()") / MS, page.evaluate("everframe.stats()"), making(address)
    page.wait_for_timeout(seconds * MS)
    after, last = page.evaluate("everframe.stats()"), making(address)
    found = Seen(
        session=page.evaluate("everframe.session.id"),
        kept=chromium.taken(page).since(since),
        sent=page.evaluate("probe.sent()"),
        chunks=range(before["chunks"], after["chunks"]),
        late=after["lateness"][len(before["lateness"]) :],
        latencies=after["cameraLatencies"][len(before["cameraLatencies"]) :],
        making_s=(last[0] - first[0]) / (last[1] - first[1]),
    )
    page.evaluate("everframe.stop()")
    return found


def measure(size: str, folder: Path, seconds: float) -> dict[str, Any]:
    """All bars of one size."""
    overrides = (f"model={MODEL}", *SIZES[size])
    model, inputs = compose("serve", ServedConfig, [*overrides]).model, folder / "inputs.jsonl"
    there = (f"serve.port={started.free()}", f"sink.inputs={inputs}")
    with started.serving(folder, *overrides, *there) as server, chromium.pages(folder) as opened:
        page = opened(server.address)
        found = see(page, server.address.partition("/#")[0], seconds)
        page.close()
    marks = recorded(inputs.with_stem(f"{inputs.stem}.{found.session}"), found.chunks)
    end = followed(found.sent, marks)
    frames = len(marks) or 1
    used, doubled = end.new * model.fps / frames, 1 - end.new / frames
    lost, share = end.lost / max(1, end.new + end.lost), motion.rate(found.kept.shown, found.kept.counts) / model.fps
    length = frames / len(found.chunks) / model.fps
    times = length / found.making_s
    return {
        "frames on the screen": bar(f"{share:.1%}", f">= {RATE:.0%} of the model's rate", share >= RATE),
        "times real time": bar(f"{times:.1f}", ">= 1", times >= 1),
        "different pictures used a second": bar(
            f"{used:.2f}", f">= {RATE:.0%} of the model's {model.fps}", used >= RATE * model.fps
        ),
        "frames doubled": bar(f"{doubled:.1%}", f"<= {DOUBLED:.0%}", doubled <= DOUBLED),
        "pictures lost": bar(f"{lost:.1%}", f"<= {LOST:.0%}", lost <= LOST),
        "frames that go back": bar(str(end.back), "0", end.back == 0),
        "numbers": {
            "frames": frames, "of unknown pictures": frames - end.frames, "chunks": len(found.chunks),
            "making a chunk_s": round(found.making_s, 4), "a chunk plays_s": round(length, 4),
            "late_chunks": sum(late > 0.001 for late in found.late), "late_s": round(sum(found.late), 3),
            "picture taken to on the screen_p50_s": round(float(np.median(found.latencies)), 3),
            "load": [round(one, 2) for one in os.getloadavg()],
        },
    }  # fmt: skip


def main() -> bool:
    """Measure, record, print the bars."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--only", default=",".join(SIZES))
    parser.add_argument("--folder", type=Path, default=RESULTS)
    given = parser.parse_args()
    # Told to end, it ends what it started.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    chromium.install()
    measured: dict[str, Any] = {}
    for size in given.only.split(","):
        with tempfile.TemporaryDirectory() as temporary:
            bars = measure(size, Path(temporary), given.seconds)
        measured |= {f"{size}: {name}": value for name, value in bars.items()}
    configuration = {"model": MODEL, "sizes": SIZES, "seconds": given.seconds, "settled_s": SETTLED_S}
    command = f"python -m benchmarks.camera --seconds {given.seconds:g}"
    record("camera", command, configuration, measured, given.folder)
    return all(one["passed"] for one in measured.values() if "passed" in one)


if __name__ == "__main__":
    sys.exit(not main())

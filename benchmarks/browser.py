"""What a person sees and hears of `everframe serve`, in a real browser: `python -m benchmarks.browser`.

    python -m benchmarks.browser [--seconds 60] [--only direct,port,lossy,thin,narrow] [--folder FOLDER]

A page is opened in Chromium and used as people use it: a session is started, the microphone switched on, arrow keys
pressed. An avatar hears beeps and a world is walked through, each for so many seconds.

    direct   on this machine
    port     through one forwarded TCP port, where UDP leads nowhere: the page has to find to the WebSocket by itself
    lossy    between two network namespaces, 25 +- 5 ms each way, and 2 % of the packets lost
    thin     likewise, 1 Mbit/s each way; narrow: 200 kbit/s, for pictures of 64x64 do not fill the former

All is measured in the page (`benchmarks/probe.js`), not where it is made: when each frame was on the screen, with its
pixels, and the sound of both ways. The mouth that is seen is compared with that which the sound makes
(`benchmarks.lips`), and the picture's motion with the moments of key presses (`benchmarks.motion`); the page's own
counts and the server's are compared with these. Needs root for namespaces; what is missing of the browser is installed.
"""

from __future__ import annotations

import argparse
import signal
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import chromium, lips, motion, networks, started
from benchmarks.record import RESULTS, bar, record
from benchmarks.visits import AVATAR, SETTLED_S, WORLD, Place, Visit, visit

SERVED = ("experiment=live",)
TOKEN = "a-token-for-measurements"
MARGIN_S = 60.0
"""Of the microphone's file over what is measured."""
LINES = {
    "lossy": networks.Quality(delay_s=0.025, jitter_s=0.005, loss=0.02),
    "thin": networks.Quality(bits_per_second=1_000_000),
    "narrow": networks.Quality(bits_per_second=200_000),
}
VISITED = {"direct": (AVATAR, WORLD), "port": (AVATAR, WORLD), "lossy": (AVATAR, WORLD), "thin": (AVATAR,),
           "narrow": (AVATAR,)}  # fmt: skip
RATE = 0.97
FREEZE_S = {"direct": 0.3, "lossy": 0.5}
PRESS_S = {"direct": 1.0, "port": 1.3}
SOUND_S, LIPS_S, AGREE, DRIFT_S = 1.3, 0.08, 0.10, 0.05
SHIFTS_S, SYNC_S = (0.2, 3.0), (-0.5, 0.5)
"""Within which the delay of a sound, and that of lips after it, are looked for."""
LATE_S = 0.001
RECEIVED = (
    "bytesReceived", "packetsReceived", "packetsLost", "retransmittedPacketsReceived", "nackCount", "pliCount",
    "framesDecoded", "keyFramesDecoded", "freezeCount", "jitterBufferDelay", "jitterBufferEmittedCount",
)  # fmt: skip
"""Of what the browser counts, what is kept."""


@contextmanager
def place(kind: str, folder: Path, seconds: float) -> Iterator[Place]:
    """A server and a browser, and what is between them."""
    microphone = folder / "microphone.wav"
    lips.beeps(microphone, seconds + MARGIN_S)
    with ExitStack() as held:
        if kind in LINES:
            ends = held.enter_context(networks.line(LINES[kind]))
            reached = f"serve.host={ends.peer}", f"serve.token={TOKEN}", "serve.private_peers=true"
            server = held.enter_context(
                started.serving(folder / kind, *SERVED, *reached, "serve.port=8080", namespace=ends.there)
            )
            secure = server.address.partition("/#")[0]
            opened = held.enter_context(chromium.pages(folder, microphone, ends.here, secure))
            yield Place(opened, server.address, ends.ways)
            return
        server = held.enter_context(started.serving(folder / kind, *SERVED, f"serve.port={started.free()}"))
        namespace = held.enter_context(networks.port(server.port)) if kind == "port" else None
        opened = held.enter_context(chromium.pages(folder, microphone, namespace))
        yield Place(opened, server.address)


def seconds(value: float) -> str:
    return f"{value:.3f} s"


def middle(values: np.ndarray) -> tuple[float, float, int]:
    """Median, 95th percentile, and how many there are that say something."""
    known = values[~np.isnan(values)]
    if not len(known):
        return np.inf, np.inf, 0
    return float(np.median(known)), float(np.percentile(known, 95)), len(known)


def plain(value: float) -> float | None:
    """As a result keeps it; None: it could not be told."""
    return round(value, 3) if np.isfinite(value) else None


def flow(kind: str, found: Visit) -> dict[str, Any]:
    """Bars of any picture: its rate, its freezes, how it holds its time."""
    kept = found.counted
    share = motion.rate(kept.shown, kept.counts) / found.fps
    longest = float(np.diff(kept.shown).max())
    drift, spread = motion.lateness(kept.shown, kept.media)
    measured: dict[str, Any] = {}
    if kind in ("direct", "port"):
        measured["frames on the screen"] = bar(f"{share:.1%}", f">= {RATE:.0%} of the model's rate", share >= RATE)
    if kind in FREEZE_S:
        most = FREEZE_S[kind]
        measured["longest time between frames"] = bar(seconds(longest), f"<= {most} s", longest <= most)
    if kind == "lossy":
        # A chunk that is late at the server moves the session's clock, on any line.
        own = sum(found.late)
        measured["later at the end than at the beginning"] = bar(
            f"{drift:+.3f} s, {own:.3f} s of it the server's",
            f"within {DRIFT_S} s, but for the server's",
            -DRIFT_S <= drift <= DRIFT_S + own,
        )
    if kind == "port":
        measured["line found by itself"] = bar(found.transport, "ws", found.transport == "ws")
    measured["numbers"] = {
        "transport": found.transport, "live_s": round(found.live_s, 2), "frames_share": round(share, 4),
        "longest_gap_s": round(longest, 3), "drift_s": round(drift, 3), "lateness_p95_over_p50_s": round(spread, 3),
        "page": {name: found.stats[name] for name in ("framesSeen", "chunks", "freezes", "longestFreeze_s")},
        "late_chunks": sum(late > LATE_S for late in found.late), "late_s": round(sum(found.late), 3),
        "received": found.received and {name: found.received.get(name) for name in RECEIVED},
    }  # fmt: skip
    return measured


def talk(kind: str, found: Visit) -> dict[str, Any]:
    """Bars of an avatar."""
    kept, measured = found.counted, {}
    mouth = lips.seen(kept.pixels, found.scene)
    said = lips.made(kept.said)
    delay, _, windows = middle(lips.lags(kept.shown, mouth, said, *SHIFTS_S))
    opened, opened95, count = middle(lips.opened(kept.shown, mouth, lips.onsets(kept.said), delay))
    numbers: dict[str, Any] = {
        "sound to picture, shift_p50_s": plain(delay), "windows": windows,
        "beep to opening mouth_p50_s": plain(opened), "p95_s": plain(opened95), "beeps": count,
    }  # fmt: skip
    if kind == "direct":
        measured["beep said to the frame that shows it, p50"] = bar(
            f"{seconds(opened)} ({count} beeps)", f"<= {SOUND_S} s", opened <= SOUND_S
        )
    if kept.heard is not None:
        apart = lips.lags(kept.shown, mouth, lips.made(kept.heard), *SYNC_S)
        sync, away, count = middle(apart)[0], middle(np.abs(apart))[1], middle(apart)[2]
        numbers |= {"lips after sound_p50_s": plain(sync), "away_p95_s": plain(away), "windows of lips": count}
        after = lips.opened(kept.shown, mouth, lips.onsets(kept.heard), sync)
        numbers["beep heard to opening mouth_p50_s"] = plain(middle(after)[0])
        if kind == "direct":
            measured["lips from sound, p95"] = bar(
                f"{seconds(away)} ({count} windows)", f"<= {LIPS_S} s", away <= LIPS_S
            )
    return measured | {"sound": numbers}


def walk(kind: str, found: Visit) -> dict[str, Any]:
    """Bars of a world."""
    kept, measured = found.counted, {}
    counted, server = (np.array(found.stats[name]) for name in ("controlLatencies", "serverLatencies"))
    page, page95, count = middle(counted)
    seen, seen95, clear = middle(motion.begins(kept.shown, motion.changes(kept.pixels), found.presses))
    if kind in PRESS_S:
        most = PRESS_S[kind]
        for name, value, of in (("as the page counts", page, count), ("as the picture moves", seen, clear)):
            measured[f"key to frame, {name}, p50"] = bar(
                f"{seconds(value)} ({of} presses)", f"<= {most} s", value <= most
            )
    if kind == "direct":
        told = middle(server)[0]
        off = told / page - 1
        measured["latency as the server has it, against the page's"] = bar(
            f"{off:+.1%}", f"within {AGREE:.0%}", abs(off) <= AGREE
        )
    measured["keys"] = {
        "page_p50_s": plain(page), "page_p95_s": plain(page95), "server_p50_s": plain(middle(server)[0]),
        "moves_p50_s": plain(seen), "moves_p95_s": plain(seen95), "presses": len(found.presses), "clear": clear,
    }  # fmt: skip
    return measured


def thin(found: Visit, quality: networks.Quality, ways: tuple[networks.Way, ...]) -> dict[str, Any]:
    """Bars of a thin line: the picture goes on, at what the line takes."""
    share = motion.rate(found.counted.shown, found.counted.counts) / found.fps
    limit = quality.bits_per_second
    return {
        "picture goes on": bar(f"{share:.1%}", ">= 45 % of the model's rate", share >= 0.45),
        "picture's bits per second": bar(f"{found.bits_per_second:.0f}", f"<= {limit}", found.bits_per_second <= limit),
        "packets lost": [way.lost for way in ways],
    }


def measure(kind: str, folder: Path, length: float) -> dict[str, Any]:
    """All bars of one kind of network."""
    measured: dict[str, Any] = {}
    with place(kind, folder, length) as there:
        visits = {model: visit(there, model, length) for model in VISITED[kind]}
    for model, found in visits.items():
        bars = flow(kind, found) | (talk if model == AVATAR else walk)(kind, found)
        if kind in ("thin", "narrow"):
            bars |= thin(found, LINES[kind], there.ways)
        measured |= {f"{kind}, {model}: {name}": value for name, value in bars.items()}
    return measured


def main() -> bool:
    """Measure, record, print the bars."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--only", default=",".join(VISITED))
    parser.add_argument("--folder", type=Path, default=RESULTS)
    given = parser.parse_args()
    # Told to end, it ends what it started.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    chromium.install()
    measured: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as temporary:
        for kind in given.only.split(","):
            measured |= measure(kind, Path(temporary), given.seconds)
    configuration = {"served": SERVED, "seconds": given.seconds, "settled_s": SETTLED_S, "only": given.only,
                     "lines": {kind: vars(quality) for kind, quality in LINES.items()}}  # fmt: skip
    record(
        "browser", f"python -m benchmarks.browser --seconds {given.seconds:g}", configuration, measured, given.folder
    )
    return all(one["passed"] for one in measured.values() if "passed" in one)


if __name__ == "__main__":
    sys.exit(not main())

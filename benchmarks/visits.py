"""The page of `everframe serve`, used as people use it: sessions are started, a microphone is on, keys are pressed."""

from __future__ import annotations

import base64
import io
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from benchmarks import chromium, networks
from conf.schema.serve import ServedConfig
from distill.data import avatar
from launch.cli import compose

AVATAR, WORLD = "pocket_avatar", "pocket_world"
SCENE = avatar.scene(3, held_out=True)
"""Who is to be seen, so that the mouth can be found."""
SEED = 5
SETTLED_S = 16.0
"""After it goes live, before anything counts: a first chunk that was late is made up for after eight more, and the
microphone follows that after another eight."""
TURNS = ("ArrowLeft", "ArrowRight")
HELD_S, RESTED_S = 1.0, (2.0, 2.8)
LAST_S = 2.5
"""Before the end in which no key is pressed any more: what it does would not be seen."""
LIVE_S = 30.0
"""How long a session may take to be live."""
LOOK_S = 0.05
MS = 1000


class Place(NamedTuple):
    """Where the page is, and a browser that gets there; `ways` are the directions of the line between, if it is one."""

    open: Callable[[str], Any]
    address: str
    ways: tuple[networks.Way, ...] = ()


@dataclass(frozen=True)
class Visit:
    """One session, as it was seen.

    Attributes:
        counted: what the probe has of it, without the first seconds.
        stats: what the page has.
        late: by how much each chunk was late at the server, seconds, likewise.
        received: what the browser counted of the pictures; None: it was no call.
        bits_per_second: of the pictures, likewise; 0: it was no call.
        transport: `rtc` or `ws`.
        live_s: from the start of the session to the first frame.
        fps: of the model.
        scene: who was to be seen.
    """

    counted: chromium.Kept
    stats: dict[str, Any]
    late: list[float]
    received: dict[str, Any] | None
    bits_per_second: float
    transport: str
    live_s: float
    fps: float
    scene: avatar.Scene

    @property
    def presses(self) -> list[float]:
        """When keys went down, seconds on the page's clock."""
        return [at for at, code in self.counted.presses if code in TURNS]


def visit(place: Place, model: str, seconds: float) -> Visit:
    """Use the page for some seconds."""
    # Echo cancellation and the like would take beeps for noise.
    home, _, token = place.address.partition("/#")
    page = place.open(f"{home}/?microphone=raw#{token}")
    try:
        begun = time.monotonic()
        page.evaluate("wanted => everframe.start(wanted)", _wanted(model))
        # Not by wait_for_function, which the page's security policy forbids.
        while not page.evaluate("everframe.state === 'live' && everframe.stats().framesSeen > 0"):
            if time.monotonic() - begun > LIVE_S:
                raise SystemExit(f"{model} was not live after {LIVE_S:g} s: {page.evaluate('everframe.status')}")
            page.wait_for_timeout(LOOK_S * MS)
        live_s = time.monotonic() - begun
        if model == AVATAR:
            page.locator("#listen").check()
        page.wait_for_timeout(SETTLED_S * MS)
        since, before, chunks = page.evaluate("performance.now()") / MS, _received(page), len(_late(page))
        if model == AVATAR:
            page.wait_for_timeout(seconds * MS)
        else:
            _walk(page, seconds)
        after, kept = _received(page), chromium.taken(page)
        found = Visit(
            counted=kept.since(since),
            stats=page.evaluate("everframe.stats()"),
            late=_late(page)[chunks:],
            received=after,
            bits_per_second=8 * (after["bytesReceived"] - _bytes(before, after)) / seconds if after else 0.0,
            transport=page.evaluate("everframe.transport"),
            live_s=live_s,
            fps=compose("serve", ServedConfig, [f"model={model}"]).model.fps,
            scene=SCENE,
        )
        page.evaluate("everframe.stop()")
        return found
    finally:
        page.close()


def _received(page: Any) -> dict[str, Any] | None:
    return page.evaluate("everframe.transport === 'rtc' ? probe.received() : null")


def _bytes(before: dict[str, Any] | None, after: dict[str, Any]) -> int:
    """What had been received before, of the same call."""
    return before["bytesReceived"] if before and before["id"] == after["id"] else 0


def _late(page: Any) -> list[float]:
    return page.evaluate("everframe.stats().lateness")


def _wanted(model: str) -> dict[str, Any]:
    """What a session is to be."""
    if model != AVATAR:
        return {"model": model, "seed": SEED}
    file = io.BytesIO()
    Image.fromarray(avatar.reference(SCENE)).save(file, "PNG")
    return {"model": model, "seed": SEED, "prompt": SCENE.prompt, "image": base64.b64encode(file.getvalue()).decode()}


def _walk(page: Any, seconds: float) -> None:
    """Turn to one side and the other, now and then, and stand still between."""
    rng, until, count = np.random.default_rng(SEED), time.monotonic() + seconds, 0
    while time.monotonic() < until - LAST_S - HELD_S:
        page.wait_for_timeout(rng.uniform(*RESTED_S) * MS)
        page.keyboard.down(TURNS[count % 2])
        page.wait_for_timeout(HELD_S * MS)
        page.keyboard.up(TURNS[count % 2])
        count += 1
    page.wait_for_timeout(max(0.0, until - time.monotonic()) * MS)

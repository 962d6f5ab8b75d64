"""A real browser for measurements: Debian's Chromium without a screen, driven by Playwright, its microphone a file."""

from __future__ import annotations

import base64
import importlib.util
import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

PLAYWRIGHT = "playwright==1.65.2"
PROBE = Path(__file__).with_name("probe.js")
FLAGS = (
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--use-fake-device-for-media-stream=fps=30",
    "--use-fake-ui-for-media-stream", "--autoplay-policy=no-user-gesture-required",
)  # fmt: skip
PAGE_WIDTH, PAGE_HEIGHT = 960, 900
"""Of the window, pixels."""
INT16 = 32768


@dataclass(frozen=True)
class Sound:
    """Samples float32 [n] in [-1, 1], as a page had them.

    Attributes:
        rate: samples per second.
        start: when the first was there, seconds on the page's clock.
    """

    samples: np.ndarray
    rate: int
    start: float


@dataclass(frozen=True)
class Kept:
    """What a page showed, heard and said; times in seconds on the page's clock.

    Attributes:
        shown: [n] when each frame was on the screen.
        media: [n] each frame's time on the stream's own line, from a random origin.
        counts: [n] frames that had been presented by then: those that the page's scripts slept through are counted.
        pixels: uint8 [n, side, side, 3].
        said, heard: the microphone's sound, and what came back; None: there was none.
        presses: (when, which key).
    """

    shown: np.ndarray
    media: np.ndarray
    counts: np.ndarray
    pixels: np.ndarray
    said: Sound | None
    heard: Sound | None
    presses: list[tuple[float, str]]

    def since(self, moment: float) -> Kept:
        """Without the frames and presses before a moment."""
        later = self.shown >= moment
        frames = (one[later] for one in (self.shown, self.media, self.counts, self.pixels))
        return Kept(*frames, self.said, self.heard, [press for press in self.presses if press[0] >= moment])


def install() -> None:
    """Have Chromium and Playwright, which no other part of the project needs."""
    if shutil.which("chromium") is None:
        subprocess.run(["apt-get", "install", "-y", "--no-install-recommends", "chromium"], check=True)
    if importlib.util.find_spec("playwright") is None:
        subprocess.run([sys.executable, "-m", "pip", "install", PLAYWRIGHT], check=True)
        importlib.invalidate_caches()


@contextmanager
def pages(folder: Path, microphone: Path | None = None, namespace: str | None = None, secure: str = "") -> Iterator:
    """A browser; yields a function that opens an address in a page of its own, with the probe in it.

    Args:
        folder: for files of its own.
        microphone: WAV, 48 kHz mono s16, which begins when the page first asks for one, and begins again at its end.
        namespace: of the network that it runs in; None: this one.
        secure: an http:// address off this machine that is to be taken for a secure one, as microphones want it.
    """
    from playwright.sync_api import sync_playwright

    flags = [*FLAGS]
    if microphone is not None:
        flags.append(f"--use-file-for-fake-audio-capture={microphone}")
    if secure:
        flags.append(f"--unsafely-treat-insecure-origin-as-secure={secure}")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=_command(folder, namespace), headless=True, args=flags, chromium_sandbox=False
        )
        try:
            yield lambda address: _opened(browser, address)
        finally:
            browser.close()


def _command(folder: Path, namespace: str | None) -> str:
    """A program that is Chromium, in its namespace."""
    chromium = shutil.which("chromium")
    if namespace is None:
        return chromium
    script = folder / "chromium-there"
    script.write_text(f'#!/bin/sh\nexec ip netns exec {namespace} {chromium} "$@"\n')
    script.chmod(script.stat().st_mode | stat.S_IXUSR)
    return os.fspath(script)


def _opened(browser: Any, address: str) -> Any:
    page = browser.new_page(viewport={"width": PAGE_WIDTH, "height": PAGE_HEIGHT})
    page.on("pageerror", lambda error: print(f"page: {error}", file=sys.stderr))
    page.on("console", lambda line: line.type == "error" and print(f"page: {line.text}", file=sys.stderr))
    page.add_init_script(path=PROBE)
    page.goto(address)
    return page


def taken(page: Any) -> Kept:
    """All that the probe kept."""
    found = page.evaluate("probe.take()")
    frames, side = np.array(found["frames"], np.float64).reshape(-1, 3), found["side"]
    pixels = np.frombuffer(base64.b64decode(found["pixels"]), np.uint8).reshape(-1, side, side, 4)[..., :3].copy()
    presses = [(press["at"] / 1000, press["code"]) for press in found["presses"]]
    return Kept(
        frames[:, 0] / 1000,
        frames[:, 1],
        frames[:, 2],
        pixels,
        sound(**found["said"]),
        sound(**found["heard"]),
        presses,
    )


def sound(rate: int, blocks: list[list[float]], samples: str) -> Sound | None:
    """One sound of blocks that came one after the other.

    A page hears of a block when it has time to. So the one that was heard of soonest after its last sample says when
    the samples were there. What was lost on the way to the page leaves silence.

    Args:
        rate: samples per second.
        blocks: (when it came, ms; its time stamp, us; how many samples).
        samples: s16 of all blocks, in base64.
    """
    if not blocks:
        return None
    came, stamps, counts = np.array(blocks, np.float64).T
    counts = counts.astype(int)
    at = np.rint((stamps - stamps[0]) * rate / 1e6).astype(int)
    pcm = np.frombuffer(base64.b64decode(samples), np.int16).astype(np.float32) / INT16
    whole = np.zeros(at[-1] + counts[-1], np.float32)
    for begin, part in zip(at, np.split(pcm, counts.cumsum()[:-1]), strict=True):
        whole[begin : begin + len(part)] = part
    start = (came / 1000 - (at + counts) / rate).min()
    return Sound(whole, rate, float(start))

"""docs/media/live.png: the page of `everframe serve` while a world is walked through.

    python -m benchmarks.screenshot [--url URL] [--model pocket_world] [--prompt "a maze by day"] [--out FILE]

On a machine that does nothing else, for the page shows how late pictures are. With `--url` it looks at a server that
runs already. Of a world that knows its poses the picture has the map, too.
"""

from __future__ import annotations

import argparse
import tempfile
from contextlib import ExitStack
from pathlib import Path

from benchmarks import chromium, started
from benchmarks.launched import ROOT

WALK = (("KeyW", 4), ("KeyA", 1), ("KeyW", 3), ("KeyD", 1), ("KeyW", 3))
"""Keys, and for how many chunks each is held; in the picture the last one still is."""
PATIENT_S = 120.0
LOOK_MS = 50
SIZE = {"width": 1000, "height": 1270}


def walk(page, model: str, prompt: str, out: Path) -> None:
    """Start a session, walk, and take the picture.

    Raises:
        SystemExit: the page did not get so far.
    """

    def until(what: str) -> None:
        for _ in range(int(PATIENT_S * 1000 / LOOK_MS)):
            if page.evaluate(f"() => !!({what})"):  # the page forbids a script that is made of text
                return
            page.wait_for_timeout(LOOK_MS)
        raise SystemExit(f"{what}: not within {PATIENT_S:g} s; the page says: {page.evaluate('everframe.status')}")

    page.set_viewport_size(SIZE)
    page.get_by_text("Press Start").wait_for(timeout=PATIENT_S * 1000)
    page.evaluate("(wanted) => everframe.start(wanted)", {"model": model, "prompt": prompt, "seed": 7})
    until("everframe.state === 'live' && everframe.stats().framesSeen > 3")
    held = None
    for code, chunks in WALK:
        if held:
            page.keyboard.up(held)
        page.keyboard.down(held := code)
        until(f"everframe.stats().chunks >= {page.evaluate('everframe.stats().chunks') + chunks}")
    page.screenshot(path=out)
    page.evaluate("everframe.stop()")


def main() -> None:
    """Take the picture."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--url")
    parser.add_argument("--model", default="pocket_world")
    parser.add_argument("--prompt", default="a maze by day")
    parser.add_argument("--out", type=Path, default=ROOT / "docs/media/live.png")
    given = parser.parse_args()
    chromium.install()
    with tempfile.TemporaryDirectory() as temporary, ExitStack() as held:
        folder = Path(temporary)
        url = given.url
        if url is None:
            served = "experiment=live", f"serve.port={started.free()}"
            url = held.enter_context(started.serving(folder, *served)).address
        walk(held.enter_context(chromium.pages(folder))(url), given.model, given.prompt, given.out)


if __name__ == "__main__":
    main()

"""Commands that the documents show: each runs as it stands, or the block says why it does not."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = sorted([ROOT / "README.md", ROOT / "ARCHITECTURE.md", *(ROOT / "docs").rglob("*.md")])
BLOCK = re.compile(r"^```(\w*)(?: \((.+)\))?\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LIMIT_S = 900


def blocks(page):
    """(language, why it does not run, lines) of every fenced block."""
    return [(language, why, body) for language, why, body in BLOCK.findall(page.read_text())]


def commands():
    """The shell of every page that runs, its blocks one after the other."""
    for page in PAGES:
        bodies = [b for language, why, b in blocks(page) if language == "sh" and not why and not b.startswith("make ")]
        if bodies:
            yield pytest.param("\n".join(bodies), id=str(page.relative_to(ROOT)))


def test_every_block_of_shell_is_fenced():
    for page in PAGES:
        text = BLOCK.sub("", page.read_text())
        shown = [
            line for line in text.splitlines() if re.match(r"    (everframe|python|torchrun|make|sbatch|ray) ", line)
        ]
        assert not shown, f"{page.name}: {shown}"


def test_there_are_commands_to_run():
    assert len(list(commands())) >= 6


@pytest.mark.long
@pytest.mark.parametrize("body", list(commands()))
def test_shown_commands_run(body, tmp_path):
    home = tmp_path / "home"
    home.mkdir()
    shutil.copy(ROOT / "assets" / "portrait.png", tmp_path / "face.png")
    shutil.copy(ROOT / "assets" / "speech.wav", tmp_path / "speech.wav")
    (tmp_path / "assets").symlink_to(ROOT / "assets")
    scripts = Path(sys.executable).parent
    env = os.environ | {
        "PATH": f"{scripts}{os.pathsep}{os.environ['PATH']}", "HOME": str(home), "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(ROOT),
    }  # fmt: skip
    body = body.replace("source .venv/bin/activate\n", "")
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", body], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=LIMIT_S
    )
    assert done.returncode == 0, done.stderr[-2000:]

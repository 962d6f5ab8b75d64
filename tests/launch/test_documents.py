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
LIMIT_S = 300
MADE_BY_MAKE = "make "
"""Commands that install; the release is tried by them as a whole."""


def blocks(page):
    """(language, why it does not run, lines) of every fenced block."""
    return [(language, why, body) for language, why, body in BLOCK.findall(page.read_text())]


def commands():
    """Every block of shell that runs, by page and number."""
    for page in PAGES:
        for number, (language, why, body) in enumerate(blocks(page)):
            if language == "sh" and not why and not body.startswith(MADE_BY_MAKE):
                yield pytest.param(body, id=f"{page.relative_to(ROOT)}-{number}")


def test_every_block_of_shell_is_fenced():
    for page in PAGES:
        text = BLOCK.sub("", page.read_text())
        shown = [
            line for line in text.splitlines() if re.match(r"    (everframe|python|torchrun|make|sbatch|ray) ", line)
        ]
        assert not shown, f"{page.name}: {shown}"


def test_there_are_commands_to_run():
    assert len(list(commands())) >= 8


@pytest.mark.long
@pytest.mark.parametrize("body", commands())
def test_a_shown_command_runs(body, tmp_path):
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

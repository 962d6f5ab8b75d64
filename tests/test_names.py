"""A family is one folder: no other code names it."""

import re
import subprocess
from pathlib import Path

import pytest

from conf.families import CODECS, FAMILIES, known

ROOT = Path(__file__).parent.parent
APART = ("tests/", "benchmarks/", "stages/models/", "stages/codec/")
"""Tests and benchmarks say what they measure; folders name themselves (below)."""
WORDS = {"small"}
"""Names that are words of everyday use."""


def sources() -> list[Path]:
    """Python files that git knows, or would know."""
    told = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "*.py"]
    found = subprocess.run(told, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    return [ROOT / name for name in found if (ROOT / name).is_file()]


def pattern(names: tuple[str, ...]) -> re.Pattern:
    spelled = "|".join(re.escape(name).replace("_", "[ _-]") for name in names if name not in WORDS)
    return re.compile(rf"(?<![a-z])({spelled})(?![a-z])", re.IGNORECASE)


def test_no_family_or_codec_is_named_outside_its_folder():
    named = pattern((*known(FAMILIES), *known(CODECS)))
    files = [f for f in sources() if not str(f.relative_to(ROOT)).startswith(APART)]
    assert len(files) > 150
    found = [
        f"{file.relative_to(ROOT)}:{number}: {line.strip()}"
        for file in files
        for number, line in enumerate(file.read_text().splitlines(), 1)
        if named.search(line)
    ]
    assert not found, "\n".join(found)


def test_the_search_finds_what_it_looks_for():
    named = pattern(("wan", "live_avatar"))
    assert all(named.search(line) for line in ("Wan2.1's", "model=wan21", "a Live Avatar", "live_avatar_14b"))
    assert not any(named.search(line) for line in ("is wanted", "wandb", "swan"))


@pytest.mark.parametrize("where", [FAMILIES, CODECS])
def test_folders_import_no_other_folder(where):
    for name in known(where):
        for file in (ROOT / where.replace(".", "/") / name).rglob("*.py"):
            found = re.findall(rf"{re.escape(where)}\.(\w+)", file.read_text())
            others = set(found) & set(known(where)) - {name}
            assert not others, f"{file.relative_to(ROOT)} imports {others}"

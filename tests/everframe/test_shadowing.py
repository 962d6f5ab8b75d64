"""Whoever takes the name of one of Everframe's packages is named, before anything is guessed from."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from everframe import names

ROOT = Path(__file__).parents[2]


@pytest.fixture
def home(tmp_path, monkeypatch):
    """An Everframe of two packages, last on Python's path, and a folder before it."""
    monkeypatch.setattr(names, "PACKAGES", ("first_room", "second_room"))
    for name in names.PACKAGES:
        (tmp_path / "home" / name).mkdir(parents=True)
        (tmp_path / "home" / name / "__init__.py").write_text(f'"""{name}"""')
    (tmp_path / "before").mkdir()
    monkeypatch.setattr(sys, "path", [str(tmp_path / "before"), str(tmp_path / "home")])
    return tmp_path / "home"


def complaint(home: Path, capsys) -> str:
    """What a command prints before it ends, which is what a program that imports Everframe is told."""
    with pytest.raises(ImportError) as told:
        names.check(home)
    with pytest.raises(SystemExit) as end:
        names.insist(home)
    assert end.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line == f"error: {told.value}"
    return line


def test_a_module_or_package_before_it_is_named(home, capsys):
    names.check(home)
    (home.parent / "before" / "second_room").mkdir()
    names.check(home)  # a folder of other files takes no name
    package = home.parent / "before" / "second_room" / "__init__.py"
    package.touch()
    assert complaint(home, capsys).startswith(
        f"error: {package}: takes the name of Everframe's `second_room` in {home}; "
    )
    package.unlink()
    module = home.parent / "before" / "first_room.py"
    module.touch()
    assert complaint(home, capsys).startswith(f"error: {module}: takes the name of Everframe's `first_room`")


def test_a_package_that_was_left_out_has_no_name_to_take(home):
    (home / "second_room" / "__init__.py").unlink()
    (home.parent / "before" / "second_room.py").touch()
    names.check(home)


def test_a_distribution_that_wrote_over_a_package_is_found(home, capsys):
    record = home / "everframe-1.dist-info" / "RECORD"
    record.parent.mkdir()
    ours = home / "first_room" / "__init__.py"
    record.write_text(
        f"first_room/__init__.py,{names._digest(ours)},{ours.stat().st_size}\nfirst_room/a.py,sha256=0,0\n"
    )
    names.check(home)
    ours.write_text("# another's")
    assert complaint(home, capsys) == (
        f"error: {ours}: another distribution has written over Everframe's; install each in an environment of its own"
    )


def test_a_digest_is_spelled_as_in_a_record(tmp_path):
    (tmp_path / "empty").touch()
    assert names._digest(tmp_path / "empty") == "sha256=47DEQpj8HBSa-_TImW-5JCeuQeRkm5NMpJWZG3hSuFU"


@pytest.mark.parametrize(
    ("taken", "command"),
    [
        ("runtime.py", ("-m", "launch.stream", "model=nano")),
        ("conf/__init__.py", ("-m", "everframe", "stream")),
        ("launch.py", ("-m", "everframe", "--help")),
    ],
)
def test_every_way_in_looks_first(tmp_path, taken, command):
    """As processes, which end before they import anything that takes time."""
    file = tmp_path / taken
    file.parent.mkdir(exist_ok=True)
    file.write_text("raise ValueError('imported')")
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, *command], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 2
    name = Path(taken).parts[0].removesuffix(".py")
    assert done.stderr.splitlines() == [
        f"error: {file}: takes the name of Everframe's `{name}` in {ROOT}; "
        "rename it, or start Python in another folder or environment"
    ]

"""What an installation has beside code: everything that configurations name, and little else."""

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

from conf.errors import UserError
from conf.paths import SHIPPED, found
from launch import scripts

ROOT = Path(__file__).parent.parent
LARGEST_WHEEL = 30e6  # bytes


def patterns() -> list[str]:
    """What setuptools takes along of `everframe/`."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    return project["tool"]["setuptools"]["package-data"]["everframe"]


def named() -> set[str]:
    """Files under assets/ that shipped configurations name."""
    texts = [path.read_text() for path in (ROOT / "conf").rglob("*.yaml")]
    return {name for text in texts for name in re.findall(r"\bassets/[\w./-]+", text)}


def test_everything_that_configurations_name_is_shipped():
    shipped = {str(path.relative_to(SHIPPED)) for pattern in patterns() for path in SHIPPED.glob(pattern)}
    assert len(named()) > 5 and named() <= shipped
    assert {f"slurm/{path.name}" for path in (ROOT / "slurm").iterdir()} <= shipped
    assert not [name for name in shipped if "training" in name]


def test_what_ships_is_found_from_everywhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert found("assets/portrait.png") == str(ROOT / "assets" / "portrait.png")
    with pytest.raises(UserError, match=r"assets/me.png: is neither here nor among the files that came with Everframe"):
        found("assets/me.png")
    (tmp_path / "assets").mkdir()
    (tmp_path / "assets" / "portrait.png").touch()
    assert found("assets/portrait.png") == "assets/portrait.png"
    kept = (None, "", "-", "elsewhere/assets/me.png", "/assets/me.png", "tcp://assets:1/x")
    assert tuple(map(found, kept)) == kept


def test_batch_scripts_are_copied_once(tmp_path, capsys):
    assert scripts.main([str(tmp_path)]) == 0
    assert capsys.readouterr().out == f"batch scripts: {tmp_path}/slurm\n"
    for file in (ROOT / "slurm").iterdir():
        assert (tmp_path / "slurm" / file.name).read_bytes() == file.read_bytes()
    assert scripts.main([str(tmp_path)]) == 2
    assert capsys.readouterr().err.startswith(f"error: {tmp_path}/slurm: is there already; ")
    assert scripts.main(["a", "b"]) == 2


@pytest.mark.long
def test_a_wheel_streams_from_an_empty_folder(tmp_path):
    """Unzipped, as pip would put it on Python's path, without the checkout it was built from."""
    told = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True).stdout.decode()
    for name in filter(None, told.split("\0")):
        target = tmp_path / "source" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, target, follow_symlinks=False)
    build = (sys.executable, "-m", "pip", "wheel", "-qq", "--no-deps", "--no-build-isolation", "--no-index")
    subprocess.run([*build, "-w", tmp_path, tmp_path / "source"], check=True)
    (wheel,) = tmp_path.glob("*.whl")
    assert wheel.stat().st_size < LARGEST_WHEEL
    zipfile.ZipFile(wheel).extractall(tmp_path / "installed")
    shutil.rmtree(tmp_path / "source")
    (tmp_path / "empty").mkdir()

    def run(*command: str) -> subprocess.CompletedProcess:
        environment = os.environ | {"PYTHONPATH": str(tmp_path / "installed"), "OMP_NUM_THREADS": "1"}
        command = (sys.executable, "-m", "everframe", *command)
        return subprocess.run(command, cwd=tmp_path / "empty", env=environment, capture_output=True, text=True)

    for experiment in ("demo", "demo_world", "demo_video"):
        done = run("stream", f"experiment={experiment}", "launcher=local", "stream.seconds=1", "output_dir=out")
        assert done.returncode == 0, done.stderr
        assert json.loads((tmp_path / "empty" / "out" / "report.json").read_text())["finished"]
        shutil.rmtree(tmp_path / "empty" / "out")
    done = run("plan", "model=pocket_avatar", "plan=timestep")
    assert done.returncode == 0, done.stderr
    init = tmp_path / "installed" / "runtime" / "__init__.py"
    init.write_text("# another's")
    assert run("stream", "model=nano").stderr.startswith(f"error: {init}: another distribution has written over")

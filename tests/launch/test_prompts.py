"""Prompts arrive letter by letter in reports, however they are given."""

import json
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

import everframe
from launch import stream

PROMPTS = json.loads(Path(__file__).with_name("prompts.json").read_text())
NASTY = [prompt for prompt in PROMPTS if any(sign in prompt for sign in ("$", "\\", "'", "\n", "!"))]
SMALL = ("model=nano", "device=cpu", "stream.chunks=1", "sink.video=null", "sink.trace=none")


def told(folder):
    """The prompt of the only stream of a run."""
    return json.loads((folder / "report.json").read_text())["prompt"]


@pytest.mark.long
def test_all_from_the_command_line(tmp_path, capsys):
    for number, prompt in enumerate(PROMPTS):
        folder = tmp_path / str(number)
        assert stream.main([*SMALL, f"stream.prompt={prompt}", f"output_dir={folder}"]) == 0, capsys.readouterr().err
        assert told(folder) == prompt


@pytest.mark.long
@pytest.mark.parametrize("launcher", ["launcher.threads=true", "launcher.threads=false"])
def test_nasty_ones_from_a_shell_to_workers(tmp_path, launcher):
    for number, prompt in enumerate(NASTY[:: len(NASTY) // 4]):
        folder = tmp_path / str(number)
        words = [*SMALL, "plan=layers", launcher, f"stream.prompt={prompt}", f"output_dir={folder}"]
        line = shlex.join([sys.executable, "-m", "launch", "stream", *words])
        subprocess.run(["bash", "-c", line], check=True, cwd=Path(__file__).parents[2])
        assert told(folder) == prompt


@pytest.mark.long
def test_all_from_a_control_file(tmp_path):
    orders = tmp_path / "orders"
    lines = []
    for number, prompt in enumerate(PROMPTS):
        lines += [json.dumps({"open": str(number), "prompt": prompt, "chunks": 1}), json.dumps({"wait": str(number)})]
    orders.write_text("\n".join(lines) + "\n")
    assert stream.main([*SMALL[:2], *SMALL[3:], f"control={orders}", f"output_dir={tmp_path / 'run'}"]) == 0
    found = [json.loads(line) for line in (tmp_path / "run" / "streams.jsonl").read_text().splitlines()]
    assert {one["stream"]: one["prompt"] for one in found} == {str(n): prompt for n, prompt in enumerate(PROMPTS)}


@pytest.mark.parametrize("prompts", [NASTY[:3], pytest.param(PROMPTS, marks=pytest.mark.long)], ids=["some", "all"])
def test_from_python(prompts):
    with everframe.open(model="nano", device="cpu") as pipeline:
        for prompt in prompts:
            opened = pipeline.stream(prompt=prompt, chunks=1)
            assert len(list(opened)) == 1
            assert opened.report["prompt"] == prompt

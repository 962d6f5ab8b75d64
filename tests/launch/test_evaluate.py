"""`launch.evaluate` on a second or two of video: it checks its estimators, prints its bars and leaves its report."""

import json

import pytest

from launch.evaluate import main
from tests.helpers import thorough

SHORT = ["cases=1", "minutes=0", "decoder_clips=4"]


@pytest.mark.parametrize(
    ("model", "seconds", "number"),
    [thorough("avatar", 0.75, "mouth correlation"), ("world", 1.5, "action following")],
)
def test_an_evaluation_leaves_its_numbers(model, seconds, number, tmp_path, capsys):
    assert main([f"model=pocket_{model}", f"seconds={seconds}", f"output_dir={tmp_path}", *SHORT]) == 0
    report = json.loads((tmp_path / "evaluation.json").read_text())
    assert all(report["trusted"].values()) and set(report["estimators"]) == {"drawn", "after the codec"}
    assert number in report["student"]["numbers"] and report["decoder_psnr"] > 25
    printed = capsys.readouterr().out
    assert "decoder PSNR" in printed and "report:" in printed


def test_what_cannot_be_evaluated_is_one_line(capsys):
    assert main(["model=nano"]) == 2
    assert "neither an avatar nor a world" in capsys.readouterr().err
    assert main(["model=pocket_avatar", "seconds=0"]) == 2
    assert "must be above zero" in capsys.readouterr().err

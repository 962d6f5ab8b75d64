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


def test_a_folder_is_looked_at_first_and_what_was_in_it_is_kept(tmp_path, monkeypatch, capsys):
    report = {"estimators": {"drawn": {}}, "student": {"numbers": {}}, "model": "nano", "bars": []}

    def evaluation(config, loop, say):
        return lambda keep: keep(report) or report

    (tmp_path / "file").write_text("")
    assert main(["model=pocket_avatar", f"output_dir={tmp_path}/file"]) == 2
    assert f"output_dir={tmp_path}/file: cannot be made (Not a directory)" in capsys.readouterr().err
    monkeypatch.setattr("distill.evaluate.whole.Evaluation", evaluation)
    for _ in range(2):
        assert main(["model=pocket_avatar", f"output_dir={tmp_path}/run"]) == 0
    left = sorted(str(path.relative_to(tmp_path / "run")) for path in tmp_path.glob("run/**/*.*"))
    assert left == ["config.yaml", "earlier.1", "earlier.1/config.yaml", "earlier.1/evaluation.json", "evaluation.json"]


def test_what_cannot_be_evaluated_is_one_line(capsys):
    assert main(["model=nano"]) == 2
    assert "neither an avatar nor a world" in capsys.readouterr().err
    assert main(["model=pocket_avatar", "seconds=0"]) == 2
    assert "must be above zero" in capsys.readouterr().err


def test_rules_side_by_side_leave_a_table_plots_and_strips(tmp_path, monkeypatch, capsys):
    from distill.evaluate import side_by_side

    kept = [rule for rule in side_by_side.RULES if rule.name in ("own", "EMA sink", "joint window")]
    monkeypatch.setattr(side_by_side, "RULES", kept)
    brief = ["compare_rules=true", "long_cases=1", "segment_s=5.25", "minutes=0.0875", f"output_dir={tmp_path}"]
    assert main(["model=pocket_avatar", *brief]) == 0
    own, averaged, joint = json.loads((tmp_path / "rules.json").read_text())["rules"]
    assert own["trained"] and not averaged["trained"] and "nobody has yet" in joint["cannot"]
    assert own["costs"]["over own"] == 1 and own["seen"]["identity"] > 0.9 and own["seen"]["lip sync"] > 0.3
    assert averaged["costs"]["attended tokens"] == 5 * 13 * 16 > own["costs"]["attended tokens"]
    assert (tmp_path / "rules.png").stat().st_size > 1000 and (tmp_path / "rules-strip.png").stat().st_size > 1000
    printed = capsys.readouterr().out
    assert "joint window cannot run" in printed and "min left" in printed

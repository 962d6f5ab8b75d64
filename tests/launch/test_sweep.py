"""One job of a multirun by its number."""

from launch import sweep
from tests.helpers import config_of


def test_jobs_are_hydras(capsys, monkeypatch):
    overrides = ["stream.seed=1,2", "plan=timestep", "stream.prompt=two words", "stream.events=[{chunk: 7, prompt: a}]"]
    assert len(sweep.jobs(overrides)) == 2
    config = config_of(*sweep.job(1, overrides))
    assert (config.stream.seed, config.stream.prompt, config.stream.events[0].chunk) == (2, "two words", 7)
    monkeypatch.setattr("sys.argv", ["sweep", "2", *overrides])
    assert sweep.main() == 2
    assert capsys.readouterr().err == "error: array task 2: the sweep has jobs 0 to 1; use --array=0-1\n"

"""What many tests need: one thread, and the main job run in this process."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, settings

from launch import progress, stream
from tests.helpers import write_wav
from tests.patience import PATIENT_S

# The same examples every time, none of them kept by an earlier run, and as much time as a busy machine takes.
settings.register_profile(
    "suite", deadline=None, derandomize=True, database=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("suite")


@pytest.fixture(autouse=True)
def one_thread():
    """Two tests run at a time, and a run of a test may have set another number."""
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def said_once(monkeypatch):
    """Who waits says so every few seconds: on a busy machine, amid what a test expects to be all that is said."""
    monkeypatch.setattr(progress, "PLAIN_EVERY_S", PATIENT_S)


@pytest.fixture
def job(tmp_path, capsys):
    """job(*overrides) runs the main job and returns its report; job.fails(...) returns its one line of complaint.
    job.said: what it said on standard error."""

    class Job:
        folder = tmp_path / "out"
        said = ""

        def __call__(self, *overrides: str) -> dict:
            code = stream.main([f"output_dir={self.folder}", *overrides])
            captured = capsys.readouterr()
            assert code == 0, captured.err
            self.said = captured.err
            return json.loads((self.folder / "report.json").read_text())

        def fails(self, *overrides: str) -> str:
            code = stream.main([f"output_dir={self.folder}", *overrides])
            captured = capsys.readouterr()
            lines = captured.err.strip().splitlines()
            assert code == 2, captured.err
            assert len(lines) == 1, captured.err
            assert lines[0].startswith("error: ")
            assert not self.folder.exists() or not any(self.folder.iterdir()), "something was left behind"
            return lines[0].removeprefix("error: ")

    return Job()


@pytest.fixture
def nano(job):
    """nano(*overrides): the hash of a short nano stream, nothing decoded."""

    def run(*overrides: str) -> str:
        return job("model=nano", "sink.video=null", *overrides)["latents_sha256"]

    return run


@pytest.fixture
def speech(tmp_path) -> Path:
    """Two seconds of something that rises and falls like speech."""
    t = np.arange(32000) / 16000
    sound = np.sin(2 * np.pi * 180 * t) * (0.5 + 0.5 * np.sin(2 * np.pi * 3 * t)) * 0.4
    return write_wav(tmp_path / "speech.wav", sound)

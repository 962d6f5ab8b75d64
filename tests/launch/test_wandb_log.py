"""Weights & Biases, offline: a run on disk with what was told, and a clear line where the package is missing."""

import importlib.util
import time
from pathlib import Path

import pytest

from conf.errors import UserError
from conf.schema import Config, LoggingConfig
from launch.wandb_log import WandbLog
from tests.patience import PATIENT_S


@pytest.fixture(autouse=True)
def stays_here(monkeypatch, tmp_path):
    """wandb's own files go to the test's folder too."""
    for name in ("WANDB_CACHE_DIR", "WANDB_CONFIG_DIR", "WANDB_DATA_DIR"):
        monkeypatch.setenv(name, str(tmp_path / name))


def record(folder: Path) -> bytes:
    """The one offline run under a folder: a log of protocol buffers, strings in the clear."""
    (found,) = folder.glob("wandb/offline-run-*/*.wandb")
    # Written by a process of wandb's that a run's end does not wait for; this process's end would.
    deadline = time.monotonic() + PATIENT_S
    while b"latents_sha256" not in found.read_bytes() and time.monotonic() < deadline:
        time.sleep(0.02)
    return found.read_bytes()


@pytest.mark.parametrize("plan", ["sequential", "timestep"])
def test_an_offline_run(job, plan):
    report = job("model=nano", "sink.video=null", "stream.chunks=3", f"plan={plan}", "logging=wandb")
    told = record(job.folder)
    assert report["latents_sha256"].encode() in told
    assert b"time_to_first_frame_s" in told
    # Once per chunk at least.
    for name in (b"fps", b"realtime_factor", b"chunk_latency_s"):
        assert told.count(name) >= 3


def test_several_streams_are_told_apart(job):
    job("model=nano", "sink.video=null", "stream.chunks=2", "stream.count=2", "plan=timestep", "logging=wandb")
    told = record(job.folder)
    assert b"stream0/fps" in told
    assert b"stream1/chunk_latency_s" in told


def test_nothing_without_being_asked(job):
    job("model=nano", "sink.video=null", "stream.chunks=1")
    assert not (job.folder / "wandb").exists()


def test_without_the_package(monkeypatch, job):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "wandb" else find(name, *rest))
    assert "logging=wandb: wandb is not installed; pip install 'everframe[wandb]'" in job.fails(
        "model=nano", "logging=wandb"
    )
    with pytest.raises(UserError):
        WandbLog(Config())


def test_modes():
    with pytest.raises(UserError, match="did you mean offline"):
        LoggingConfig("wandb", mode="ofline")

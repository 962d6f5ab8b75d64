"""Small makers that several tests share."""

from __future__ import annotations

import wave
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from conf.schema import Config
from launch.cli import compose


def config_of(*overrides: str) -> Config:
    """The main job's configuration, composed as the command line does it."""
    return compose("stream", Config, list(overrides))


def thorough(*values: Any) -> Any:
    """Parameters of a case that only `make test-all` tries."""
    return pytest.param(*values, marks=pytest.mark.long)


def sampled(cases: Iterable[tuple], kept: Collection[tuple]) -> list[Any]:
    """Parameters of a test: those in `kept` are tried always, the others by `make test-all`."""
    return [case if case in kept else thorough(*case) for case in cases]


def write_wav(path: Path, samples: np.ndarray, rate: int = 16000) -> Path:
    """Float samples in [-1, 1] as a 16-bit mono WAV file."""
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes((samples * 32767).astype("<i2").tobytes())
    return path

"""Small makers that several tests share."""

from __future__ import annotations

import wave
from pathlib import Path

import numpy as np
from hydra import compose, initialize_config_module
from hydra.core.config_store import ConfigStore
from omegaconf import OmegaConf

from conf.schema import Config


def config_of(*overrides: str) -> Config:
    """The main job's configuration, composed as the command line does it."""
    ConfigStore.instance().store("stream_schema", Config)
    with initialize_config_module("conf", version_base="1.3"):
        return OmegaConf.to_object(compose("stream", list(overrides)))


def write_wav(path: Path, samples: np.ndarray, rate: int = 16000) -> Path:
    """Float samples in [-1, 1] as a 16-bit mono WAV file."""
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes((samples * 32767).astype("<i2").tobytes())
    return path

"""PNG frames: numbered, lossless, whole."""

import resource

import numpy as np
import pytest
from PIL import Image

from conf.errors import UserError
from stages.sinks.frames import FramesSink


def noise(count):
    return np.random.default_rng(count).integers(0, 255, (count, 32, 48, 3), np.uint8)


def test_frames_are_numbered_and_lossless(tmp_path):
    sink, frames = FramesSink(tmp_path / "a" / "b"), noise(5)
    sink.write(frames[:2])
    sink.write(frames[2:])
    sink.close()
    paths = sorted((tmp_path / "a" / "b").iterdir())
    assert [p.name for p in paths] == [f"frame.{i:08d}.png" for i in range(5)]
    assert all(np.array_equal(np.asarray(Image.open(p)), f) for p, f in zip(paths, frames, strict=True))


def test_what_can_go_wrong(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"sink.frames=.*: cannot be written"):
        FramesSink(tmp_path / "file")
    sink = FramesSink(tmp_path)
    with pytest.raises(ValueError, match="uint8"):
        sink.write(noise(1).astype(np.float32))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
        with pytest.raises(UserError, match=r"cannot be written \(File too large\)"):
            sink.write(noise(1))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [p.name for p in tmp_path.iterdir()] == ["file"]

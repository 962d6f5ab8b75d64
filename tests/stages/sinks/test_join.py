"""Parts of a video to one: every frame at its time, sound in step, and nothing lost where it cannot be done."""

import av
import numpy as np
import pytest

from conf.errors import UserError
from stages.sinks.join import join, segment, segments
from stages.sinks.video import VideoSink
from tests.stages.sinks.test_video_sink import decode, flat

FLASHES = (5, 30, 50, 77, 100, 130)


def part(path, first, last, size=64):
    """Frames first .. last - 1 of one video, with a flash and a click at the start of some."""
    sink = VideoSink(path, 16, size, size, sound=True)
    for start in range(first, last, 12):
        picture, sound = flat(12)[:, :size, :size].copy(), np.zeros(12 * 1000, np.float32)
        for frame in FLASHES:
            if start <= frame < start + 12:
                picture[frame - start] = 230
                sound[(frame - start) * 1000 :][:8] = 0.9
        sink.write(picture, sound)
    sink.close()


def test_frames_and_sound_keep_their_times(tmp_path):
    """A part ends where the next begins, however long it is."""
    video = tmp_path / "a.mp4"
    part(video, 0, 60)
    part(segment(video, 48), 48, 120)
    part(segment(video, 96), 96, 144)
    assert [first for first, _ in segments(video)] == [48, 96]
    assert join(video) == 2 and join(video) == 0
    assert [p.name for p in tmp_path.iterdir()] == ["a.mp4"]
    flashes, clicks, ends = decode(video)
    assert flashes == [frame / 16 for frame in FLASHES]
    assert len(clicks) == len(FLASHES)
    assert all(abs(click - frame / 16) < 0.002 for click, frame in zip(clicks, FLASHES, strict=True))
    assert ends["video"] == 9 and abs(ends["audio"] - 9) < 0.05
    with av.open(str(video)) as container:
        times = [packet.dts for packet in container.demux(audio=0) if packet.dts is not None]
    assert times == sorted(set(times))


def test_parts_that_do_not_fit_stay_as_they_are(tmp_path):
    video = tmp_path / "a.mp4"
    part(video, 0, 48)
    part(segment(video, 48), 48, 96, size=32)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(UserError, match="encoded in another way"):
        join(video)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    with pytest.raises(UserError, match="there is no such file"):
        join(tmp_path / "b.mp4")


def test_what_is_before_a_cut_is_on_disk_once_more_is_written(tmp_path):
    path = tmp_path / "a.mp4"
    sink = VideoSink(path, 16, 64, 64, sound=True)
    for start in range(0, 48, 12):
        if start == 36:
            sink.cut()
        sink.write(flat(12), np.zeros(12000, np.float32))
    with av.open(str(path)) as container:
        assert sum(packet.dts is not None for packet in container.demux(video=0)) == 36
    sink.close()

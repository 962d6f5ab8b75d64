"""The mp4 sink: picture and sound together to the end, playable whenever it stops."""

import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import av
import numpy as np
import pytest

from conf.errors import UserError
from stages.sinks.video import VideoSink

SIZE = 64


def flat(count, value=30):
    return np.full((count, SIZE, SIZE, 3), value, np.uint8)


def decode(path):
    """Times of the bright frames and of the loud samples, and when each track ends."""
    flashes, clicks, ends = [], [], {"video": 0.0, "audio": 0.0}
    with av.open(str(path)) as container:
        for packet in container.demux():
            for frame in packet.decode():
                if isinstance(frame, av.VideoFrame):
                    ends["video"] = frame.time + 1 / float(container.streams.video[0].average_rate)
                    if frame.to_ndarray()[:SIZE].mean() > 150:
                        flashes.append(frame.time)
                else:
                    ends["audio"] = frame.time + frame.samples / frame.sample_rate
                    samples = np.abs(frame.to_ndarray()[0])
                    if samples.max() > 0.3:
                        clicks.append(frame.time + int(samples.argmax()) / frame.sample_rate)
    return flashes, clicks, ends


def write_clicks(path, fps, frames, at, per_write=12):
    """A flash and a click at the start of each frame in `at`; the sound comes in uneven pieces."""
    sink = VideoSink(path, fps, SIZE, SIZE, sound=True)
    sound_made = 0
    for first in range(0, frames, per_write):
        count = min(per_write, frames - first)
        picture, sound_end = flat(count), round((first + count) * 16000 / fps) + (first * 7) % 50
        sound = np.zeros(sound_end - sound_made, np.float32)
        for frame in at:
            if first <= frame < first + count:
                picture[frame - first] = 230
                sound[round(frame * 16000 / fps) - sound_made :][:8] = 0.9
        sink.write(picture, sound)
        sound_made = sound_end
    sink.close()


@pytest.mark.parametrize("fps, frames", [(16, 60), (25, 70), (30000 / 1001, 100)])
def test_picture_and_sound_start_and_end_together(tmp_path, fps, frames):
    path = tmp_path / "a.mp4"
    write_clicks(path, fps, frames, at=(1, frames - 2))
    flashes, clicks, ends = decode(path)
    assert flashes == pytest.approx([1 / fps, (frames - 2) / fps], abs=1e-4)
    assert clicks == pytest.approx(flashes, abs=0.002)
    assert ends["video"] == pytest.approx(frames / fps, abs=1e-3)
    assert abs(ends["audio"] - ends["video"]) < 1 / fps


def test_ten_minutes_stay_in_step(tmp_path):
    path, frames = tmp_path / "long.mp4", 600 * 16
    write_clicks(path, 16, frames, at=(0, frames - 8), per_write=48)
    flashes, clicks, ends = decode(path)
    assert flashes == [0.0, 599.5]
    assert clicks == pytest.approx(flashes, abs=0.002)
    assert abs(ends["audio"] - ends["video"]) < 1 / 16


def test_colours_survive(tmp_path):
    path = tmp_path / "a.mp4"
    colours = np.array([[200, 40, 40], [40, 200, 40], [40, 40, 200], [255, 255, 255], [0, 0, 0]], np.uint8)
    sink = VideoSink(path, 16, SIZE, SIZE)
    sink.write(np.broadcast_to(colours[:, None, None], (5, SIZE, SIZE, 3)))
    sink.close()
    with av.open(str(path)) as container:
        assert not container.streams.audio and container.streams.video[0].codec_context.pix_fmt == "yuv420p"
        for frame, colour in zip(container.decode(video=0), colours, strict=True):
            assert frame.colorspace == 1 and frame.color_range == 1
            rgb = frame.reformat(format="rgb24", src_colorspace="ITU709", src_color_range="MPEG").to_ndarray()
            assert np.abs(rgb.astype(int) - colour).max() <= 6


def test_the_same_frames_give_the_same_file(tmp_path):
    picture = np.random.default_rng(0).integers(0, 255, (20, SIZE, SIZE, 3), np.uint8)
    for name, cuts in (("a", [20]), ("b", [3, 4, 20])):
        sink, first = VideoSink(tmp_path / f"{name}.mp4", 16, SIZE, SIZE, sound=True), 0
        for cut in cuts:
            sink.write(picture[first:cut], np.zeros((cut - first) * 1000, np.float32))
            first = cut
        sink.close()
        sink.close()
    assert (tmp_path / "a.mp4").read_bytes() == (tmp_path / "b.mp4").read_bytes()


def test_missing_sound_is_silence_and_too_much_is_cut(tmp_path):
    for name, sound in (("none", None), ("short", np.zeros(10, np.float32)), ("long", np.zeros(90000, np.float32))):
        path = tmp_path / f"{name}.mp4"
        sink = VideoSink(path, 16, SIZE, SIZE, sound=True)
        sink.write(flat(32), sound)
        sink.close()
        ends = decode(path)[2]
        assert ends["video"] == 2.0 and abs(ends["audio"] - 2.0) < 1 / 16


def test_a_killed_process_leaves_a_playable_file(tmp_path):
    path = tmp_path / "a.mp4"
    code = (
        "import numpy as np, sys; from stages.sinks.video import VideoSink\n"
        "sink = VideoSink(sys.argv[1], 16, 64, 64, sound=True)\n"
        "for _ in range(5): sink.write(np.full((16, 64, 64, 3), 99, np.uint8), np.zeros(16000, np.float32))\n"
        "print('written', flush=True); sys.stdin.read()"
    )
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", code, str(path)], **pipes) as process:
        assert process.stdout.readline() == b"written\n"
        process.send_signal(signal.SIGKILL)
    ends = decode(path)[2]
    assert ends["video"] >= 4.0 and ends["audio"] >= 3.9


def test_no_space_is_one_line_and_leaves_a_playable_file(tmp_path):
    path = tmp_path / "a.mp4"
    noise = np.random.default_rng(0).integers(0, 255, (16, SIZE, SIZE, 3), np.uint8)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    sink = VideoSink(path, 16, SIZE, SIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, limits[1]))
        with pytest.raises(UserError, match=r"sink.video=.*a.mp4: cannot be written \(File too large\)"):
            for _ in range(50):
                sink.write(noise)
        sink.close()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert decode(path)[2]["video"] >= 1.0


def test_without_frames_there_is_no_file(tmp_path):
    sink = VideoSink(tmp_path / "a.mp4", 16, SIZE, SIZE)
    sink.close()
    assert not list(tmp_path.iterdir())


def test_what_a_user_can_get_wrong(tmp_path):
    (tmp_path / "folder.mp4").mkdir()
    (tmp_path / "file").write_text("")
    for name, height, width, message in (
        ("a.mp4", 65, 64, "stream.height=65: H.264 needs even sizes; use 64 or 66"),
        ("a.mp4", 64, 33, "stream.width=33"),
        ("a.avi", 64, 64, "name it a.mp4"),
        ("file/a.mp4", 64, 64, "Not a directory"),
        ("folder.mp4", 64, 64, "it is no file but a folder"),
        ("a" * 300 + ".mp4", 64, 64, "cannot be written"),
        ("a.mp4", 40000, 40000, "cannot be written"),
    ):
        with pytest.raises(UserError, match=message) as error:
            VideoSink(tmp_path / name, 16, height, width)
        assert "\n" not in str(error.value)
    with pytest.raises(UserError, match="fps=0"):
        VideoSink(tmp_path / "a.mp4", 0, 64, 64)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "folder.mp4"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_an_unwritable_folder(tmp_path):
    Path(tmp_path).chmod(0o500)
    with pytest.raises(UserError, match=r"sink.video=.*cannot be written"):
        VideoSink(tmp_path / "a.mp4", 16, SIZE, SIZE)


def test_what_a_program_can_get_wrong(tmp_path):
    sink = VideoSink(tmp_path / "a.mp4", 16, SIZE, SIZE)
    with pytest.raises(ValueError, match="frames must be uint8"):
        sink.write(np.zeros((1, 32, SIZE, 3), np.uint8))
    with pytest.raises(ValueError, match="no sound track"):
        sink.write(flat(1), np.zeros(1000, np.float32))
    sink.close()
    with pytest.raises(ValueError, match="closed"):
        sink.write(flat(1))

"""Sound sources: every format at one rate, read as it is needed, and errors before anything else loads."""

import io
import os
import subprocess
import sys
import threading
import wave

import av
import numpy as np
import pytest

from conf.errors import UserError
from stages.sources.audio import RATE, LivePcm, Silence
from stages.sources.audio_file import AudioFile
from stages.sources.live import LiveBytes
from tests.patience import PATIENT_S
from tests.stages.sources.blocked import Blocked


def write_wav(path, samples, rate=RATE, channels=1):
    with wave.open(str(path), "wb") as file:
        file.setparams((channels, 2, rate, 0, "NONE", ""))
        file.writeframes((np.repeat(samples, channels) * 32767).round().astype("<i2").tobytes())
    return path


def write_encoded(path, codec, samples, rate, video=False):
    with av.open(str(path), "w") as container:
        picture = container.add_stream("libx264", rate=10, width=16, height=16, pix_fmt="yuv420p") if video else None
        track = container.add_stream(codec, rate=rate, layout="mono")
        if picture:
            for _ in range(10):
                for packet in picture.encode(av.VideoFrame(16, 16, "yuv420p")):
                    container.mux(packet)
            container.mux(picture.encode(None))
        sound = av.AudioFrame.from_ndarray((samples[None] * 32767).astype("<i2"), format="s16", layout="mono")
        sound.sample_rate, sound.pts = rate, 0
        context = track.codec_context
        resampler = av.AudioResampler(context.format.name, "mono", rate, frame_size=context.frame_size or None)
        for frame in [*resampler.resample(sound), *resampler.resample(None), None]:
            container.mux(track.encode(frame))
    return path


def click(rate, at_s=0.75, length_s=1.5):
    samples = np.zeros(round(rate * length_s), np.float32)
    samples[round(rate * at_s) : round(rate * at_s) + 4] = 0.8
    return samples


def read_all(source, block=777):
    blocks = []
    while len(block_read := source.read(block)):
        blocks.append(block_read)
    assert all(len(b) == block for b in blocks[:-1])
    assert not len(source.read(block))
    return np.concatenate(blocks) if blocks else np.zeros(0, np.float32)


@pytest.mark.parametrize("suffix", [".wav", ".mp4", ".ogg"])
def test_a_file_that_is_cut_anywhere_is_read_or_refused_in_one_line(tmp_path, suffix):
    path = tmp_path / f"whole{suffix}"
    if suffix == ".wav":
        write_wav(path, click(RATE))
    else:
        write_encoded(path, {".mp4": "aac", ".ogg": "libopus"}[suffix], click(48000), 48000)
    content, cut = path.read_bytes(), tmp_path / f"cut{suffix}"
    for length in {*range(1, 80), *range(80, len(content), 997)}:
        cut.write_bytes(content[:length])
        try:
            read_all(AudioFile(cut))
        except UserError as error:
            assert "\n" not in str(error)


def test_wav_at_its_own_rate_is_exact(tmp_path):
    samples = np.random.default_rng(0).integers(-30000, 30000, 4001)
    source = AudioFile(write_wav(tmp_path / "a.wav", samples / 32767))
    assert source.duration_s == pytest.approx(4001 / RATE)
    read = read_all(source)
    assert read.dtype == np.float32 and np.array_equal(read * 32768, samples)
    source.close()
    assert not len(source.read(5))


@pytest.mark.parametrize(
    "suffix, codec, rate, video",
    [
        ("wav", "pcm_s16le", 44100, False),
        ("mp3", "mp3", 44100, False),
        ("flac", "flac", 22050, False),
        ("ogg", "libopus", 48000, False),
        ("mp4", "aac", 48000, True),
    ],
)
def test_formats_come_out_in_time_at_16_khz(tmp_path, suffix, codec, rate, video):
    source = AudioFile(write_encoded(tmp_path / f"a.{suffix}", codec, click(rate), rate, video))
    samples = read_all(source)
    assert abs(np.abs(samples).argmax() / RATE - 0.75) < 0.005
    assert abs(len(samples) / RATE - 1.5) < 0.07 and source.duration_s == pytest.approx(1.5, abs=0.07)
    source.close()


def test_stereo_is_mixed_to_mono(tmp_path):
    samples = read_all(AudioFile(write_wav(tmp_path / "a.wav", np.full(2000, 0.25), channels=2)))
    assert samples.shape == (2000,) and np.abs(samples - 0.25).max() < 0.01


def test_a_long_file_is_not_read_at_once(tmp_path, monkeypatch):
    path = write_wav(tmp_path / "long.wav", np.zeros(60 * RATE))
    source, largest = AudioFile(path), 0
    while len(source.read(1000)):
        largest = max(largest, len(source._held))
    assert 0 < largest < RATE


@pytest.mark.parametrize(
    "content, rule",
    [
        (None, "no such file"),
        (b"", "cannot be read as sound"),
        (b"hello" * 100, "cannot be read as sound"),
        (b"some text\n" * 50, "no audio track|cannot be read"),
        ("header", "cannot be read as sound"),
        ("folder", "is no file but a folder"),
        ("picture", "no audio track"),
    ],
)
def test_what_a_user_can_get_wrong(tmp_path, content, rule):
    path = tmp_path / "bad.wav"
    if content == "header":
        path.write_bytes(write_wav(tmp_path / "ok.wav", np.zeros(100)).read_bytes()[:44])
    elif content == "folder":
        path.mkdir()
    elif content == "picture":
        with av.open(str(path), "w", format="mp4") as container:
            stream = container.add_stream("libx264", rate=10, width=16, height=16, pix_fmt="yuv420p")
            container.mux(stream.encode(av.VideoFrame(16, 16, "yuv420p")))
            container.mux(stream.encode(None))
    elif content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=rule) as error:
        AudioFile(path)
    assert str(error.value).startswith(f"source.audio={path}") and "\n" not in str(error.value)


def test_damage_further_on_is_skipped(tmp_path, caplog):
    path = write_encoded(tmp_path / "a.mp3", "mp3", click(44100), 44100)
    data = bytearray(path.read_bytes())
    data[len(data) // 2 : len(data) // 2 + 300] = b"\xff" * 300
    path.write_bytes(data)
    assert len(read_all(AudioFile(path))) > RATE


def test_live_pcm_equals_what_was_piped():
    samples = np.random.default_rng(0).integers(-32768, 32767, 50000).astype("<i2")
    source = LivePcm(io.BytesIO(samples.tobytes() + b"x"), buffer_s=0.1)
    assert source.duration_s is None
    assert np.array_equal(read_all(source) * 32768, samples)
    source.close()


def test_live_pcm_waits_for_the_writer_and_holds_little():
    reading, writing = os.pipe()
    with open(reading, "rb") as stream:  # noqa: PTH123 (a descriptor)
        source = LivePcm(stream, buffer_s=0.05)
        written = 0
        os.set_blocking(writing, False)
        while True:
            try:
                written += os.write(writing, b"\1\0" * 500)
            except BlockingIOError:
                if source._bytes.buffered == 1600:
                    break
        assert written < 80_000 and source._bytes.buffered <= 1600  # the pipe's own 64 KiB and ours
        assert len(source.read(written // 2)) == written // 2
        release = Blocked(source._bytes, lambda: source.read(10))
        assert len(release(lambda: os.write(writing, b"\1\0" * 10))) == 10
        os.close(writing)
        assert not len(source.read(10))
        source.close()


@pytest.mark.parametrize("by", ["stop", "close"])
def test_a_blocked_read_is_released(by):
    reading, writing = os.pipe()
    stop = threading.Event()
    with open(reading, "rb") as stream:  # noqa: PTH123
        source = LivePcm(stream, stop)
        os.write(writing, b"\1\0" * 4)
        release = Blocked(source._bytes, lambda: source.read(100), 8)
        heard = release(stop.set if by == "stop" else source.close)
        assert len(heard) == 4
        assert not len(source.read(1))
        source.close()
        assert not source._bytes._thread.is_alive()
    os.close(writing)


@pytest.fixture
def fifo(tmp_path):
    path = tmp_path / "sound"
    os.mkfifo(path)
    return path


def test_a_named_pipe_is_a_file(tmp_path, fifo):
    file = write_wav(tmp_path / "a.wav", np.random.default_rng(0).uniform(-1, 1, RATE))
    writer = threading.Thread(target=lambda: fifo.write_bytes(file.read_bytes()))
    writer.start()
    piped = AudioFile(fifo)
    assert np.array_equal(read_all(piped), read_all(AudioFile(file)))
    writer.join()
    piped.close()


@pytest.mark.parametrize("seconds", [None, 0.0, 0.5], ids=["none", "silent", "half"])
def test_a_named_pipe_without_a_writer_is_released(tmp_path, fifo, monkeypatch, seconds):
    """Opening it waits for sound to come; when the stream is stopped, what came is all there is."""
    content = write_wav(tmp_path / "a.wav", np.zeros(RATE)).read_bytes()
    stop, waits, take = threading.Event(), threading.Event(), LiveBytes.take

    def noted(live, least, most):
        if not live.buffered:
            waits.set()
        return take(live, least, most)

    monkeypatch.setattr(LiveBytes, "take", noted)
    opened, writing = [], None
    if seconds is not None:
        writing = os.open(fifo, os.O_RDWR)  # without waiting for a reader
        os.write(writing, content[: round(seconds * 2 * RATE)])
    thread = threading.Thread(target=lambda: opened.append(AudioFile(fifo, stop)), daemon=True)
    thread.start()
    assert waits.wait(PATIENT_S)
    stop.set()
    thread.join(PATIENT_S)
    assert len(opened[0].read(RATE)) <= (seconds or 0.0) * RATE
    assert not len(opened[0].read(1))
    opened[0].close()
    if writing is not None:
        os.close(writing)


def test_a_process_ends_cleanly_while_its_standard_input_is_silent():
    code = "import sys; from stages.sources.audio import LivePcm; s = LivePcm(sys.stdin.buffer); print(len(s.read(2)))"
    process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    process.stdin.write(b"\1\0" * 2)
    process.stdin.flush()
    assert process.wait(timeout=PATIENT_S) == 0 and process.stdout.read() == b"2\n"
    process.stdin.close()
    process.stdout.close()


def test_live_input_that_is_not_pcm(tmp_path):
    wav = write_wav(tmp_path / "a.wav", np.zeros(100)).read_bytes()
    with pytest.raises(UserError, match=r"source.audio=-: carries a WAV file"):
        LivePcm(io.BytesIO(wav)).read(10)
    terminal = io.BytesIO()
    terminal.isatty = lambda: True
    with pytest.raises(UserError, match="is a terminal"):
        LivePcm(terminal)


def test_silence():
    assert not Silence().read(100).any() and Silence().read(100).dtype == np.float32
    source = Silence(duration_s=0.01)
    assert len(read_all(source, 100)) == 160
    source.close()


def test_a_file_whose_header_names_no_codec(tmp_path):
    whole = write_wav(tmp_path / "a.wav", np.zeros(1600, np.float32)).read_bytes()
    (tmp_path / "b.wav").write_bytes(whole[:20] + b"\xff\x7f" + whole[22:])  # the format's number
    with pytest.raises(UserError, match="cannot be read as sound"):
        AudioFile(tmp_path / "b.wav")

"""Pictures of files and pipes: every frame at its time, of one size, and bad files told in one line."""

import io
import itertools
import os
import threading
from collections import deque
from fractions import Fraction

import av
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conf.errors import UserError
from stages.sources.fitting import Fit
from stages.sources.live import Stop, Turned
from stages.sources.moments import Moments, shown
from stages.sources.raw_video import LiveFrames
from stages.sources.video import AHEAD, VideoFile
from tests.patience import PATIENT_S
from tests.stages.sources.blocked import Blocked, settle
from tests.stages.sources.made_video import moving, numbered, numbers, turn_clockwise, write_video

RATES = [24, 25, Fraction(30000, 1001), 30]
SIZE = Fit(16, 16)


def all_of(source, chunk=7):
    """Every frame, a chunk at a time; and close it."""
    found = []
    while (frames := source.take(chunk)) is not None:
        found += list(frames)
    source.close()
    return np.stack(found)


class Stub:
    """A frame of nothing but its time."""

    def __init__(self, pts, duration):
        self.pts, self.duration = pts, duration


# -- time -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fps", [16, 25])
@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize("kind", ["mp4", "mkv", "avi", "nut"])
def test_each_frame_of_the_output_is_the_input_frame_shown_then(tmp_path, kind, rate, fps):
    """A minute: output frame k is input frame floor(k rate / fps), from the first to the last. Only where a container
    rounds its times, to a millisecond in mkv, may a frame come up to that much sooner than it should."""
    count = 60 * 30
    path = write_video(tmp_path / f"long.{kind}", numbered(count), rate)
    source = VideoFile(path, fps, SIZE)
    found = numbers(all_of(source))
    per = Fraction(rate) / fps
    expected = [int(k * per) for k in range(len(found))]
    early = [k for k, (is_, should) in enumerate(zip(found, expected, strict=True)) if is_ != should]
    assert all(found[k] == expected[k] + 1 and (k * per) % 1 > 1 - Fraction(rate) / 1000 for k in early)
    assert not early or kind == "mkv"
    # No frame is lost or doubled that the rates do not demand, and none at the end.
    steps = {b - a for a, b in itertools.pairwise(found)}
    assert steps <= {int(per), int(per) + 1} if per % 1 else steps == {int(per)}
    assert 0 <= count / per - len(found) < 7 + 1
    assert source.count is None or abs(source.count - count / per) <= 2


@settings(max_examples=200)
@given(st.integers(1, 120), st.integers(1, 3), st.integers(1, 60), st.integers(1, 200))
def test_frames_are_shown_as_often_as_the_rates_demand(rate, part, fps, count):
    """For any rates, in exact times: floor or ceiling of their quotient, in all as many as fit into the input."""
    rate = Fraction(rate, part)
    moments = Moments(1 / rate if 1 / rate > Fraction(1, 400) else 1 / (rate * 1000), 1 / rate)
    each = 1 if 1 / rate > Fraction(1, 400) else 1000
    found = list(shown((Stub(i * each, each) for i in range(count)), moments, fps))
    times = [end - first for _, first, end in found]
    assert all(fps // rate <= n <= -(-fps // rate) for n in times[:-1])
    assert [first for _, first, _ in found] == [0, *(end for _, _, end in found[:-1])]
    assert abs(found[-1].end - count * fps / rate) <= 1


def test_a_clock_is_never_summed():
    """An hour of 29.97 frames a second ends with the frame that is shown then."""
    count, fps = 3600 * 30, 25
    moments = Moments(Fraction(1, 30000), Fraction(1, 30))
    last = deque(shown((Stub(1001 * i, 1001) for i in range(count)), moments, fps), maxlen=1).pop()
    assert last.frame.pts == 1001 * (count - 1)
    assert last.end == -(-count * 1001 * fps // 30000)


def test_a_variable_rate_is_shown_by_its_times(tmp_path):
    """0, 100, 110, 120, 500 ms and the last one as long as it says."""
    times = [0, 100, 110, 120, 500, 540]
    path = write_video(tmp_path / "v.mkv", numbered(6), 25, times, Fraction(1, 1000))
    found = numbers(all_of(VideoFile(path, 25, SIZE), 1))
    expected = [max(i for i, t in enumerate(times) if t <= 40 * k) for k in range(14)]
    assert found[:14] == expected


def test_times_that_are_missing_or_begin_anew_follow_the_frames_before():
    times = [None, 3, None, None, 6, 0, 1, 2]
    moments = Moments(Fraction(1, 10), Fraction(1, 10))
    assert [moments.of(Stub(pts, 1)) * 10 for pts in times] == [0, 1, 2, 3, 4, 5, 6, 7]


def test_a_bare_stream_without_times_has_the_rate_that_it_says(tmp_path):
    path = tmp_path / "bare.h264"
    with av.open(str(path), "w", format="h264") as container:
        track = container.add_stream("libx264", rate=25)
        track.height, track.width, track.pix_fmt = 16, 16, "yuv420p"
        for picture in numbered(30):
            container.mux(track.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(track.encode())
    with av.open(str(path)) as container:
        assert next(container.decode(video=0)).pts is None
    assert len(all_of(VideoFile(path, 25, SIZE), 1)) == 30


def test_times_count_from_the_first_frame(tmp_path):
    times = [i * 40 + 7000 for i in range(10)]
    path = write_video(tmp_path / "late.mkv", numbered(10), 25, times, Fraction(1, 1000))
    assert numbers(all_of(VideoFile(path, 25, SIZE), 1)) == list(range(10))


# -- pictures ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["mp4", "mkv", "avi", "nut"])
def test_pictures_of_the_right_size_are_as_they_were(tmp_path, kind):
    frames = moving(9, 32, 48)
    path = write_video(tmp_path / f"a.{kind}", frames, 16)
    assert np.array_equal(all_of(VideoFile(path, 16, Fit(32, 48)), 3), frames)


@pytest.mark.parametrize("size", [(31, 77), (90, 20), (1, 1), (48, 48)])
def test_letterbox_shows_all_between_black_bars_and_crop_fills(tmp_path, size):
    """White pictures of odd sizes."""
    rows, columns = size
    path = write_video(tmp_path / "white.nut", np.full((4, rows, columns, 3), 255, np.uint8), 16)
    whole, cut = (all_of(VideoFile(path, 16, Fit(32, 64, how)), 4)[0] for how in ("letterbox", "crop"))
    assert cut.shape == (32, 64, 3) and (cut == 255).all()
    scale = min(32 / rows, 64 / columns)
    inside = (whole == 255).all(-1)
    assert (whole[~inside] == 0).all()
    high, wide = inside.any(1).sum(), inside.any(0).sum()
    assert inside.sum() == high * wide
    assert abs(high - rows * scale) <= 1 and abs(wide - columns * scale) <= 1
    assert np.abs(np.argwhere(inside).mean(0) - (15.5, 31.5)).max() <= 0.5


def test_crop_keeps_the_middle(tmp_path):
    frame = np.zeros((16, 48, 3), np.uint8)
    frame[:, 16:32] = (10, 200, 30)
    path = write_video(tmp_path / "a.nut", [frame] * 2, 16)
    assert (all_of(VideoFile(path, 16, Fit(16, 16, "crop")), 2) == (10, 200, 30)).all()


def test_pictures_of_a_phone_stand_upright(tmp_path):
    """Its header says that they are to be turned clockwise: the top of what is stored is on the right."""
    frame = np.zeros((16, 32, 3), np.uint8)
    frame[:8] = 255
    path = turn_clockwise(write_video(tmp_path / "phone.mp4", [frame] * 2, 16))
    upright = all_of(VideoFile(path, 16, Fit(32, 16)), 2)[0]
    assert (upright[:, 8:] == 255).all() and (upright[:, :8] == 0).all()


def test_pixels_that_are_not_square_are_made_square(tmp_path):
    path = write_video(tmp_path / "a.mp4", np.full((2, 32, 16, 3), 255, np.uint8), 16, aspect=Fraction(2))
    assert (all_of(VideoFile(path, 16, Fit(32, 32)), 2) == 255).all()


def test_sound_beside_pictures_is_left_alone(tmp_path):
    path = write_video(tmp_path / "heard.mkv", numbered(20), 16, sound=True)
    assert numbers(all_of(VideoFile(path, 16, SIZE), 5)) == list(range(20))


# -- taking -----------------------------------------------------------------------------------------------------------


@settings(max_examples=15)
@given(st.lists(st.integers(1, 3 * AHEAD), min_size=1, max_size=6), st.integers(0, 90))
def test_any_chunks_give_the_same_frames_and_what_is_skipped_is_left_out(tmp_path_factory, counts, skipped):
    path = tmp_path_factory.getbasetemp() / "chunks.nut"
    if not path.exists():
        write_video(path, numbered(100), 24)
    source = VideoFile(path, 25, SIZE)
    source.skip(skipped)
    at = skipped
    for count in counts:
        frames = source.take(count)
        if frames is None:
            assert at + count > 104
            break
        assert numbers(frames) == [k * 24 // 25 for k in range(at, at + count)]
        at += count
    source.close()
    assert source.take(1) is None


def test_frames_that_do_not_fill_a_chunk_are_dropped(tmp_path):
    source = VideoFile(write_video(tmp_path / "a.nut", numbered(10), 16), 16, SIZE)
    assert numbers(source.take(9)) == list(range(9))
    assert source.take(4) is None and source.take(4) is None
    source.close()


def test_it_is_decoded_ahead_but_not_far(tmp_path):
    source = VideoFile(write_video(tmp_path / "a.nut", numbered(200), 16), 16, SIZE)
    source.take(1)
    with source._changed:
        assert source._changed.wait_for(lambda: len(source._held) == AHEAD, PATIENT_S)
        assert not source._changed.wait_for(lambda: len(source._held) > AHEAD, 0.1)
    source.close()
    assert not source._thread.is_alive()


def test_a_stop_ends_it(tmp_path):
    stop = threading.Event()
    source = VideoFile(write_video(tmp_path / "a.nut", numbered(50), 16), 16, SIZE, stop)
    assert source.take(5) is not None
    stop.set()
    assert source.take(50) is None
    source.close()


# -- bad files --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("missing.mp4", None, "there is no such file"),
        ("empty.mp4", b"", "cannot be read as video"),
        ("noise.mp4", bytes(range(256)) * 40, "cannot be read as video"),
    ],
)
def test_a_bad_file_is_told_in_one_line(tmp_path, name, content, message):
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=message) as told:
        VideoFile(path, 16, SIZE)
    assert str(told.value).startswith(f"source.video={path}: ") and "\n" not in str(told.value)


def test_a_file_that_was_cut_off_or_has_no_pictures_is_told(tmp_path, speech):
    whole = write_video(tmp_path / "a.mp4", moving(20, 32, 32), 16).read_bytes()
    (tmp_path / "half.mp4").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"half.mp4: cannot be read as video \("):
        VideoFile(tmp_path / "half.mp4", 16, SIZE)
    with pytest.raises(UserError, match="the file has no video track; give a file with pictures that move"):
        VideoFile(speech, 16, SIZE)
    with pytest.raises(UserError, match="is no file but a folder"):
        VideoFile(tmp_path, 16, SIZE)


def test_damage_further_on_costs_the_damaged_frames_alone(tmp_path, caplog):
    path = write_video(tmp_path / "a.mkv", moving(60, 64, 64), 16)
    content = bytearray(path.read_bytes())
    at = len(content) // 2
    content[at : at + 2000] = bytes(2000)
    path.write_bytes(bytes(content))
    found = all_of(VideoFile(path, 16, Fit(64, 64)), 1)
    assert 30 < len(found) <= 61


# -- live -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def pipe():
    """make(waits) gives a live source of 16 x 16 in chunks of 4, and a function that writes frames to it, or bytes, or
    None: the end."""
    made = []

    def make(waits, stop=None):
        reading, writing = os.pipe()
        stream = os.fdopen(reading, "rb", buffering=0)
        source = LiveFrames(stream, 16, 16, 4, waits, stop)
        open_ends = {writing}

        def write(what):
            if what is None:
                open_ends.clear()
                os.close(writing)
            else:
                os.write(writing, what if isinstance(what, bytes) else what.tobytes())

        made.append((source, stream, open_ends))
        return source, write

    yield make
    for source, stream, open_ends in made:
        source.close()
        for end in open_ends:
            os.close(end)
        stream.close()


EACH = 16 * 16 * 3
PICTURES = numbered(40)


def test_frames_of_a_pipe_are_those_that_were_written(tmp_path):
    source = LiveFrames(io.BytesIO(PICTURES.tobytes() + b"half a frame"), 16, 16, 4, waits=True)
    assert np.array_equal(all_of(source, 4), PICTURES)


def test_a_file_that_is_made_as_it_comes_waits(pipe):
    source, write = pipe(waits=True)
    write(PICTURES[:4])
    assert numbers(source.take(4)) == [0, 1, 2, 3]
    write(PICTURES[4:6])
    waiting = Blocked(source._bytes, lambda: source.take(4), 2 * EACH)
    assert numbers(waiting(lambda: write(PICTURES[6:8]))) == [4, 5, 6, 7]
    write(PICTURES[8:10])
    waiting = Blocked(source._bytes, lambda: [source.take(4)], 2 * EACH)
    assert waiting(lambda: write(None)) == [None]


def test_one_that_is_watched_waits_at_first_and_holds_the_last_frame_later(pipe):
    source, write = pipe(waits=False)
    waiting = Blocked(source._bytes, lambda: source.take(4))
    assert numbers(waiting(lambda: write(PICTURES[:4]))) == [0, 1, 2, 3]
    first = source.accepted
    assert first is not None
    assert numbers(source.take(4)) == [3, 3, 3, 3] and source.accepted is None
    write(PICTURES[4:6].tobytes() + PICTURES[6].tobytes()[:100])
    settle(source._bytes, 2 * EACH + 100)
    assert numbers(source.take(4)) == [4, 5, 5, 5] and source.accepted > first
    write(PICTURES[6].tobytes()[100:] + PICTURES[7:10].tobytes())
    settle(source._bytes, 4 * EACH)
    assert numbers(source.take(4)) == [6, 7, 8, 9]
    write(PICTURES[10:12])
    write(None)
    with source._bytes._changed:
        assert source._bytes._changed.wait_for(lambda: source._bytes._at_end, PATIENT_S)
    assert source.take(4) is None, "two frames are no chunk, and no more will come"


def test_a_frame_counts_from_when_it_came(pipe):
    """Not from when the oldest byte came that was ever held: there is always half a frame."""
    source, write = pipe(waits=False)
    write(PICTURES[:4].tobytes() + PICTURES[4].tobytes()[:10])
    settle(source._bytes, 4 * EACH + 10)
    source.take(4)
    arrivals = list(source._bytes._arrivals)
    write(PICTURES[4].tobytes()[10:])
    settle(source._bytes, EACH)
    source.take(4)
    assert source.accepted == arrivals[0][1]


def test_a_turn_takes_nothing_of_it(pipe):
    stop = Stop()
    source, write = pipe(True, stop)
    write(PICTURES[:3])
    caught = []

    def take():
        try:
            source.take(4)
        except Turned:
            caught.append(True)
        return caught

    assert Blocked(source._bytes, take, 3 * EACH)(stop.turn) == [True]
    source.wire(Stop())
    write(PICTURES[3:4])
    assert numbers(source.take(4)) == [0, 1, 2, 3]


def test_a_writer_that_is_faster_waits(pipe):
    source, write = pipe(waits=False)
    writer = threading.Thread(target=lambda: [write(frame) for frame in PICTURES[:12]])
    writer.start()
    found = numbers(source.take(4))
    settle(source._bytes, 8 * EACH)
    assert source._bytes.buffered == 8 * EACH
    writer.join()
    assert found + numbers(source.take(8)) == list(range(12))


@pytest.mark.parametrize("kind", ["mp4", "mkv", "avi", "nut"])
def test_a_file_that_is_piped_is_told(tmp_path, kind):
    path = write_video(tmp_path / f"a.{kind}", numbered(4), 16)
    source = LiveFrames(io.BytesIO(path.read_bytes() + bytes(4 * EACH)), 16, 16, 4, waits=True)
    with pytest.raises(UserError, match="carries a video file, not bare frames; pipe raw frames into it"):
        source.take(4)
    source.close()


def test_a_terminal_is_told():
    class Terminal(io.BytesIO):
        def isatty(self):
            return True

    with pytest.raises(UserError, match="standard input is a terminal, not frames"):
        LiveFrames(Terminal(), 16, 16, 4, waits=True)

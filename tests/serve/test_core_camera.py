"""A camera's pictures on a virtual clock: which frame shows which, what is held, and what is never shown."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.sources.camera import BACK_S, GONE_S, MOST, MOST_BYTES, Camera, Shot
from stages.sources.film import GREY, MOST_PIXELS, NONE, Film, Grey, Shots, developed
from stages.sources.fitting import Fit
from stages.sources.reserve import LATELY
from tests.serve.seen import brightness, jpeg

FPS, COUNT = 16, 12
CHUNK_S = COUNT / FPS
FIT = Fit(32, 32)


def shot(at: float, body: bytes = b"") -> Shot:
    return Shot(at, body, at)


class Line:
    """A camera that takes pictures, and is read in turn, each at its own pace.

    Attributes:
        shown: when the pictures were taken that frames showed, of each chunk; None: it held the one before.
    """

    def __init__(self):
        self.camera, self.now, self.until, self.shown = Camera(FPS), 0.0, 0.0, []

    def take(self, seconds: float, fps: float = FPS, lost=lambda at: False) -> None:
        self.until += seconds
        while self.now < self.until - 1e-9:
            if not lost(self.now):
                self.camera.give(shot(self.now))
            self.now += 1 / fps

    def read(self, skip_s: float = 0.0) -> list[float | None]:
        self.camera.begin(skip_s)
        found = [one and one.at for one in self.camera.read(COUNT)]
        self.camera.end()
        self.shown.append(found)
        return found

    @property
    def times(self) -> list[float]:
        """When each picture was taken that was shown, in the order of showing."""
        return [at for chunk in self.shown for at in chunk if at is not None]


def test_one_picture_a_frame_is_shown_once_each_and_in_order():
    line = Line()
    for _ in range(50):
        line.take(CHUNK_S)
        line.read()
    assert all(None not in chunk for chunk in line.shown[1:])
    assert np.allclose(np.diff(line.times), 1 / FPS) and line.camera.passed == 0


@pytest.mark.parametrize("fps", [30, 10])
def test_another_rate_is_resampled_by_when_pictures_were_taken(fps):
    line = Line()
    for _ in range(40):
        line.take(CHUNK_S, fps)
        line.read()
    held = sum(at is None for chunk in line.shown[1:] for at in chunk) / (39 * COUNT)
    assert held == pytest.approx(max(0.0, 1 - fps / FPS), abs=0.03)
    assert line.times == sorted(set(line.times))
    steps = np.diff(line.times)
    assert steps.max() <= 1 / FPS + 1 / fps + 1e-9
    seen = fps * CHUNK_S * 39
    assert line.camera.passed / seen == pytest.approx(max(0.0, 1 - FPS / fps), abs=0.03)


def test_of_a_burst_the_newest_is_shown_and_what_stalls_is_held():
    line = Line()
    line.take(CHUNK_S)
    line.read()
    assert line.read()[1:] == [None] * (COUNT - 1), "but for the one that was half a frame too new"
    for at in (0.10, 0.101, 0.102, 0.103):
        line.camera.give(shot(line.now + at))
    found = [at for at in line.read() if at is not None]
    assert found == [pytest.approx(line.now + 0.103)]


def test_before_the_first_picture_there_is_none():
    camera = Camera(FPS)
    camera.begin()
    assert camera.read(COUNT) == [None] * COUNT
    camera.end()
    camera.give(shot(5.0))
    camera.begin()
    assert [one and one.at for one in camera.read(COUNT)] == [None] * COUNT, "it is half a frame old at least"
    assert camera.read(1)[0].at == 5.0


def test_a_way_that_was_slow_once_leaves_no_delay():
    """All that piled up is passed over after a while: the newest picture is shown soon after it was taken."""
    line = Line()
    for chunk in range(3 * LATELY):
        line.take(CHUNK_S + (0.9 if chunk == 4 else 0.0))
        line.read()
    assert line.now - line.times[-1] < 3 / FPS
    assert line.camera.passed >= 0.8 * FPS


def test_two_clocks_that_differ_stay_together():
    for drift in (-2e-3, 2e-3):
        line = Line()
        for _ in range(400):
            line.take(CHUNK_S * (1 + drift), FPS * (1 - drift))
            line.read()
        newest = [at for at in line.shown[-1] if at is not None][-1]
        assert line.now - newest < 4 / FPS
        assert (np.diff(line.times) > 0).all()


def test_a_chunk_that_is_put_off_shows_later_pictures():
    line = Line()
    line.take(CHUNK_S)
    line.read()
    line.take(2 * CHUNK_S)
    assert line.read(skip_s=CHUNK_S)[-1] == pytest.approx(line.now - 1 / FPS, abs=1.1 / FPS)


@pytest.mark.parametrize("by", [-BACK_S - 50, GONE_S + 0.1, 1e6])
def test_another_camera_is_seen_at_once(by):
    line = Line()
    line.now = line.until = 100.0
    line.take(CHUNK_S)
    line.read()
    line.now += by
    line.until += by
    line.take(CHUNK_S)
    found = [at for at in line.read() if at is not None]
    assert found and found[-1] > line.now - 3 / FPS


def test_what_comes_twice_or_out_of_turn_is_not_shown():
    camera = Camera(FPS)
    for at in (1.0, 1.0, 0.9, 1.1):
        camera.give(shot(at))
    assert camera.passed == 2


def test_it_holds_so_much_and_no_more():
    camera = Camera(FPS)
    for number in range(4 * MOST):
        camera.give(shot(number / 100))
    assert len(camera._shots) <= MOST
    body = bytes(MOST_BYTES // 4)
    for number in range(10):
        camera.give(shot(3 + number / 50, body))
    assert sum(len(one.jpeg) for one in camera._shots) <= MOST_BYTES


@settings(max_examples=100)
@given(st.lists(st.tuples(st.floats(0, 0.4), st.booleans()), max_size=60))
def test_whatever_comes_no_picture_is_shown_twice_or_before_an_older_one(steps):
    camera, now, shown = Camera(FPS), 0.0, []
    for later, reads in steps:
        now += later
        camera.give(shot(now))
        if reads:
            camera.begin()
            shown += [one.at for one in camera.read(4) if one]
            camera.end()
    assert shown == sorted(set(shown))


# -- pixels ------------------------------------------------------------------------------------------------------------


def bright(value: int) -> Shot:
    return shot(float(value), jpeg(value))


def test_it_is_grey_until_the_first_picture_which_is_then_held():
    film = Film(FIT)
    assert (film.take([None] * 3) == GREY).all() and film.shots == Shots([], [NONE] * 3) and film.first is None
    found = brightness(film.take([None, bright(200), None]))
    assert found == [GREY, pytest.approx(200, abs=2), pytest.approx(200, abs=2)]
    assert film.shots.shown == [NONE, 0, 0] and film.first == (bright(200), 1)
    assert brightness(film.take([None, None, bright(40)])) == pytest.approx([200, 200, 40], abs=2)
    assert film.shots == Shots([jpeg(200), jpeg(40)], [0, 0, 1]), "what is held is told with the chunk"


def test_a_picture_that_is_broken_is_taken_for_missing():
    film = Film(FIT)
    whole = jpeg(90)
    broken = [shot(1.0, one) for one in (whole[:-60], b"\xff\xd8\xff", b"no", b"")]
    found = film.take([bright(200), *broken])
    assert brightness(found) == pytest.approx([200] * 5, abs=2) and film.broken == 4
    assert film.shots == Shots([jpeg(200)], [0] * 5)


def test_too_large_a_picture_is_not_decoded():
    side = int(MOST_PIXELS**0.5) + 8
    with pytest.raises(OSError, match="pixels"):
        developed(jpeg(9, side, side), FIT)


@pytest.mark.parametrize(("how", "corner"), [("letterbox", 0), ("crop", 200)])
def test_it_is_fitted_as_a_files_pictures_are(how, corner):
    pixels = developed(jpeg(200, 24, 64), Fit(32, 32, how))
    assert pixels.shape == (32, 32, 3) and int(pixels[0, 0].mean()) == pytest.approx(corner, abs=2)


def test_what_was_shown_is_made_again_of_what_is_told():
    film = Film(FIT)
    for found in ([None, bright(30), bright(31)], [None, bright(60), None], [None] * 3):
        frames = film.take(found)
        again = Shots.of(film.shots.told())
        assert again == film.shots and np.array_equal(again.developed(FIT), frames)
        assert again.last == film.held


def test_what_does_not_belong_together_is_refused():
    for told in ({"jpeg": [], "shown": [0]}, {"jpeg": ["?"], "shown": "x"}, {}, {"jpeg": [], "shown": [-2]}):
        with pytest.raises((ValueError, KeyError, TypeError)):
            Shots.of(told)


def test_grey_has_no_end_and_is_decoded_as_a_cameras_pictures_are(monkeypatch):
    source, decoded = Grey(FIT), []
    monkeypatch.setattr("stages.sources.film.developed", lambda *given: decoded.append(given) or developed(*given))
    assert source.take(5).shape == (5, 32, 32, 3) and (source.take(2) == GREY).all()
    assert len(decoded) == 7

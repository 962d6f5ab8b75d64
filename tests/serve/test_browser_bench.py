"""What the browser bench computes, on pictures, sounds and lines of which the answer is known."""

import base64
import json
import wave

import numpy as np
import pytest

from benchmarks import camera, chromium, lips, motion
from benchmarks.chromium import Kept, Sound
from benchmarks.networks import Quality, Way
from distill.data import avatar
from distill.data import sound as heard

FPS = 16


@pytest.fixture(scope="module")
def beeps(tmp_path_factory):
    path = tmp_path_factory.mktemp("beeps") / "beeps.wav"
    lips.beeps(path, 16.0)
    with wave.open(str(path)) as file:
        samples = np.frombuffer(file.readframes(file.getnframes()), "<i2").astype(np.float32) / 32768
        return Sound(samples, file.getframerate(), 5.0)


def mouths(beeps, delay, phase=0.0):
    """Frames' times, and the mouth that the beeps make, seen so much later."""
    shown = 5.0 + phase + delay + np.arange(15 * FPS) / FPS
    return shown, np.interp(shown - delay, *lips.made(beeps))


@pytest.mark.parametrize("delay", [0.0, 0.31, 1.234])
def test_the_delay_of_lips_is_found_between_frames_too(beeps, delay):
    shown, mouth = mouths(beeps, delay, phase=0.017)
    noisy = np.clip(mouth + np.random.default_rng(1).normal(0, 0.1, len(mouth)), 0, 1)
    found = lips.lags(shown, noisy, lips.made(beeps), -0.2, 2.0)
    known = found[~np.isnan(found)]
    assert len(known) >= 4
    assert np.abs(known - delay).max() <= 0.02


def test_a_mouth_that_does_not_move_says_nothing(beeps):
    shown, mouth = mouths(beeps, 0.5)
    assert np.isnan(lips.lags(shown, np.full_like(mouth, 0.3), lips.made(beeps), -0.2, 2.0)).all()


def test_beeps_are_uneven_and_found_where_they_are(beeps):
    begun = lips.onsets(beeps)
    assert len(begun) >= 7
    assert np.ptp(np.diff(begun)) > 0.3
    shown, mouth = mouths(beeps, 1.7)  # longer than from one beep to the next
    opened = lips.opened(shown, mouth, begun, 1.7)
    assert not np.isnan(opened[:-2]).any()
    assert np.nanmax(np.abs(opened - 1.7)) < 0.13, "within two frames: lips have weight"
    assert np.isnan(lips.opened(shown, mouth, begun[:1] + 90, 1.7)).all()


def test_a_drawn_mouth_is_read_from_its_pictures():
    scene = avatar.scene(3, held_out=True)
    openness = np.tile(np.repeat([0.0, 0.9], 4), 2)
    clip = avatar.perform(scene, 16, np.stack([openness, np.full(16, 0.4)], axis=1))
    assert np.corrcoef(lips.seen(clip.frames, scene), openness)[0, 1] > 0.9


def test_sound_of_blocks_is_timed_by_the_soonest_and_keeps_its_gaps():
    rate, block = 48_000, 480
    # The third block is lost; the page is 40 ms late in hearing of the fourth.
    blocks = [[1010 + 3, 0, block], [1020 + 1, 10_000, block], [1040 + 40, 30_000, block]]
    pcm = np.repeat(np.array([1000, 2000, 3000], np.int16), block)
    found = chromium.sound(rate, blocks, base64.b64encode(pcm.tobytes()).decode())
    assert found.start == pytest.approx(1.001)
    levels = (found.samples.reshape(4, block).mean(axis=1) * chromium.INT16).round()
    assert levels.tolist() == [1000, 2000, 0, 3000]
    assert chromium.sound(rate, [], "") is None


def test_motion_begins_where_it_lasts():
    shown = np.arange(5 * FPS) / FPS
    changed = np.where((shown >= 2.5) & (shown < 3.5), 10.0, 1.0)
    changed[1 * FPS + 4] = 9.0  # a still picture that was touched up
    assert motion.begins(shown, changed, [1.2]).tolist() == [pytest.approx(1.3, abs=0.01)]
    assert np.isnan(motion.begins(shown, np.ones_like(shown), [1.2])).all()


def test_changes_are_of_each_frame_from_the_one_before():
    pixels = np.zeros((3, 4, 4, 3), np.uint8)
    pixels[1:] = 200
    assert motion.changes(pixels).tolist() == [0, 200, 0]


def test_frames_that_scripts_slept_through_count_and_lateness_drifts():
    shown = np.array([0.0, 0.1, 0.4, 0.5])
    assert motion.rate(shown, np.array([7, 8, 11, 12])) == pytest.approx(10)
    media = 100 + np.arange(90) / 10
    late = np.where(np.arange(90) < 45, 0.0, 0.2)
    assert motion.lateness(media + late, media) == (pytest.approx(0.2), pytest.approx(0.1, abs=0.11))


def test_what_was_before_a_moment_is_left_out():
    kept = Kept(
        np.arange(4.0), np.arange(4.0), np.arange(4), np.zeros((4, 1, 1, 3)), None, None, [(0.5, "a"), (2.5, "b")]
    )
    later = kept.since(2.0)
    assert (later.shown.tolist(), len(later.pixels), later.presses) == ([2, 3], 2, [(2.5, "b")])


def test_packets_come_out_of_a_line_in_order_and_as_late_as_it_says():
    way = Way(Quality(delay_s=0.025, jitter_s=0.005, loss=0.02), seed=1)
    sent = np.arange(20_000) / 1000
    due = [way.due(now, 1200) for now in sent]
    there = np.array([d - s for d, s in zip(due, sent, strict=True) if d is not None])
    assert way.lost / len(sent) == pytest.approx(0.02, rel=0.2)
    assert there.min() >= 0.02 - 1e-9
    assert there.max() <= 0.03 + 1e-9
    came = [d for d in due if d is not None]
    assert came == sorted(came)
    again = Way(Quality(delay_s=0.025, jitter_s=0.005, loss=0.02), seed=1)
    assert [again.due(now, 1200) for now in sent] == due, "it loses the same ones again"


def test_a_thin_line_carries_its_rate_and_drops_what_would_wait_too_long():
    way = Way(Quality(bits_per_second=100_000, queue_s=0.2), seed=1)
    due = [way.due(i / 100, 500) for i in range(1000)]  # 400 kbit/s for ten seconds
    came = [d for d in due if d is not None]
    assert len(came) * 4000 / max(came) == pytest.approx(100_000, rel=0.03)
    assert max(d - i / 100 for i, d in enumerate(due) if d is not None) <= 0.2 + 0.04 + 1e-9
    assert way.lost == 1000 - len(came)


def test_made_mouths_are_those_of_training(beeps):
    times, openness = lips.made(beeps)
    assert times[0] == beeps.start
    assert np.diff(times) == pytest.approx(1 / (heard.FPS * lips.PHASES))
    assert openness.max() > 0.7
    assert np.median(openness) < 0.05


def test_pictures_are_followed_into_frames():
    frames = camera.followed([10, 11, 12, 13, 14, 15], [99, 11, 11, 12, 14])
    assert frames == camera.Followed(frames=4, new=3, lost=1, back=0), "13 is lost, 99 nobody's, 15 not yet shown"
    assert camera.followed([10, 11], [11, 10]).back == 1
    assert camera.followed([10, 11], []) == (0, 0, 0, 0)


def test_recorded_pictures_have_the_marks_that_the_page_gave_them(tmp_path):
    assert camera.mark(b"foobar") == 0xBF9CF968  # RFC 9923
    file = tmp_path / "inputs.jsonl"
    jpeg = [base64.b64encode(one).decode() for one in (b"foobar", b"other")]
    lines = [{"chunk": chunk, "pictures": {"jpeg": jpeg, "shown": [-1, 0, 0, 1]}} for chunk in range(3)] + [{"end": 3}]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert camera.recorded(file, range(1, 2)) == [camera.mark(b"foobar")] * 2 + [camera.mark(b"other")]

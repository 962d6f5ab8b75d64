"""Video to video, run whole: from files, through a pipe, from latents that are given, interrupted, and to its end."""

from __future__ import annotations

import io
import json
import os
import threading
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from benchmarks.unchanged import WAN
from launch import stream
from runtime.conditioning import Conditioning
from runtime.encoders import Encoders, pictures_of
from runtime.ends import LiveEnds
from runtime.journal import Journal
from runtime.video import pixels
from stages.sources.live import Stop, Turned
from stages.sources.motion import Motion
from tests.checkpoints import vae_tensors
from tests.helpers import config_of
from tests.stages.sources.blocked import settle
from tests.stages.sources.made_video import moving, write_video

HEIGHT, WIDTH, FPS, C = 32, 48, 16, 3
CHUNKS = 5
FRAMES = moving(9 + 12 * (CHUNKS - 1) + 5, HEIGHT, WIDTH)
"""Five chunks, and five frames that make no sixth."""
PLANS = {
    "timestep": ("plan=timestep",),
    "layers": ("plan=layers", "plan.workers=2"),
    "grid": ("plan=grid",),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The same pictures as a lossless file, and a small random VAE."""
    where = tmp_path_factory.mktemp("video")
    write_video(where / "in.mkv", FRAMES, FPS)
    torch.save(vae_tensors(4), where / "vae.pth")
    return where


@pytest.fixture(scope="module")
def base(folder):
    return ["model=wan21_t2v_1_3b", *WAN, f"model.codec.checkpoint={folder / 'vae.pth'}", "model.noise_scale=0.8"]


@pytest.fixture
def run(base, tmp_path, capsys):
    """run(*overrides) gives (report, latents of every chunk)."""

    def once(*overrides: str, name: str = "out"):
        where = tmp_path / name
        sinks = ("sink.video=null", f"sink.latents={where / 'latents.safetensors'}")
        code = stream.main([*base, *sinks, f"output_dir={where}", *overrides])
        assert code == 0, capsys.readouterr().err
        capsys.readouterr()
        return json.loads((where / "report.json").read_text()), latents_of_run(where)

    return once


def latents_of_run(where: Path) -> list[torch.Tensor]:
    return [latents.clone() for _, latents in sorted(load_file(where / "latents.safetensors").items())]


@pytest.fixture(scope="module")
def known(base, folder, tmp_path_factory):
    """What the file gives, with all on one worker."""
    where = tmp_path_factory.mktemp("known")
    given = [f"source.video={folder / 'in.mkv'}", "sink.video=null", f"sink.latents={where / 'latents.safetensors'}"]
    assert stream.main([*base, *given, f"output_dir={where}"]) == 0
    return json.loads((where / "report.json").read_text()), latents_of_run(where)


def encoded(base, frames: np.ndarray) -> torch.Tensor:
    """Latents of all whole chunks, encoded in one call."""
    encoders = Encoders(config_of(*base).model, torch.device("cpu"))
    return encoders.video(pixels(frames), encoders.start())


def test_the_end_of_the_file_ends_the_stream(known):
    report, latents = known
    assert report["chunks"] == CHUNKS == len(latents) and report["finished"]
    assert all(chunk.isfinite().all() for chunk in latents)


def test_a_stream_that_is_asked_for_more_ends_with_the_file_and_for_less_before(run, folder, known):
    video = f"source.video={folder / 'in.mkv'}"
    assert run(video, "stream.chunks=50")[0]["latents_sha256"] == known[0]["latents_sha256"]
    report, latents = run(video, "stream.chunks=2", name="two")
    assert report["chunks"] == 2 and all(torch.equal(a, b) for a, b in zip(latents, known[1][:2], strict=True))


@pytest.mark.parametrize("plan", PLANS)
def test_plans_give_the_same_latents(run, folder, known, plan):
    report, _ = run(f"source.video={folder / 'in.mkv'}", *PLANS[plan])
    assert report["latents_sha256"] == known[0]["latents_sha256"] and report["chunks"] == CHUNKS


def test_what_enters_is_noise_and_the_video_in_the_levels_share(base, folder):
    """Chunk by chunk the encoder's latents of the whole clip, with the draws of the stream."""
    config = config_of(*base, f"source.video={folder / 'in.mkv'}")
    conditioning = Conditioning(config.model, config.stream, config.source, Encoders(config.model, torch.device("cpu")))
    whole, motion, seen = encoded(base, FRAMES[: 9 + 12 * (CHUNKS - 1)]), Motion(0.8), 0
    assert conditioning.length() == CHUNKS
    for chunk in range(CHUNKS):
        assert conditioning.chunk(chunk) is not None
        count = pictures_of(config.model, chunk)
        level, timestep = motion.next(pixels(FRAMES[seen : seen + count]))
        seen += count
        made = conditioning.video_chunk(chunk)
        assert (made.level, made.timestep) == (level, timestep)
        torch.testing.assert_close(made.latents, whole[:, :, C * chunk : C * (chunk + 1)], rtol=0, atol=1e-5)
        noise = conditioning.noise(chunk, 0)
        assert torch.equal(conditioning.entering(chunk), level * noise + (1 - level) * made.latents)
        assert conditioning.video.accepted is None
    assert 0.7 <= level < 0.8 and timestep < 700
    assert conditioning.chunk(CHUNKS) is None and conditioning.finished(CHUNKS)
    with pytest.raises(ValueError, match="chunk 7 is asked for"):
        conditioning.video_chunk(7)
    conditioning.close()


def test_the_level_is_where_the_two_ends_meet(base, folder, run):
    """At level 1 a chunk begins as noise alone, as a stream without video does."""
    alone, _ = run("model.noise_scale=null", "stream.chunks=1", name="alone")
    noise, _ = run("model.noise_scale=1.0", "stream.chunks=1", f"source.video={folder / 'in.mkv'}", name="noise")
    assert noise["latents_sha256"] == alone["latents_sha256"]
    half, _ = run("model.noise_scale=0.5", "stream.chunks=1", f"source.video={folder / 'in.mkv'}", name="half")
    assert half["latents_sha256"] != alone["latents_sha256"]


@pytest.mark.parametrize(("saved", "resumed"), [("sequential", "grid"), ("layers", "sequential")])
def test_a_saved_stream_goes_on_exactly(run, folder, known, tmp_path, saved, resumed):
    """Inside of the file: its place in it, what the encoder remembers, the level and the last picture."""
    video = f"source.video={folder / 'in.mkv'}"
    run(video, "stream.chunks=3", "stream.save_every_chunks=2", *PLANS.get(saved, ()), name="run")
    report, latents = run(video, *PLANS.get(resumed, ()), f"resume={tmp_path / 'run'}", name="run")
    assert report["latents_sha256"] == known[0]["latents_sha256"] and report["chunks"] == CHUNKS
    assert all(torch.equal(a, b) for a, b in zip(latents, known[1], strict=True))


@pytest.mark.parametrize("plan", [(), ("plan=timestep",)])
def test_frames_through_a_pipe_are_those_of_the_file(run, known, monkeypatch, plan):
    class Stdin:
        buffer = io.BytesIO(FRAMES.tobytes() + bytes(100))

        def fileno(self):
            raise ValueError("none")

    monkeypatch.setattr("sys.stdin", Stdin())
    report, _ = run("source.video=-", "source.pace=free", *plan)
    assert report["latents_sha256"] == known[0]["latents_sha256"] and report["chunks"] == CHUNKS


def test_latents_that_are_given_are_those_that_would_be_encoded(run, base, known, tmp_path, monkeypatch):
    """With the pictures beside them all is the same; then nothing is encoded. Without, no motion is known."""
    whole = FRAMES[: 9 + 12 * (CHUNKS - 1)]
    latents, pictures = encoded_by_chunks(base, whole), pixels(whole)[None].contiguous()
    save_file({"video_latents": latents, "video": pictures}, tmp_path / "both.safetensors")
    save_file({"video": pictures}, tmp_path / "pictures.safetensors")
    save_file({"video_latents": latents}, tmp_path / "latents.safetensors")
    assert run(f"source.tensors={tmp_path / 'pictures.safetensors'}")[0]["latents_sha256"] == known[0]["latents_sha256"]
    monkeypatch.setattr("runtime.encoders.build_encoder", None)
    assert run(f"source.tensors={tmp_path / 'both.safetensors'}")[0]["latents_sha256"] == known[0]["latents_sha256"]
    report, _ = run(f"source.tensors={tmp_path / 'latents.safetensors'}")
    assert report["chunks"] == CHUNKS and report["finished"]


def encoded_by_chunks(base, frames: np.ndarray) -> torch.Tensor:
    config = config_of(*base)
    encoders, seen, found = Encoders(config.model, torch.device("cpu")), 0, []
    state = encoders.start()
    for chunk in range(CHUNKS):
        count = pictures_of(config.model, chunk)
        found.append(encoders.video(pixels(frames[seen : seen + count]), state))
        seen += count
    return torch.cat(found, 2)


def test_an_emulated_device_draws_a_video_anew(job, folder):
    """Its pictures are read, and end the stream; nothing is encoded."""
    report = job("model=wan21_t2v_1_3b", *WAN, "model.noise_scale=0.8", f"source.video={folder / 'in.mkv'}",
                 "device=emulated", "sink.video=null", "device.emulated.step_s=0.0001")  # fmt: skip
    assert report["chunks"] == CHUNKS


def test_another_rate_and_size_come_to_the_models(run, folder):
    path = write_video(folder / "other.mp4", moving(60, 40, 40), 24)
    reports = [run(f"source.video={path}", f"source.fit={fit}", name=fit)[0] for fit in ("letterbox", "crop")]
    assert [report["chunks"] for report in reports] == [3, 3], "60 frames of 24 are 40 of 16"
    assert reports[0]["latents_sha256"] != reports[1]["latents_sha256"]


# -- what is refused --------------------------------------------------------------------------------------------------


def test_what_does_not_go_together_is_refused_in_one_line(base, folder, job, tmp_path):
    video = f"source.video={folder / 'in.mkv'}"
    save_file({"video_latents": torch.zeros(1, 16, 3, 4, 6)}, tmp_path / "given.safetensors")
    save_file({"video_latents": torch.zeros(1, 16, 3, 4, 4)}, tmp_path / "small.safetensors")
    given = f"source.tensors={tmp_path / 'given.safetensors'}"
    for overrides, message in (
        ((), "model.noise_scale=0.8: model=wan21_t2v_1_3b draws a video anew, and has none; give source.video"),
        ((video, "model.noise_scale=null"), "takes no video, since model.noise_scale=null"),
        ((given, "model.noise_scale=null"), "video_latents: is not a name that model=wan21_t2v_1_3b takes"),
        ((video, given), "source.tensors gives `video_latents`; give one of the two"),
        ((f"source.tensors={tmp_path / 'small.safetensors'}",), "expected [1, 16, any, 4, 6], found [1, 16, 3, 4, 4]"),
        ((video, "model.noise_scale=0"), "model.noise_scale=0.0: is a level of noise"),
        ((video, "model.noise_scale=1.5"), "is a level of noise, above 0 and up to 1"),
        (("source.video=-", "sink.inputs=${output_dir}/inputs"), "live pictures are too many to be recorded"),
        (("source.video=missing.mp4",), "source.video=missing.mp4: there is no such file"),
    ):
        assert message in job.fails(*base, *overrides)


def test_a_video_that_is_too_short_for_a_chunk_is_told(base, tmp_path, capsys):
    short = write_video(tmp_path / "short.mkv", FRAMES[:8], FPS)
    assert stream.main([*base, f"source.video={short}", "sink.video=null", f"output_dir={tmp_path / 'out'}"]) == 2
    told = f"source.video={short}: ended before 9 pictures came, which the first chunk is made of; give a longer one"
    assert told in capsys.readouterr().err


# -- a lost worker ----------------------------------------------------------------------------------------------------


class Cut:
    """What was written of a stream's sources before a chunk, as a state is read."""

    def __init__(self, chunk, progress):
        self.chunk, self.anchor = chunk, {}
        self._content = json.dumps(progress.content)
        self._tensors = {name: torch.from_numpy(array.copy()) for name, array in progress.arrays.items()}
        self._tensors |= {name: tensor.clone() for name, tensor in progress.tensors.items()}

    def read(self, name):
        return dict(self._tensors), json.loads(self._content)


class Live:
    """A live stream, its pipe and its journal."""

    def __init__(self, base, folder: Path):
        self.config = config_of(*base, "source.video=-", "source.pace=free")
        self.folder, self.encoders = folder, Encoders(self.config.model, torch.device("cpu"))
        self.cuts: dict[int, Cut] = {}
        reading, self.writing = os.pipe()
        self.stdin = os.fdopen(reading, "rb", buffering=0)
        self.writer = threading.Thread(target=self._write, daemon=True)
        self.writer.start()

    def _write(self):
        left = memoryview(FRAMES.tobytes())
        with suppress(BrokenPipeError):
            while left:
                left = left[os.write(self.writing, left[:4096]) :]
        os.close(self.writing)

    def open(self, state, ends, journal=True, stop=None):
        config = self.config
        made = Journal(self.folder / "cuts") if journal else None
        return Conditioning(
            config.model, config.stream, config.source, self.encoders, self.stdin, stop or Stop(), state,
            replace(config.sink, video=None), None, made, ends,
        )  # fmt: skip

    def sample(self, conditioning, chunk):
        self.cuts[chunk] = Cut(chunk, conditioning.progress(chunk))
        return None if conditioning.chunk(chunk) is None else conditioning.video_chunk(chunk)


@pytest.fixture
def live(base, tmp_path):
    made = []

    def make(name):
        (tmp_path / name).mkdir()
        made.append(Live(base, tmp_path / name))
        return made[-1]

    yield make
    for one in made:
        one.stdin.close()
        one.writer.join()


def same(a, b) -> bool:
    return (a.level, a.timestep) == (b.level, b.timestep) and torch.equal(a.latents, b.latents)


@pytest.mark.parametrize("cut", [None, 1, 3])
def test_live_chunks_are_made_again_from_frames_that_this_process_keeps(live, cut):
    """Another worker was lost: the stream goes on from a cut before chunk `cut`, and each frame is in one chunk."""
    world = live("alone")
    alone = world.open(None, None, journal=False)
    expected = [world.sample(alone, chunk) for chunk in range(CHUNKS)]
    assert world.sample(alone, CHUNKS) is None
    alone.close()

    world, ends = live("turned"), LiveEnds()
    first, came = world.open(None, ends), []
    for chunk in range(3):
        assert same(world.sample(first, chunk), expected[chunk])
        came.append(first.video.accepted)
    assert sorted(set(came)) == came
    first.video.source.take(12)  # for a chunk that does not come
    world.cuts[3] = Cut(3, first.progress(3))
    first.turn()
    again = world.open(world.cuts[cut] if cut else None, ends)
    assert again.replay.next == 3
    for chunk in range(cut or 0, CHUNKS):
        assert same(world.sample(again, chunk), expected[chunk])
        assert chunk >= 3 or again.video.accepted == came[chunk]
    assert world.sample(again, CHUNKS) is None
    again.ended(CHUNKS)
    again.close()


def test_frames_are_kept_for_as_long_as_a_cut_may_want_them(live):
    world, ends = live("kept"), LiveEnds()
    conditioning = world.open(None, ends)
    whole = [0]
    conditioning.keeps(lambda: whole[0])
    for chunk in range(3):
        world.sample(conditioning, chunk)
    assert list(ends.video._kept) == [0, 1, 2]
    whole[0] = 2
    world.sample(conditioning, 3)
    assert list(ends.video._kept) == [2, 3]
    conditioning.close()


def test_frames_that_went_with_their_process_are_told_in_one_line(live):
    """A cut that is as new as the last chunk needs none of them."""
    world, ends = live("lost"), LiveEnds()
    first = world.open(None, ends)
    expected = [world.sample(first, chunk) for chunk in range(3)]
    assert None not in expected
    world.cuts[3] = Cut(3, first.progress(3))
    settle(first.video.source.source._bytes, 12 * HEIGHT * WIDTH * 3)
    first.turn()
    ends.leave()
    again = world.open(world.cuts[2], LiveEnds())
    with pytest.raises(Exception, match="the frames of chunk 2 went with the process that had read them; begin anew"):
        again.chunk(2)
    again.close()


def test_a_turn_releases_who_waits_for_frames(base, tmp_path):
    config = config_of(*base, "source.video=-", "source.pace=free")
    reading, writing = os.pipe()
    stop = Stop()
    with os.fdopen(reading, "rb", buffering=0) as stdin:
        conditioning = Conditioning(
            config.model, config.stream, config.source, Encoders(config.model, torch.device("cpu")), stdin, stop,
            sink=replace(config.sink, video=None), journal=Journal(tmp_path / "cuts"), ends=LiveEnds(),
        )  # fmt: skip
        released = []

        def sample():
            try:
                conditioning.chunk(0)
            except Turned:
                released.append(True)

        waiting = threading.Thread(target=sample)
        waiting.start()
        stop.turn()
        waiting.join()
        conditioning.close()
    os.close(writing)
    assert released == [True]

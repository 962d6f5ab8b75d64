"""A stream that is saved and gone on with, under another plan, is the stream that was never interrupted."""

import json
import shutil
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from launch import stream
from runtime.state import EARLIER, FORMAT, Keep, State, write
from stages.sinks.join import join
from stages.sinks.video import VideoSink
from tests.helpers import sampled
from tests.launch.test_stream import decoded

EVENTS = "stream.events=[{chunk: 3, prompt: other}, {chunk: 6, prompt: third}]"
BASE = ("stream.prompt=hello", EVENTS, "stream.chunks=8")
SAVE = ("stream.save_every_chunks=5", "stream.chunks=6")
PLANS = {
    "sequential": (),
    "timestep": ("plan=timestep",),
    "layers": ("plan=layers", "plan.workers=2"),
    "grid": ("plan=grid",),
}
MODELS = {
    "recalibrated there": ("model.recalibrate_chunk=5",),
    "recalibrated later": ("model.recalibrate_chunk=6",),
    "first chunk as sink": ("model.reference=false", "model.positions=slot", "model.sink_frames=3"),
    "clean": (
        "model.context=clean", "model.sink_frames=3", "model.recalibrate_chunk=7",
        "model.sampler=renoise", "model.positions=abs",
    ),
}  # fmt: skip
"""The ring holds 4 chunks (3 beside a frame attention sink), so it has gone round where the state is saved."""


class Runs:
    """The main job in folders that stay, so that one may go on from another."""

    def __init__(self, folder: Path, capsys):
        self.folder, self.capsys = folder, capsys

    def __call__(self, name: str, *overrides: str) -> dict:
        return self.ends(0, name, *overrides)

    def ends(self, expected: int, name: str, *overrides: str) -> dict:
        code = stream.main(["model=nano", f"output_dir={self.folder / name}", *overrides])
        self.err = self.capsys.readouterr().err
        assert code == expected, self.err
        return json.loads((self.folder / name / "report.json").read_text())

    def fails(self, *overrides: str) -> str:
        code = stream.main(["model=nano", f"output_dir={self.folder / 'refused'}", *overrides])
        lines = self.capsys.readouterr().err.strip().splitlines()
        assert code == 2 and len(lines) == 1 and lines[0].startswith("error: "), lines
        assert not (self.folder / "refused").exists()
        return lines[0]


@pytest.fixture
def runs(tmp_path, capsys):
    return Runs(tmp_path, capsys)


NEXT = {*pairwise([*PLANS, "sequential"])}
"""Every plan saves once and goes on once."""
PAIRS = [(saved, resumed) for saved in PLANS for resumed in PLANS if saved == "sequential" or saved != resumed]


@pytest.fixture(scope="module")
def known(tmp_path_factory):
    """What was run before in this module, by name: (folder, report)."""
    return tmp_path_factory.mktemp("known"), {}


@pytest.mark.parametrize(("saved", "resumed"), sampled(PAIRS, NEXT))
def test_exact(runs, known, saved, resumed):
    """Every plan goes on from every other; each is saved with another model's rules."""
    model = dict(zip(PLANS, MODELS, strict=True))[saved]
    folder, found = known
    kept = Runs(folder, runs.capsys)

    def once(name, *overrides):
        if name not in found:
            found[name] = kept(name.replace(" ", "_"), "sink.video=null", *overrides)
        return found[name]

    whole = once(model, *BASE, *MODELS[model])
    before = once(f"{model} {saved}", *BASE, *MODELS[model], *PLANS[saved], *SAVE)
    assert before["state"]["saved"] == 5 and before["finished"]
    where = folder / f"{model} {saved}".replace(" ", "_")
    after = runs("run", "sink.video=null", *BASE, *MODELS[model], *PLANS[resumed], f"resume={where}")
    assert after["latents_sha256"] == whole["latents_sha256"]
    assert (after["state"]["resumed_at"], after["chunks"], after["frames"]) == (5, 8, whole["frames"])


def test_a_state_does_not_depend_on_the_plan(runs):
    """The same files with the same content, head by head, whoever held them."""
    base = ("sink.video=null", *BASE, "model.recalibrate_chunk=6", *SAVE)
    folders = {}
    for name in ("sequential", "grid"):
        runs(name, *base, *PLANS[name])
        folders[name] = runs.folder / name / "state" / "chunk.000005"
    runs("shared", *base, "plan=timestep", "plan.workers=3", "plan.sequence_parallel=2")
    shared = runs.folder / "shared" / "state" / "chunk.000005"
    files = {name: json.loads((f / "state.json").read_text())["files"] for name, f in folders.items()}
    assert len(files["sequential"]) == 4 * 6 + 2
    assert files["sequential"] == files["grid"]
    for name in files["sequential"]:
        expected, found = load_file(folders["sequential"] / name), load_file(shared / name)
        for key in expected:
            torch.testing.assert_close(found[key], expected[key], rtol=1e-4, atol=1e-4)


def test_processes_that_share_passes_go_on_under_another_plan(runs):
    base, shared = ("sink.video=null", *BASE), "plan.sequence_parallel=2"
    whole = runs("whole", *base, "plan=timestep", "plan.workers=3", shared)
    runs("saved", *base, *SAVE, "plan=timestep", "plan.workers=3", shared)
    after = runs("run", *base, "plan=layers", "plan.layers=[2,4]", shared, f"resume={runs.folder / 'saved'}")
    assert after["latents_sha256"] == whole["latents_sha256"]


@pytest.mark.parametrize("plans", [("sequential", "timestep"), ("grid", "sequential")])
def test_pictures_sound_and_files_go_on(runs, speech, plans):
    """Frames to the bit, one video, one file of latents; killed after more chunks than the state holds."""
    actions = runs.folder / "keys.jsonl"
    actions.write_text('{"frame": 0, "action": "forward"}\n{"frame": 58, "action": "left"}\n')
    base = (*BASE, f"source.audio={speech}", f"source.actions={actions}", "model.recalibrate_chunk=4")
    sinks = ("sink.latents=${output_dir}/latents.safetensors", "sink.frames=${output_dir}/frames")
    whole = runs("whole", *base, *sinks)
    runs("run", *base, *sinks, *SAVE, *PLANS[plans[0]])
    report = runs("run", *base, *sinks, *PLANS[plans[1]], f"resume={runs.folder / 'run'}")
    assert report["latents_sha256"] == whole["latents_sha256"]
    for name in ("whole", "run"):
        assert decoded(runs.folder / name / "video.mp4")[0] == 96
    assert abs(decoded(runs.folder / "run" / "video.mp4")[1] - 96 / 16) < 0.1
    assert [p.name for p in (runs.folder / "run").glob("*.mp4")] == ["video.mp4"]
    expected, found = (load_file(runs.folder / name / "latents.safetensors") for name in ("whole", "run"))
    assert expected.keys() == found.keys() and all(torch.equal(expected[k], found[k]) for k in expected)
    for path in sorted((runs.folder / "whole" / "frames").iterdir()):
        assert np.array_equal(
            np.asarray(Image.open(path)), np.asarray(Image.open(runs.folder / "run/frames" / path.name))
        )


def test_another_output_folder_gets_the_rest(runs):
    sinks = ("sink.latents=${output_dir}/latents.safetensors",)
    runs("saved", *BASE, *SAVE, *sinks)
    before = (runs.folder / "saved" / "video.mp4").read_bytes()
    runs("rest", *BASE, *sinks, f"resume={runs.folder / 'saved' / 'state' / 'chunk.000005'}")
    assert decoded(runs.folder / "rest" / "video.mp4")[0] == 3 * 12
    assert sorted(load_file(runs.folder / "rest" / "latents.safetensors")) == [f"chunk.{i:06d}" for i in (5, 6, 7)]
    assert (runs.folder / "saved" / "video.mp4").read_bytes() == before


def test_only_the_newest_state_stays_and_the_end_can_be_gone_on_from(runs):
    report = runs("run", *BASE, "stream.save_every_chunks=4", "plan=timestep")
    assert [p.name for p in (runs.folder / "run" / "state").iterdir()] == ["chunk.000008"]
    video = (runs.folder / "run" / "video.mp4").read_bytes()
    again = runs("run", *BASE, "plan=layers", f"resume={runs.folder / 'run'}")
    assert again["latents_sha256"] == report["latents_sha256"] and again["chunks"] == 8
    assert (runs.folder / "run" / "video.mp4").read_bytes() == video


def test_several_streams_have_a_state_each(runs):
    base = ("sink.video=null", "stream.count=2", "plan=grid")
    whole = runs("whole", *base, "stream.chunks=7")
    runs("saved", *base, "stream.chunks=5", "stream.save_every_chunks=5")
    after = runs("run", *base, "stream.chunks=7", f"resume={runs.folder / 'saved'}")
    hashes = [[s["latents_sha256"] for s in report["streams"]] for report in (whole, after)]
    assert hashes[0] == hashes[1] and hashes[0][0] != hashes[0][1]
    assert after["finished"] and [s["state"]["resumed_at"] for s in after["streams"]] == [5, 5]


def test_a_state_that_does_not_fit_is_refused(runs):
    base = ("sink.video=null", "stream.chunks=6", EVENTS)
    runs("saved", *base, "stream.save_every_chunks=5")
    where = runs.folder / "saved" / "state" / "chunk.000005"
    for override, what in (
        ("stream.seed=1", "stream.seed=0, this run has 1"),
        ("model.dtype=bfloat16", "model.dtype=float32"),
        ("stream.height=64", "stream.height=32"),
        ("model.window_frames=9", "model.window_frames=12"),
        ("stream.events=[{chunk: 2, prompt: x}]", "stream.events.2=null, this run has x"),
        ("device.threads=2", "device.threads=1"),
        ("stream.chunks=4", "is at chunk 5"),
        ("sink.video=${output_dir}/v.mp4", "no decoder's state"),
    ):
        assert what in runs.fails(*base, f"resume={where}", override)
    assert "there is no whole state" in runs.fails(*base, f"resume={runs.folder / 'nowhere'}")
    assert "has no state to save" in runs.fails(f"resume={where}", "device=emulated")

    def damaged(name: str, change) -> str:
        copy = runs.folder / "copy" / "chunk.000005"
        shutil.rmtree(copy.parent, ignore_errors=True)
        shutil.copytree(where, copy)
        change(copy / name)
        return runs.fails(*base, f"resume={copy.parent}")

    def flip(path: Path) -> None:
        content = bytearray(path.read_bytes())
        content[-5] ^= 1
        path.write_bytes(content)

    assert "bank.level2.layer03.safetensors is damaged" in damaged("bank.level2.layer03.safetensors", flip)
    assert "lacks conditioning.safetensors" in damaged("conditioning.safetensors", Path.unlink)
    assert "state.json is damaged" in damaged("state.json", lambda p: p.write_text(p.read_text()[:-40]))
    assert "has format 99" in damaged("state.json", lambda p: p.write_text(json.dumps({"format": 99})))
    assert "there is no whole state" in damaged("state.json", Path.unlink)


def test_a_state_that_cannot_be_written_does_not_stop_the_stream(runs, monkeypatch, caplog):
    from runtime import banks

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(banks, "write", full)
    for plan in ("sequential", "timestep"):
        report = runs.ends(2, plan, "sink.video=null", *BASE, *SAVE, *PLANS[plan])
        assert report["chunks"] == 6 and report["state"]["saved"] is None
        assert "No space left on device" in caplog.text
        assert f"error: output_dir={runs.folder / plan}: the state before chunk 5 was not saved; " in runs.err
        assert "there is no whole state" in runs.fails("sink.video=null", f"resume={runs.folder / plan}")


@pytest.mark.parametrize("event", [4, 5, 6])
def test_a_prompt_makes_the_bank_anew_from_chunks_of_before(runs, event):
    """Just before the state, where it goes on, and behind it: what is run again was saved with it."""
    base = (
        "sink.video=null", "stream.prompt=hello", f"stream.events=[{{chunk: {event}, prompt: other}}]",
        "model.context=clean", "model.prompt_switch=recache", "model.sampler=renoise", "model.sink_frames=3",
        "model.reference=false", "model.positions=abs",
    )  # fmt: skip
    whole = runs("whole", *base, "stream.chunks=8")
    runs("saved", *base, *SAVE, *PLANS["grid"])
    after = runs("run", *base, "stream.chunks=8", "plan=layers", "plan.layers=[1,5]", f"resume={runs.folder / 'saved'}")
    assert after["latents_sha256"] == whole["latents_sha256"]


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A run with a video that has saved a state at chunk 2, to be copied."""
    folder = tmp_path_factory.mktemp("saved") / "run"
    assert stream.main(["model=nano", f"output_dir={folder}", "stream.chunks=2", "stream.save_every_chunks=2"]) == 0
    return folder


@pytest.fixture
def again(saved, runs):
    """again(*overrides): one chunk more in the copy `run`."""
    shutil.copytree(saved, runs.folder / "run")
    return lambda *more: runs("run", "stream.chunks=3", f"resume={runs.folder / 'run'}", *more)


def test_of_several_states_the_newest_whole_one_is_taken(runs, again, caplog):
    folder = runs.folder / "run" / "state"
    for chunk, name in ((4, "conditioning.safetensors"), (6, "state.json")):
        shutil.copytree(folder / "chunk.000002", folder / f"chunk.{chunk:06d}")
        (folder / f"chunk.{chunk:06d}" / name).write_text("x")
    newest = folder / "chunk.000006"
    line = runs.fails("stream.chunks=8", f"resume={newest}")
    assert line.startswith(f"error: resume={newest}: its state.json is damaged")
    assert line.endswith(f"; give resume={folder / 'chunk.000002'}, which is whole")
    assert again()["state"]["resumed_at"] == 2
    said = [record.getMessage() for record in caplog.records]
    assert "chunk.000006: its state.json is damaged" in said[0]
    assert "chunk.000004: conditioning.safetensors is damaged" in said[1]
    assert said[2] == f"resume={runs.folder / 'run'} goes on from {folder / 'chunk.000002'}"
    assert decoded(runs.folder / "run" / "video.mp4")[0] == 3 * 12


def test_only_a_streams_own_whole_video_is_joined(runs, again, caplog):
    """Another's stays, and so does one that lacks frames; the rest lies beside it, until it is whole."""
    video, rest = runs.folder / "run" / "video.mp4", runs.folder / "run" / "video.from-00000024.mp4"
    own = video.read_bytes()
    another = VideoSink(video, 16, 32, 32, sound=True, mark="another")
    another.write(np.zeros((24, 32, 32, 3), np.uint8))
    another.close()
    foreign = video.read_bytes()
    report = again()
    assert video.read_bytes() == foreign and report["outputs"]["video"] == str(rest) and decoded(rest)[0] == 12
    assert "video.mp4 is of another stream: it is left as it is, and nothing is joined to it" in caplog.text
    torn = own[: own.rindex(b"moof") - 4]
    video.write_bytes(torn)
    report = runs("run", "stream.chunks=3", f"resume={runs.folder / 'run'}")
    assert video.read_bytes() == torn and report["outputs"]["video"] == str(rest) and decoded(rest)[0] == 12
    assert "its parts cannot be joined (video.mp4 holds " in caplog.text
    video.write_bytes(own)
    assert join(video) == 1 and decoded(video)[0] == 36 and not rest.exists()


def test_a_state_is_found_where_a_later_run_has_put_it(runs, again, caplog):
    """And stays there: what goes on from it is a run of its own."""
    runs.folder.joinpath("run", "notes").write_text("mine")
    runs("run", "sink.video=null", "stream.chunks=1", "stream.seed=7", "stream.save_every_chunks=1")
    assert "was saved with stream.seed=7, this run has 0" in runs.fails(f"resume={runs.folder / 'run'}")
    runs("run", "sink.video=null", "stream.chunks=1", "stream.seed=8")
    report = runs("run", "sink.video=null", "stream.chunks=2", "stream.seed=7", f"resume={runs.folder / 'run'}")
    assert report["state"]["resumed_at"] == 1
    first, second = (runs.folder / "run" / f"earlier.{n}" for n in (1, 2))
    assert f"goes on from {second / 'state' / 'chunk.000001'}" in caplog.text
    assert (first / "state" / "chunk.000002" / "state.json").exists() and (first / "video.mp4").exists()
    assert (second / "state" / "chunk.000001" / "state.json").exists()


def test_a_state_of_another_stream_is_not_removed(tmp_path):
    mine, other = Keep(str(tmp_path), {}, mark="mine"), Keep(str(tmp_path), {}, mark="other")
    for keep, chunk in ((other, 4), (other, 6), (mine, 5), (mine, 6), (mine, 7)):
        keep.begin(chunk)
        # As `other.complete`, which would remove its own older one.
        (keep.part(chunk) / "state.json").write_text(json.dumps({"mark": keep.mark}))
        if keep is other:
            keep.part(chunk).rename(tmp_path / f"chunk.{chunk:06d}")
        else:
            keep.complete(chunk, {}, {})
    found = {
        str(path.parent.relative_to(tmp_path)): json.loads(path.read_text())["mark"]
        for path in tmp_path.rglob("*.json")
    }
    assert found == {"chunk.000004": "other", "earlier.1/chunk.000006": "other", "chunk.000007": "mine"}


def test_a_state_of_the_format_before_is_read(runs):
    """Where what a recalibration is made of was one tensor, and the identity said less."""
    assert FORMAT - 1 in EARLIER
    base = ("sink.video=null", *BASE, "model.recalibrate_chunk=6")
    whole = runs("whole", *base)
    runs("saved", *base, *SAVE)
    state = runs.folder / "saved" / "state" / "chunk.000005"
    tensors, counters = State(state).output
    assert list(tensors) == ["anchor.reference"]
    content = json.loads((state / "state.json").read_text())
    content["files"] |= write(state, "output", {"anchor": tensors["anchor.reference"]}, counters)
    del content["mark"], content["identity"]["model"]["family"]
    (state / "state.json").write_text(json.dumps(content | {"format": 2}))
    assert runs("run", *base, f"resume={state}")["latents_sha256"] == whole["latents_sha256"]

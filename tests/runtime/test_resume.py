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
        code = stream.main(["model=nano", f"output_dir={self.folder / name}", *overrides])
        err = self.capsys.readouterr().err
        assert code == 0, err
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
        report = runs(plan, "sink.video=null", *BASE, *SAVE, *PLANS[plan])
        assert report["chunks"] == 6 and report["state"]["saved"] is None
        assert "No space left on device" in caplog.text
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

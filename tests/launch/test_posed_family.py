"""A stream that is seen through a camera: driven by keys, or with poses from a file, a pipe or tensors, it is the same
under every plan, and goes on from a state, after a loss, and from a recording."""

import json
import os
import signal
import sys
import threading

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import everframe
from everframe.pipeline import Pipeline
from launch.running import start
from runtime.pipeline import run_all
from runtime.pulse import key
from tests import posed
from tests.launch.losing import EXACT
from tests.launch.test_recovery import until
from tests.patience import PATIENT_S

CHUNKS = 7
FRAMES = 9 + 12 * (CHUNKS - 1)


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> list[str]:
    folder = tmp_path_factory.mktemp("posed")
    told = posed.write(folder)
    sys.path.insert(0, str(folder))
    yield [*told, "sink.video=null"]
    sys.path.remove(str(folder))


@pytest.fixture
def run(model, job):
    return lambda *overrides: job(*model, *overrides)["latents_sha256"]


@pytest.fixture
def keys(tmp_path) -> str:
    said = [(0, "forward"), (5, "left"), (17, "up"), (31, "forward"), (40, "none"), (FRAMES - 1, "left")]
    path = tmp_path / "keys.jsonl"
    path.write_text("".join(json.dumps({"frame": f, "action": a}) + "\n" for f, a in said))
    return f"source.actions={path}"


def turned(frame: int) -> list[list[float]]:
    """A pose, to the right by a degree a frame, on a screw line."""
    s, c = np.sin(np.radians(frame)), np.cos(np.radians(frame))
    return [[c, 0, s, s], [0, 1, 0, -0.01 * frame], [-s, 0, c, 1 - c]]


@pytest.fixture
def poses(tmp_path) -> str:
    path = tmp_path / "poses.jsonl"
    lines = [{"frame": frame, "pose": turned(frame)} for frame in range(0, FRAMES, 10)]
    lines[3]["intrinsics"] = [500, 500, 416, 240]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return f"source.camera={path}"


def test_every_plan_sees_from_where_one_device_does(run, keys, poses):
    seen = []
    for source in (keys, poses):
        base = (source, f"stream.chunks={CHUNKS}")
        seen.append(run(*base))
        assert run(*base, "plan=grid") == seen[-1]
    seen.append(run(keys, f"stream.chunks={CHUNKS}", "source.intrinsics=[500,500,416,240]"))
    assert len({*seen}) == 3


def test_a_saved_stream_goes_on_from_where_its_camera_stood(run, tmp_path, keys):
    length, saved = f"stream.chunks={CHUNKS}", tmp_path / "saved"
    expected = run(keys, length)
    run(keys, "stream.chunks=5", "stream.save_every_chunks=3", f"output_dir={saved}", "plan=layers")
    assert run(keys, length, f"resume={saved}", "plan=timestep") == expected


def test_a_pipe_is_seen_from_as_the_file_is(model, run, tmp_path, poses, monkeypatch):
    """And all of it is: the stream ends with the last pose that was said."""
    expected = run(poses)
    reading, writing = os.pipe()
    lines = (tmp_path / "poses.jsonl").read_bytes()
    threading.Thread(target=lambda: (os.write(writing, lines), os.close(writing))).start()
    with os.fdopen(reading, "rb", buffering=0) as stdin:
        config = posed.config("sink.video=null", "source.camera=-", "source.pace=free", f"output_dir={tmp_path}/live")
        with start(config, stdin=stdin, first=lambda pipeline: run_all(pipeline, config)) as live:
            live.wait(PATIENT_S)
            report = live.pipeline.result(0)
    assert report["latents_sha256"] == expected and report["chunks"] == 1 + (70 - 9 + 12) // 12


def test_a_program_says_where_to_look(model, tmp_path):
    away = turned(20)
    inputs = tmp_path / "inputs.jsonl"
    with Pipeline(posed.config("sink.video=null", "sink.reader=of-each-stream", "sink.trace=none")) as pipeline:
        stream = pipeline.stream(camera=everframe.LIVE, chunks=20, sink={"inputs": str(inputs)})
        for _ in stream:
            stream.look(away, [500, 500, 416, 240])
        with pytest.raises(everframe.UserError, match=r"look\(pose\): is no matrix"):
            stream.look([1, 2, 3])
        with pytest.raises(everframe.UserError, match="open it with actions="):
            stream.act("left")
        with pytest.raises(everframe.UserError, match="model=posed takes no audio"):
            list(pipeline.stream(audio="a.wav"))
    views = [json.loads(line)["views"] for line in inputs.read_text().splitlines()[:-1]]
    assert views[0]["poses"] == [np.eye(4).tolist()] * 9 and views[0]["intrinsics"][0][0] == 0.5
    assert np.array_equal(views[-1]["poses"], [np.vstack([away, [0, 0, 0, 1]])] * 12)
    assert views[-1]["intrinsics"][0][0] == 500 / 832


def test_an_array_and_a_tensor_are_seen_from_alike(run, tmp_path):
    every = np.stack([np.vstack([turned(frame), [0, 0, 0, 1]]) for frame in range(33)])
    np.save(tmp_path / "poses.npy", every)
    np.save(tmp_path / "intrinsics.npy", np.tile([300.0, 300, 416, 240], (len(every), 1)))
    given = {"camera_poses": torch.from_numpy(every), "intrinsics": torch.tensor([300.0, 300, 416, 240])}
    save_file(given, tmp_path / "given.safetensors")
    assert run(f"source.camera={tmp_path}/poses.npy") == run(f"source.tensors={tmp_path}/given.safetensors")


def test_a_lost_worker_leaves_the_camera_where_it_is(model, run, tmp_path, keys, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    long = ("stream.chunks=160", "device=cpu")
    expected = run(keys, *long)
    config = posed.config(
        "sink.video=null", keys, *long, "plan=layers", "plan.workers=2", "launcher=local", "launcher.threads=false",
        *EXACT, f"launcher.cuts={tmp_path}", f"output_dir={tmp_path}/run", "sink.trace=none",
    )  # fmt: skip
    with start(config, first=lambda pipeline: run_all(pipeline, config)) as lossy:
        until(lambda: (lossy.pipeline.progress(0) or {"chunks": 0})["chunks"] >= 40, lambda: lossy.over)
        told = lossy.board.told(key(lossy.generation.processes[0]))
        os.kill(int(told["process"].split("/")[1]), signal.SIGKILL)
        lossy.wait(PATIENT_S)
        assert lossy.pipeline.result(0)["latents_sha256"] == expected
        assert len(lossy.supervisor.records) == 1


REFUSED = {
    "both": (["source.actions=a", "source.camera=b"], "source.camera=b: source.actions=a drives the camera; "),
    "three numbers": (["source.intrinsics=[1,2,3]"], "source.intrinsics=[1.0, 2.0, 3.0]: are four numbers"),
    "no focal length": (["source.intrinsics=[0,1,3,3]"], "source.intrinsics=[0.0, 1.0, 3.0, 3.0]: are four numbers"),
    "missing": (["source.camera=nowhere.jsonl"], "source.camera=nowhere.jsonl: there is no such file; "),
    "folder": (["source.camera=/tmp"], "source.camera=/tmp: is no file but a folder; "),
    "device": (["source.camera=/dev/zero"], "source.camera=/dev/zero: is no file but a device; "),
    "no name": (["source.camera=/nowhere" + "x" * 300], "cannot be read (File name too long); "),
    "no array": (["source.camera=none.npy"], "source.camera=none.npy: there is no such file; "),
    "recorded too": (["source.camera=x", "source.inputs=y"], "source.camera=x: source.inputs brings its own; "),
    "no camera": (["model=nano", "source.camera=x"], "source.camera=x: model=nano takes no camera; "),
    "no lens": (["model=nano", "source.intrinsics=[1,1,1,1]"], "model=nano takes no camera; set source.intrinsics"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_refused(model, job, case):
    told, said = REFUSED[case]
    assert said in job.fails(*model, *told)


def test_tensors_and_another_source_of_poses(model, job, tmp_path, keys):
    given = tmp_path / "given.safetensors"
    save_file({"camera_poses": torch.eye(4)[None]}, given)
    assert f"{keys}: source.tensors gives `camera_poses`; " in job.fails(*model, keys, f"source.tensors={given}")
    save_file({"intrinsics": torch.ones(4)}, given)
    assert "intrinsics: means nothing without `camera_poses`" in job.fails(*model, f"source.tensors={given}")
    save_file({"camera_poses": torch.eye(3)[None]}, given)
    assert "camera_poses: is [1, 3, 3] of float64" in job.fails(*model, f"source.tensors={given}")

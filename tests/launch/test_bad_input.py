"""Every mistake a user can make: one line that names it, exit code 2, nothing left behind."""

import json
import os
import resource

import pytest
import torch
from safetensors.torch import save_file

from launch import join, stream
from stages.encode.text import TextEncoder
from stages.models.pocket.audio import AudioEncoder
from stages.models.pocket.network import Network
from stages.models.pocket.sizes import Sizes
from tests.helpers import config_of, write_wav

NANO = ("model=nano", "stream.chunks=2")


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        # Keys and values.
        (["stream.chnks=3"], "stream.chnks=3: there is no such key; did you mean stream.chunks?"),
        (["modle=nano"], "modle=nano: there is no such key; did you mean model?"),
        (["model=nanno"], "model=nanno: there is no model of that name; did you mean nano?"),
        (["plan=gird"], "plan=gird: there is no plan of that name; did you mean grid?"),
        (["stream.chunks=three"], "stream.chunks=three: must be a whole number of chunks or null"),
        (["stream.chunks=0"], "stream.chunks=0: must be above zero"),
        (["model.context=cleen"], "did you mean clean?"),
        (["model.sampler=uler"], "did you mean euler?"),
        (["model.attention=flash"], "model.attention=flash: no such attention back end"),
        (["nonsense"], "nonsense: is no setting; write KEY=VALUE"),
        (["device=tpu"], "device=tpu: there is no device of that name"),
        (["model.codec.kind=vae"], "model.codec.kind=vae"),
        # Values out of all reason.
        (["stream.width=1000000000000000000"], "stream.width=1000000000000000000: must not be above"),
        (["device.threads=1000000000000000000"], "device.threads=1000000000000000000: must not be above 128"),
        (["model.network.dim=1000000000000000000"], "model.network.dim=1000000000000000000: must not be above"),
        (["model.height=-9223372036854775808"], "model.height=-9223372036854775808: must be above zero"),
        (["model.text.buckets=0"], "model.text.buckets=0: must be above zero"),
        (["model.sink_shift.distance_max=9223372036854775807"], "must not be above 1000000"),
        (["model.network.audio.bands=-1"], "model.network.audio.bands=-1: must be above zero"),
        (["device=emulated", "device.emulated.decode_s=1e18"], "must not be above"),
        (["model.network.layers=8", "model.network.dim=96000"], "GB of weights here, and cpu has"),
        (["model.shift=1e-300"], "model.shift=1e-300: must not be below 0.001"),
        (["plan.name=" + "a" * 900], "a: must be one of sequential, timestep, layers, grid, auto; use one of these"),
        (["plan.devices=[a,b]"], "plan.devices=[a,b]: must be a list of whole numbers or null; for example"),
        (["plan.devices=[]"], "plan.devices=[]: lists whole numbers from 0, one for every process; give them"),
        (["plan=timestep", "plan.devices=[-1,0]"], "plan.devices=[-1, 0]: lists whole numbers from 0, one for every"),
        (["plan=timestep", "plan.devices=[9,9]"], "plan.devices=[9, 9]: names one device for every process (here 5)"),
        (["plan=auto", "plan.devices=[4000]", "device=cpu"], "plan.devices=[4000]: "),
        (["plan.devices=[2]", "cluster=cpu2"], "plan.devices=[2]: devices of cluster=cpu2 are 0 to 1; name these"),
        (["plan=auto", "plan.devices=[7]", "cluster=h100x1"], "plan.devices=[7]: cluster=h100x1 has one, 0; name"),
        (["plan=auto", "plan.devices=[0,1]", "plan.workers=3", "cluster=cpu2"], "for every process (here 3); give as"),
        # Shapes that the plan would not have.
        (["plan.workers=3"], "plan.workers=3: plan=sequential is one worker; use plan=timestep"),
        (["plan.decode=99"], "plan.decode=99: there is one worker, 0"),
        (
            ["plan=layers", "plan.steps=[2,2]"],
            "plan.steps=[2, 2]: plan=layers does not follow it; use",
        ),
        (
            ["plan=timestep", "plan.layers=[3,3]"],
            "plan=timestep does not follow it; use plan=layers or plan=grid",
        ),
        (["plan=timestep", "plan.grid=[2,2]"], "plan.grid=[2, 2]: plan=timestep does not follow it; use plan=grid"),
        # Settings that contradict each other.
        (["model.window_frames=13"], "model.window_frames=13: (window - sink_frames=0) must be a multiple of"),
        (["model.sink_frames=4", "model.window_frames=13"], "whole chunks of 3 frames; use 3"),
        (["model.steps=3", "model.timesteps=[1000,750,500,250]"], "model.steps=3: model.timesteps lists 4 steps"),
        (["model.timesteps=[500,750]", "model.steps=null"], "must fall from at most 1000 to above 0"),
        (["model.recalibrate_chunk=0"], "chunk 0 must be finished first"),
        (["model.reference=false", "model.recalibrate_chunk=4"], "this model has none"),
        (["stream.seconds=4"], "give one of the two"),
        (["model.network.heads=5"], "model.network.heads=5: must divide dim=48"),
        (["sink.trace=some"], "sink.trace=some: must be one of none, recent, all"),
        (["sink.trace=none", "sink.timeline=t.png"], "sink.trace=none: sink.timeline=t.png is drawn from it"),
        (["stream.count=2", "sink.frames=."], "sink.frames=.: has no name of its own"),
        (["stream.count=2", "sink.frames=a/.."], "sink.frames=a/..: has no name of its own"),
        (["stream.count=2", "sink.video=/"], "sink.video=/: has no name of its own"),
        (["sink.latents=a.mp4", "sink.video=./a.mp4"], "sink.latents=a.mp4: sink.video writes it"),
        (["source.audio=-", "source.actions=-"], "source.actions=- reads standard input too"),
        (["stream.events=[{chunk: 3, prompt: a}, {chunk: 3, prompt: b}]"], "two events are at the same chunk"),
        (["stream.events=[{chunk: -1, prompt: a}]"], "chunks count from 0"),
        # What does not exist yet, or not for this model.
        (["model.context=joint_window"], "model.context=joint_window: needs no reference; set model.reference=false"),
        (["model.context=output_level"], "model.context=output_level: the second write pass is not built"),
        (["plan=timestep", "plan.workers=7"], "plan.workers=7: plan=timestep here is 4 workers, or 5 with decode"),
        (["model=pocket_world", "source.audio=x.wav"], "model=pocket_world takes no audio"),
        (["model.prompt_switch=recache"], "model.prompt_switch=recache: makes the bank of finished chunks anew, which"),
        (
            ["model.lora=/proc/nowhere/l.safetensors"],
            "model.lora=/proc/nowhere/l.safetensors: is merged into the weights",
        ),
        # Sizes.
        (["stream.height=40"], "stream.height=40: must be a multiple of 16; use 32 or 48"),
        (["stream.width=7"], "stream.width=7: must be a multiple of 16; use 16 or 32"),
        # Files that are not there.
        (["source.image=/proc/nowhere/face.png"], "source.image=/proc/nowhere/face.png"),
        (["source.audio=/proc/nowhere/speech.wav"], "source.audio=/proc/nowhere/speech.wav"),
        (["source.actions=/proc/nowhere/keys.jsonl"], "source.actions=/proc/nowhere/keys.jsonl"),
        (["source.tensors=/proc/nowhere/x.safetensors"], "source.tensors=/proc/nowhere/x.safetensors"),
        (
            ["model.checkpoint=/proc/nowhere/w.safetensors"],
            "model.checkpoint=/proc/nowhere/w.safetensors: no such file",
        ),
        (["model.codec.checkpoint=/proc/nowhere/c.safetensors"], "model.codec.checkpoint=/proc/nowhere/c.safetensors"),
    ],
    ids=lambda value: " ".join(value)[:60] if isinstance(value, list) else "",
)
def test_mistakes(job, overrides, line):
    base = [] if any(o.startswith("stream.chunks") for o in overrides) else list(NANO)
    assert line in job.fails(*base, *overrides)


def test_cuda_is_refused_where_there_is_none(job):
    if torch.cuda.is_available():
        return
    assert "no CUDA device is visible; use device=cpu" in job.fails(*NANO, "device=cuda")


@pytest.mark.parametrize("kind", ["image", "audio", "tensors"])
def test_broken_files(job, tmp_path, kind):
    broken = tmp_path / "broken.bin"
    broken.write_bytes(b"this is not what you think it is" * 10)
    assert f"source.{kind}={broken}" in job.fails(*NANO, f"source.{kind}={broken}")


def test_empty_sound(job, tmp_path):
    silent = write_wav(tmp_path / "empty.wav", torch.zeros(0).numpy())
    assert f"source.audio={silent}" in job.fails(*NANO, f"source.audio={silent}")


def test_bad_actions_name_the_line_and_the_nearest_action(job, tmp_path):
    path = tmp_path / "keys.jsonl"
    path.write_text('{"frame": 0, "action": "forward"}\n{"frame": 4, "action": "forwrad"}\n')
    line = job.fails(*NANO, f"source.actions={path}")
    assert "line 2" in line
    assert "forward" in line


def test_given_tensors_of_the_wrong_shape(job, tmp_path):
    path = tmp_path / "x.safetensors"
    save_file({"reference_latent": torch.zeros(1, 16, 1, 8, 8)}, path)
    line = job.fails(*NANO, f"source.tensors={path}")
    assert "reference_latent: expected [1, 16, 1, 4, 4], found [1, 16, 1, 8, 8]" in line
    save_file({"referense_latent": torch.zeros(1)}, path)
    assert "reference_latent" in job.fails(*NANO, f"source.tensors={path}")


def checkpoint(tmp_path, **changes):
    """A checkpoint of a network of nano's sizes, with some tensors replaced."""
    model = config_of("model=nano").model
    parts = {
        "": Network(model.network),
        "text_encoder.": TextEncoder(model.text, model.network.text_dim, model.network.text_tokens),
        "audio_encoder.": AudioEncoder(model.network.audio),
    }
    state = {p + k: v.contiguous() for p, m in parts.items() for k, v in m.state_dict().items()} | changes
    path = tmp_path / "weights.safetensors"
    save_file({k: v for k, v in state.items() if v is not None}, path)
    return path


def test_a_checkpoint_loads(job, tmp_path):
    path = checkpoint(tmp_path)
    found = job(*NANO, "sink.video=null", f"model.checkpoint={path}")
    assert not found["random_weights"]
    assert found["latents_sha256"] == job(*NANO, "sink.video=null", f"model.checkpoint={path}")["latents_sha256"]


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        (
            {"blocks.3.ffn.0.weight": torch.zeros(90, 48)},
            "blocks.3.ffn.0.weight must have shape [96, 48], found [90, 48]",
        ),
        ({"blocks.3.ffn.0.weight": None}, "lacks 1 of"),
        ({"audio_encoder.position": torch.zeros(4, 7)}, "audio_encoder.position must have shape [4, 24], found [4, 7]"),
    ],
    ids=["shape", "missing", "encoder"],
)
def test_checkpoints_that_do_not_fit(job, tmp_path, changes, line):
    path = checkpoint(tmp_path, **changes)
    assert line in job.fails(*NANO, f"model.checkpoint={path}")


def test_checkpoints_that_cannot_be_read(job, tmp_path):
    truncated = tmp_path / "cut.safetensors"
    truncated.write_bytes(checkpoint(tmp_path).read_bytes()[:5000])
    line = job.fails(*NANO, f"model.checkpoint={truncated}")
    assert f"model.checkpoint={truncated}: cut.safetensors is cut short: it holds 5000 of at least " in line
    hostile = tmp_path / "code.pt"
    torch.save({"weights": torch.zeros(1), "run": print}, hostile)
    line = job.fails(*NANO, f"model.checkpoint={hostile}")
    assert f"model.checkpoint={hostile}: code.pt holds Python objects beside tensors" in line
    assert "code is never run" in line and "weights_only" not in line
    empty = tmp_path / "folder"
    empty.mkdir()
    (empty / "config.json").write_text(json.dumps({"dim": 48}))
    assert "holds no .safetensors" in job.fails(*NANO, f"model.checkpoint={empty}")


def test_an_output_folder_that_cannot_be_made(tmp_path, capsys):
    file = tmp_path / "out"
    file.write_text("a file, not a folder")
    assert stream.main([*NANO, f"output_dir={file}/deeper"]) == 2
    assert f"output_dir={file}/deeper: cannot be made" in capsys.readouterr().err
    assert file.read_text() == "a file, not a folder"


def test_no_space_on_disk(tmp_path, capsys):
    """A full disk ends the stream with one line; here files cannot grow beyond the second chunk of latents."""
    full = tmp_path / "latents.safetensors"
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (70_000, limits[1]))
    try:
        code = stream.main([*NANO, "sink.video=null", f"output_dir={tmp_path}/out", f"sink.latents={full}"])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert code == 2
    assert len(errors) == 1
    assert f"sink.latents={full}" in errors[0]


@pytest.mark.parametrize("kind", ["image", "tensors", "inputs"])
def test_sources_that_are_no_files(job, tmp_path, kind):
    """A pipe that nobody writes would hold the run for ever; a device may have no end."""
    os.mkfifo(pipe := tmp_path / "pipe")
    for path, found in ((pipe, "pipe"), (tmp_path, "folder"), ("/dev/zero", "device")):
        assert f"source.{kind}={path}: is no file but a {found}; " in job.fails(*NANO, f"source.{kind}={path}")


@pytest.mark.parametrize("kind", ["audio", "actions"])
def test_live_sources_that_are_neither_file_nor_pipe(job, tmp_path, kind):
    for path, found in ((tmp_path, "folder"), ("/dev/zero", "device")):
        assert f"source.{kind}={path}: is no file but a {found}; " in job.fails(*NANO, f"source.{kind}={path}")


@pytest.mark.parametrize("long", ["file", "folder"])
@pytest.mark.parametrize(
    "setting",
    [
        *(f"source.{name}" for name in ("image", "audio", "actions", "tensors", "inputs")),
        *("model.checkpoint", "model.codec.checkpoint", "resume"),
    ],
)
def test_names_that_cannot_even_be_looked_up(job, setting, long):
    """As of a folder that may not be looked into, of a name that is too long the system says more than "not there"."""
    path = "/nowhere" + "x" * 300 + ("/file" if long == "folder" else "")
    assert f"{setting}={path}: " in job.fails(*NANO, f"{setting}={path}")


@pytest.mark.parametrize("kind", ["video", "latents", "frames", "inputs", "contact_sheet", "timeline"])
def test_sinks_whose_folder_cannot_even_be_looked_up(tmp_path, capsys, kind):
    path = tmp_path / ("x" * 300) / "a.mp4"
    assert stream.main([*NANO, "sink.video=null", f"output_dir={tmp_path}/out", f"sink.{kind}={path}"]) == 2
    assert f"error: sink.{kind}={path}: cannot be written (File name too long); " in capsys.readouterr().err


def test_a_video_to_join_that_cannot_even_be_looked_up(capsys):
    assert join.main(["x" * 300]) == 2
    assert "there is no such file" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["video", "inputs", "timeline"])
def test_a_sink_that_is_a_pipe(tmp_path, capsys, kind):
    """Nobody reads it: opening it would wait for ever, whatever opens it."""
    os.mkfifo(pipe := tmp_path / "pipe.mp4")
    assert stream.main([*NANO, "sink.video=null", f"output_dir={tmp_path}/out", f"sink.{kind}={pipe}"]) == 2
    assert f"error: sink.{kind}={pipe}: cannot be written (it is no file but a pipe); " in capsys.readouterr().err
    assert pipe.is_fifo()


def test_a_pipe_that_several_streams_would_read(job, tmp_path):
    os.mkfifo(pipe := tmp_path / "pipe")
    line = job.fails(*NANO, "stream.count=2", f"source.audio={pipe}")
    assert line == f"source.audio={pipe}: stream 0 reads it; give a pipe of its own"


def test_network_config_has_valid_defaults():
    assert Sizes().head_dim == 16

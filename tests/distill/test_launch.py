"""The command line of training: mistakes are one line, and a stage runs from its configuration alone."""

import json

import pytest
import torch
from safetensors.torch import save_file
from tiny import ENCODER

from launch.distill import main
from stages.codec.small.codec import describe
from stages.codec.small.network import SmallDecoder, SmallEncoder

SMALL = [
    "model.network.dim=24",
    "model.network.ffn_dim=32",
    "model.network.heads=2",
    "model.network.layers=2",
    "model.network.in_channels=4",
    "model.network.out_channels=4",
    "model.height=32",
    "model.width=32",
    "clips.count=4",
    "clips.frames=3",
    "stages.teacher={batch: 2, frames: 3, steps: 2, sample_steps: 2}",
]


@pytest.fixture
def codec(tmp_path):
    """A file with random weights."""
    torch.manual_seed(0)
    tensors = {f"latents.{kind}.{name}": torch.ones(4) for kind in ("avatar", "world") for name in ("mean", "std")}
    for prefix, half in (("encoder", SmallEncoder(ENCODER)), ("decoder", SmallDecoder(ENCODER))):
        tensors |= {f"{prefix}.{k}": v.contiguous() for k, v in half.state_dict().items()}
    save_file(tensors, tmp_path / "codec.safetensors", metadata={"config": describe(ENCODER)})
    return tmp_path / "codec.safetensors"


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["stage=techer"], "stage=techer: must be one of"),
        (["stages.teacher.stepz=3"], "stages.teacher.stepz=3: there is no such key; did you mean stages.teacher.steps"),
        (["stages.teacher.batch=0"], "must be above zero"),
        (["clips.codec=nowhere"], "clips.codec=nowhere: there is no codec"),
    ],
)
def test_mistakes_are_one_line(words, line, capsys):
    assert main(words) == 2
    error = capsys.readouterr().err
    assert line in error and error.count("\n") == 1


def test_a_run_logs_samples_and_exports(tmp_path, codec):
    words = [f"run_dir={tmp_path}/run", f"clips.codec={codec}", "experiment=pocket_world", *SMALL]
    words += ["log.wandb=disabled", "log.every=1", "log.sample_every=2"]
    assert main(words) == 0
    folder = tmp_path / "run" / "teacher"
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    assert {"loss", "grad_norm", "seconds_per_step"} < set(lines[0]) and "sample_motion_ratio" in lines[-1]
    assert (folder / "samples" / "000002.png").stat().st_size > 1000
    assert main([*words, f"export={tmp_path}/world.safetensors"]) == 0
    assert (tmp_path / "world.safetensors").stat().st_size > 10_000

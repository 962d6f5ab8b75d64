"""A family that nothing drives, no prompt, no picture, no action: every plan runs it, and orders say what it lacks."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from conf.errors import UserError
from conf.schema import ModelConfig
from launch import stream
from stages.build import build_network
from stages.controls import Controls
from stages.denoise.denoiser import Denoiser
from stages.denoise.graphs import Graphs
from stages.inputs import Axis, Ear, Input, inputs_of
from tests.stages.denoise.tape import Replays

FILES = {
    "__init__.py": "",
    "sizes.py": "from conf.schema import NetworkConfig as Sizes\n",
    "inputs.py": "FOUND = ()\n\n\ndef inputs(model):\n    return FOUND\n",
    "network.py": """
import torch
from torch import nn
from stages.denoise.network import Network as Base
from stages.dit.patches import embed, unpatch


class Network(Base):
    def __init__(self, config, layers=None, attention="sdpa"):
        super().__init__(config, layers, attention)
        d, patch = config.dim, tuple(config.patch)
        self.qkv = nn.ModuleDict({str(i): nn.Linear(d, 3 * d) for i in self.layers})
        self.patch, self.head = nn.Conv3d(config.in_channels, d, patch, patch), nn.Linear(d, 4 * config.out_channels)

    def constants(self, timestep):
        return timestep.to(self.dtype).view(1) / 1000

    def states(self, epoch):
        raise AssertionError("there are no inputs of an epoch")

    def drive(self, constants, states, given, take, leaves=True):
        assert states is None and not given
        return constants

    def enter(self, x, given):
        return embed(x, self.patch) if self.first else x

    def through(self, x, drive, attend):
        for i, layer in zip(self.layers, self.qkv.values(), strict=True):
            q, k, v = layer(x + drive).unflatten(-1, (3, self.config.heads, -1)).unbind(2)
            x = x + attend(i, q.contiguous(), k.contiguous(), v.contiguous()).flatten(2)
        return self.head(x) if self.last else x

    def leave(self, x, shape):
        return unpatch(x, self.config.patch, shape) if self.last else x
""",
}
SIZES = {"dim": 24, "heads": 2, "layers": 4}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("bare")
    (folder / "barefamily").mkdir()
    for name, text in FILES.items():
        (folder / "barefamily" / name).write_text(text)
    (folder / "conf" / "model").mkdir(parents=True)
    yaml = {"name": "bare", "family": "barefamily", "network": SIZES, "window_frames": 9, "height": 32, "width": 32}
    (folder / "conf" / "model" / "bare.yaml").write_text(json.dumps(yaml))
    sys.path.insert(0, str(folder))
    yield folder
    sys.path.remove(str(folder))


@pytest.fixture
def run(folder, tmp_path, capsys):
    def run(*overrides: str) -> str:
        told = ["--config-dir", str(folder / "conf"), "model=bare", "stream.chunks=6", "sink.video=null"]
        code = stream.main([*told, f"output_dir={tmp_path / 'out'}", *overrides])
        captured = capsys.readouterr()
        if code:
            return captured.err.strip()
        return json.loads((tmp_path / "out" / "report.json").read_text())["latents_sha256"]

    return run


@pytest.mark.parametrize("context", ["same_level", "clean"])
def test_every_plan_gives_the_latents_of_one_device(run, context):
    base = (f"model.context={context}",)
    expected = run(*base)
    assert len(expected) == 64
    assert all(run(*base, f"plan={plan}") == expected for plan in ("timestep", "layers", "grid"))


def test_what_it_does_not_take_is_refused(run):
    assert "stream.prompt=hello: model=bare takes no prompt" in run("stream.prompt=hello")
    assert "source.audio=a.wav: model=bare takes no audio" in run("source.audio=a.wav")
    assert "model.reference=true: family barefamily takes none" in run("model.reference=true")
    assert "model.fp8=per_row: needs widths in sixteens" in run("model.fp8=per_row")


def test_graphs_need_no_states(folder):
    model = ModelConfig(name="bare", family="barefamily", network=dict(SIZES), window_frames=9)
    denoiser = Denoiser(model, build_network(model, torch.device("cpu")), 2, 2)
    banks, again = denoiser.open([0]), denoiser.open([0])
    draw = torch.Generator().manual_seed(0)
    chunks = [torch.randn(1, 16, 3, 4, 4, generator=draw) for _ in range(9)]
    plain = [denoiser.step(banks, 0, i, x, {}) for i, x in enumerate(chunks)]
    denoiser.runner = Graphs(Replays())
    assert all(torch.equal(denoiser.step(again, 0, i, x, {}), plain[i]) for i, x in enumerate(chunks))


CONTROLS = Controls(("none", "go"), one=True)
ROWS = {"rows": lambda taken: torch.zeros(1, len(taken), 1), "controls": CONTROLS}
MISFITS = {
    "cannot be made of image on axis frame": Input("a", Axis.FRAME, (12, 1), "image"),
    "for every latent frame and is no latents": Input("a", Axis.LATENT, (3, 1), "image"),
    "is given for the whole stream": Input("a", Axis.EPOCH, (3, 1), key="a", whole=True),
    "follows from latent frames": Input("a", Axis.FRAME, (12, 1), entries=lambda latents: torch.zeros(1)),
    "has neither a source nor a key": Input("a", Axis.LATENT, (3, 1)),
    "is no latents": Input("a", Axis.SINK, (4,), key="a"),
    "does not say what its source's rows become": Input("a", Axis.FRAME, (12, 1), "actions"),
    "does not say how it hears": Input("a", Axis.FRAME, (12, 1), "audio", **ROWS),
    "reaches back": Input("a", Axis.LATENT, (3, 1), "actions", reach=2, **ROWS),
}


@pytest.mark.parametrize("said", MISFITS)
def test_inputs_that_nothing_could_make_are_named(folder, monkeypatch, said):
    model = ModelConfig(name="bare", family="barefamily", network=dict(SIZES), window_frames=9)
    monkeypatch.setattr("barefamily.inputs.FOUND", (MISFITS[said],))
    with pytest.raises(ValueError, match=said):
        inputs_of(model)


def test_one_input_for_each_source_but_several_of_what_is_pressed(folder, monkeypatch):
    model = ModelConfig(name="bare", family="barefamily", network=dict(SIZES), window_frames=9)
    ear = Ear(lambda load, whole: None)
    two = tuple(Input(name, Axis.FRAME, (12, 1), "audio", ear=ear, **ROWS) for name in ("speech", "music"))
    monkeypatch.setattr("barefamily.inputs.FOUND", two)
    with pytest.raises(ValueError, match="only one input can be made of audio"):
        inputs_of(model)
    two = tuple(Input(name, Axis.FRAME, (12, 1), "actions", **ROWS) for name in ("keys", "mouse"))
    monkeypatch.setattr("barefamily.inputs.FOUND", two)
    assert inputs_of(model) == two
    monkeypatch.setattr(
        "barefamily.inputs.FOUND", (two[0], replace(two[1], controls=Controls(("none", "fly"), one=True)))
    )
    with pytest.raises(ValueError, match="inputs are made of different controls"):
        inputs_of(model)


@pytest.mark.parametrize("missing", ["sizes", "inputs", "network"])
def test_a_folder_that_lacks_a_module_is_named(tmp_path, monkeypatch, missing):
    name = f"lacks_{missing}"
    (tmp_path / name).mkdir()
    for file, text in FILES.items():
        if file != f"{missing}.py":
            (tmp_path / name / file).write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(UserError, match=rf"model.family={name}: has no {missing}.py"):
        model = ModelConfig(name="bare", family=name, network=dict(SIZES), window_frames=9)
        inputs_of(model)
        build_network(model, torch.device("cpu"))

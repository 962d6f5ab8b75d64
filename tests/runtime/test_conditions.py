"""A model that a picture and keys drive, in channels, rows and frames: the same everywhere, given or made, saved or
replayed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image
from safetensors.torch import save_file

import tests.pictured
from conf.schema import ModelConfig
from conf.typed import typed
from runtime.encoders import Encoders

CONF = str(Path(tests.pictured.__file__).parent / "conf")
MODEL = typed(ModelConfig, OmegaConf.to_container(OmegaConf.load(f"{CONF}/model/pictured.yaml")), "model")
CHUNKS = 5
ROWS = torch.randn(1, 5, 160, generator=torch.Generator().manual_seed(3))


@pytest.fixture
def told(tmp_path) -> tuple[str, ...]:
    """What a stream is driven by: a picture, its rows, keys."""
    pixels = np.random.default_rng(0).integers(0, 255, (32, 32, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "picture.png")
    (tmp_path / "keys.jsonl").write_text('{"frame": 5, "action": "left"}\n{"frame": 40, "action": "right"}\n')
    save_file({"image_rows": ROWS}, tmp_path / "rows.safetensors")
    return (
        f"source.image={tmp_path / 'picture.png'}", f"source.actions={tmp_path / 'keys.jsonl'}",
        f"source.tensors={tmp_path / 'rows.safetensors'}",
    )  # fmt: skip


@pytest.fixture
def run(job, told):
    """run(*overrides): the hash of a short stream; run.fails(...): its one line of complaint."""
    base = ("--config-dir", CONF, "model=pictured", f"stream.chunks={CHUNKS}", "sink.video=null", *told)

    def run(*overrides: str) -> str:
        return job(*base, *overrides)["latents_sha256"]

    run.fails = lambda *overrides: job.fails(*base, *overrides)
    return run


@pytest.mark.parametrize(("context", "plan"), [("clean", "layers"), ("same_level", "grid")])
def test_every_plan_gives_the_latents_of_one_device(run, context, plan):
    rule = f"model.context={context}"
    assert run(rule, f"plan={plan}") == run(rule)


def test_each_of_them_matters(run):
    nothing = "source.image=null", "source.actions=null", "source.tensors=null"
    assert len({run(), *map(run, nothing)}) == 4


def test_what_is_made_may_be_given_instead(run, told, tmp_path, monkeypatch):
    """One tensor each for the whole stream, whose last entry holds: nothing is encoded then, and no source opened."""
    expected, pixels = run(), torch.from_numpy(np.array(Image.open(tmp_path / "picture.png"), np.float32))
    scene = Encoders(MODEL, torch.device("cpu")).scene(pixels.permute(2, 0, 1) / 127.5 - 1.0)
    keys = torch.zeros(1, 41, 3)
    for first, stop, key in ((0, 5, 0), (5, 40, 1), (40, 41, 2)):
        keys[:, first:stop, key] = 1
    given = {"condition_latents": scene, "keyboard": keys, "image_rows": ROWS}
    given["condition_mask"] = torch.cat([torch.ones(1, 4, 1, 4, 4), torch.zeros(1, 4, 1, 4, 4)], 2)
    save_file(given, tmp_path / "all.safetensors")
    monkeypatch.setattr("runtime.encoders.build_encoder", None)
    all_of_it = (f"source.tensors={tmp_path / 'all.safetensors'}", "source.image=null", "source.actions=null")
    assert run(*all_of_it) == expected
    saved = tmp_path / "saved"
    run(*all_of_it, "stream.chunks=4", "stream.save_every_chunks=3", f"output_dir={saved}")
    assert run(*all_of_it, f"resume={saved}") == expected


def test_a_saved_stream_goes_on_and_a_recorded_one_is_played_again(run, tmp_path):
    """Keys that are reached back to are in the state; the picture's latents and rows are made again."""
    expected = run(f"sink.inputs={tmp_path / 'inputs.jsonl'}")
    assert run("source.actions=null", f"source.inputs={tmp_path / 'inputs.jsonl'}") == expected
    saved = tmp_path / "saved"
    run("plan=layers", "stream.chunks=4", "stream.save_every_chunks=3", f"output_dir={saved}")
    assert run("plan=timestep", f"resume={saved}") == expected


def test_what_does_not_fit_is_said_in_one_line(run, tmp_path):
    path = tmp_path / "bad.safetensors"
    given = (f"source.tensors={path}", "source.actions=null")
    wrong = {
        "keyboard: expected [1, any, 3], found [1, 9, 4]": {"keyboard": torch.zeros(1, 9, 4)},
        "keyboard: has no entry": {"keyboard": torch.zeros(1, 0, 3)},
        "condition_latents: expected [1, 16, any, 4, 4], found [1, 16, 3, 4, 2]": {
            "condition_latents": torch.zeros(1, 16, 3, 4, 2)
        },
        "image_rows: expected [1, 5, 160], found [1, 4, 160]": {"image_rows": torch.zeros(1, 4, 160)},
        "keyboard.000001: is not a name that model=pictured takes": {"keyboard.000001": torch.zeros(1, 12, 3)},
    }
    for said, tensors in wrong.items():
        save_file(tensors, path)
        assert said in run.fails(*given)
    save_file({"keyboard": torch.zeros(1, 9, 3)}, path)
    said = f"source.actions={tmp_path / 'keys.jsonl'}: source.tensors gives `keyboard` for all of the stream"
    assert said in run.fails(given[0])
    assert "stream.prompt=hello: model=pictured takes no prompt" in run.fails("stream.prompt=hello")

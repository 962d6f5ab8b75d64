"""A model that a picture and keys drive, in channels, rows and frames: the same everywhere, given or made, saved or
replayed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image
from safetensors.torch import save_file

import tests.pictured
from conf.errors import UserError
from conf.schema import ClipConfig, Config, ModelConfig, PlanConfig, SinkConfig, SourceConfig, StreamConfig
from conf.typed import typed
from parallel.builders import build
from runtime.conditioning import Conditioning
from runtime.encoders import Encoders
from runtime.offer import offer_of
from runtime.workload import describe
from stages.sources.image import load_image
from tests.checkpoints import write_image_encoder

CONF = str(Path(tests.pictured.__file__).parent / "conf")
MODEL = typed(ModelConfig, OmegaConf.to_container(OmegaConf.load(f"{CONF}/model/pictured.yaml")), "model")
ENCODERS = Encoders(MODEL, torch.device("cpu"))
CHUNKS = 4
ROWS = torch.randn(1, 5, 160, generator=torch.Generator().manual_seed(3))


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> SourceConfig:
    """What a stream is driven by: a picture, its rows, keys."""
    folder = tmp_path_factory.mktemp("source")
    pixels = np.random.default_rng(0).integers(0, 255, (32, 32, 3), np.uint8)
    Image.fromarray(pixels).save(folder / "picture.png")
    (folder / "keys.jsonl").write_text('{"frame": 5, "action": "left"}\n{"frame": 40, "action": "right"}\n')
    save_file({"image_rows": ROWS}, folder / "rows.safetensors")
    image, actions, tensors = (str(folder / name) for name in ("picture.png", "keys.jsonl", "rows.safetensors"))
    return SourceConfig(image=image, actions=actions, tensors=tensors)


@pytest.fixture(scope="module")
def known() -> dict[str, str]:
    """The hash of the run that others are compared with."""
    return {}


@pytest.fixture
def run(job, source, known):
    """run(*overrides): the hash of a short stream, and `run.expected` that of one without; run.report: of the last."""
    told = [f"source.{name}={getattr(source, name)}" for name in ("image", "actions", "tensors")]

    def run(*overrides: str) -> str:
        base = ("--config-dir", CONF, "model=pictured", f"stream.chunks={CHUNKS}", "sink.video=null")
        run.report = job(*base, *told, *overrides)
        return run.report["latents_sha256"]

    if not known:
        known["expected"] = run()
    run.expected = known["expected"]
    return run


def opened(source: SourceConfig, model: ModelConfig = MODEL, encoders: Encoders = ENCODERS, **stream) -> Conditioning:
    return Conditioning(model, StreamConfig(**stream), source, encoders)


def test_every_plan_gives_the_latents_of_one_device(run):
    assert run("plan=layers") == run.expected
    rule = "model.context=same_level"
    assert run(rule, "plan=grid") == run(rule) != run.expected


def test_each_of_them_matters(run):
    nothing = "source.image=null", "source.actions=null", "source.tensors=null"
    assert len({run.expected, *map(run, nothing)}) == 4


def test_what_is_made_may_be_given_instead(run, source, tmp_path, monkeypatch):
    """One tensor each for the whole stream, whose last entry holds: nothing is encoded then, and no source opened."""
    keys = torch.zeros(1, 41, 3)
    for first, stop, key in ((0, 5, 0), (5, 40, 1), (40, 41, 2)):
        keys[:, first:stop, key] = 1
    given = {"condition_latents": ENCODERS.scene(load_image(source.image, 32, 32)), "keyboard": keys}
    given["condition_mask"] = torch.cat([torch.ones(1, 4, 1, 4, 4), torch.zeros(1, 4, 1, 4, 4)], 2)
    save_file(given | {"image_rows": ROWS}, tmp_path / "all.safetensors")
    monkeypatch.setattr("runtime.encoders.build_encoder", None)
    told = (f"source.tensors={tmp_path / 'all.safetensors'}", "source.image=null", "source.actions=null")
    assert run(*told) == run.expected
    saved = tmp_path / "saved"
    run(*told, "stream.chunks=3", "stream.save_every_chunks=2", f"output_dir={saved}")
    assert run(*told, f"resume={saved}") == run.expected


def test_a_saved_stream_goes_on_and_a_recorded_one_is_played_again(run, tmp_path):
    """Keys that are reached back to are in the state; the picture's latents and rows are made again."""
    recorded = tmp_path / "inputs.jsonl"
    assert run(f"sink.inputs={recorded}") == run.expected
    assert run("source.actions=null", f"source.inputs={recorded}") == run.expected
    saved = tmp_path / "saved"
    run("plan=layers", "stream.chunks=3", "stream.save_every_chunks=2", f"output_dir={saved}")
    assert run("plan=timestep", f"resume={saved}") == run.expected


def test_rows_are_an_image_encoders_where_there_is_one(run, source, tmp_path):
    """They are those that could have been given, and its weights are where the plan says."""
    write_image_encoder(tmp_path / "clip")
    clip = ClipConfig(str(tmp_path / "clip"))
    model = replace(MODEL, clip=clip.beside(None))
    encoders = Encoders(model, torch.device("cpu"))
    rows = opened(replace(source, tensors=None), model, encoders).states(0)["image_rows"]
    assert rows.shape == ROWS.shape and rows.std() > 0.1
    save_file({"image_rows": rows}, tmp_path / "made.safetensors")
    found = run(
        "plan=layers",
        "plan.encode=2",
        "plan.workers=3",
        "source.tensors=null",
        f"model.clip.checkpoint={tmp_path / 'clip'}",
    )
    weights = list(run.report["weight_bytes"].values())
    assert run(f"source.tensors={tmp_path / 'made.safetensors'}") == found
    config = Config(model=model, sink=SinkConfig(video=None))
    made = build(PlanConfig("layers", workers=3, encode=2), describe(config))
    assert weights == [made.weight_bytes(worker) for worker in range(3)]
    assert encoders.weight_bytes == made.weight_bytes(2)


def test_it_is_emulated(run):
    run("plan=layers", "device=emulated", "device.emulated.step_s=0.001")
    assert run.report["chunks"] == CHUNKS


def test_messages_are_as_large_as_plans_say(source):
    given = opened(source).chunk(0)
    assert {name: tuple(tensor.shape) for name, tensor in given.items()} == {
        "condition": (1, 16, 3, 4, 4), "mask": (1, 4, 3, 4, 4), "keyboard": (1, 21, 3),
    }  # fmt: skip
    latents = 16 * 3 * 4 * 4 * 4
    told = describe(Config(model=MODEL, sink=SinkConfig(video=None)))
    assert told.latent_bytes == latents + sum(tensor.nbytes for tensor in given.values())


def test_what_is_missing_is_said(source, caplog):
    """Without a picture it is grey; rows that nobody gives are zeros, but not where published weights see a picture."""
    bare = opened(SourceConfig())
    bare.sink()
    assert (
        "a grey picture stands for it" in caplog.text
        and "the picture's rows of model=pictured are zeros" in caplog.text
    )
    assert not bare.states(0)["image_rows"].any() and bare.epoch(7) == 0 and bare.states(7) is None
    assert torch.equal(bare.chunk(0)["condition"], ENCODERS.scene(torch.zeros(3, 32, 32))[:, :, :3])
    model = replace(MODEL, checkpoint="weights.safetensors")
    with pytest.raises(UserError, match=r"source\.image: model=pictured has no image encoder here; name its file as"):
        opened(replace(source, tensors=None), model, Encoders(model, torch.device("cpu")))
    opened(source, model, Encoders(model, torch.device("cpu"))).close()
    assert offer_of(Config(model=MODEL))["picture"]
    assert not offer_of(Config(model=MODEL, source=source))["picture"], "what is given of a picture is of that one"


WRONG = {
    "keyboard: expected [1, any, 3], found [1, 9, 4]": {"keyboard": torch.zeros(1, 9, 4)},
    "keyboard: has no entry": {"keyboard": torch.zeros(1, 0, 3)},
    "condition_latents: expected [1, 16, any, 4, 4], found [1, 16, 3, 4, 2]": {
        "condition_latents": torch.zeros(1, 16, 3, 4, 2)
    },
    "image_rows: expected [1, 5, 160], found [1, 4, 160]": {"image_rows": torch.zeros(1, 4, 160)},
    "keyboard.000001: is not a name that model=pictured takes": {"keyboard.000001": torch.zeros(1, 12, 3)},
}


@pytest.mark.parametrize("said", WRONG)
def test_tensors_that_do_not_fit_are_refused_when_the_stream_is_opened(source, tmp_path, said):
    save_file(WRONG[said], tmp_path / "bad.safetensors")
    with pytest.raises(UserError) as error:
        opened(replace(source, tensors=str(tmp_path / "bad.safetensors"), actions=None))
    assert said in str(error.value) and "\n" not in str(error.value)


def test_what_nobody_asks_for_is_refused(source, tmp_path):
    save_file({"keyboard": torch.zeros(1, 9, 3)}, tmp_path / "keys.safetensors")
    with pytest.raises(UserError, match=r"source\.actions=.*: source\.tensors gives `keyboard` for all of the stream"):
        opened(replace(source, tensors=str(tmp_path / "keys.safetensors")))
    with pytest.raises(UserError, match=r"stream\.prompt=hello: model=pictured takes no prompt"):
        opened(source, prompt="hello")

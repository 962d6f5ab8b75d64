"""What a stream's latents depend on, and what they do not."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from runtime.conditioning import Conditioning
from runtime.encoders import Encoders
from stages.denoise.draws import Draws
from tests.helpers import config_of

BASE = ("stream.chunks=8", "stream.prompt=hello")


def chunks_of(job, *overrides):
    """Final latents per chunk of a nano run."""
    path = job.folder.parent / "latents.safetensors"
    job("model=nano", "sink.video=null", f"sink.latents={path}", *overrides)
    # Copies: the loaded tensors are mapped to a file that the next run overwrites.
    return [latents.clone() for _, latents in sorted(load_file(path).items())]


def first_difference(a, b):
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=True)) if not torch.equal(x, y)), None)


def test_a_prompt_that_is_heard_again_or_late_changes_nothing():
    config = config_of("model=nano", *BASE)
    conditioning = Conditioning(config.model, config.stream, config.source, Encoders(config.model, torch.device("cpu")))
    epochs = []
    for chunk, heard in enumerate([(), (("b", 5), ("b", 5)), (("b", 5),), (("a", 4),), (("c", 3), ("d", 6))]):
        for prompt, number in heard:
            conditioning.prompts.steer(prompt, 0.0, number)
        conditioning.chunk(chunk)
        epochs.append(conditioning.epoch(chunk))
    assert epochs == [0, 1, 1, 1, 4]


def test_same_seed_and_id_give_the_same_bits_and_others_do_not(nano):
    base = nano(*BASE)
    assert nano(*BASE) == base
    others = [nano(*BASE, "stream.seed=1"), nano(*BASE, "stream.id=1"), nano(*BASE, "stream.prompt=bye")]
    assert len({base, *others}) == 4


@pytest.mark.parametrize("context", ["same_level", "clean"])
def test_a_prompt_event_takes_effect_exactly_at_its_chunk(job, context):
    base = (*BASE, f"model.context={context}")
    changed = chunks_of(job, *base, "stream.events=[{chunk: 5, prompt: other}]")
    assert first_difference(chunks_of(job, *base), changed) == 5


@pytest.mark.parametrize("context", ["same_level", "clean"])
def test_recalibration_takes_effect_exactly_at_its_chunk(job, context):
    base = (*BASE, f"model.context={context}")
    assert first_difference(chunks_of(job, *base), chunks_of(job, *base, "model.recalibrate_chunk=4")) == 4


def test_the_first_chunk_as_attention_sink_holds_from_chunk_one(job):
    base = (*BASE, "model.reference=false", "model.positions=slot")
    plain = chunks_of(job, *base)
    assert first_difference(plain, chunks_of(job, *base, "model.sink_frames=3")) == 1


def test_context_rules_differ_from_the_second_chunk_on(job):
    assert first_difference(chunks_of(job, *BASE), chunks_of(job, *BASE, "model.context=clean")) == 1


@pytest.mark.parametrize("sampler", ["euler", "renoise"])
def test_samplers_run(nano, sampler):
    assert nano("stream.chunks=2", f"model.sampler={sampler}", "model.steps=null", "model.timesteps=[1000,750,500,250]")


def test_streams_of_one_run_have_the_hash_they_have_alone(job):
    both = job("model=nano", "sink.video=null", "stream.count=2", "stream.chunks=3")["streams"]
    alone = [
        job("model=nano", "sink.video=null", "stream.chunks=3", f"stream.id={i}")["latents_sha256"] for i in (0, 1)
    ]
    assert [s["latents_sha256"] for s in both] == alone
    assert alone[0] != alone[1]


def test_seconds_are_rounded_up_to_chunks(job):
    assert job("model=nano", "sink.video=null", "stream.seconds=1.6")["chunks"] == 3
    assert job("model=nano", "sink.video=null", "stream.seconds=1.5")["chunks"] == 2


def test_given_tensors_replace_what_would_be_drawn_and_encoded(job, nano, tmp_path):
    """Everything that a run used, given as tensors, reproduces it; each tensor alone matters."""
    expected = nano(*BASE)
    config = config_of("model=nano", "stream.prompt=hello")
    conditioning = Conditioning(config.model, config.stream, config.source, Encoders(config.model, torch.device("cpu")))
    given = {
        "context": conditioning.states(0)["text"],
        "reference_latent": conditioning.sink()["reference"],
        "sink_distance": torch.tensor([[conditioning.distance(i, s) for s in range(4)] for i in range(8)]),
    }
    for i in range(8):
        given[f"noise.{i:06d}.step.0"] = conditioning.noise(i, 0)
    path = tmp_path / "given.safetensors"
    save_file({k: v.contiguous().clone() for k, v in given.items()}, path)
    assert nano("stream.chunks=8", f"source.tensors={path}", "stream.seed=77") == expected
    for key in (*list(given)[:3], "noise.000000.step.0", "noise.000005.step.0"):
        save_file({k: (v + 1 if k == key else v).contiguous().clone() for k, v in given.items()}, path)
        assert nano("stream.chunks=8", f"source.tensors={path}", "stream.seed=77") != expected


def test_given_text_takes_effect_at_its_chunk(job, tmp_path):
    path = tmp_path / "given.safetensors"
    g = torch.Generator().manual_seed(0)
    save_file({"context": torch.randn(1, 3, 32, generator=g)}, path)
    plain = chunks_of(job, *BASE, f"source.tensors={path}")
    save_file(
        {
            "context": torch.randn(1, 3, 32, generator=torch.Generator().manual_seed(0)),
            "context.000005": torch.randn(1, 8, 32, generator=g),
        },
        path,
    )
    assert first_difference(plain, chunks_of(job, *BASE, f"source.tensors={path}")) == 5


def test_given_sound_features_take_effect_at_their_chunk(job, tmp_path):
    path = tmp_path / "given.safetensors"
    save_file({"audio_features.000003": torch.rand(1, 1, 128, 12)}, path)
    assert first_difference(chunks_of(job, *BASE), chunks_of(job, *BASE, f"source.tensors={path}")) == 3


def test_draws_depend_on_their_keys_alone():
    a, b = Draws(0, "x"), Draws(0, "x")
    late = a.noise(10**12, 3, (2, 5))
    assert torch.equal(a.noise(4, 1, (2, 3)), b.noise(4, 1, (2, 3)))
    assert torch.equal(late, b.noise(10**12, 3, (2, 5)))
    keys = [(0, "x", 0, 0), (1, "x", 0, 0), (0, "y", 0, 0), (0, "x", 1, 0), (0, "x", 0, 1)]
    first = {float(Draws(s, i).noise(c, t, (1,))) for s, i, c, t in keys}
    assert len(first) == len(keys)
    assert {a.distance(c, 0, 4, 30) for c in range(500)} == set(range(4, 31))

"""The camera's verdict as a loss: right actions cost less than wrong ones, and it teaches where latents meet."""

from dataclasses import replace

import pytest
import torch
from tiny import ENCODER, batch_of, config_of, library_of, model_of

from conf.errors import UserError
from distill import dmd, steering
from distill.clips import pixels
from distill.data import world
from distill.data.maze import ACTIONS
from distill.stages import registry
from distill.trainer import Trainer
from stages.codec.small.network import SmallDecoder
from stages.weights import initialise


@pytest.fixture(scope="module")
def walk():
    clip = world.sample(3, 24, 64)
    video = pixels(clip.frames[None])[0].transpose(0, 1)
    return video[:-1], video[1:], torch.from_numpy(clip.motion[1:])


def decoder_of() -> SmallDecoder:
    decoder = SmallDecoder(ENCODER).eval().requires_grad_(False)
    initialise(decoder, 7)
    return decoder


def test_what_was_drawn_is_what_costs_least(walk):
    before, after, happened = walk
    right = steering.verdict(before, after, happened)
    others = [steering.verdict(before, after, (happened + i) % len(ACTIONS)) for i in range(1, len(ACTIONS))]
    assert right < 0.5 * min(others)


def test_paler_pictures_gain_nothing(walk):
    before, after, happened = walk
    wrong = (happened + 1) % len(ACTIONS)
    once = steering.verdict(before, after, wrong)
    assert steering.verdict(0.5 * before, 0.5 * after, wrong) == pytest.approx(once.item(), rel=1e-3)


def test_only_the_window_behind_its_first_latent_frame_is_taught():
    model = model_of("world")
    batch = batch_of(model, 2, 8)
    latents = batch.latents.clone().requires_grad_()
    steering.steering(decoder_of(), latents, batch.actions, 2).backward()
    taught = latents.grad.abs().amax(dim=(0, 1, 3, 4)) > 0
    assert taught.tolist()[3:6] == [True] * 3
    assert not taught[:2].any() and not taught[6:].any()


def test_the_student_is_taught_by_it(tmp_path, monkeypatch):
    monkeypatch.setattr(dmd, "codec_half", lambda *_: decoder_of())
    config = config_of("world", tmp_path, steps=3)
    library = library_of(config)
    for name in ("teacher", "causal"):
        Trainer(config, registry()[name](config, library)).train()
    students = []
    for weight in (0.0, 0.5):
        settings = replace(config.stages.dmd, steering=weight)
        taught = replace(config, stages=replace(config.stages, dmd=settings))
        stage = registry()["dmd"](taught, library)
        numbers = [stage.advance(step) for step in range(3)]
        assert ("steering" in numbers[2]) == bool(weight)
        students.append(stage.student.state_dict()["network.head.head.weight"])
    assert not torch.equal(*students)


def test_a_model_without_actions_is_refused(tmp_path):
    config = config_of("avatar", tmp_path, steps=1)
    library = library_of(config)
    for name in ("teacher", "causal"):
        Trainer(config, registry()[name](config, library)).train()
    settings = replace(config.stages.dmd, steering=0.5)
    with pytest.raises(UserError, match="not steered"):
        registry()["dmd"](replace(config, stages=replace(config.stages, dmd=settings)), library)

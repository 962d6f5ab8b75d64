"""Every stage learns, and goes on after a stop as if there had been none."""

import json
import threading
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from tiny import batch_of, config_of, library_of, model_of, trainee_of

from conf.errors import UserError
from distill import flow
from distill.dmd import matching_gradient, matching_loss
from distill.model import Trainee
from distill.ode import refined
from distill.stages import registry
from distill.trainer import Trainer
from stages.denoise.sampler import Sampler

ORDER = ("teacher", "causal", "ode", "dmd")


def run(config, library, name, stop=None):
    stage = registry()[name](config, library)
    for _ in stage.prepare():
        pass
    trainer = Trainer(config, stage, stop=stop)
    trainer.train()
    return trainer


def weights(trainer):
    return {f"{part}.{k}": v for part in ("student", "average") for k, v in trainer.stage.state_dict()[part].items()}


@pytest.fixture(scope="module", params=["avatar", "world"])
def whole_run(request, tmp_path_factory):
    """All stages of a tiny model, four steps each."""
    folder = tmp_path_factory.mktemp(request.param)
    config = config_of(request.param, folder)
    library = library_of(config)
    return config, library, {name: run(config, library, name) for name in ORDER}


def test_every_stage_begins_with_the_one_before_and_changes_it(whole_run):
    _, _, done = whole_run
    for name, trainer in done.items():
        assert trainer.step == 4
        lines = [json.loads(line) for line in (trainer.folder / "log.jsonl").read_text().splitlines()]
        assert lines[-1]["step"] == 4 and all(torch.tensor(v).isfinite() for v in lines[-1].values())
        key = "student.network.blocks.0.self_attn.q.weight"
        before = [d for n, d in done.items() if ORDER.index(n) < ORDER.index(name)]
        assert all((weights(trainer)[key] != weights(b)[key]).any() for b in before)


@pytest.mark.parametrize("name", ORDER)
def test_resumed_is_uninterrupted_to_the_last_bit(whole_run, name, tmp_path):
    config, library, done = whole_run
    again = replace(config, run_dir=str(tmp_path))
    for before in ORDER[: ORDER.index(name)]:
        (tmp_path / before).mkdir()
        (tmp_path / before / "checkpoint.pt").write_bytes(done[before].file.read_bytes())

    class AfterTwo(threading.Event):
        asked = 0

        def is_set(self):
            self.asked += 1
            return self.asked > 2

    stopped = run(again, library, name, AfterTwo())
    assert stopped.step == 2
    resumed = run(again, library, name)
    assert resumed.step == 4
    expected, found = weights(done[name]), weights(resumed)
    assert all(torch.equal(expected[k], found[k]) for k in expected)


@pytest.mark.parametrize("changes", [{"rollout": "clean"}, {"forward_kl": 0.1}, {"reward": "motion"}])
def test_the_other_ways_to_distill(whole_run, changes, tmp_path):
    config, library, done = whole_run
    again = replace(
        config, run_dir=str(tmp_path), stages=replace(config.stages, dmd=replace(config.stages.dmd, **changes))
    )
    for before in ORDER[:3]:
        (tmp_path / before).mkdir()
        (tmp_path / before / "checkpoint.pt").write_bytes(done[before].file.read_bytes())
    stage = registry()["dmd"](again, library)
    before = stage.student.state_dict()["network.head.head.weight"].clone()
    found = [stage.advance(step) for step in range(3)]
    assert {"loss", "critic_loss", "motion_ratio"} < set(found[2]) and "loss" not in found[1]
    assert ("forward_kl" in found[2]) == ("forward_kl" in changes)
    assert (stage.student.state_dict()["network.head.head.weight"] != before).any()


def test_a_stage_says_what_it_builds_on(tmp_path):
    config = config_of("avatar", tmp_path)
    with pytest.raises(UserError, match="run stage=teacher first"):
        registry()["causal"](config, library_of(config))


def test_a_checkpoint_of_another_model_is_refused(tmp_path):
    config = config_of("avatar", tmp_path, steps=1)
    library = library_of(config)
    run(config, library, "teacher")
    config.model.network.ffn_dim *= 2
    with pytest.raises(UserError, match="is not of this configuration"):
        run(config, library, "teacher")


def test_the_loss_falls_on_clips_seen_again_and_again(tmp_path):
    config = config_of("avatar", tmp_path, steps=40)
    config.stages.teacher = replace(config.stages.teacher, lr=1e-2, dropout=0.0)
    stage = registry()["teacher"](config, library_of(config))
    losses = [stage.advance(step)["loss"] for step in range(40)]
    assert sum(losses[-10:]) < 0.7 * sum(losses[:10])


def test_an_exported_file_is_a_models_file(tmp_path):
    model = model_of("avatar")
    trainee = trainee_of(model)
    trainee.export(tmp_path / "model.safetensors")
    loaded = Trainee(model).load(tmp_path / "model.safetensors")
    for key, value in trainee.weights().items():
        assert torch.equal(loaded.weights()[key], value.half().float())
    assert {"patch_embedding.weight", "audio_encoder.position", "text_encoder.table.weight"} < set(trainee.weights())


def test_matching_loss_has_the_matching_gradient():
    x = batch_of(model_of("avatar"), 2, 3).latents.requires_grad_()
    gradient = matching_gradient(x.detach(), x.detach() + 0.5, x.detach() + 0.25)
    assert torch.allclose(gradient, torch.full_like(x, -0.5))
    matching_loss(x, gradient).backward()
    assert torch.allclose(x.grad, gradient / x.numel(), atol=1e-9)


def test_ode_levels_hold_the_students():
    model = model_of("avatar")
    parts, sigmas = refined(model, 12), Sampler.of(model).sigmas
    assert [p[0] for p in parts] == pytest.approx(sigmas[:-1]) and parts[-1][-1] == 0
    assert all(a[-1] == pytest.approx(b[0]) for a, b in pairwise(parts))


def test_draws_are_functions_of_seed_and_step():
    a, b, c = (flow.Chance(0, step).normal((4,)) for step in (5, 5, 6))
    assert torch.equal(a, b) and not torch.equal(a, c)
    spread = flow.Chance(0, 1).spread(8)
    assert sorted((spread * 8).int().tolist()) == list(range(8))

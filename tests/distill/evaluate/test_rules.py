"""Other rules of history and attention sink change what they should, and the model's own change nothing."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny import model_of

from distill.evaluate import bars
from distill.evaluate.rules import RULES, NoisySink
from stages.models.pocket.network import Network
from stages.weights import initialise

OF = {rule.name: rule for rule in RULES}


def streamed(model, rule, chunks=4):
    """Latents of a random network under a rule."""
    network = Network(model.network)
    initialise(network, 4)
    denoiser = rule.kind(rule.of(model), network.eval(), 2, 2)
    model, banks, g = denoiser.model, denoiser.open(), torch.Generator().manual_seed(1)
    denoiser.set_states(banks, {"text": torch.randn(1, 2, model.network.text_dim, generator=g)})
    reference = torch.randn(1, 4, 1, 4, 4, generator=g)
    if model.reference:
        denoiser.prefill(banks, {"reference": reference})
    out = []
    for chunk in range(chunks):
        x, given = torch.randn(1, 4, 3, 4, 4, generator=g), {}
        if model.network.actions:
            given = {"actions": torch.eye(5)[torch.zeros(12, dtype=int)].view(1, 3, 20)}
        for step in range(denoiser.sampler.steps):
            x = denoiser.sampler.update(step, x, denoiser.step(banks, step, chunk, x, given))
        if denoiser.schedule.commits(chunk):
            denoiser.commit(banks, chunk, x, given)
        out.append(x)
    return torch.cat(out, dim=2)


@pytest.mark.parametrize("kind", ["avatar", "world"])
def test_every_rule_is_another_stream(kind):
    model = model_of(kind)
    own = streamed(model, OF["own"])
    assert torch.equal(own, streamed(replace(model, context="same_level"), OF["own"]))
    others = [streamed(model, OF[name]) for name in ("clean", "noisy sink", "no sink", "clean, no sink", "SINK-SHIFT")]
    for i, a in enumerate([own, *others]):
        assert all(not torch.equal(a, b) for b in others[i:])


def test_a_noisy_sink_is_never_committed():
    model = model_of("world")
    denoiser = NoisySink(model, Network(model.network), 2, 2)
    assert not denoiser.schedule.commits(0)
    clean = NoisySink(replace(model, context="clean"), Network(model.network), 2, 2)
    assert not clean.schedule.commits(0) and clean.schedule.commits(1)


def test_bars_say_what_was_missed_and_what_cannot_be_judged():
    run = {"action following": 0.96, "late: action following": 0.9, "motion ratio": 1.0, "drift: mean": -3.0}
    found = {b.name: b.met for b in bars.of("world", run, 29.0, {"camera": True})}
    assert found["action following at second 5"] and not found["action following at minute 10"]
    assert found["motion ratio"] and found["drift: mean"] is False and found["drift: variance"] is None
    doubted = {b.name: b.met for b in bars.of("world", run, 29.0, {"camera": False})}
    assert doubted["action following at second 5"] is None


def test_weights_are_compared_by_what_is_good():
    ours = {"mouth correlation": 0.9, "motion ratio": 1.1, "drift: mean": -0.5, "blinks per minute": 20.0}
    theirs = {"mouth correlation": 0.8, "motion ratio": 0.95, "drift: mean": 0.5, "blinks per minute": 30.0}
    found = bars.compared("avatar", ours, theirs, 18.0)
    assert found == {
        "mouth correlation": "better",
        "motion ratio": "worse",
        "drift: mean": "equal",
        "blinks per minute": "better",
    }
    assert np.isfinite(list(ours.values())).all()

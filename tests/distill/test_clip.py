"""What training computes over whole clips is what a stream computes through its banks."""

import pytest
import torch
from tiny import batch_of, model_of, trainee_of

from distill.clip import WholeClip
from distill.rollout import Clean, SameLevel
from distill.sample import stream
from stages.denoise.denoiser import Denoiser
from stages.denoise.draws import Draws

CHUNKS, C = 5, 3


def close(found, expected):
    return (found - expected).abs().max() <= 2e-5 * expected.abs().max()


@pytest.mark.parametrize("positions", ["slot", "abs"])
@pytest.mark.parametrize("kind", ["avatar", "world"])
@torch.no_grad()
def test_a_causal_clip_is_a_stream(kind, positions):
    """x0 of the training forward, all chunks at once, against the streaming forward of the same noisy chunks."""
    model, step = model_of(kind, positions=positions), 1
    trainee, noisy = trainee_of(model), batch_of(model, 1, CHUNKS * C, seed=1).latents
    batch = batch_of(model, 1, CHUNKS * C)
    given = trainee.encode(batch)
    clip = WholeClip(model, (2, 2), CHUNKS * C, causal=True)
    denoiser = Denoiser(model, trainee.network, 2, 2)
    sampler = denoiser.sampler
    v = clip(trainee.network, noisy, torch.full((1, 1), sampler.timestep(step)), given, clean=batch.latents)
    trained = noisy - sampler.sigmas[step] * v

    banks, streamed = denoiser.open(), []
    denoiser.set_states(banks, {"text": given.text})
    if model.reference:
        denoiser.prefill(banks, {"reference": given.reference})
    for i in range(CHUNKS):
        span = slice(C * i, C * i + C)
        every = {"audio": given.audio, "actions": given.actions}
        own = {name: t[:, span] for name, t in every.items() if t is not None}
        x = noisy[:, :, span]
        streamed.append(sampler.clean(step, x, denoiser.step(banks, step, i, x, own)))
        if denoiser.schedule.commits(i):
            denoiser.commit(banks, i, batch.latents[:, :, span], own)
    assert close(trained, torch.cat(streamed, dim=2))


@pytest.mark.parametrize("context", ["same_level", "clean"])
@pytest.mark.parametrize("sampler", ["euler", "renoise"])
@pytest.mark.parametrize("kind", ["avatar", "world"])
@torch.no_grad()
def test_a_full_rollout_is_what_the_student_streams(kind, sampler, context):
    model = model_of(kind, context=context, sampler=sampler)
    trainee, batch = trainee_of(model), batch_of(model, 2, CHUNKS * C)
    rollout = (SameLevel if context == "same_level" else Clean)(model, (2, 2), CHUNKS * C)
    shape = (1, *batch.latents[:, :, :C].shape[1:])
    draws = [Draws(7, str(b)) for b in range(2)]
    noise = [
        torch.cat([torch.cat([d.noise(i, s, shape) for i in range(CHUNKS)], dim=2) for d in draws])
        for s in range(model.step_count)
    ]
    rolled = rollout(trainee.network, trainee.encode(batch), noise, exit_step=model.step_count - 1)
    assert close(rolled, stream(trainee, model, batch, CHUNKS, seed=7))


def gradients(trainee):
    return {n: p.grad.clone() for n, p in trainee.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("kind", ["avatar", "world"])
def test_block_wise_accumulation_equals_the_joint_graph(kind):
    model = model_of(kind, context="clean")
    batch = batch_of(model, 2, CHUNKS * C)
    rollout, exit_step = Clean(model, (2, 2), CHUNKS * C), 1
    noise = [torch.randn(batch.latents.shape, generator=torch.Generator().manual_seed(s)) for s in range(3)]
    wanted = batch_of(model, 2, CHUNKS * C, seed=9).latents
    joint, pieces = trainee_of(model), trainee_of(model)
    (rollout(joint.network, joint.encode(batch), noise, exit_step, gradient=True) * wanted).sum().backward()
    rollout.backward(pieces.network, pieces.encode(batch), noise, exit_step, wanted)
    expected, found = gradients(joint), gradients(pieces)
    assert expected.keys() == found.keys() and len(found) > 40
    assert all(close(found[n], expected[n]) for n in expected if expected[n].abs().max() > 1e-3)


def test_the_history_takes_gradient_under_same_level():
    """The last chunk's loss reaches the first chunk's sound."""
    model = model_of("avatar")
    trainee, batch = trainee_of(model), batch_of(model, 1, 9)
    rollout = SameLevel(model, (2, 2), 9)
    batch.features.requires_grad_()
    x = rollout(trainee.network, trainee.encode(batch), [batch.latents] * 3, exit_step=0, gradient=True)
    x[:, :, 6:].sum().backward()
    assert batch.features.grad[:, :12].abs().max() > 0


@torch.no_grad()
def test_a_teacher_reads_both_ways():
    model = model_of("avatar")
    trainee, batch = trainee_of(model), batch_of(model, 1, 6)
    clip = WholeClip(model, (2, 2), 6, causal=False)
    time, given = torch.full((1, 1), 500.0), trainee.encode(batch)
    before = clip(trainee.network, batch.latents, time, given)
    changed = batch.latents.clone()
    changed[:, :, 5] += 1
    after = clip(trainee.network, changed, time, given)
    assert (after != before)[:, :, 0].any()

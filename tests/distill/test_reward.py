"""Clips that move as the data does count more."""

from dataclasses import replace

import pytest
import torch
from tiny import batch_of, config_of, model_of

from conf.errors import UserError
from distill.reward import motion, weights


def test_motion_is_best_where_the_data_is():
    batch = batch_of(model_of("avatar"), 3, 6)
    as_fast = batch.latents.clone()
    rewards = motion(torch.stack([as_fast[0], 0.5 * as_fast[1], 0 * as_fast[2]]), batch)
    assert rewards[0] > rewards[1] > rewards[2] and rewards[0] > -0.2
    doubled, halved = motion(2 * batch.latents, batch).mean(), motion(0.5 * batch.latents, batch).mean()
    assert doubled == pytest.approx(halved.item(), abs=0.05)


def test_weights_have_a_mean_of_one():
    found = weights(torch.tensor([0.0, -0.5, -5.0]), 0.5)
    assert found.mean() == pytest.approx(1) and found[0] / found[1] == pytest.approx(2.71828, abs=1e-4)


def test_an_unknown_reward_is_refused(tmp_path):
    dmd = config_of("avatar", tmp_path).stages.dmd
    with pytest.raises(UserError, match=r"stages\.dmd\.reward=speed"):
        replace(dmd, reward="speed")

"""Two processes under ZeRO take the steps that one process takes, and go on after a stop."""

import os
import shutil
import subprocess
import sys
from copy import deepcopy
from pathlib import Path

import pytest
import torch
from tiny import config_of, library_of

from conf.errors import UserError
from distill import sharding
from distill.optim import average
from distill.sharding import Ranks
from distill.stages import registry
from distill.trainer import Trainer

HERE = Path(__file__).parent


def processes(folder, out, name, stage, steps, stop_after=99):
    """Run `zero_run` in two processes, perhaps stopped before its last step."""
    paths = os.pathsep.join([str(HERE), str(HERE.parent.parent), os.environ.get("PYTHONPATH", "")])
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    job = [str(HERE / "zero_run.py"), str(folder), str(out), name, *map(str, (stage, steps, stop_after))]
    environment = os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
    subprocess.run([*start, *job], check=True, timeout=240, env=environment)
    return torch.load(out)


def configuration(folder, name, steps):
    config = config_of("avatar", folder, steps=steps)
    config.bf16 = False
    settings = getattr(config.stages, name)
    settings.batch, settings.optimizer = 4, "adamw"
    return config, settings


@pytest.fixture(scope="module")
def before(tmp_path_factory):
    """A run with clips, a teacher and a causal model, on which dmd builds."""
    folder = tmp_path_factory.mktemp("before")
    for name in ("teacher", "causal"):
        config, _ = configuration(folder, name, 2)
        Trainer(config, registry()[name](config, library_of(config))).train()
    return folder


class Averaged:
    """A learner that waits for two processes' gradients and descends their mean."""

    def __init__(self, learner):
        self.learner, self.grads, self.lr = learner, [], 0.0

    def run(self, work):
        return work()

    def whole(self):
        return self.learner.whole()

    def descend(self, value, lr):
        parameters = list(self.learner.module.parameters())
        found = torch.autograd.grad(value, parameters, allow_unused=True)
        self.grads.append([torch.zeros_like(p) if g is None else g for g, p in zip(found, parameters, strict=True)])
        self.lr = lr
        return 0.0

    def finish(self):
        """Whether there was anything to descend."""
        if not self.grads:
            return False
        terms = zip(self.learner.module.parameters(), *self.grads, strict=True)
        self.learner.descend(sum((p * (a + b) / 2).sum() for p, a, b in terms), self.lr)
        self.grads.clear()
        return True


def emulated(folder, name, steps):
    """What two processes should do, in one."""
    config, s = configuration(folder, name, steps)
    stage = registry()[name](config, library_of(config))
    stage.learner = Averaged(stage.learner)
    if name == "dmd":
        stage.critic_learner = Averaged(stage.critic_learner)
    kept = stage.average
    for step in range(steps):
        for rank in range(2):
            stage.ranks, stage.average = Ranks(rank, 2), deepcopy(kept)
            stage.advance(step)
        stage.average = kept
        if stage.learner.finish():
            average(stage.average, stage.student, step // (s.ratio if name == "dmd" else 1), s.ema)
        if name == "dmd":
            stage.critic_learner.finish()
    return stage


@pytest.mark.train
@pytest.mark.parametrize(("name", "zero"), [("teacher", 2), ("dmd", 2), ("dmd", 3)])
def test_two_processes_take_the_steps_of_one(before, tmp_path, name, zero):
    for folder in ("plain", "zero"):
        shutil.copytree(before, tmp_path / folder)
        shutil.rmtree(tmp_path / folder / name, ignore_errors=True)
    expected = emulated(tmp_path / "plain", name, 3)
    found = processes(tmp_path / "zero", tmp_path / "found.pt", name, zero, 3)
    for key, value in expected.student.state_dict().items():
        assert torch.allclose(found[f"student.{key}"], value, atol=2e-6), key
    for key, value in expected.average.state_dict().items():
        assert torch.allclose(found[key], value, atol=2e-6), key


@pytest.mark.train
def test_a_sharded_run_resumes(before, tmp_path):
    for folder in ("once", "twice"):
        shutil.copytree(before, tmp_path / folder)
    once = processes(tmp_path / "once", tmp_path / "once.pt", "dmd", 3, 3)
    processes(tmp_path / "twice", tmp_path / "half.pt", "dmd", 3, 3, stop_after=2)
    twice = processes(tmp_path / "twice", tmp_path / "twice.pt", "dmd", 3, 3)
    assert all(torch.allclose(once[k], twice[k], atol=2e-6) for k in once)


def test_a_batch_is_divided():
    assert [Ranks(r, 3).part(12) for r in range(3)] == [slice(0, 4), slice(4, 8), slice(8, 12)]
    assert Ranks().part(5) == slice(0, 5)
    with pytest.raises(UserError, match="multiple of the 2 processes"):
        Ranks(0, 2).part(5)


def test_what_cannot_be_sharded_is_refused(tmp_path):
    sharding.check(0, "muon")
    with pytest.raises(UserError, match=r"optimizer=adamw|deepspeed is not installed"):
        sharding.check(2, "muon")

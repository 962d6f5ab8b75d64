"""Two processes under ZeRO take the steps that one process takes, and go on after a stop."""

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tiny import config_of, library_of

from conf.errors import UserError
from distill import sharding
from distill.optim import average, rate
from distill.sharding import Ranks
from distill.stages import registry
from distill.trainer import Trainer

HERE = Path(__file__).parent
needs_deepspeed = pytest.mark.skipif(
    importlib.util.find_spec("deepspeed") is None, reason="deepspeed is not installed (pip install 'everframe[train]')"
)


def processes(folder, out, name, stage, steps):
    """Run `zero_run` in two processes."""
    paths = os.pathsep.join([str(HERE), str(HERE.parent.parent), os.environ.get("PYTHONPATH", "")])
    subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(HERE / "zero_run.py"),
         str(folder), str(out), name, str(stage), str(steps)],
        check=True, timeout=240, env=os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"},
    )  # fmt: skip
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


def emulated(folder, name, steps):
    """What two processes should do, in one: each one's gradients on its rows, averaged, for every network."""
    config, s = configuration(folder, name, steps)
    stage = registry()[name](config, library_of(config))

    for step in range(steps):
        sums: dict[int, list[torch.Tensor]] = {}
        networks: dict[int, tuple] = {}

        def gather(learner, value, lr, sums=sums, networks=networks):
            grads = torch.autograd.grad(value, list(learner.module.parameters()), allow_unused=True)
            networks[id(learner)] = learner, lr
            sums.setdefault(id(learner), []).append(
                [torch.zeros_like(p) if g is None else g for g, p in zip(grads, learner.module.parameters())]
            )
            return 0.0

        learners = [stage.learner, *([stage.critic_learner] if name == "dmd" else [])]
        real, held = [learner.descend for learner in learners], stage.average
        for learner in learners:
            learner.descend = lambda value, lr, learner=learner: gather(learner, value, lr)
        for rank in range(2):
            stage.ranks, stage.average = Ranks(rank, 2), sharded_copy(held)
            stage.advance(step)
        stage.average = held
        for learner, descend in zip(learners, real):
            if id(learner) not in sums:
                continue
            value = sum(
                (p * (a + b).detach() / 2).sum() for p, a, b in zip(learner.module.parameters(), *sums[id(learner)])
            )
            learner.descend = descend
            learner.descend(value, networks[id(learner)][1])
        learned = name != "dmd" or (step >= s.critic_warmup and step % s.ratio == 0)
        if learned:
            average(stage.average, stage.student, step // (s.ratio if name == "dmd" else 1), s.ema)
        for learner, descend in zip(learners, real):
            learner.descend = descend
    assert rate(0, s) > 0
    return stage


def sharded_copy(module):
    import copy

    return copy.deepcopy(module)


@needs_deepspeed
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


@needs_deepspeed
def test_a_sharded_run_resumes(before, tmp_path):
    for folder in ("once", "twice"):
        shutil.copytree(before, tmp_path / folder)
    whole = processes(tmp_path / "once", tmp_path / "once.pt", "dmd", 3, 3)
    # The learning rate looks ahead to the last step, so the stopped run is one of as many steps.
    stopped = processes(tmp_path / "twice", tmp_path / "half.pt", "dmd", 3, 3)
    assert all(torch.equal(whole[k], stopped[k]) for k in whole)


def test_a_batch_is_divided():
    assert [Ranks(r, 3).part(12) for r in range(3)] == [slice(0, 4), slice(4, 8), slice(8, 12)]
    assert Ranks().part(5) == slice(0, 5)
    with pytest.raises(UserError, match="multiple of the 2 processes"):
        Ranks(0, 2).part(5)


def test_what_cannot_be_sharded_is_refused(tmp_path):
    sharding.check(0, "muon")
    with pytest.raises(UserError, match=r"optimizer=adamw|deepspeed is not installed"):
        sharding.check(2, "muon")

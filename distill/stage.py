"""What every stage of the recipe has: a student, its running average, its settings, its checkpoint."""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import devices
from conf.errors import UserError
from conf.schema.distill import DistillConfig
from distill import flow
from distill.clip import WholeClip
from distill.clips import Library
from distill.model import Batch, Trainee, begin
from distill.optim import average, optimizer_of, rate
from distill.precision import autocast
from distill.sample import stream
from distill.sharding import Learner, Ranks, check, learner
from stages.codec.base import SPATIAL_STRIDE


class Stage:
    """What a stage has: a student, its running average, its settings.

    Args:
        config: the run.
        library: the clips it learns from.
    """

    name = ""
    before: tuple[str, ...] = ()
    """Stages whose averaged weights it begins with: the first of them that has been run."""
    causal = True
    shards = True
    """Whether it runs in several processes."""

    def __init__(self, config: DistillConfig, library: Library):
        self.config, self.model, self.library = config, config.model, library
        self.settings = getattr(config.stages, self.name)
        check(config.zero, self.settings.optimizer)
        self.ranks = Ranks.here()
        if self.ranks.world > 1 and not (config.zero and self.shards):
            raise UserError(
                f"stage={self.name}, zero={config.zero}", "runs in one process", "start it without torchrun"
            )
        self.shift = self.settings.shift or self.model.shift
        self.device = devices.choose(config.device).type
        self.device = "cpu" if self.device == "auto" else self.device
        self.student = begin(self.model, config.seed).to(self.device)
        if weights := self.initial(self.before):
            self.student.load_state_dict(weights)
        self.average = frozen(self.student)
        self.learner = self.learner_of("student", self.student, optimizer_of(self.student, self.settings))
        self.clip = self.clip_of(self.causal)

    def learner_of(self, name: str, module: nn.Module, optimizer: torch.optim.Optimizer | None) -> Learner:
        """What updates a network (optimizer None: nothing does)."""
        return learner(module, optimizer, self.settings.clip, self.config.zero, name)

    def clip_of(self, causal: bool) -> WholeClip:
        """The attention of this stage's clips."""
        return WholeClip(self.model, self.grid, self.settings.frames, causal, self.device)

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of tokens of a latent frame."""
        _, high, wide = self.model.network.patch
        return self.model.height // SPATIAL_STRIDE // high, self.model.width // SPATIAL_STRIDE // wide

    def chance(self, step: int, purpose: int = 0) -> flow.Chance:
        """The random numbers of a step."""
        return flow.Chance(self.config.seed, step, purpose, self.device, self.ranks.salt)

    def initial(self, before: tuple[str, ...]) -> dict[str, Tensor] | None:
        """The weights to begin with: `init`, or the average of an earlier stage; None at the very start."""
        if self.settings.init:
            return Trainee(self.model).load(self.settings.init, f"stages.{self.name}.init").state_dict()
        return self.stored(before) if before else None

    def stored(self, stages: tuple[str, ...]) -> dict[str, Tensor]:
        """The averaged weights of the first of these stages that has been run."""
        for name in stages:
            path = Path(self.config.run_dir) / name / "checkpoint.pt"
            if path.exists():
                return torch.load(path, weights_only=True, map_location=self.device)["stage"]["average"]
        raise UserError(f"stage={self.name}", f"builds on stage {' or '.join(stages)}", f"run stage={stages[0]} first")

    def prepare(self) -> Iterator[tuple[int, int]]:
        """Make what the stage needs beside the clips, piece by piece; yields how much of how much there is."""
        yield from ()

    def autocast(self) -> torch.autocast:
        """bfloat16 for matrix products, where the run wants it and the device gains by it."""
        return autocast(self.device, self.config.bf16)

    def parts(self) -> dict[str, nn.Module | torch.optim.Optimizer]:
        """Everything a checkpoint holds, by name."""
        return {"average": self.average} | self.learner.parts("student", "optimizer")

    def learners(self) -> list[Learner]:
        """Those that keep files of their own."""
        return [self.learner]

    def state_dict(self) -> dict[str, Any]:
        """The content of a checkpoint."""
        return {name: part.state_dict() for name, part in self.parts().items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a checkpoint."""
        for name, part in self.parts().items():
            part.load_state_dict(state[name])

    def batch(self, step: int) -> Batch:
        """The clips of a step."""
        s = self.settings
        return self.library.batch(step, s.batch, s.frames, self.ranks.part(s.batch)).to(self.device)

    def advance(self, step: int) -> dict[str, float]:
        """One training step; what to log of it."""

        def work() -> tuple[Tensor, dict[str, float]]:
            with self.autocast():
                return self.loss(step)

        value, numbers = self.learner.run(work)
        norm = self.learner.descend(value, rate(step, self.settings))
        with self.learner.whole():
            average(self.average, self.student, step, self.settings.ema)
        return {"loss": value.item(), **numbers, "grad_norm": norm, "lr": rate(step, self.settings)}

    def loss(self, step: int) -> tuple[Tensor, dict[str, float]]:
        """The loss of a step, and what else to log."""
        raise NotImplementedError

    def sample(self, batch: Batch) -> Tensor:
        """Latents for a held-out batch: a causal model streams them with its own few-step sampler."""
        return stream(self.average, self.model, batch, batch.latents.shape[2] // self.model.chunk_frames)


def frozen(module: nn.Module) -> Any:
    """A copy that is not trained."""
    return deepcopy(module).eval().requires_grad_(False)

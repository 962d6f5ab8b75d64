"""How a network is updated: by its optimizer in one process, or by DeepSpeed ZeRO across several.

A stage computes its loss inside `Learner.run` and updates by `Learner.descend`; it does not know which learner it has.
Under ZeRO every process takes its rows of the batch, gradients are averaged, and what is kept is spread over the
processes (ZeRO, Rajbhandari et al., arXiv 1910.02054): optimizer state and gradients at stage 2, weights too at stage
3, where a network is whole only from its run to its step. DMD has three networks; each is a learner, the frozen teacher
one that never descends.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

import devices
from conf.errors import UserError
from distill.optim import set_rate

T = TypeVar("T")


@dataclass(frozen=True)
class Ranks:
    """Which of how many processes this is."""

    rank: int = 0
    world: int = 1

    @staticmethod
    def here() -> Ranks:
        """As torch.distributed has it; one process where it was not started."""
        started = dist.is_available() and dist.is_initialized()
        return Ranks(dist.get_rank(), dist.get_world_size()) if started else Ranks()

    @property
    def salt(self) -> int | None:
        """What tells this process's data from the others'; None where there are no others."""
        return self.rank if self.world > 1 else None

    def part(self, count: int) -> slice:
        """This process's rows of a batch of `count`."""
        if count % self.world:
            raise UserError(
                f"stages.*.batch={count}", f"must be a multiple of the {self.world} processes", f"use {self.world}"
            )
        share = count // self.world
        return slice(self.rank * share, (self.rank + 1) * share)

    def wait(self) -> None:
        """Until all have come here."""
        if self.world > 1:
            dist.barrier()

    def agree(self, flag: bool) -> bool:
        """Whether any process says so."""
        if self.world == 1:
            return flag
        said = torch.tensor([float(flag)], device="cuda" if dist.get_backend() == "nccl" else "cpu")
        dist.all_reduce(said)
        return bool(said.item())


class Learner(Protocol):
    """What trains one network."""

    def run(self, work: Callable[[], T]) -> T:
        """Do what runs the network, forwards only."""
        ...

    def descend(self, value: Tensor, lr: float) -> float:
        """Gradients of a loss that `run` gave, clipped, and a step; the gradients' norm before clipping."""
        ...

    def whole(self) -> AbstractContextManager:
        """Inside it all weights are there to be read."""
        ...

    def parts(self, name: str, optimizer: str) -> dict[str, Any]:
        """What belongs into the stage's own checkpoint, under these names; empty where `save` keeps it."""
        ...

    def save(self, folder: Path) -> None:
        """Keep what `parts` leaves out."""
        ...

    def restore(self, folder: Path) -> None:
        """Go on from `save`."""
        ...


class Plain:
    """One process: torch's own way."""

    def __init__(self, module: nn.Module, optimizer: torch.optim.Optimizer | None, clip: float):
        self.module, self.optimizer, self.clip = module, optimizer, clip

    def run(self, work: Callable[[], T]) -> T:
        return work()

    def descend(self, value: Tensor, lr: float) -> float:
        self.optimizer.zero_grad(set_to_none=True)
        value.backward()
        norm = nn.utils.clip_grad_norm_(self.module.parameters(), self.clip)
        set_rate(self.optimizer, lr)
        self.optimizer.step()
        return norm.item()

    def whole(self) -> AbstractContextManager:
        return nullcontext()

    def parts(self, name: str, optimizer: str) -> dict[str, Any]:
        return {name: self.module, optimizer: self.optimizer}

    def save(self, folder: Path) -> None: ...

    def restore(self, folder: Path) -> None: ...


class Root(nn.Module):
    """What DeepSpeed takes for the network: its forward is whatever is to be run, with all its weights there."""

    def __init__(self, inner: nn.Module):
        super().__init__()
        self.inner = inner

    def forward(self, work: Callable[[], T]) -> T:
        """Do it."""
        return work()


class Zero:
    """DeepSpeed ZeRO.

    Args:
        module: every process's own copy, equal on all.
        optimizer: of its parameters; None: it is never updated.
        clip: largest norm of a gradient.
        stage: 2 or 3.
        name: of its files.
    """

    def __init__(self, module: nn.Module, optimizer: torch.optim.Optimizer | None, clip: float, stage: int, name: str):
        import deepspeed

        self._deepspeed, self.module, self.stage, self.name = deepspeed, module, stage, name
        config = {
            # Every process hands in its rows as one micro batch.
            "train_micro_batch_size_per_gpu": 1,
            "gradient_accumulation_steps": 1,
            "gradient_clipping": clip,
            "steps_per_print": 1 << 30,
            # The optimizer is ours.
            "zero_allow_untested_optimizer": True,
            "zero_force_ds_cpu_optimizer": False,
            "zero_optimization": {
                "stage": stage,
                "overlap_comm": False,
                "stage3_param_persistence_threshold": 0,
            },
        }
        root = Root(module)
        self.engine, *_ = deepspeed.initialize(model=root, optimizer=optimizer, config=config)
        if stage == 3:
            # Layers read their parts' weights themselves, and some are read before the layer runs: so the whole network
            # is fetched when its root runs, and its own layers' fetching finds nothing to do.
            for parameter in module.parameters():
                deepspeed.zero.register_external_parameter(root, parameter)

    def run(self, work: Callable[[], T]) -> T:
        return self.engine(work)

    def descend(self, value: Tensor, lr: float) -> float:
        self.engine.backward(value)
        set_rate(self.engine.optimizer, lr)
        self.engine.step()
        return float(self.engine.get_global_grad_norm())

    def whole(self) -> AbstractContextManager:
        return self._deepspeed.zero.GatheredParameters(list(self.module.parameters()), enabled=self.stage == 3)

    def parts(self, name: str, optimizer: str) -> dict[str, Any]:
        return {}

    def save(self, folder: Path) -> None:
        self.engine.save_checkpoint(str(folder / "zero"), tag=self.name)

    def restore(self, folder: Path) -> None:
        found, _ = self.engine.load_checkpoint(str(folder / "zero"), tag=self.name)
        if found is None:
            raise UserError(f"{folder / 'zero' / self.name}", "is no ZeRO checkpoint", "resume as the run was started")


def learner(module: nn.Module, optimizer: torch.optim.Optimizer | None, clip: float, stage: int, name: str) -> Learner:
    """`Plain`, or `Zero` for stage 2 or 3. At stage 2 there is nothing to spread of a network that is not trained."""
    sharded = stage == 3 or (stage == 2 and optimizer is not None)
    return Zero(module, optimizer, clip, stage, name) if sharded else Plain(module, optimizer, clip)


def start(stage: int, device: str) -> Ranks:
    """Join the processes that torchrun started, where the run is to be sharded."""
    if stage:
        import deepspeed

        if device == "cuda":
            devices.of(devices.choose("cuda", int(os.environ.get("LOCAL_RANK", "0")))).use()
        else:
            os.environ.setdefault("DS_ACCELERATOR", "cpu")
        deepspeed.init_distributed("nccl" if device == "cuda" else "gloo", verbose=False)
    return Ranks.here()


def check(stage: int, optimizer: str) -> None:
    """Refuse what cannot be sharded, before anything loads."""
    if not stage:
        return
    try:
        import deepspeed  # noqa: F401
    except ImportError:
        raise UserError(f"zero={stage}", "deepspeed is not installed", "pip install 'everframe[train]'") from None
    if optimizer != "adamw":
        raise UserError(
            f"stages.*.optimizer={optimizer}", "ZeRO spreads flat pieces of matrices", "use optimizer=adamw with zero"
        )

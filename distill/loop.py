"""Training of one small module on one core: it stops at any moment, and goes on as if it had not.

Every batch is a function of the step number, so a run that stops and resumes sees the same data as one that did not.
"""

from __future__ import annotations

import json
import signal
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from conf.errors import UserError, nearest
from distill.muon import Muon


def rate(step: int, settings: Any) -> float:
    """The learning rate: up over the warm-up, level, then linearly down to zero."""
    left = (settings.steps - step) / max(1.0, settings.decay * settings.steps)
    return settings.lr * min(1.0, (step + 1) / settings.warmup, max(left, 0.0))


class Training(ABC):
    """A run. Whoever is trained says what a step's loss is, and what is measured.

    Args:
        settings: with the fields `run`, `steps`, `decay`, `lr`, `warmup`, `clip`, `average`, `report` and `save_s`, as
            `distill.codec.Settings` describes them.
        make: makes the module, whose weights are drawn.
        inner: its parameters that Muon updates; AdamW has all others.
        widths: of the module, as its checkpoint holds them.

    Attributes:
        student: the module.
        mean: the running average of its weights, which is what is measured and exported.
        step: the next one.
    """

    def __init__(
        self,
        settings: Any,
        make: Callable[[], nn.Module],
        inner: Callable[[nn.Module], Iterable[nn.Parameter]],
        widths: dict[str, Any],
    ):
        self.settings, self.widths, self.step, self.stopping = settings, widths, 0, False
        torch.manual_seed(0)
        self.student, self.mean = make(), make()
        self.mean.load_state_dict(self.student.state_dict())
        chosen = list(inner(self.student))
        outer = [p for p in self.student.parameters() if all(p is not one for one in chosen)]
        self.optimizer = Muon(chosen, outer, settings.lr, weight_decay=1e-3)
        self.folder = Path(settings.run)
        self.folder.mkdir(parents=True, exist_ok=True)
        if self.file.exists():
            self._restore()

    @abstractmethod
    def loss(self) -> Tensor:
        """Of the batch of `self.step`."""

    @abstractmethod
    def measured(self) -> dict[str, float]:
        """What there is to know of the average, for the log."""

    @property
    def file(self) -> Path:
        """Where the checkpoint lies."""
        return self.folder / "checkpoint.pt"

    def _parts(self) -> dict[str, nn.Module | torch.optim.Optimizer]:
        return {"student": self.student, "mean": self.mean, "optimizer": self.optimizer}

    def save(self) -> None:
        """Write the checkpoint beside the old one and swap: a cut-off never leaves half of one."""
        state = {name: part.state_dict() for name, part in self._parts().items()}
        fresh = self.file.with_suffix(".new")
        torch.save({"step": self.step, "config": self.widths, "rng": torch.get_rng_state()} | state, fresh)
        fresh.replace(self.file)

    def _restore(self) -> None:
        state = torch.load(self.file, weights_only=True)
        if json.dumps(state["config"]) != json.dumps(self.widths):
            raise UserError(f"{self.file}", f"was made with other widths than {self.widths}", "give another run=")
        for name, part in self._parts().items():
            part.load_state_dict(state[name])
        if "rng" in state:
            torch.set_rng_state(state["rng"])
        self.step = state["step"]

    def advance(self) -> float:
        """One step; its loss."""
        settings, loss = self.settings, self.loss()
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.student.parameters(), settings.clip)
        for group in self.optimizer.param_groups:
            group["lr"] = rate(self.step, settings)
        self.optimizer.step()
        self.step += 1
        # Early on the average must forget the random start.
        keep = min(settings.average, self.step / (self.step + 10))
        with torch.no_grad():
            for mean, now in zip(self.mean.parameters(), self.student.parameters(), strict=True):
                mean.lerp_(now, 1 - keep)
        return loss.item()

    def train(self) -> None:
        """To the last step, measuring and saving on the way, and at SIGTERM after the step in hand."""
        signal.signal(signal.SIGTERM, self.stop)
        saved = began = time.monotonic()
        losses: list[float] = []
        while self.step < self.settings.steps:
            losses.append(self.advance())
            if self.step % self.settings.report == 0:
                seconds = (time.monotonic() - began) / len(losses)
                self.note(loss=round(sum(losses) / len(losses), 5), seconds_per_step=round(seconds, 3))
                losses, began = [], time.monotonic()
            if time.monotonic() - saved > self.settings.save_s:
                self.save()
                saved = time.monotonic()
            if self.stopping:
                break
        self.save()

    def stop(self, *_: object) -> None:
        """Finish the step in hand, save and return from `train`."""
        self.stopping = True

    def note(self, **numbers: float) -> None:
        """One line in the log: step, learning rate, measures and whatever else is known."""
        line = {"step": self.step, "lr": rate(self.step, self.settings), **numbers} | self.measured()
        with (self.folder / "log.jsonl").open("a") as log:
            log.write(json.dumps(line) + "\n")
        print(line, flush=True)


def parse(words: list[str], settings: Any, what: str) -> Any:
    """`name=value` words over settings of a training of `what`.

    Raises:
        UserError: a word is none of its settings.
    """
    kinds = {f.name: type(getattr(settings, f.name)) for f in fields(settings)}
    for word in words:
        name, equals, value = word.partition("=")
        if not equals or name not in kinds:
            raise UserError(word, f"is not a setting of {what}", nearest(name, kinds))
        made = value.lower() in ("true", "1") if kinds[name] is bool else kinds[name](value)
        settings = replace(settings, **{name: made})
    return settings

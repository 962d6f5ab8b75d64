"""The loop that every stage runs in: steps, logs, samples, and checkpoints from which a run goes on by itself.

runs/<model>/<stage>/checkpoint.pt   everything a resumed run needs
                     log.jsonl       a line per `log.every` steps, and one per strip of samples
                     samples/*.png   originals above samples
"""

from __future__ import annotations

import json
import threading
import time
from collections import defaultdict
from pathlib import Path

import numpy as np
import torch

from conf.errors import UserError
from conf.schema.distill import DistillConfig
from distill.clips import Library, codec_half
from distill.sample import decode, statistics, strip
from distill.stage import Stage


class Trainer:
    """A stage under way.

    Every random number of a step is a function of (seed, step), so a checkpoint needs no generator's state: a run
    that stopped after any step and resumed has the weights, bit for bit, of one that did not.

    Args:
        config: the run.
        stage: what a step does.
        held_out: clips for samples; None: no samples.
        stop: set to end after the step under way.
    """

    def __init__(
        self, config: DistillConfig, stage: Stage, held_out: Library | None = None, stop: threading.Event | None = None
    ):
        self.config, self.stage, self.held_out = config, stage, held_out
        self.stop = stop or threading.Event()
        self.folder = Path(config.run_dir) / stage.name
        self.folder.mkdir(parents=True, exist_ok=True)
        self.step = 0
        self.wandb = None
        self.first = stage.ranks.rank == 0
        if self.file.exists():
            self._restore()

    @property
    def file(self) -> Path:
        """Where the checkpoint lies."""
        return self.folder / "checkpoint.pt"

    def save(self) -> None:
        """Write the checkpoint beside the old one and swap: a cut-off never leaves half of one."""
        for learner in self.stage.learners():
            learner.save(self.folder)
        if not self.first:
            return
        fresh = self.file.with_suffix(".new")
        torch.save({"step": self.step, "stage": self.stage.state_dict()}, fresh)
        fresh.replace(self.file)

    def _restore(self) -> None:
        state = torch.load(self.file, weights_only=True, map_location=self.stage.device)
        try:
            self.stage.load_state_dict(state["stage"])
        except (RuntimeError, KeyError, ValueError) as error:
            first = str(error).strip().splitlines()[-1].strip()
            raise UserError(
                f"{self.file}", f"is not of this configuration ({first})", "give another run_dir, or remove it"
            ) from error
        for learner in self.stage.learners():
            learner.restore(self.folder)
        self.step = state["step"]

    def train(self) -> None:
        """To the last step, logging, sampling and saving on the way."""
        if self.first:
            self._open_wandb()
        log, saved, began = self.config.log, time.monotonic(), time.monotonic()
        sums: dict[str, list[float]] = defaultdict(list)
        agree = self.stage.ranks.agree
        while self.step < self.stage.settings.steps and not agree(self.stop.is_set()):
            for name, value in self.stage.advance(self.step).items():
                sums[name].append(value)
            self.step += 1
            if self.step % log.every == 0 or self.step == self.stage.settings.steps:
                count = max(len(values) for values in sums.values())
                means = {name: sum(values) / len(values) for name, values in sums.items()}
                self.note(**means, seconds_per_step=(time.monotonic() - began) / count)
                sums.clear()
                began = time.monotonic()
            if self.held_out is not None and self.first and self.step % log.sample_every == 0:
                self.sample()
                began = time.monotonic()
            if agree(time.monotonic() - saved > log.save_s):
                self.save()
                saved = time.monotonic()
        self.save()
        if self.wandb is not None:
            self.wandb.finish()

    def sample(self, count: int = 4) -> dict[str, float]:
        """Draw a strip of held-out clips above their samples, and log the samples' statistics."""
        codec, kind = self.config.clips.codec, self.config.clips.kind
        decoder = codec_half(codec, "decoder", kind)
        batch = self.held_out.take(np.arange(count), self.stage.settings.frames).to(self.stage.device)
        made = self.stage.sample(batch)
        video, real = decode(decoder, made), decode(decoder, batch.latents)
        picture = self.folder / "samples" / f"{self.step:06d}.png"
        strip(picture, [real, video])
        numbers = statistics(made, batch.latents, video, real)
        self.note(**{f"sample_{name}": value for name, value in numbers.items()})
        if self.wandb is not None:
            import wandb

            self.wandb.log({"samples": wandb.Image(str(picture))}, step=self.step)
        return numbers

    def note(self, **numbers: float) -> None:
        """One line in the log, of the first process."""
        if not self.first:
            return
        line = {"step": self.step, **{name: float(f"{value:.5g}") for name, value in numbers.items()}}
        with (self.folder / "log.jsonl").open("a") as log:
            log.write(json.dumps(line) + "\n")
        print(line, flush=True)
        if self.wandb is not None:
            self.wandb.log(numbers, step=self.step)

    def _open_wandb(self) -> None:
        """Weights & Biases where it is installed and wanted; the plain log is always written."""
        mode = self.config.log.wandb
        if mode == "disabled":
            return
        try:
            import wandb
        except ImportError:
            if mode == "online":
                raise UserError("log.wandb=online", "wandb is not installed", "pip install wandb") from None
            return
        name = f"{self.config.model.name}-{self.stage.name}"
        # Its farewell is longer than our log.
        quiet = wandb.Settings(silent=True)
        self.wandb = wandb.init(
            project="everframe", name=name, id=name, resume="allow", mode=mode, dir=str(self.folder), settings=quiet
        )

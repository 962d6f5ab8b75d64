"""Training, stage by stage: teacher, causal, ode, dmd.

Every stage goes on where it stopped; `stage=clips` only fills the library of clips, which others do first anyway,
`stage=vae` trains the codec, and `export=FILE` writes a stage's averaged weights as a model's file.

Several GPUs: `torchrun --nproc-per-node=8 -m launch.distill experiment=NAME stage=dmd zero=2`, the batch
divided among them (DeepSpeed ZeRO, `pip install 'everframe[train]'`).
"""

from __future__ import annotations

import json
import logging
import sys
from dataclasses import replace
from pathlib import Path

import torch

import devices
from conf.errors import UserError
from conf.schema.distill import DistillConfig
from launch.cli import run
from launch.command import Command
from launch.signals import stop_event

COMMAND = Command("distill", __doc__, schema=DistillConfig)
HELD_OUT = 16
"""Clips of people, voices and mazes never trained on, for the strips of samples."""


def distill(config: DistillConfig, resolved: str) -> None:
    """Run one stage, or export what it has reached."""
    from distill import sharding
    from distill.clips import Library
    from distill.stages import registry
    from distill.trainer import Trainer

    torch.set_num_threads(config.threads)
    if config.stage == "vae":
        from distill import codec

        return codec.main([f"run={config.run_dir}/vae", f"size={config.model.height}"])
    optimizer = getattr(config.stages, config.stage).optimizer if hasattr(config.stages, config.stage) else "adamw"
    sharding.check(config.zero, optimizer)
    ranks = sharding.start(config.zero, devices.choose(config.device).type)
    with stop_event() as stop:
        # One process fills the library; the others open it when it is full.
        if ranks.rank > 0:
            ranks.wait()
        library = Library(config.model, config.clips)
        held_out = Library(config.model, replace(config.clips, count=HELD_OUT), library.encoder, held_out=True)
        for part in (held_out, library):
            for count in part.fill():
                print(f"\rclips: {count} of {part.config.count}", end="\n" if count == part.config.count else "")
                if stop.is_set():
                    return None
        if ranks.rank == 0:
            ranks.wait()
        if config.stage == "clips":
            return None
        stage = registry()[config.stage](config, library)
        trainer = Trainer(config, stage, held_out, stop)
        if config.export:
            return _export(config, trainer)
        for count, total in stage.prepare():
            print(f"\r{stage.name}: {count} of {total} prepared", end="\n" if count == total else "")
            if stop.is_set():
                return None
        if trainer.first:
            (trainer.folder / "config.yaml").write_text(resolved)
        trainer.train()
    return None


def _export(config: DistillConfig, trainer) -> None:
    if trainer.step == 0:
        raise UserError(f"export={config.export}", f"stage {config.stage} has not been trained", "run it first")
    about = {"model": config.model.name, "stage": config.stage, "steps": trainer.step}
    # Which codec and clips it was trained on.
    about["clips"] = trainer.stage.library.folder.name
    trainer.stage.average.export(config.export, {k: str(v) for k, v in about.items()})
    print(json.dumps(about | {"bytes": Path(config.export).stat().st_size}))


def main(argv: list[str] | None = None) -> int:
    """The entry point; returns the exit code."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    return run(COMMAND, distill, argv, "distill")


if __name__ == "__main__":
    sys.exit(main())

"""One of the processes of `test_sharding`: a tiny stage under ZeRO, its weights to a file. Not a test itself."""

import sys
import threading
from pathlib import Path

import torch
from tiny import config_of, library_of

from distill import sharding
from distill.stages import registry
from distill.trainer import Trainer


class After(threading.Event):
    """Set once it has been asked for more than `steps` times: as by a signal in that step."""

    def __init__(self, steps: int):
        super().__init__()
        self.left = steps

    def is_set(self) -> bool:
        self.left -= 1
        return self.left < 0


def main(folder: Path, out: Path, name: str, stage: int, steps: int, stop_after: int) -> None:
    torch.set_num_threads(1)
    ranks = sharding.start(stage, "cpu")
    config = config_of("avatar", folder, steps=steps)
    config.zero, config.bf16 = stage, False
    settings = getattr(config.stages, name)
    settings.batch, settings.optimizer = 4, "adamw"
    trainer = Trainer(config, registry()[name](config, library_of(config)), stop=After(stop_after))
    trainer.train()
    if stage == 3:
        # Between steps every process holds its pieces only.
        assert all(p.numel() == 0 for p in trainer.stage.student.parameters())
    kept = {n: s.clone() for n, s in trainer.stage.average.state_dict().items()}
    with trainer.stage.learner.whole():
        kept |= {f"student.{n}": s.clone() for n, s in trainer.stage.student.state_dict().items()}
    if ranks.rank == 0:
        torch.save(kept, out)
    ranks.wait()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], *map(int, sys.argv[4:7]))

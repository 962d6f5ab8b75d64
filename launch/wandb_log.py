"""Weights & Biases: rate and latency of every finished chunk, and the report as the run's summary.

Everything goes to `wandb/` in the output folder; nothing leaves the machine with `logging.mode=offline`.
"""

from __future__ import annotations

import importlib.util
from dataclasses import asdict
from pathlib import Path
from typing import Any

from conf.errors import UserError
from conf.schema import Config
from runtime.report import Progress


class WandbLog:
    """A log (the three methods of `launch.log.Log`) that is one run of Weights & Biases.

    Args:
        config: the run's; kept with it.

    Raises:
        UserError: wandb is not installed.
    """

    def __init__(self, config: Config):
        if importlib.util.find_spec("wandb") is None:
            raise UserError("logging=wandb", "wandb is not installed", "pip install 'everframe[wandb]'")
        self.config = config
        self.run = None

    def begin(self, folder: Path) -> None:
        """Open the run.

        Raises:
            UserError: it cannot be opened (not logged in, no network).
        """
        import wandb  # takes a second, and only the process that logs needs it

        chosen = self.config.logging
        try:
            self.run = wandb.init(
                project=chosen.project,
                mode=chosen.mode,
                dir=folder,
                name=folder.name,
                config=asdict(self.config),
                # Our own lines are what is printed; a run is described by its report, not by its host.
                settings=wandb.Settings(silent=True, console="off", x_disable_stats=True),
            )
        except wandb.Error as error:
            raise UserError(
                f"logging.mode={chosen.mode}", f"wandb says: {error}", "use logging.mode=offline, or wandb login"
            ) from error
        for stream in range(self.config.stream.count):
            prefix = self._prefix(stream)
            self.run.define_metric(f"{prefix}chunk", hidden=True)
            for name in ("fps", "realtime_factor", "chunk_latency_s"):
                self.run.define_metric(f"{prefix}{name}", step_metric=f"{prefix}chunk")

    def _prefix(self, stream: int) -> str:
        return "" if self.config.stream.count == 1 else f"stream{stream}/"

    def chunk(self, stream: int, at: Progress) -> None:
        """fps and realtime_factor so far, chunk_latency_s of the chunk that has just left."""
        if self.run is None:
            return
        prefix = self._prefix(stream)
        told = {
            "chunk": at.chunks - 1,
            "fps": at.fps_now,
            "realtime_factor": at.fps_now / at.fps,
            "chunk_latency_s": at.latency_s,
        }
        self.run.log({prefix + name: value for name, value in told.items()})

    def finish(self, report: dict[str, Any]) -> None:
        """Make the report the run's summary, and end it."""
        if self.run is None:
            return
        self.run.summary.update(report)
        folder = Path(self.run.dir).parent
        self.run.finish()
        if self.config.logging.mode != "disabled":
            print(f"wandb: {folder}")

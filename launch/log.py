"""Where a run is logged beside its progress line and its report: nowhere, unless the configuration names a logger."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from conf.schema import Config
from runtime.report import Progress


class Log:
    """A logger that does nothing. Others have the same three methods."""

    def begin(self, folder: Path) -> None:
        """Everything is loaded, and the output folder is there."""

    def chunk(self, stream: int, at: Progress) -> None:
        """Where stream `stream` is; not of every chunk, if they come fast. May be called from another thread."""

    def finish(self, report: dict[str, Any]) -> None:
        """The run has ended well; `report` is what `report.json` holds."""


def log_of(config: Config) -> Log:
    """The log that a configuration asks for.

    Raises:
        UserError: it needs a package that is not installed.
    """
    if config.logging.name == "wandb":
        from launch.wandb_log import WandbLog  # nobody else needs the package

        return WandbLog(config)
    return Log()

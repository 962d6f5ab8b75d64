"""Who else is told how a run goes, beside the progress line and the report: nobody, unless asked for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from conf.schema import Config
from runtime.report import Progress


class Log:
    """Tells nobody; those who do tell someone say what they need of the three."""

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

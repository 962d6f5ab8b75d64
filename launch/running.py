"""`start(config) -> Running`, for every launcher."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from conf.errors import UserError
from conf.schema import Config
from parallel.builders import build
from runtime.pipeline import Pipeline
from runtime.running import Running, Start
from runtime.workload import describe

LAUNCHERS = {"local": "launch.local", "torchrun": "launch.torchrun", "ray": "launch.ray"}
"""Where each launcher's `launched(start) -> Running` is; imported when it is needed, since Ray takes its time."""


def start(
    config: Config,
    *,
    begin: Callable[[], object] | None = None,
    stdin: BinaryIO | None = None,
    first: Callable[[Pipeline], None] = lambda pipeline: None,
) -> Running:
    """Start the workers of a run; returns while they load.

    Args:
        config: the run, its plan resolved.
        begin: makes the output folder, once all workers have loaded; None: a plain one.
        stdin: where live sources read; None: standard input.
        first: opens the first streams, before anything is loaded.

    Raises:
        UserError: the launcher cannot be used as it was asked for, or `first` raises one.
    """
    given = Start(build(config.plan, describe(config)), config, stdin, first)
    running: Running = importlib.import_module(LAUNCHERS[config.launcher.name]).launched(given)
    return running.start(begin or (lambda: output_folder(config)))


def output_folder(config: Config) -> Path:
    """The run's output folder, made.

    Raises:
        UserError: it cannot be.
    """
    folder = Path(config.output_dir)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"output_dir={folder}", f"cannot be made ({error.strerror})", "give a folder you may write to"
        ) from error
    return folder

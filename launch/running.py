"""`start(config) -> Running`, for every launcher."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import BinaryIO

from conf.schema import Config
from launch import recovering, replanning
from launch.folder import claimed
from parallel.builders import build
from parallel.plan import Plan
from runtime.pipeline import Pipeline
from runtime.running import Running, Start, repeated
from runtime.workload import describe

LAUNCHERS = {"local": "launch.local", "torchrun": "launch.torchrun", "ray": "launch.ray"}
"""Where each launcher's `launched(start) -> Running` and `cards` are; imported when needed: Ray takes its time."""


def cards(plan: Plan, config: Config) -> tuple[str, ...]:
    """The GPU of every process of a run, by a name of its own; empty: they have none."""
    return importlib.import_module(LAUNCHERS[config.launcher.name]).cards(plan, config)


def start(
    config: Config,
    *,
    begin: Callable[[], object] | None = None,
    stdin: BinaryIO | None = None,
    first: Callable[[Pipeline], None] = lambda pipeline: None,
    tell: Callable[[str], None] = repeated,
) -> Running:
    """Start the workers of a run; returns while they load.

    Args:
        config: the run, its plan resolved.
        begin: makes the output folder, once all workers have loaded; None: it is the run's until its workers have left.
        stdin: where live sources read; None: standard input.
        first: opens the first streams, before anything is loaded.
        tell: is given every line that workers of this machine say on standard error.

    Raises:
        UserError: the launcher cannot be used as it was asked for, or `first` raises one.
    """
    plan = build(config.plan, describe(config))
    recovering.check(config, plan)
    given = Start(plan, config, stdin, first, tell)
    running: Running = importlib.import_module(LAUNCHERS[config.launcher.name]).launched(given)
    if running.supervisor is not None:
        running.supervisor.plans = replanning
    try:
        return running.start(begin or (lambda: running.held.enter_context(claimed(config))))
    except BaseException:
        running.held.close()
        raise

"""The main job: `python -m launch.stream model=pocket_avatar source.image=face.png source.audio=speech.wav`."""

from __future__ import annotations

import logging
import sys
import threading
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from rich.console import Console

from conf import disk
from conf.errors import UserError
from conf.schema import Config
from launch import control, planning, torchrun
from launch.cli import run
from launch.log import Log, log_of
from launch.progress import ProgressLine, Watch
from launch.signals import stop_event
from parallel import capability
from parallel.builders import build
from runtime import timeline_png
from runtime.board import Abandoned, PeerLost
from runtime.local import LocalRun
from runtime.pipeline import results
from runtime.process import stop_when
from runtime.report import assemble, write_json
from runtime.run import SequentialRun
from runtime.trace import join_traces
from runtime.workload import describe

EXIT_LOST = 3

Results = tuple[list[dict[str, Any]], list[dict[str, Any]]]
"""Every worker's part of the report, and every stream's."""


def _folder(config: Config) -> Path:
    folder = Path(config.output_dir)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"output_dir={folder}", f"cannot be made ({error.strerror})", "give a folder you may write to"
        ) from error
    return folder


def _begin(config: Config, resolved: str, console: Console, log: Log) -> Path:
    """The output folder, made once everything is loaded."""
    if config.model.checkpoint is None:
        console.print(f"model={config.model.name} has random weights: expect noise, not pictures", style="yellow")
    folder = _folder(config)
    disk.write_text(f"output_dir={folder}", folder / "config.yaml", resolved)
    log.begin(folder)
    return folder


def _sequential(config: Config, resolved: str, console: Console, stop: threading.Event, log: Log) -> Results:
    """The oracle, one stream after the other."""
    engine = SequentialRun(config, stop)
    folder = _begin(config, resolved, console, log)
    streams, worker, traces = [], {}, []
    for index in range(config.stream.count):
        running = engine.stream(index, folder)
        with ProgressLine(config.model.name, config.stream.count, running.length, console) as line:
            for timeline in running:
                line(index, timeline.progress())
                log.chunk(index, timeline.progress())
        found, worker = running.report()
        streams.append(found)
        traces += worker["traces"]
    return [worker | {"traces": traces}], streams


def _local(config: Config, resolved: str, console: Console, stop: threading.Event, log: Log) -> Results:
    """Any plan, its workers as threads of this process."""
    plan, folder = build(config.plan, describe(config)), Path(config.output_dir)
    engine = LocalRun(plan, config, folder)
    control.begin(engine.pipeline, config)
    stop_when(stop, engine.pipeline.stop)
    with Watch(engine.pipeline, config, console, log):
        engine.start(lambda: _begin(config, resolved, console, log))
        workers = engine.wait()
    return workers, results(engine.pipeline)


def _torchrun(config: Config, resolved: str, console: Console, stop: threading.Event, log: Log) -> Results | None:
    return torchrun.stream(config, lambda: _begin(config, resolved, console, log), console, stop, log)


def _ray(config: Config, resolved: str, console: Console, stop: threading.Event, log: Log) -> Results:
    from launch import ray  # a heavy import that other launchers do without

    return ray.stream(config, lambda: _begin(config, resolved, console, log), console, stop, log)


def _timeline(config: Config, folder: Path) -> None:
    """Draw the trace."""
    timeline_png.draw(folder / "trace.json", Path(config.sink.timeline))
    print(f"timeline: {config.sink.timeline}")


def stream(config: Config, resolved: str) -> None:
    """Run every stream of a configuration and say where the results are."""
    console = Console(stderr=True)
    capability.check(config.model.context)
    given, config = config, torchrun.sized(config) if config.launcher.name == "torchrun" else config
    config = planning.resolve(config)
    if config is not given:
        resolved = OmegaConf.to_yaml(OmegaConf.structured(config))
    log = log_of(config)
    alone = config.plan.name == "sequential" and config.plan.sequence_parallel == 1
    alone &= config.device.kind != "emulated"
    local = _sequential if alone else _local
    engine = {"local": local, "torchrun": _torchrun, "ray": _ray}[config.launcher.name]
    with stop_event() as stop:
        try:
            found = engine(config, resolved, console, stop, log)
        except PeerLost as lost:
            print(f"error: {lost}", file=sys.stderr)
            raise SystemExit(EXIT_LOST) from None
        except Abandoned:
            raise SystemExit(EXIT_LOST) from None  # whoever failed has said why
    if found is None:
        return
    workers, streams = found
    folder = Path(config.output_dir)
    report = assemble(config, workers, streams)
    write_json(folder / "report.json", report)
    print(f"report: {folder / 'report.json'}")
    if trace := join_traces(folder, [packed for worker in workers for packed in worker["traces"]]):
        print(f"trace: {trace}")
    for entry in streams:
        for name, path in entry["outputs"].items():
            print(f"{name.replace('_', ' ')}: {path}")
        print(f"latents_sha256: {entry['latents_sha256']}")
    if config.sink.timeline:
        _timeline(config, folder)
    log.finish(report)


def main(argv: list[str] | None = None) -> int:
    """The entry point; returns the exit code."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    return run("stream", Config, stream, argv, prepare=torchrun.agree, speaks=torchrun.speaks())


if __name__ == "__main__":
    sys.exit(main())

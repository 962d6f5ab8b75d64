"""Stream: a portrait that speaks, or a world that is walked through, by a plan, to a video and a report.

Sound and actions come from files, or live from standard input (`source.audio=-`, `source.actions=-`). The video,
`report.json` and `trace.json` are left in `output_dir`. Ctrl-C ends a stream with all that was made. `everframe stream`
and `python -m launch.stream` are the same.
"""

from __future__ import annotations

import signal

import devices

if __name__ == "__main__" and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    # The imports below take seconds: Ctrl-C ends them at once, without a traceback.
    signal.signal(signal.SIGINT, signal.SIG_DFL)

import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from omegaconf import DictConfig
from rich.console import Console

from conf import disk
from conf.errors import UserError
from conf.schema import Config
from launch import control, places, planning, recovering, restarting, running, torchrun
from launch.cli import EXIT_USER_ERROR, run, written
from launch.command import Command
from launch.console import lasting
from launch.folder import claimed, look
from launch.log import Log, log_of
from launch.progress import Ended, ProgressLine, Waiting, Watch
from launch.signals import Stop, give_up, listening
from parallel import capability
from parallel.builders import build
from parallel.plan import Plan
from parallel.transport import NCCL
from runtime import supervisor, timeline_png
from runtime.admission import CONFIG
from runtime.board import Abandoned, PeerLost
from runtime.fast import said
from runtime.orders import Open
from runtime.pipeline import Pipeline, results
from runtime.progress import Loading
from runtime.reasons import Reason
from runtime.report import assemble, write_json
from runtime.room import require_weights
from runtime.run import SequentialRun
from runtime.running import Stopped, WorkerFailed
from runtime.trace_file import join_traces
from runtime.workload import describe

EXIT_FAULT = 1
COMMAND = Command("stream", __doc__, schema=Config)

Results = tuple[list[dict[str, Any]], list[dict[str, Any]], Ended | None]
"""Every worker's part of the report, every stream's, and who has told of streams that came and went."""


class Job(NamedTuple):
    """A run of the configuration, by whatever plan.

    Attributes:
        resolved: the configuration as text.
        notes: what `auto` chose, a line each.
        held: closed at the run's end; the output folder is the run's until then.
        generations: of the run, but for the first.
    """

    config: Config
    resolved: str
    notes: list[str]
    console: Console
    stop: Stop
    log: Log
    held: ExitStack
    generations: list[dict[str, Any]]


def _begin(job: Job) -> Path:
    """The output folder, made once everything is loaded."""
    config, console = job.config, job.console
    if torchrun.speaks():
        for note in job.notes:
            console.print(note, highlight=False, soft_wrap=True)
        plan = build(config.plan, describe(config))
        console.print(chosen(config, plan), highlight=False, soft_wrap=True)
        if plan.processes > 1 and (cards := running.cards(plan, config)):
            console.print(places.said(plan, cards), highlight=False, soft_wrap=True)
    if config.model.checkpoint is None:
        console.print(f"model={config.model.name} has random weights: expect noise, not pictures", style="yellow")
    folder = job.held.enter_context(claimed(config))
    disk.write_text(f"output_dir={folder}", folder / CONFIG, job.resolved)
    job.log.begin(folder)
    return folder


def _resumed(job: Job, orders: list[Open]) -> None:
    """Say where streams go on that were saved."""
    for order in orders if job.config.resume else ():
        line = f"resume={job.config.resume}: stream {order.config.id} goes on with chunk {order.keep.first}"
        job.console.print(line, highlight=False, soft_wrap=True)


def _sequential(job: Job) -> Results:
    """The oracle, one stream after the other. What one raises ends that one alone, as under every plan."""
    config, console, stop, log = job.config, job.console, job.stop, job.log
    look(config)
    loading = Loading()
    require_weights(config, build(config.plan, describe(config)).weight_bytes(0), devices.choose(config.device.kind))
    with Waiting(console, lambda: str(loading)):
        engine = SequentialRun(config, stop, loading)
    stop.then()
    _resumed(job, engine.orders)
    folder = _begin(job)
    streams, worker, traces = [], {}, []
    for index in range(config.stream.count):
        running, reason = engine.stream(index, folder), None
        with ProgressLine(config.model.name, config.stream.count, running.length, console) as line:
            try:
                for timeline in running:
                    line(index, timeline.progress())
                    log.chunk(index, timeline.progress())
            except Exception as error:
                reason = Reason.of(error, f"chunk {running.timeline.chunks}")
            found, worker = running.report(reason)
            line.ended(index, found)
        streams.append(found)
        traces += worker["traces"]
    return [worker | {"traces": traces}], streams, None


def _running(job: Job) -> Results | None:
    """Any plan under any launcher; None where another process of the run tells its results."""
    config, console, stop, log = job.config, job.console, job.stop, job.log
    ended, opened = Ended(config), []

    def first(pipeline: Pipeline) -> None:
        look(config)
        pipeline.observers.append(ended)
        control.begin(pipeline, config)
        opened.extend(pipeline.streams)

    def begin() -> None:
        _resumed(job, opened)
        _begin(job)

    with ExitStack() as stack:
        with Waiting(console, lambda: f"starting workers by launcher={config.launcher.name}"):
            started = running.start(config, begin=begin, first=first)
        engine = stack.enter_context(started)
        stop.then(engine.interrupt)
        if engine.leads:
            stack.enter_context(Watch(engine, config, console, log))
        workers = engine.wait()
        job.generations.extend(engine.supervisor.records if engine.supervisor else ())
    if not engine.leads:
        return None
    return workers, results(engine.pipeline), ended


def stream(config: Config, resolved: str, stop: Stop) -> None:
    """Run every stream of a configuration and say where the results are."""
    console = Console(stderr=True)
    capability.check(config.model.context)
    given, config = config, torchrun.sized(config) if config.launcher.name == "torchrun" else config
    with Waiting(console, lambda: f"looking for a plan by objective={config.objective}"):
        config = planning.resolve(config)
    places.refuse_without_cards(config)
    if config.launcher.name == "torchrun":
        # A plan that cannot be is every rank's mistake: the first one tells it.
        plan = build(config.plan, describe(config))
        if config.launcher.transport == NCCL:
            places.refuse_unjoined(plan, config, torchrun.cards(plan, config))
    if config is not given:
        resolved = written(config)
    log = log_of(config)
    alone = config.launcher.name == "local" and config.plan.name == "sequential" and config.plan.sequence_parallel == 1
    alone &= config.device.kind != "emulated" and config.control is None and not config.launcher.recovers
    with ExitStack() as held:
        job = Job(config, resolved, list(_notes(given, config)), console, stop, log, held, [])
        found = outcome(partial(_sequential if alone else _running, job))
        if found is not None:
            _tell(job, *found)
    if stop.is_set():
        raise SystemExit(0)  # no other job of a multirun is to begin


def _notes(given: Config, config: Config) -> Iterator[str]:
    """What `auto` chose of a configuration as it was given, and why."""
    if given.device.kind == "auto" and config.device.kind == "cpu":
        yield f"device=auto computes on the CPU: {places.small(config)}"
    elif given.device.kind == "auto" and (idle := devices.idle_gpu()):
        yield "device=auto computes on the CPU: {}; {}".format(*idle)
    yield from restarting.notes(config)
    yield from recovering.notes(config)
    if config.device.may_be_gpu and devices.count():
        yield from said(config, devices.choose(config.device.kind))


def chosen(config: Config, plan: Plan) -> str:
    """What a run was found to be, on one line."""
    workers = f"{plan.processes} worker{'s' * (plan.processes > 1)}"
    kind = config.device.kind
    here = kind == "auto" and config.launcher.name != "ray"  # whose workers may be elsewhere
    device = devices.choose(kind).type if here else kind
    return (
        f"model={config.model.name} plan={plan.name} ({workers}) launcher={config.launcher.name} device={device} "
        f"dtype={config.model.dtype}"
    )


def outcome(work: Callable[[], Any]) -> Any:
    """What some work of the run returns, or the end of this process with one line and an exit code of its own."""
    try:
        return work()
    except Stopped:
        give_up(torchrun.speaks())
        raise SystemExit(0) from None
    except UserError as error:
        if torchrun.speaks():
            raise
        # This rank's alone: mistakes that all ranks make are found before workers load.
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(EXIT_USER_ERROR) from None
    except PeerLost as lost:
        print(f"error: {lost}", file=sys.stderr)
        raise SystemExit(EXIT_FAULT) from None
    except WorkerFailed as failed:
        print(f"{failed.traceback}error: {failed}", file=sys.stderr)
        raise SystemExit(EXIT_FAULT) from None
    except Abandoned:
        raise SystemExit(EXIT_FAULT) from None  # whoever failed has said why


def _tell(job: Job, workers: list[dict], streams: list[dict], ended: Ended | None) -> None:
    """Write the report, say where the results are, and end the process with the exit code of the run's own streams."""
    config, log = job.config, job.log
    folder = Path(config.output_dir)
    report = assemble(config, workers, streams)
    if config.control is not None:
        report["totals"] = ended.totals
    if config.launcher.in_place:
        report["generations"] = job.generations
    write_json(folder / "report.json", report)
    print(f"report: {folder / 'report.json'}")
    refused = [ended.refused] if ended and ended.refused else []
    try:
        _draw(config, folder, workers)
    except UserError as error:
        refused.append(error)
    for entry in streams:
        for name, path in entry["outputs"].items():
            print(f"{name.replace('_', ' ')}: {path}")
        print(f"latents_sha256: {entry['latents_sha256']}")
        if not entry["chunks"] and "error" not in entry:
            print(f"stream {entry['stream']}: no chunk was made, it ended before its first", file=sys.stderr)
    log.finish(report)
    own = streams if config.control is None else []
    faults = [Reason.from_dict(entry["error"]) for entry in own if "error" in entry]
    faults += [Reason.of(error) for error in (_unsaved(folder, entry) for entry in own) if error]
    # A full disk is told once: what it refused of the run's own files comes last.
    for reason in faults or map(Reason.of, refused[:1]):
        print(f"error: {reason.error()}", file=sys.stderr)
    if faults or refused:
        raise SystemExit(EXIT_USER_ERROR if all(reason.user for reason in faults) else EXIT_FAULT)


def _draw(config: Config, folder: Path, workers: list[dict]) -> None:
    """Write the trace, and the picture of it."""
    if trace := join_traces(folder, [packed for worker in workers for packed in worker["traces"]]):
        print(f"trace: {trace}")
    if timeline := config.sink.timeline:
        timeline_png.draw(folder / "trace.json", Path(timeline))
        print(f"timeline: {timeline}")


def _unsaved(folder: Path, entry: dict) -> UserError | None:
    """What a stream is to say that has not saved its last state; why was told when that was found. None: it has."""
    state = entry.get("state", {})
    if "error" in entry or state.get("due") == state.get("saved"):
        return None
    return UserError(f"output_dir={folder}", f"the state before chunk {state['due']} was not saved", disk.REMEDY)


def main(argv: list[str] | None = None) -> int:
    """The entry point; returns the exit code."""
    with lasting(), listening(**torchrun.hearing()) as stop:
        logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
        logging.getLogger(supervisor.__name__).setLevel(logging.INFO)  # that another plan, as ordered, runs

        def agree(config: DictConfig) -> None:
            torchrun.refuse_other(config.launcher.name)
            with Waiting(Console(stderr=True), lambda: "waiting for the other ranks"):
                outcome(lambda: torchrun.agree(config, stop))

        return run(COMMAND, partial(stream, stop=stop), argv, prepare=agree, speaks=torchrun.speaks())


if __name__ == "__main__":
    sys.exit(main())

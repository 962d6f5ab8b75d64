"""One stream with losses, in a process of its own: `python -m benchmarks.recovering FOLDER`.

`FOLDER/case.json` says what (`Case`), `FOLDER/result.json` what came of it. Whoever starts it watches the time, since
nothing that hangs can say so.
"""

from __future__ import annotations

import json
import logging
import os
import random
import statistics
import sys
import threading
import time
import wave
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

from benchmarks import losses
from benchmarks.launched import ROOT
from benchmarks.losses import Loss
from conf.schema import Config
from launch.cli import compose
from launch.running import start
from runtime.pipeline import run_all
from runtime.running import Running

RECOVERED_S, ENDED_S, WAIT_S = 90.0, 120.0, 60.0
"""Longest waits: for streams to go on, for the run's end, and for a moment to come."""
BEFORE_S, SETTLED_S, AFTER_S = 4.0, 5.0, 4.0
"""Latency is looked at so long before a loss, and from `SETTLED_S` after streams go on, so long."""
TALK_S = 1.3
RATE, PIECE_S = 16_000, 0.02


class Unrecovered(Exception):  # noqa: N818  what is measured
    """Streams did not go on."""


@dataclass(frozen=True)
class Case:
    """A stream with losses.

    Attributes:
        name: of the case.
        model: `conf/model`.
        settings: of the run: its model's, its plan's, its sources'.
        launcher: `local` or `ray`.
        losses: one after the other, in words (`Loss.of`).
        spares: of the run.
        chunks: of the stream; None: it is driven live, in step with who watches, until the last loss is over.
        drive: of a live one: `sound` or `actions`.
        prompts: said by turns to a live one.
        plans: changes of plan, by turns: of losses at `prepare` and `change`, or, without losses, of the case.
        changes: of plan, where there are no losses.
        nodes: of a Ray cluster beside the head's; 0: of one machine.
        again: whether a second loss follows each, at some moment of the change.
        seed: of what is drawn.
    """

    name: str
    model: str
    settings: tuple[str, ...]
    launcher: str
    losses: tuple[str, ...] = ()
    spares: int = 0
    chunks: int | None = 200
    drive: str = ""
    prompts: tuple[str, ...] = ()
    plans: tuple[dict[str, Any], ...] = ()
    changes: int = 0
    nodes: int = 0
    again: bool = False
    seed: int = 0


class Told:
    """What is told of a run's generations, each with its moment."""

    def __init__(self, pipeline: Any):
        self._all: list[tuple[float, dict[str, Any]]] = []
        pipeline.changers.append(lambda told: self._all.append((time.monotonic(), told)))

    def after(self, moment: float, frozen: bool) -> tuple[float, dict[str, Any]] | None:
        """The first of its kind after a moment."""
        return next((one for one in list(self._all) if one[0] >= moment and one[1]["frozen"] == frozen), None)

    def stands(self, moment: float) -> tuple[float, dict[str, Any]] | None:
        """The latest, if it is that streams go on, and was told after a moment."""
        one = self._all[-1] if self._all else None
        return one if one and one[0] >= moment and not one[1]["frozen"] else None


class Stream:
    """The first stream of a run, and all that happens to it.

    Args:
        case: what happens.
        run: the run.
        cluster: of Ray, where nodes of it are lost.
    """

    def __init__(self, case: Case, run: Running, cluster: Any = None):
        self.case, self.run, self.cluster = case, run, cluster
        self.draw, self.told = random.Random(case.seed), Told(run.pipeline)
        self._latencies: list[tuple[float, float]] = []
        self._over, self._changes = threading.Event(), 0
        self._watching = threading.Thread(target=self._watch, daemon=True)

    # -- what is looked at --------------------------------------------------------------------------------------------

    def _watch(self) -> None:
        """Keep the latency of every chunk."""
        last = -1
        while not self._over.wait(0.02):
            progress = self.run.pipeline.progress(0)
            if progress and progress["chunks"] != last:
                last = progress["chunks"]
                if progress["latency_s"] is not None:
                    self._latencies.append((time.monotonic(), progress["latency_s"]))

    def latency(self, first: float, last: float) -> float | None:
        """The median of chunks that left between two moments."""
        found = [latency for at, latency in list(self._latencies) if first <= at <= last]
        return round(statistics.median(found), 4) if found else None

    @property
    def chunks(self) -> int:
        """That have left."""
        return (self.run.pipeline.progress(0) or {"chunks": 0})["chunks"]

    @property
    def ended(self) -> bool:
        """Whether nothing more can happen to it."""
        return self.run.over or not self.run.pipeline.streams

    def until(self, test: Callable[[], Any], seconds: float = WAIT_S) -> Any:
        """Wait for something, unless the stream ends first."""
        return losses.until(test, lambda: self.ended, seconds)

    # -- what happens -------------------------------------------------------------------------------------------------

    def happen(self) -> Iterator[dict[str, Any]]:
        """All losses or changes, one after the other; gives what came of each."""
        self._watching.start()
        things = self.case.losses or [""] * self.case.changes
        for index, text in enumerate(things):
            self._come_to(index, len(things))
            if self.ended:
                raise Unrecovered(f"the stream ended before {text or 'all changes'}")
            yield self._lose(Loss.of(text)) if text else self._change()
        self._come_to(len(things), len(things))
        self._over.set()

    def _come_to(self, index: int, count: int) -> None:
        """Wait for the next moment: by chunks of a recorded stream, by time of a live one."""
        if self.case.chunks is None:
            time.sleep(BEFORE_S if not index else SETTLED_S + AFTER_S)
        elif index < count:
            goal = self.case.chunks * (index + 1) // (count + 2)
            self.until(lambda: self.chunks >= goal, ENDED_S)
            # A spare that took a place is followed by another, if the stream lasts so long.
            latest = self.case.chunks * (index + 2) // (count + 2) - 5
            self.until(lambda: self._spares_are_there or self.chunks >= latest, ENDED_S)

    @property
    def _spares_are_there(self) -> bool:
        spares = list(self.run.supervisor.spares)
        return len(spares) >= self.case.spares and all(self.run.told(f"loaded/{process}") for process in spares)

    def _lose(self, loss: Loss) -> dict[str, Any]:
        """A loss, from which streams go on."""
        began, hit = MOMENTS[loss.at](self, loss)
        if self.case.again:
            self._again(began)
        stood = self._recovered(began)
        found = {"loss": str(loss), "processes": hit, **self._figures(began, stood)}
        if self.case.chunks is None:
            found["ended"] = stood[0]
            found["began"] = began
        return found

    def _again(self, began: float) -> None:
        """Another loss, at some moment of the change."""
        self.until(lambda: self.told.after(began, True), RECOVERED_S)
        time.sleep(self.draw.uniform(0.0, 2.5))
        there = sorted(process for process in self.run.left if losses.pid(self.run, process) is not None)
        if there:
            losses.send(self.run, [self.draw.choice(there)], "kill")

    def _change(self) -> dict[str, Any]:
        """Another plan."""
        began, plan = time.monotonic(), self._plan()
        self.run.pipeline.change(plan)
        stood = self._recovered(began)
        return {"plan": plan, **self._figures(self.told.after(began, True)[0], stood)}

    def _plan(self) -> dict[str, Any]:
        plan = self.case.plans[self._changes % len(self.case.plans)]
        self._changes += 1
        return dict(plan)

    def _recovered(self, began: float) -> tuple[float, dict[str, Any]]:
        """Wait until streams go on."""
        stood = self.until(lambda: self.told.stands(began), RECOVERED_S)
        if stood is None:
            with suppress(Exception):
                self.run.wait(0.5)
            if self.run.over:
                self.run.wait(1)  # raises what it ended of
            reason = self.run.pipeline.report(0, 5).get("error") if self.ended else None
            unseen = "the stream ended as if nothing had happened"
            silent = f"streams did not go on within {RECOVERED_S:g} s"
            raise Unrecovered(reason["line"] if reason else unseen if self.ended else silent)
        return stood

    def _figures(self, began: float, stood: tuple[float, dict[str, Any]]) -> dict[str, Any]:
        """Of one change, from the moment of the loss."""
        at, record = stood
        frozen = self.told.after(began, True)
        names = ("number", "load_s", "connect_s", "replay_s", "plan", "why", "cut")
        detect = None if frozen is None else round(frozen[0] - began, 3)
        return {"frozen_s": round(at - began, 3), "detect_s": detect} | {name: record[name] for name in names}

    def later(self, found: list[dict[str, Any]]) -> None:
        """Note latency before each loss and after, of a live stream."""
        frame = 1 / self.run.config.model.fps
        for one in found:
            if (began := one.pop("began", None)) is not None:
                after = one.pop("ended") + SETTLED_S
                before, later = self.latency(began - BEFORE_S, began), self.latency(after, after + AFTER_S)
                one["latency_s"] = [before, later]
                one["late_frames"] = None if None in (before, later) else round((later - before) / frame, 2)

    # -- moments ------------------------------------------------------------------------------------------------------

    def at_chunk(self, loss: Loss) -> tuple[float, list[int]]:
        """At once."""
        if loss.how == "node":
            return self._lose_node()
        began = time.monotonic()
        hit = losses.send(self.run, losses.chosen(self.run, loss.who, self.draw), loss.how)
        if not hit:
            raise Unrecovered(f"nobody was there for {loss}")
        return began, hit

    def at_save(self, loss: Loss) -> tuple[float, list[int]]:
        """While a state is being written."""
        if not self.until(lambda: losses.states_being_made(self.run)):
            raise Unrecovered("no state was being made")
        return self.at_chunk(loss)

    def at_loading(self, loss: Loss) -> tuple[float, list[int]]:
        """A second time, while the process loads that is to take the first one's place."""
        known = set(self.run.left)
        began, hit = self.at_chunk(loss)
        process = self.until(lambda: losses.starting(self.run, known), RECOVERED_S)
        return began, hit + losses.send(self.run, [] if process is None else [process], loss.how)

    def at_prepare(self, loss: Loss) -> tuple[float, list[int]]:
        """While another plan is being loaded: that is refused, and the loss recovered."""
        changing = self._ordered()
        time.sleep(self.draw.uniform(0.0, 0.5))
        began, hit = self.at_chunk(loss)
        changing.join(RECOVERED_S)
        return began, hit

    def at_change(self, loss: Loss) -> tuple[float, list[int]]:
        """Between two generations."""
        began, changing = time.monotonic(), self._ordered()
        if not self.until(lambda: self.told.after(began, True), RECOVERED_S):
            raise Unrecovered("the plan was not changed")
        time.sleep(self.draw.uniform(0.0, 0.3))
        moment, hit = self.at_chunk(loss)
        changing.join(RECOVERED_S)
        return moment, hit

    def _ordered(self) -> threading.Thread:
        def change() -> None:
            with suppress(Exception):  # a loss meanwhile: the plan stays
                self.run.pipeline.change(plan)

        plan = self._plan()
        thread = threading.Thread(target=change, daemon=True)
        thread.start()
        return thread

    def _lose_node(self) -> tuple[float, list[int]]:
        """The node on which most workers are."""
        import psutil

        where: dict[int, list[int]] = {}
        for process in self.run.generation.processes:
            number = losses.pid(self.run, process)
            where.setdefault(psutil.Process(number).ppid(), []).append(process)
        nodes = {node: _raylet(node) for node in self.cluster.worker_nodes}
        node = max(nodes, key=lambda node: len(where.get(nodes[node], [])))
        began = time.monotonic()
        self.cluster.remove_node(node, allow_graceful=False)
        return began, where.get(nodes[node], [])


MOMENTS = {
    "chunk": Stream.at_chunk, "save": Stream.at_save, "loading": Stream.at_loading, "prepare": Stream.at_prepare,
    "change": Stream.at_change,
}  # fmt: skip


def _raylet(node: Any) -> int:
    """The process that is a Ray node, whose children its actors are."""
    return node.all_processes["raylet"][0].process.pid


# -- who drives it ----------------------------------------------------------------------------------------------------


def _speak(pipe: int, over: threading.Event) -> None:
    """Speech, over and over, as fast as it is heard."""
    with wave.open(str(ROOT / "assets" / "speech.wav")) as file:
        assert file.getframerate() == RATE and file.getnchannels() == 1
        sound = file.readframes(file.getnframes())
    size, at, due = 2 * int(RATE * PIECE_S), 0, time.monotonic()
    while not over.is_set():
        os.write(pipe, sound[at : at + size])
        at = (at + size) % (len(sound) - len(sound) % size)
        due += PIECE_S
        time.sleep(max(0.0, due - time.monotonic()))


def _press(pipe: int, over: threading.Event, keys: list[str], draw: random.Random) -> None:
    """Another key, every now and then."""
    while not over.wait(draw.uniform(0.1, 1.0)):
        os.write(pipe, json.dumps({"action": draw.choice(keys)}).encode() + b"\n")


def _talk(run: Running, over: threading.Event, prompts: tuple[str, ...]) -> None:
    """The next prompt, every now and then."""
    said = 0
    while not over.wait(TALK_S):
        with suppress(Exception):  # it has ended
            run.pipeline.prompt(0, prompts[said % len(prompts)])
        said += 1


@contextmanager
def driven(case: Case, config: Config) -> Iterator[tuple[BinaryIO | None, Callable[[Running], None]]]:
    """Standard input of a live stream, and what begins to say prompts to it."""
    over, draw = threading.Event(), random.Random(case.seed + 1)
    if not case.drive:
        yield None, lambda run: None
        return
    reading, writing = os.pipe()

    def drive() -> None:
        with suppress(BrokenPipeError, OSError):
            if case.drive == "sound":
                _speak(writing, over)
            else:
                _press(writing, over, config.model.network.actions, draw)

    def talk(run: Running) -> None:
        threading.Thread(target=drive, daemon=True).start()
        if case.prompts:
            threading.Thread(target=_talk, args=(run, over, case.prompts), daemon=True).start()

    with os.fdopen(reading, "rb", buffering=0) as stdin:
        try:
            yield stdin, talk
        finally:
            over.set()


@contextmanager
def nodes(case: Case) -> Iterator[tuple[Any, list[str]]]:
    """A Ray cluster of several nodes on this machine, and the settings with which a run joins it."""
    if not case.nodes:
        yield None, []
        return
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    try:
        for _ in range(case.nodes):
            cluster.add_node(num_cpus=2)
        yield cluster, [f"launcher.address={cluster.address}", f"launcher.nodes={case.nodes + 1}"]
    finally:
        cluster.shutdown()


# -- the case ---------------------------------------------------------------------------------------------------------


def settings(case: Case, folder: Path) -> list[str]:
    """The run's configuration, but for where Ray is."""
    recorded = [] if case.chunks is None else [f"stream.chunks={case.chunks}"]
    live = [f"sink.inputs={folder}/out/inputs.jsonl", f"source.{LIVE[case.drive]}=-"] if case.drive else []
    return [
        f"model={case.model}", *case.settings, *recorded, *live, f"launcher={case.launcher}",
        "launcher.recover=exact", f"launcher.spares={case.spares}", "device=cpu", "sink.trace=none",
        f"launcher.cuts={memory(folder)}", f"output_dir={folder}/out",
    ]  # fmt: skip


LIVE = {"sound": "audio", "actions": "actions"}


def memory(folder: Path) -> Path:
    """Where a case has its cuts: nobody else's are there."""
    return Path("/dev/shm") / f"recover-{folder.parent.name}-{folder.name}"


def run_case(case: Case, folder: Path) -> dict[str, Any]:
    """Do it; returns what came of it."""
    found: dict[str, Any] = {"losses": [], "end": ""}
    with ExitStack() as stack:
        cluster, joined = stack.enter_context(nodes(case))
        config = compose("stream", Config, settings(case, folder) + joined)
        stdin, talk = stack.enter_context(driven(case, config))
        run = stack.enter_context(start(config, stdin=stdin, first=lambda pipeline: run_all(pipeline, config)))
        try:
            stream = Stream(case, run, cluster)
            if not losses.until(lambda: run.begun or run.over, lambda: False, WAIT_S * 2):
                raise Unrecovered("the workers did not load")
            talk(run)
            losses.until(lambda: stream.chunks, lambda: stream.ended, WAIT_S)
            for one in stream.happen():
                found["losses"].append(one)
            if case.chunks is None:
                run.pipeline.stop(0)
            run.wait(ENDED_S)
        except Exception as error:
            found["end"], found["kind"] = " ".join(str(error).split()), type(error).__name__
        stream.later(found["losses"])
        found["generations"] = [_plain(record) for record in run.supervisor.records]
        reports = []
        for number in run.pipeline.known:
            with suppress(Exception):
                reports.append(run.pipeline.report(number, 1))
        names = ("latents_sha256", "chunks", "frames", "error")
        found["streams"] = [{name: report.get(name) for name in names} for report in reports]
    return found


def _plain(record: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in record.items() if name not in ("began", "ready")}


def main() -> None:
    """Read the case, do it, write what came of it."""
    logging.basicConfig(level=logging.WARNING, format="%(relativeCreated)d %(message)s")
    folder = Path(sys.argv[1])
    given = json.loads((folder / "case.json").read_text())
    for name in ("settings", "losses", "prompts", "plans"):
        given[name] = tuple(given[name])
    found = run_case(Case(**given), folder)
    (folder / "result.json").write_text(json.dumps(found))


def written(case: Case, folder: Path) -> None:
    """Write a case for `main`."""
    folder.mkdir(parents=True)
    memory(folder).mkdir(mode=0o700)
    (folder / "case.json").write_text(json.dumps(asdict(case)))


if __name__ == "__main__":
    main()
    sys.stdout.flush()
    os._exit(0)

"""A running pipeline as its user sees it: open streams, steer them, end them. Works beside the data, from any process.

A run of `launch.stream` opens `stream.count` streams and closes the pipeline; a server goes on opening. Every stream,
whoever asks for it, is checked here before a worker hears of it.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import asdict, replace
from itertools import count
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from conf.errors import UserError, nearest
from conf.schema import Config, PlanConfig, SinkConfig, SourceConfig, StreamConfig
from conf.schema.stream import LIVE
from conf.typed import shown, typed
from parallel.plan import Plan
from runtime import cuts
from runtime.admission import Admission
from runtime.board import Board, PeerLost
from runtime.generations import Generation
from runtime.identity import keep_of
from runtime.orders import Cancel, Close, Open, Order, Prompt, Status, Stop, from_json, host
from runtime.outputs import numbered
from runtime.reasons import Reason
from runtime.said import Said
from runtime.state import Keep
from stages.inputs import inputs_of, made_of
from stages.sources.live import kept_open

log = logging.getLogger(__name__)

RESULTS = 256
"""Streams that have ended and whose results are still known; older ones are forgotten."""
SETTLE_S = 5.0
"""Longest wait for what workers have told to be taken in."""
CUT_OFF = "the board that is shared with the workers cannot be reached any more"


class Ended(NamedTuple):
    """What is known of a stream that has ended: its name, its part of `report.json`, and the last of its progress."""

    name: str
    report: dict[str, Any]
    progress: dict[str, Any] | None


class Pipeline:
    """Workers that run a plan. One object at a time drives them; its methods may be called from any thread.

    Args:
        board: the workers'.
        plan: theirs.
        config: the run.

    Attributes:
        observers: called with the number and the report of every stream that ends, in the thread that reads events.
        closers: called when no stream can be opened any more, for those that would go on opening some.
        changers: called with what happens to the generations of the run, as plain values: `{"frozen": True, "number":
            n, "why": ...}` when one is over, `{"frozen": False, "number": n, ...}` when streams go on.
        processes: the process that is each member of the plan.
        changer: gives the run another plan; None: it cannot have one.
    """

    def __init__(self, board: Board, plan: Plan, config: Config):
        self.board, self.plan, self.config = board, plan, config
        self.observers: list[Callable[[int, dict[str, Any]], None]] = []
        self.closers: list[Callable[[], None]] = []
        self.changers: list[Callable[[dict[str, Any]], None]] = []
        self.changer: Callable[[dict[str, Any]], int] | None = None
        self.memory: Path | None = None
        """The run's folder of cuts, where streams go on when a worker is lost."""
        self.processes, self.generation = tuple(range(plan.processes)), 0
        self._frozen = False
        self._said = Said()
        self._missed: list[dict[str, Any]] = []
        """What processes have told of peers, and of streams that go on."""
        self._readers = [plan.group(worker)[0] for worker in range(plan.workers)]
        self._news = threading.Condition()
        """Held while anything below changes; told of every change."""
        self._admission = Admission(board, plan, config)
        self._live: dict[int, Open] = {}
        self._pipes: dict[int, list[BinaryIO]] = {}
        """Named pipes of streams that go on when a worker is lost; open here as well, since that is their reader."""
        self._ended: dict[int, Ended] = {}
        """In the order in which they ended."""
        self._kept = max(RESULTS, config.stream.count)
        self._numbers, self._questions = count(), count()
        self._answers: dict[int, dict[int, Any]] = {}
        """By question that is open, what workers have answered."""
        self._closed = self._over = False
        self._error: BaseException | None = None
        self._settled = threading.Event()
        self.heard: Callable[[], None] = lambda: None
        """Called when `missed` has something to say."""
        self._events = board.events(self._hear, self._cut_off)
        self._events.start()

    # -- streams ------------------------------------------------------------------------------------------------------

    def open(self, stream: StreamConfig, source: SourceConfig, sink: SinkConfig, keep: Keep | None = None) -> int:
        """Begin a stream on the running workers, or go on with one; returns its number.

        Banks, seed, epochs and output are its own. If its source or sink cannot be used it ends at once, others go on,
        and `result` says why.

        Raises:
            UserError: a value is of a wrong type or breaks a rule, a stream of that name is open, the picture is of
                another size than the run's, pictures are asked of a run without a decoder, a file or standard input is
                another stream's, or a worker has no room.
        """
        order = Open(
            -1,
            typed(StreamConfig, stream, "stream"),
            typed(SourceConfig, source, "source"),
            typed(SinkConfig, sink, "sink"),
            typed(Keep | None, keep, "keep"),
        )
        with self._news:
            self._present()
            if self._closed:
                raise UserError(f"stream.id={order.config.id}", "the pipeline is closed", "open streams before it is")
            self._admission.admit(order, list(self._live.values()))
            order = replace(order, stream=next(self._numbers))
            if self.memory and order.keep:
                journal = str(cuts.of_stream(self.memory, order.stream))
                order = replace(order, keep=replace(order.keep, journal=journal))
                self._pipes[order.stream] = kept_open(getattr(order.source, name) for name in LIVE)
            self._live[order.stream] = order
            self._give(order)
            self._news.notify_all()
        return order.stream

    def check_room(self) -> None:
        """Refuse what was opened before workers had loaded and has no room there: the latest streams first."""
        with self._news:
            live = sorted(self._live)
            while live:
                try:
                    self._admission.check_room(f"stream.id={self._live[live[-1]].config.id}", len(live))
                    return
                except UserError as error:
                    self.board.refuse(live.pop(), error)

    def prompt(self, stream: int, prompt: str) -> None:
        """Change a stream's prompt, from the next chunk that is sampled on. One that has ended stays as it is.

        Raises:
            UserError: the prompt is no text, or too long, or the model takes none.
        """
        model = self.config.model
        if made_of(inputs_of(model), "prompt") is None:
            raise UserError(f"prompt={prompt}", f"model={model.name} takes no prompt", "leave it out")
        prompt = StreamConfig(prompt=typed(str, prompt, "prompt")).prompt
        self._give(Prompt(stream, prompt, time.perf_counter(), host()))

    def change(self, plan: dict[str, Any]) -> int:
        """Have the streams go on by another plan, without losing a chunk; returns the number of its generation, once
        it runs.

        Args:
            plan: settings of the plan group that are to be others, such as `{"workers": 3}`.

        Raises:
            UserError: the run cannot have another plan, or not this one.
        """
        if self.changer is None:
            rule = "this run cannot change its plan: that is done by going on from cuts, which it does not make"
            unsaid = asdict(PlanConfig())
            asked = {key: value for key, value in plan.items() if key == "name" or value != unsaid.get(key)}
            raise UserError(f"plan={shown(asked)}", rule, "start it with launcher.recover=exact")
        return self.changer(plan)

    def stop(self, stream: int | None = None) -> None:
        """Drain a stream, or all: nothing more is sampled, what is under way is finished."""
        self._give(Stop(stream))

    def cancel(self, stream: int | None = None) -> None:
        """End a stream, or all, at once: what is under way is thrown away, its files hold what had left."""
        self._give(Cancel(stream))

    def close(self) -> None:
        """Say that no stream will be opened any more: workers leave when those that are open have ended."""
        with self._news, suppress(PeerLost):
            if not self.closed:
                self._closed = True
                self._news.notify_all()
                self._give(Close())
        self._tell_closers()

    # -- how they stand -----------------------------------------------------------------------------------------------

    @property
    def closed(self) -> bool:
        """Whether no stream will be opened any more."""
        return self._closed or self._over

    @property
    def streams(self) -> list[Open]:
        """Streams that have not ended, in the order in which they were opened."""
        with self._news:
            return list(self._live.values())

    @property
    def known(self) -> list[int]:
        """Numbers of streams that have not ended, and of those that ended last."""
        with self._news:
            return sorted([*self._live, *self._ended])

    @property
    def names(self) -> dict[str, int]:
        """The number of every stream that is known, by its name; of several, the last that was opened."""
        with self._news:
            found = {number: ended.name for number, ended in self._ended.items()}
            found |= {number: order.config.id for number, order in self._live.items()}
            return {name: number for number, name in sorted(found.items())}

    def number(self, name: str) -> int:
        """The number of the stream of that name.

        Raises:
            UserError: none is open, and none has ended lately.
        """
        names = self.names
        if not isinstance(name, str) or name not in names:
            remedy = nearest(str(name)[:80], names) if names else "open it first"
            raise UserError(f"stream={shown(name)}", "there is no such stream", remedy)
        return names[name]

    def progress(self, stream: int) -> dict[str, Any] | None:
        """Chunks, frames, rates and the last chunk's latency of a stream; None before its first chunk has left."""
        with self._news:
            if stream in self._live:
                return self.board.told(f"progress/{stream}")
            return self._ended[stream].progress if stream in self._ended else None

    def ended(self, stream: int) -> bool:
        """Whether a stream is over and its files are finished."""
        return stream not in self._live

    def result(self, stream: int, timeout_s: float | None = None) -> dict[str, Any]:
        """A stream's part of `report.json`, once it has ended.

        Raises:
            UserError: its source or sink could not be used.
            StreamFailed: it was ended by a fault that is no mistake of its user's.
            KeyError: it ended too long ago.
            TimeoutError, PeerLost: as `wait`.
        """
        report = self.report(stream, timeout_s)
        if "error" in report:
            raise Reason.from_dict(report["error"]).error()
        return report

    def report(self, stream: int, timeout_s: float | None = None) -> dict[str, Any]:
        """As `result`; of a stream that could not go on, a report that holds the reason as `error`."""
        self.wait(stream, timeout_s)
        return self._ended[stream].report

    def wait(self, stream: int, timeout_s: float | None = None) -> None:
        """Wait until a stream has ended.

        Raises:
            TimeoutError: it has not within `timeout_s`.
            Exception: whatever the workers were lost by; PeerLost if they left before its end.
        """
        if not self.until(lambda: self.ended(stream), timeout_s):
            raise TimeoutError(f"stream {stream} has not ended within {timeout_s:g} s")

    def until(self, test: Callable[[], bool], timeout_s: float | None = None) -> bool:
        """Wait until `test` holds; returns whether it does after `timeout_s`. It is asked again whenever a stream is
        opened or ends, and when the pipeline is closed.

        Raises:
            Exception: whatever the workers were lost by; PeerLost if they have left and it does not hold.
        """
        with self._news:
            self._news.wait_for(lambda: self._over or test(), timeout_s)
            if not test():
                self._present()
            return test()

    def status(self, timeout_s: float = 5.0) -> list[dict[str, Any] | None]:
        """How every worker stands: its streams, passes that wait, what it came to last. None: no answer in time."""
        with self._news:
            question, answers = next(self._questions), {}
            self._answers[question] = answers
            try:
                self._give(Status(question))
                self._news.wait_for(lambda: self._over or len(answers) == self.plan.workers, timeout_s)
            finally:
                del self._answers[question]
        return [answers.get(worker) for worker in range(self.plan.workers)]

    # -- the end ------------------------------------------------------------------------------------------------------

    def lost(self, error: BaseException) -> None:
        """The workers are gone: whoever waits for a stream gets `error`. The first one stays."""
        with self._news:
            self._error = self._error or error
        self.leave()

    def leave(self) -> None:
        """The workers have left: take in what they told, and listen no more."""
        self._events.close()
        with self._news:
            self._over = True
            for stream in list(self._pipes):
                self._let_go(stream)
            self._news.notify_all()
        self._tell_closers()

    def _tell_closers(self) -> None:
        for closer in self.closers:
            closer()

    def _cut_off(self) -> None:
        self.lost(PeerLost(CUT_OFF))

    def _present(self) -> None:
        """Raise if the workers are gone."""
        if self._over:
            raise self._error or PeerLost("the workers have left")

    # -- orders and events --------------------------------------------------------------------------------------------

    def _give(self, order: Order) -> None:
        with self._news:
            self._present()
            try:
                readers = [] if self._frozen else self._readers
                order = self.board.give(order, readers, self.generation)
            except RuntimeError as error:
                raise PeerLost(CUT_OFF) from error
            self._said.note(order, self._live, heard=not self._frozen)

    # -- generations --------------------------------------------------------------------------------------------------

    def freeze(self, number: int, why: str) -> None:
        """The generation is over; orders wait for the next, which is to be `number`."""
        with self._news:
            self._frozen = True
        self._tell_changers({"frozen": True, "number": number, "why": why})

    def order_now(self, order: Order, processes: Iterable[int]) -> None:
        """Give an order to these processes of the running generation, frozen or not."""
        with self._news:
            self.board.give(order, processes, self.generation)

    def go_on(self, generation: Generation, plan: Plan, opened: Callable[[Open], Open]) -> None:
        """Give the next generation its streams and all that was said to them.

        Args:
            generation, plan: the next.
            opened: a stream's order, as it is to be opened again.
        """
        with self._news:
            self.config, _ = generation.of(self.config)
            self.plan, self.processes, self.generation = plan, generation.processes, generation.number
            self._readers = [self.processes[plan.group(worker)[0]] for worker in range(plan.workers)]
            self._admission.replan(plan)
            for stream, order in self._live.items():
                self.board.repeat(opened(order), self._readers, self.generation)
                for said in self._said.to(stream):
                    self.board.repeat(said, self._readers, self.generation)
            for order in self._said.questions():
                self.board.repeat(order, self._readers, self.generation)
            if self._closed:
                self.board.repeat(Close(), self._readers, self.generation)
            self._frozen = False

    def told(self, told: dict[str, Any]) -> None:
        """Tell who looks on of the generations."""
        self._tell_changers(told)

    def missed(self) -> list[dict[str, Any]]:
        """What processes have told of peers that they miss, and of streams that go on, since this was asked last."""
        with self._news:
            found, self._missed = self._missed, []
        return found

    def settle(self) -> None:
        """Wait until all that workers have told so far is taken in."""
        seen = threading.Event()
        with self._news:
            self._settled = seen
        self.board.event({"event": "settled"})
        seen.wait(SETTLE_S)

    def _tell_changers(self, told: dict[str, Any]) -> None:
        for changer in self.changers:
            try:
                changer(told)
            except Exception:
                log.exception("who was to be told of a generation failed")

    def _hear(self, event: dict[str, Any]) -> None:
        try:
            self._take_in(**event)
        except Exception as error:
            # No other event would ever be heard: better to end than to wait for ever.
            self.lost(error)

    def _take_in(self, event: str, stream: int = -1, **told: Any) -> None:
        """Take in what a worker tells."""
        if event == "ended":
            self._end(stream, told["report"])
        elif event == "refused":
            if self.ended(stream):
                self._forget(stream)
            else:
                self._give(Cancel(stream))
        elif event == "order":
            self._give(from_json(told["order"]))
        elif event in ("missed", "shown"):
            with self._news:
                self._missed.append({"event": event, "stream": stream, **told})
            self.heard()
        elif event == "settled":
            self._settled.set()
        elif event == "status" and (answers := self._answers.get(told["question"])) is not None:
            with self._news:
                answers[told["worker"]] = told["status"]
                self._news.notify_all()

    def _end(self, stream: int, report: dict[str, Any]) -> None:
        with self._news:
            progress = self.board.told(f"progress/{stream}")
            self._forget(stream)
            name = self._live.pop(stream).config.id
            self._let_go(stream)
            self._said.forget(stream)
            self._ended[stream] = Ended(name, report, progress)
            while len(self._ended) > self._kept:
                del self._ended[next(iter(self._ended))]
            self._news.notify_all()
        for observer in self.observers:
            try:
                observer(stream, report)
            except Exception:
                # Whoever looks on does not end what is looked at.
                log.exception("stream %s has ended, and who was to be told of it failed", name)

    def _let_go(self, stream: int) -> None:
        for pipe in self._pipes.pop(stream, ()):
            pipe.close()

    def _forget(self, stream: int) -> None:
        for key in ("progress", "refused"):
            self.board.forget(f"{key}/{stream}")


def opens(config: Config) -> list[Open]:
    """The streams of a run: the one that was asked for, or `stream.count` with ids and files numbered from 0.

    Raises:
        UserError: `resume` names nothing that they can go on from.
    """
    several = config.stream.count > 1
    streams = [replace(config.stream, id=str(i), count=1) for i in range(config.stream.count)]
    found = []
    for i, stream in enumerate(streams if several else [config.stream]):
        sink = numbered(config.sink, i) if several else config.sink
        keep = keep_of(config, stream, sink, stream.id if several else None, config.resume)
        found.append(Open(i, stream, config.source, sink, keep))
    return found


def run_all(pipeline: Pipeline, config: Config, orders: list[Open] | None = None) -> None:
    """Open every stream of a run, and say that these are all.

    Args:
        orders: its streams; None: as `opens` says.
    """
    for order in opens(config) if orders is None else orders:
        pipeline.open(order.config, order.source, order.sink, order.keep)
    pipeline.close()


def results(pipeline: Pipeline) -> list[dict[str, Any]]:
    """Every stream's part of `report.json`, in the order in which they were opened, once the workers have left.

    One that could not go on has an `error`; it costs nobody else's report. Of more than 256 only the last are here
    (`observers` hear of all), unless the configuration asked for more.

    Raises:
        PeerLost: a stream has not ended.
    """
    return [pipeline.report(stream, timeout_s=0.0) for stream in pipeline.known]

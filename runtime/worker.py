"""The worker: one loop that takes what is ready, computes it, and sends the result on.

The same code runs under every launcher. What is ready and what follows from it is the schedule's to say; the worker
gives passes their tensors. Orders (new streams, prompts, the end of streams) come into the same inbox as data, so they
take effect between two passes and never wait for a chunk. What is not computing has threads of its own: sources
(`runtime.head`), the last stages and files (`runtime.tail`), states (`runtime.saving`).

Whatever is done for a stream is guarded (`runtime.guard`): a stream that fails, or is cancelled, goes its way hollow.
Its messages have no tensors, its passes cost nothing, and its end closes everything in order behind its last chunk.
"""

from __future__ import annotations

import logging
import math
import os
import queue
import time
from collections import defaultdict
from typing import Any

from conf.schema import Config
from parallel.channels import Arrival, ChannelError, Closed, Failure, Sender
from parallel.message import DUE, Message
from parallel.pacing import HOPS, Pacer
from parallel.passes import LEFT, OUT, SAVED, Pass
from parallel.plan import Plan
from parallel.schedule import Schedule
from runtime.block import Block
from runtime.board import Abandoned, Board, PeerLost
from runtime.cells import Cells
from runtime.generations import Generation
from runtime.guard import Guard
from runtime.head import Entry, Head, Opened
from runtime.messages import WHOLE, Messages
from runtime.orders import Cancel, Close, Cut, Halt, Open, Order, Prepare, Prompt, Status
from runtime.parts import Parts
from runtime.pulse import Doing, Watch
from runtime.report import worker_report
from runtime.saving import Saver
from runtime.stages import Performed
from runtime.tail import Saved, Tail
from runtime.timing import Timer
from runtime.trace import Trace
from runtime.turn import CELL, Turn
from stages.denoise.schedule import schedule_of

log = logging.getLogger(__name__)

OVER = "over"
"""Comes in when the device is through with a pass."""
IDLE_S = 0.2
"""How often a worker looks whether what is owed has come, at least."""


class Worker:
    """One worker of a plan.

    Args:
        plan, index: the plan and which of its workers this is.
        config: the run.
        parts: what this worker holds.
        blocks: its layers.
        senders: per peer there is a channel to.
        inbox: where orders, and every channel's arrivals and failures, come in.
        board: told about progress, results, and streams that cannot go on.
        generation: of the run; None: the first.
    """

    def __init__(
        self,
        plan: Plan,
        index: int,
        config: Config,
        parts: Parts,
        blocks: dict[int, Block],
        senders: dict[int, Sender],
        inbox: queue.SimpleQueue,
        trace: Trace,
        board: Board,
        generation: Generation | None = None,
    ):
        generation = generation or Generation.first(config, plan)
        self.plan, self.index, self.config, self.parts = plan, index, config, parts
        self.senders, self.inbox, self.trace, self.board = senders, inbox, trace, board
        self.schedule, self.guard = Schedule(plan, index), Guard(board, f"worker {index}", parts.device)
        self.messages = Messages(plan, parts.device, self.guard)
        self.turn, self.saver = Turn(), Saver(board, parts.queue.device, config.launcher.cuts, generation.number)
        self.timer = Timer(parts.queue.device, trace)
        self.cells = Cells(plan, index, parts, blocks, self.timer, self.saver)
        self.tail = Tail(plan, index, config, parts, self.timer, board, self.guard, self.saver, self.turn, inbox.put)
        self.head = None
        if index == plan.encode:
            self.head = Head(
                parts.sampler.steps, parts.dtype, Pacer.of(plan), inbox.put, trace.clock, self.guard, self.saver,
                config.launcher.recover_s if config.launcher.in_place else None,
            )  # fmt: skip
            inbox.at_once = self._at_once
        firsts = [generation.processes[plan.group(worker)[0]] for worker in range(plan.workers)]
        self.watch = Watch(board, firsts, config.launcher.timeout_s, trace.clock)
        self._early: dict[int, list[Message]] = defaultdict(list)
        """What came for streams before the order that opens them."""
        self._opened, self._closed = 0, False
        self._moves: dict[int, float] = {}
        """By stream, when something came for it or was done for it here last."""
        self._at: tuple[Pass, float] | None = None
        self._last: Pass | None = None
        self._looked = self._moved = trace.clock()

    # -- the loop -------------------------------------------------------------------------------------------------

    def run(self) -> dict[str, Any]:
        """Work until the pipeline is closed and every stream has ended here; returns this worker's part of the report.

        Raises:
            PeerLost: a peer failed, or owed work did not come within `launcher.timeout_s`.
            Superseded: another generation begins. What streams have outside is kept with the worker's parts then, and
                where peers that failed may be recovered.
        """
        self.saver.start()
        self.timer.start(lambda failed: self.inbox.put(failed or OVER))
        whole = keeps = False
        try:
            while not self._over:
                self._take_in(block=False)
                if self.head:
                    self.head.ask(self.schedule.may_enter)
                for item, message in self.schedule.staged():
                    self.tail.put(item, message)
                if not (self.schedule.ready and self.timer.room and self._compute()) and not self._over:
                    self._take_in(block=True)
            whole = True
        except ChannelError as error:
            keeps = self.config.launcher.in_place
            raise self._lost(error) from error
        except BaseException:
            # Its own failure is no end of its streams either: others go on with them.
            keeps = self.config.launcher.in_place
            raise
        finally:
            self.close(whole, keeps)
        return worker_report(self.trace, self.parts.weight_bytes, self.parts.bank_bytes, self.parts.device)

    @property
    def _over(self) -> bool:
        return self._closed and not self.schedule.streams

    def close(self, whole: bool = False, keeps: bool = False) -> None:
        """Finish files, let go of sources, end every thread; channels stay with whoever made them.

        Args:
            whole: whether all has ended well, so that states still being saved may be waited for.
            keeps: whether streams go on in another generation: then what they have outside is kept.
        """
        if self.head:
            self.head.close(keeps)
        if not whole:
            self.saver.close(wait=False, turns=keeps)  # some parts may never come, and outputs wait for their states
        self.tail.close(keeps)
        self.saver.close()
        self.timer.close()
        if not keeps:
            self.trace.close()

    def _take_in(self, block: bool) -> None:
        """Take what has come in; if `block`, wait for something first."""
        start = self.trace.clock()
        while True:
            if start - self._looked > IDLE_S:
                self._check_owed()
            try:
                item = self.inbox.get(timeout=IDLE_S) if block else self.inbox.get_nowait()
            except queue.Empty:
                if not block:
                    return
                self._check_owed()
                continue
            self._moved = self.trace.clock()
            if block:
                self.trace.add("wait", -1, start, self.trace.clock() - start)
            self._accept(item, waited=block)
            block = False

    def _accept(self, item: object, waited: bool = False) -> None:
        """Take one item in. A message that was waited for was on its way until now; another, until it had come."""
        if isinstance(item, Arrival):
            message = item.message
            with self.guard(message.stream, f"taking in {message.kind} of chunk {message.chunk}"):
                item.take()
            if message.times:
                came = self.trace.clock() if waited else item.at
                message.times[HOPS] = message.times.get(HOPS, 0.0) + came - message.sent
            self._deliver(self.guard.mark(message))
        elif isinstance(item, Performed):
            self._followed(item.item, item.message)
        elif isinstance(item, Entry):
            self._enter(item)
        elif isinstance(item, Opened):
            self._begin(item)
        elif isinstance(item, Saved):
            note = WHOLE if item.whole else ""
            self._send(self.plan.encode, Message("done", stream=item.stream, chunk=item.chunk, step=SAVED, note=note))
        elif item is OVER:
            pass  # there is room for another pass
        elif isinstance(item, Failure):
            raise self._lost(item.error)
        elif isinstance(item, Exception):
            raise item
        elif isinstance(item, Closed):
            # In good order; unless the peer has just told everyone why not.
            if told := self.board.told("failed"):
                raise Abandoned(told["line"])
        else:
            self._obey(item)

    def _at_once(self, item: object) -> None:
        """Handles prompts and finished chunks at once, in the receiving thread, not after the current pass."""
        if isinstance(item, Prompt):
            self._steer(item)
            return
        message = item.message if isinstance(item, Arrival) else None
        if message is not None and message.kind == "done":
            hops = {HOPS: message.times.get(HOPS, 0.0) + item.at - message.sent} if message.times else {}
            self._left(message, message.times | hops)
            self.head.ask(self.schedule.may_enter)

    def _steer(self, order: Prompt) -> None:
        with self.guard(order.stream, "a new prompt"):
            self.head.steer(order.stream, order.prompt, order.accepted, order.number)

    def _left(self, message: Message, times: dict[int, float]) -> None:
        """A chunk has left the shared stages, or its stream's output; or a state of its stream was saved."""
        stream, chunk = message.stream, message.chunk
        if message.step == LEFT:
            self.head.done(stream, chunk, times)
        elif message.step == OUT:
            self.head.out(stream, chunk, times)
        else:
            self.head.saved(stream, chunk, message.note == WHOLE)

    def _deliver(self, message: Message) -> None:
        """A message for this worker, from a channel or from itself."""
        stream, chunk = message.stream, message.chunk
        if stream >= self._opened:
            self._early[stream].append(message)
            return
        if stream not in self.schedule.streams:
            return  # it has ended here; nothing more is wanted of it
        self._moves[stream] = self.trace.clock()
        if message.kind == "done":
            if not message.sent:  # else it was heard of when it came
                self._left(message, message.settle().times)
            self._look_at_head(stream)
        elif message.kind == "sidecar":
            with self.guard(stream, f"opening the output for chunk {chunk}"):
                self.tail.sidecar(message)
            self.schedule.sidecar(stream, chunk)
        else:
            item = Pass(message.kind, stream, chunk, message.step, message.block, epoch=message.epoch)
            self.schedule.arrive(item, message, message.moments.get(DUE, math.inf))

    def _send(self, target: int, message: Message) -> None:
        if target == self.index:
            self._deliver(message)
            return
        sent, message.sent = False, self.trace.clock()
        with self.guard(message.stream, f"sending {message.kind} of chunk {message.chunk}"):
            self.senders[target].send(message)
            sent = True
        if not sent:
            # Others wait for it: it goes its way hollow, as everything of its stream from now on.
            self.senders[target].send(self.guard.mark(message))
        self.trace.add("send", message.chunk, message.sent, self.trace.clock() - message.sent)

    # -- orders -----------------------------------------------------------------------------------------------------

    def _obey(self, order: Order) -> None:
        if isinstance(order, Open):
            self._open(order)
        elif isinstance(order, Close):
            self._closed = True
        elif isinstance(order, Status):
            self.board.event(
                {"event": "status", "question": order.question, "worker": self.index, "status": self._status()}
            )
        elif isinstance(order, Prompt):
            if self.head:
                self._steer(order)  # known already, unless it came right behind the order that opens its stream
        elif isinstance(order, Cut):
            if self.head:
                self.head.cut_now()
        elif isinstance(order, Halt | Prepare):
            pass  # for the process, which has heard them
        else:
            for stream in list(self.schedule.streams) if order.stream is None else [order.stream]:
                with self.guard(stream, "being stopped"):
                    self._stop(stream, cancel=isinstance(order, Cancel))

    def _open(self, order: Open) -> None:
        stream, keep = order.stream, order.keep
        first = keep.first if keep else 0
        self._opened = stream + 1
        self.schedule.open(stream)
        if first:
            self.schedule.resume(stream, first)
        with self.guard(stream, "opening"):
            self.tail.open(order)
            self.cells.open(order)
        if self.head:
            with self.guard(stream, "opening"):
                self.head.open(stream, self.parts.opening(order), keep)
            if stream not in self.head.samplers:
                self._begin(Opened(stream, first=first, failed=True))
        for message in self._early.pop(stream, ()):
            self._deliver(message)

    def _begin(self, opened: Opened) -> None:
        """A stream's sources are open, or failed to: then its end enters at once."""
        stream = opened.stream
        if opened.sink:
            again = self.messages.again(stream, schedule_of(self.config.model).renewed.in_force_from, opened.sink)
            for worker, message in again:
                self._send(worker, message)
        self.head.begin(opened)
        if opened.failed:
            self._enter(Entry(stream, opened.first))

    def _stop(self, stream: int, cancel: bool) -> None:
        if stream not in self.schedule.streams:
            return
        if cancel:
            self.guard.hollow.add(stream)
        if self.head:
            self.head.stop(stream)

    def _status(self) -> dict[str, Any]:
        """How this worker stands, for whoever asks."""
        return {
            "process": os.getpid(),
            "streams": sorted(self.schedule.streams),
            "cancelled": sorted(self.guard.hollow),
            "waiting": self.schedule.waiting,
            "at": self._came_to(),
            "in_flight": self.head.pacer.in_flight if self.head else None,
        }

    def _enter(self, entry: Entry) -> None:
        """A sampled chunk (or the end of its stream) at the head of the route."""
        self.head.entered(entry)
        for worker, message in self.messages.entering(entry):
            self._send(worker, message)
        if entry.tensors is None:
            self._look_at_head(entry.stream)
        else:
            self.trace.add("encode", entry.chunk, entry.began, entry.took_s)

    # -- work ---------------------------------------------------------------------------------------------------------

    def _compute(self) -> bool:
        """Run the ready pass that others wait for most; returns whether there was one."""
        with self.turn(CELL):
            taken = self.schedule.next()
            if taken is None:
                return False
            item, message = taken
            self._at, self._last = (item, time.perf_counter()), item
            if self.schedule.begins(item):
                self.schedule.entered(item.stream, item.chunk)
                if self.head:
                    self.head.ask(self.schedule.may_enter)
            with self.guard(item.stream, f"{self.cells.name(item)} of chunk {item.chunk}"):
                message = self.cells.run(item, self.guard.mark(message))
            self._at = None
        self._followed(item, self.guard.mark(message))
        return True

    def _followed(self, item: Pass, message: Message) -> None:
        """Send on what follows from a pass that has run, here or on a stage's thread."""
        self._moves[item.stream] = self.trace.clock()
        for worker, following in self.schedule.done(item):
            self._send(worker, self.messages.following(item, following, message))
        if self.head and self.schedule.passes_last(item):
            self.head.passed()
        if item.kind == "end":
            self._forget(item.stream)

    # -- the end ------------------------------------------------------------------------------------------------------

    def _look_at_head(self, stream: int) -> None:
        if self.head.over(stream):
            self.schedule.close(stream, "head")
            self._forget(stream)

    def _forget(self, stream: int) -> None:
        """Drop what was kept of a stream that has ended here, part by part."""
        if stream not in self.schedule.streams:
            self.cells.close(stream)
            self.tail.forget(stream)
            self.saver.forget(stream)
            self.guard.forget(stream)
            self._moves.pop(stream, None)

    def look(self) -> Doing:
        """What the loop and the stages are at: of several passes the one that has taken longest so far."""
        passes = [(self._words(item), since) for item, since in (*self.tail.doing(), *([self._at] if self._at else []))]
        if given := self.timer.doing():
            passes.append((f"{given[0]} of chunk {given[1]}", given[2]))
        if not passes:
            return Doing(self._came_to(), self._moved, self._moved, streams=dict(self._moves), stages=self.trace.stages)
        words, since = min(passes, key=lambda at: at[1])
        return Doing(words, since, self._moved, busy=True, streams=dict(self._moves), stages=self.trace.stages)

    def _check_owed(self) -> None:
        """Nothing moves of a stream of which chunks are under way: a failure, unless somebody is just slow.

        Only the head can tell: it knows what is under way. Dead or silent neighbours are found by the channels.
        """
        self._looked = self.trace.clock()
        if not self.head or not (overdue := self.head.overdue(self.config.launcher.timeout_s)):
            return
        slow = self.watch.slow()
        for worker, (at, seconds) in self.watch.news(slow).items():
            log.warning("worker %d is slow: %s has taken %.0f s so far", worker, at, seconds)
        for stream, chunk in overdue.items():
            if not slow and not self.watch.moves(stream):
                raise PeerLost(f"nothing moves: chunk {chunk} of stream {stream} is not back; {self._where()}")

    def _lost(self, error: ChannelError) -> PeerLost:
        return PeerLost(f"worker {error.peer} is lost ({error.reason}); {self._where()}")

    def _where(self) -> str:
        """What this worker did last, for whoever looks for a failure."""
        return f"worker {self.index} had come to {self._came_to()}"

    def _came_to(self) -> str:
        """The pass that this worker was given last, in words."""
        return self._words(self._last) if self._last else "nothing yet"

    def _words(self, item: Pass) -> str:
        return f"{self.cells.name(item)} of chunk {item.chunk} of stream {item.stream}"

"""The worker: one loop that takes what is ready, computes it, and sends the result on.

The same code runs under every launcher. What is ready and what follows from it is the schedule's to say; the worker
gives passes their tensors. Orders (new streams, prompts, the end of streams) come into the same inbox as data, so they
take effect between two passes and never wait for a chunk.

A cancelled stream goes its way hollow: its messages lose their tensors, its passes cost nothing, and its end closes
everything in good order behind its last chunk.
"""

from __future__ import annotations

import queue
from collections import defaultdict
from functools import partial
from typing import Any

import torch
from torch import Tensor

from conf.errors import UserError
from conf.schema import Config
from parallel.channels import Arrival, ChannelError, Closed, Failure, Sender
from parallel.message import Message
from parallel.pacing import ENCODE, HOPS, Pacer
from parallel.passes import LEFT, ROUTE, ROWS, STAGES, Pass, along_rows, entering
from parallel.plan import Cell, Plan
from parallel.schedule import Schedule
from runtime.block import Block
from runtime.board import Abandoned, Board, PeerLost
from runtime.cells import Cells
from runtime.finish import Companion, Finish
from runtime.head import Entry, Head
from runtime.keeper import Keeper
from runtime.orders import Cancel, Close, Open, Order, Prompt, Status
from runtime.parts import Parts, open_outputs
from runtime.report import Timeline, worker_report
from runtime.trace import Trace

STOPPED = "stopped"
"""What a stream's end says if it came from outside."""
IDLE_S = 0.2
"""How often a waiting worker looks at its watch."""
TOLD_S = 0.25
"""How often a stream's progress is told, at most."""


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
    ):
        self.plan, self.index, self.config, self.parts = plan, index, config, parts
        self.senders, self.inbox, self.trace, self.board = senders, inbox, trace, board
        self.schedule = Schedule(plan, index)
        self.cells = Cells(plan, index, parts, blocks, trace)
        self.head = None
        if index == plan.encode:
            self.head = Head(parts.sampler.steps, parts.dtype, Pacer.of(plan), inbox.put, trace.clock)
            inbox.at_once = self._at_once
        self.finishes: dict[int, Finish] = {}
        self.keeper = Keeper(self.cells, self.finishes)
        self.hollow: set[int] = set()
        """Streams that were cancelled and have not ended yet."""
        self._early: dict[int, list[Message]] = defaultdict(list)
        """What came for streams before the order that opens them."""
        self._told: dict[int, float] = {}
        """When each stream's progress was told last."""
        self._opened, self._closed = 0, False
        self._at: Pass | None = None
        self._moved = trace.clock()

    # -- the loop -------------------------------------------------------------------------------------------------

    def run(self) -> dict[str, Any]:
        """Work until the pipeline is closed and every stream has ended here; returns this worker's part of the report.

        Raises:
            PeerLost: a peer failed, or owed work did not come within `launcher.timeout_s`.
        """
        try:
            while not self._over:
                self._take_in(block=False)
                if self.head:
                    self.head.ask(self.schedule.may_enter)
                for item, load in self.schedule.staged():
                    self._execute(item, load)
                taken = self.schedule.next()
                if taken is not None:
                    self._execute(*taken)
                elif not self._over:
                    self._take_in(block=True)
        except ChannelError as error:
            raise self._lost(error) from error
        finally:
            self.close()
        return worker_report(self.trace, self.parts.weight_bytes, self.parts.bank_bytes, self.parts.device)

    @property
    def _over(self) -> bool:
        return self._closed and not self.schedule.streams

    def close(self) -> None:
        """Finish files, let go of sources; channels stay with whoever made them."""
        for finish in self.finishes.values():
            finish.close()
        if self.head:
            self.head.close()
        self.trace.close()

    def _take_in(self, block: bool) -> None:
        """Take what has come in; if `block`, wait for something first."""
        start = self.trace.clock()
        while True:
            try:
                item = self.inbox.get(timeout=IDLE_S) if block else self.inbox.get_nowait()
            except queue.Empty:
                if not block:
                    return
                self._check_owed()
                continue
            self._moved = self.trace.clock()
            if block:
                self.trace.add("wait", -1, start, self._moved - start)
            self._accept(item, waited=block)
            block = False

    def _accept(self, item: Arrival | Closed | Failure | Entry | Order | Exception, waited: bool = False) -> None:
        """Take one item in. A message that was waited for was on its way until now; another, until it had come."""
        if isinstance(item, Arrival):
            message = item.take()
            if message.times:
                # Clocks of two machines differ, but a chunk's way ends where it began, and there the sum is right.
                came = self.trace.clock() if waited else item.at
                message.times[HOPS] = message.times.get(HOPS, 0.0) + came - message.sent
            self._deliver(message)
        elif isinstance(item, Entry):
            self._enter(item)
        elif isinstance(item, Failure):
            raise self._lost(item.error)
        elif isinstance(item, Exception):
            raise item
        elif isinstance(item, Closed):
            # In good order; unless the peer has just told everyone why not.
            if told := self.board.told("lost"):
                raise Abandoned(told[1])
        else:
            self._obey(item)

    def _at_once(self, item: Any) -> None:
        """What does not wait for the pass under way: a chunk has left, one may be sampled, and with another prompt. In
        the thread that brings it.
        """
        if isinstance(item, Prompt):
            self.head.steer(item.stream, item.prompt, item.accepted)
            return
        message = item.message if isinstance(item, Arrival) else None
        if message is not None and message.kind == "done":
            hops = {HOPS: message.times.get(HOPS, 0.0) + item.at - message.sent} if message.times else {}
            self._hear(message, message.times | hops)
            self.head.ask(self.schedule.may_enter)

    def _deliver(self, message: Message) -> None:
        """A message for this worker, from a channel or from itself."""
        stream, chunk = message.stream, message.chunk
        if stream >= self._opened:
            self._early[stream].append(message)
        elif stream not in self.schedule.streams:
            return  # it has ended here; nothing more is wanted of it
        elif message.kind == "done":
            if not message.sent:  # else it was heard of when it came
                self._hear(message, message.times)
            self._look_at_head(stream)
        elif message.kind == "sidecar":
            self._announce(message)
        else:
            item = Pass(message.kind, stream, chunk, message.step, message.block, epoch=message.epoch)
            self.schedule.arrive(item, message)

    def _hear(self, message: Message, times: dict[int, float]) -> None:
        """A chunk has left the shared stages, or is out."""
        if message.step == LEFT:
            self.head.done(message.stream, message.chunk, times)
        else:
            self.head.out(message.stream, message.chunk, 0.0)

    def _announce(self, message: Message) -> None:
        """A chunk is on its way to the last stage; the first one opens the sinks."""
        stream, finish = message.stream, self.finishes[message.stream]
        finish.companions[message.chunk] = Companion.of(message.tensors)
        if stream not in self.hollow:
            self._open_sinks(stream, finish)
        self.schedule.sidecar(stream, message.chunk)

    def _open_sinks(self, stream: int, finish: Finish) -> None:
        try:
            finish.open()
        except UserError as error:
            self._refuse(stream, error)

    def _send(self, target: int, message: Message) -> None:
        if target == self.index:
            self._deliver(message)
            return
        message.sent = self.trace.clock()
        self.senders[target].send(message)
        self.trace.add("send", message.chunk, message.sent, self.trace.clock() - message.sent)

    # -- orders -----------------------------------------------------------------------------------------------------

    def _obey(self, order: Order) -> None:
        if isinstance(order, Open):
            self._open(order)
        elif isinstance(order, Close):
            self._closed = True
        elif isinstance(order, Status):
            self.board.tell(f"status/{order.question}/{self.index}", self._status())
        elif isinstance(order, Prompt):
            if self.head:
                # Known already, unless it came right behind the order that opens its stream.
                self.head.steer(order.stream, order.prompt, order.accepted)
        else:
            for stream in list(self.schedule.streams) if order.stream is None else [order.stream]:
                self._stop(stream, cancel=isinstance(order, Cancel))

    def _open(self, order: Open) -> None:
        stream = order.stream
        self._opened = stream + 1
        self.schedule.open(stream)
        self.cells.open(stream, order.config)
        state = order.keep.state if order.keep else None
        if state:
            self.schedule.resume(stream, state.chunk)
            self.cells.resume(stream, state)
        self.keeper.open(stream, order.keep)
        if "stages" in self.schedule.roles:
            sinks = partial(open_outputs, self.config, order)
            made = (state.chunk, state.content["frames"]) if state else (0, 0)
            self.finishes[stream] = Finish(
                order.config.id,
                sinks,
                Timeline(self.config.model.fps, self.trace.clock, *made),
                self.trace,
                self.parts.decoder,
                order.keep,
                self.config.model.recalibrate_chunk,
                self.config.model.codec.prime,
            )
        if self.head:
            try:
                conditioning = self.parts.conditioning_of(order)
                if state and state.anchor is not None:
                    # Made before the state was saved, in force only later: it comes again.
                    reference = {"x": state.anchor, "text": conditioning.first_text()}
                    self._prefill(stream, self.config.model.recalibrate_chunk, reference)
                self.head.open(stream, conditioning, order.keep)
            except UserError as error:
                self.head.refuse(stream)
                self._enter(Entry(stream, state.chunk if state else 0, refused=error))
        for message in self._early.pop(stream, ()):
            self._deliver(message)

    def _stop(self, stream: int, cancel: bool) -> None:
        if stream not in self.schedule.streams:
            return
        if cancel:
            self.hollow.add(stream)
        if self.head:
            self.head.stop(stream)

    def _refuse(self, stream: int, error: UserError) -> None:
        """A stream cannot go on; the others can."""
        self.board.refuse(stream, error)
        self.board.order(Cancel(stream))
        self.hollow.add(stream)

    def _status(self) -> dict[str, Any]:
        """How this worker stands, for whoever asks."""
        return {
            "streams": sorted(self.schedule.streams),
            "cancelled": sorted(self.hollow),
            "waiting": self.schedule.waiting,
            "at": self._came_to(),
            "in_flight": self.head.pacer.in_flight if self.head else None,
        }

    # -- work ---------------------------------------------------------------------------------------------------------

    def _enter(self, entry: Entry) -> None:
        """A sampled chunk (or the end of its stream) at the head of the route."""
        stream, chunk = entry.stream, entry.chunk
        self.head.entered(entry)
        if entry.refused:
            self.board.refuse(stream, entry.refused)
        if entry.progress and stream not in self.hollow and (mark := self.keeper.begin(stream, chunk, entry.progress)):
            self._send(self.plan.head, mark)
        if entry.tensors is None:
            note = STOPPED if entry.stopped else ""
            self._send(self.plan.head, Message("end", stream=stream, chunk=chunk, note=note))
            self._look_at_head(stream)
            return
        self.trace.add("encode", chunk, entry.began, entry.took_s)
        hollow = stream in self.hollow
        text = {"text": entry.tensors["text"]} if "text" in entry.tensors else {}
        tensors = {"sidecar": entry.companion, "prefill": entry.reference, "recache": text, "step": entry.tensors}
        for worker, item in entering(self.plan, stream, chunk, entry.epoch):
            if item.kind == "prefill" and not entry.reference:
                continue
            empty = hollow and item.kind in ("recache", "step")
            placed = {} if empty else self._placed(tensors[item.kind])
            times = {ENCODE: entry.took_s} if item.kind == "step" and placed else {}
            self._send(worker, self._message(item, placed, epoch=item.epoch, distances=entry.distances, times=times))

    def _prefill(self, stream: int, holds: int, reference: dict[str, Tensor]) -> None:
        """Send every bank a reference that holds from chunk `holds`."""
        for worker, item in along_rows(self.plan, Pass("prefill", stream, holds)):
            self._send(worker, self._message(item, self._placed(reference)))

    def _placed(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Tensors on this worker's device: all of a message travel in one buffer."""
        return {name: tensor.to(self.parts.device) for name, tensor in tensors.items()}

    def _execute(self, item: Pass, message: Message) -> None:
        self._at = item
        if item.stream in self.hollow:
            message.tensors = {}
        path = self.plan.workload.passes[item.kind].path
        work = {ROUTE: self._step, ROWS: self.cells.write, STAGES: self._final}.get(path)
        work = work or {"save": self.keeper.run, "end": self._end}[item.kind]
        message = work(item, message)
        for worker, following in self.schedule.done(item):
            self._send(worker, self._following(item, following, message))
        if self.head and self.schedule.passes_last(item):
            self.head.passed()
        if item.kind == "end":
            self._forget(item.stream)

    def _following(self, item: Pass, following: Pass, message: Message) -> Message:
        """What goes out to a pass that follows from `item`, whose outcome is `message`."""
        tensors, times = message.tensors, message.times
        if tensors and item.kind == "step" and following.kind != "step":
            # Latents are final: on to the last stage, and to every bank that is made from them.
            x = tensors["x"]
            motion = [tensors["motion"]] if "motion" in tensors else []
            tensors = {"x": torch.cat([x[:, :, :1], *motion], 2) if following.kind == "prefill" else x}
        # A bank made from a chunk carries that chunk's text: a recalibration epoch 0, which began with chunk 0.
        epoch = message.epoch if item.kind == following.kind else 0
        times = times if following.kind in ("step", "stage", "done") else {}
        tensors = {} if following.kind == "done" else tensors
        return self._message(
            following, tensors, epoch=epoch, times=times, distances=message.distances, note=message.note
        )

    @staticmethod
    def _message(item: Pass, tensors: dict[str, Tensor], **rest: Any) -> Message:
        """What makes a worker run a pass. Messages are built once and then changed: there are some on every hop."""
        return Message(item.kind, item.stream, item.chunk, item.step, item.block, tensors=dict(tensors), **rest)

    def _step(self, item: Pass, m: Message) -> Message:
        if item[3:5] == (0, 0):
            self.schedule.entered(item.stream, item.chunk)
            if self.head:
                self.head.ask(self.schedule.may_enter)
        return self.cells.step(item, m)

    def _final(self, item: Pass, m: Message) -> Message:
        if item.step > self.plan.workload.steps:
            return m  # all is done at the first of the last stages
        start, finish = self.trace.clock(), self.finishes[item.stream]
        if not m.tensors or finish.outputs is None:
            finish.skip(item.chunk)
            return m
        try:
            finish.run(item.chunk, m.tensors["x"])
        except UserError as error:
            self._refuse(item.stream, error)
            m.tensors = {}
            return m
        self._tell_progress(item.stream, every_s=TOLD_S)
        m.tensors, m.times[self.index] = {}, m.times.get(self.index, 0.0) + self.trace.clock() - start
        return m

    # -- the end ------------------------------------------------------------------------------------------------------

    def _end(self, item: Pass, m: Message) -> Message:
        """The end of a stream passes the route behind its last chunk."""
        if item.step == self.plan.workload.steps + len(self.plan.stages) - 1:
            self._tell_progress(item.stream)
            finish = self.finishes.pop(item.stream)
            finish.finished = m.note != STOPPED and item.stream not in self.hollow
            if finish.keep and finish.keep.first and item.stream not in self.hollow:
                self._open_sinks(item.stream, finish)  # it may go on from its end, with nothing to add
            finish.close()
            self.board.tell(f"ended/{item.stream}", finish.report())
        elif self.schedule.cells and Cell(item.step, item.block) == self.schedule.cells[-1]:
            self.cells.close(item.stream)
        return m

    def _tell_progress(self, stream: int, every_s: float = 0.0) -> None:
        """Tell where a stream is, unless that was told just now; chunks may be much faster than anyone reads."""
        finish, now = self.finishes[stream], self.trace.clock()
        if finish.timeline.chunks and now - self._told.get(stream, -every_s) >= every_s:
            self._told[stream] = now
            self.trace.flush()
            self.board.tell(f"progress/{stream}", finish.timeline.progress()._asdict())

    def _look_at_head(self, stream: int) -> None:
        if self.head.over(stream):
            self.schedule.close(stream, "head")
            self._forget(stream)

    def _forget(self, stream: int) -> None:
        """Drop what was kept of a stream that has ended here."""
        if stream not in self.schedule.streams:
            self.cells.forget(stream)
            self._told.pop(stream, None)
            self.keeper.forget(stream)
            self.hollow.discard(stream)

    def _check_owed(self) -> None:
        """Streams that stand still with no source to wait for are a failure, not something to wait for.

        Only the head can tell: it knows what is under way. Dead or silent neighbours are found by the channels.
        """
        if not self.head or self.head.sampling or not self.schedule.streams:
            self._moved = self.trace.clock()
            return
        if self.trace.clock() - self._moved > self.config.launcher.timeout_s:
            stream, chunk = self.head.oldest() or (min(self.schedule.streams), 0)
            raise PeerLost(f"nothing moves: chunk {chunk} of stream {stream} is not back; {self._where()}")

    def _lost(self, error: ChannelError) -> PeerLost:
        return PeerLost(f"worker {error.peer} is lost ({error.reason}); {self._where()}")

    def _where(self) -> str:
        """What this worker did last, for whoever looks for a failure."""
        return f"worker {self.index} had come to {self._came_to()}"

    def _came_to(self) -> str:
        """The pass that this worker was given last, in words."""
        at = self._at
        return f"{self.cells.name(at)} of chunk {at.chunk} of stream {at.stream}" if at else "nothing yet"

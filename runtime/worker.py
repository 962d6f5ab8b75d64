"""The worker: one loop that takes what is ready, computes it, and sends the result on.

The same code runs under every launcher. What a worker is (head, cells, last stage) is read off the plan once, as
role objects; the loop only knows tasks. Order: attention-sink and commit passes first, because chunks wait for
them; then the oldest chunk, the one furthest along its route; new chunks last.
"""

from __future__ import annotations

import queue
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from conf.schema import Config
from parallel.channels import Arrival, Closed, Failure, Sender
from parallel.message import Message
from parallel.plan import Cell, Plan
from runtime.block import Block
from runtime.finish import Companion, Finish, Finished
from runtime.head import Entry, Head
from runtime.parts import Parts
from runtime.report import Timeline, stream_report, worker_report
from runtime.trace import Trace
from runtime.versions import announced, made_from, to_rows
from stages.denoise.denoiser import ChunkConditioning
from stages.denoise.draws import Draws

IDLE_S = 0.2
"""How often a waiting worker looks at its watch."""


class PeerLost(Exception):  # noqa: N818  an event to report, not a programming error
    """A worker is gone or silent while work is owed. One line: who, what was waited for."""


@dataclass
class Task:
    """A message that was taken in, and the bank level it is for (maintenance) or 0."""

    message: Message
    level: int = 0


class Worker:
    """One worker of a plan.

    Args:
        plan, index: the plan and which of its workers this is.
        config: the run.
        parts: what this worker holds.
        senders: per peer there is a channel to.
        inbox: where every channel's arrivals and failures come in.
        notify: told a stream's index and timeline after every finished chunk (last stage only).
    """

    def __init__(
        self,
        plan: Plan,
        index: int,
        config: Config,
        parts: Parts,
        senders: dict[int, Sender],
        inbox: queue.Queue,
        trace: Trace,
        notify: Callable[[int, Timeline], None] = lambda stream, timeline: None,
    ):
        self.plan, self.index, self.config, self.parts = plan, index, config, parts
        self.senders, self.inbox, self.trace, self.notify = senders, inbox, trace, notify
        self.sampler = parts.sampler
        self.streams = config.stream.count
        self.draws = [Draws(config.stream.seed, stream_id) for stream_id in parts.stream_ids]
        self.blocks: dict[int, Block] = {
            b: Block(denoiser, plan.steps_of(index, b)) for b, denoiser in parts.denoisers.items()
        }
        self.cells = [c for c in plan.route if plan.owner(c) == index]
        self.head = (
            Head(parts.conditionings, self.sampler.steps, parts.dtype, plan.in_flight, inbox.put, trace.clock)
            if index == plan.encode
            else None
        )
        self.finish = Finish(parts.decoder, parts.outputs, config.model.fps, trace) if index == plan.decode else None
        self.tasks: list[Task] = []
        self._at, self._moved = "nothing yet", trace.clock()
        self._announced = announced(config.model)
        self._entered = [0] * self.streams
        self._received: dict[int, set[tuple[str, int]]] = {s: set() for s in range(self.streams)}
        everything = set(range(self.streams))
        self._open = {
            "cells": set(everything) if self.cells else set(),
            "finish": set(everything) if self.finish else set(),
            "head": set(everything) if self.head else set(),
        }

    # -- the loop -------------------------------------------------------------------------------------------------

    def run(self) -> dict[str, Any]:
        """Work until every stream has ended here; returns this worker's part of the report.

        Raises:
            PeerLost: a peer failed, or owed work did not come within `launcher.timeout_s`.
            UserError: a live source or a sink failed in a way the user can mend.
        """
        try:
            while any(self._open.values()):
                self._take_in(block=False)
                if self.head:
                    self.head.ask(self._may_enter)
                task = self._next()
                if task is not None:
                    self._execute(task)
                elif any(self._open.values()):
                    self._take_in(block=True)
        finally:
            self.close()
        return self.result()

    def close(self) -> None:
        """Finish files, let go of sources; channels stay with whoever made them."""
        if self.finish:
            self.finish.close()
        for conditioning in self.parts.conditionings:
            conditioning.close()
        self.trace.close()

    def result(self) -> dict[str, Any]:
        """Numbers of this worker."""
        return worker_report(self.trace, self.parts.weight_bytes, self.parts.device) | {
            "streams": [
                stream_report(name, held.timeline, held.outputs)
                for name, held in zip(self.parts.stream_ids, self.finish.streams, strict=True)
            ]
            if self.finish
            else []
        }

    def _take_in(self, block: bool) -> None:
        """Move what has come in to the tasks; if `block`, wait for something first."""
        start = self.trace.clock()
        while True:
            try:
                item = self.inbox.get(timeout=IDLE_S) if block else self.inbox.get_nowait()
            except queue.Empty:
                if not block:
                    return
                self._check_owed()
                continue
            if block:
                self.trace.add("wait", -1, start, self.trace.clock() - start)
            block = False
            self._moved = self.trace.clock()
            self._accept(item)

    def _accept(self, item: Arrival | Closed | Failure | Entry | Exception) -> None:
        if isinstance(item, Failure):
            raise PeerLost(f"worker {item.peer} is lost ({item.error.reason}); {self._where()}")
        if isinstance(item, Exception):
            raise item
        if isinstance(item, Closed):
            return
        if isinstance(item, Entry):
            self._enter(item)
            return
        message = item.message
        # Copies: the buffer behind an arrival is the channel's again once it is released.
        message = replace(message, tensors={k: t.clone() for k, t in message.tensors.items()})
        item.release()
        self._deliver(message)

    def _deliver(self, message: Message) -> None:
        """A message for this worker, from a channel or from itself."""
        if message.kind == "done":
            self.head.done(message.stream, message.chunk, message.times)
            self._close_head(message.stream)
        elif message.kind == "sound":
            meta = message.tensors["meta"].tolist()
            sound = message.tensors["sound"].numpy() if "sound" in message.tensors else None
            companion = Companion(sound, int(meta[0]), meta[1], bool(meta[2]))
            self.finish.streams[message.stream].companions[message.chunk] = companion
        elif message.kind == "final":
            held = self.finish.streams[message.stream]
            held.latents[message.chunk] = Finished(message.chunk, message.tensors["x"], message.times)
        elif message.kind in ("prefill", "commit"):
            # Of commits only those of the attention sink are kept: `clean` has one for every chunk.
            self._received[message.stream] |= {(message.kind, message.chunk)} & self._announced.keys()
            self.tasks.extend(Task(message, level) for level in self.blocks[message.block].levels)
        else:
            self.tasks.append(Task(message))

    def _send(self, target: int, message: Message) -> None:
        if target == self.index:
            self._deliver(message)
            return
        with self.trace.span("send", message.chunk):
            self.senders[target].send(message)

    # -- what is ready -----------------------------------------------------------------------------------------------

    def _next(self) -> Task | None:
        """The ready task that others wait for most."""
        if self.finish:
            for stream, held in enumerate(self.finish.streams):
                if held.ready:
                    return Task(Message("final", stream=stream, chunk=held.next))
        ready = [t for t in self.tasks if self._ready(t)]
        if not ready:
            return None
        task = min(ready, key=self._urgency)
        self.tasks.remove(task)
        return task

    @staticmethod
    def _urgency(task: Task) -> tuple:
        m = task.message
        return (m.kind not in ("prefill", "commit"), m.chunk, -m.step, -m.block, m.stream)

    def _ready(self, task: Task) -> bool:
        m = task.message
        if m.kind == "end" and m.step == self.plan.workload.steps:
            return self.finish.streams[m.stream].next == m.chunk
        block = self.blocks[m.block]
        if m.kind == "step":
            return block.step_ready(m.stream, m.chunk, m.step)
        if m.kind == "prefill":
            return block.prefill_ready(m.stream, task.level, m.chunk)
        if m.kind == "commit":
            return block.commit_ready(m.stream, task.level, m.chunk)
        return block.end_ready(m.stream, m.chunk) and self._all_received(m.stream, m.chunk)

    def _all_received(self, stream: int, chunks: int) -> bool:
        """Whether every sink version made from the stream's chunks has come: later ones are not waited for."""
        due = {key for key, source in self._announced.items() if 0 <= source < chunks}
        return due <= self._received[stream]

    def _may_enter(self, stream: int, chunk: int) -> bool:
        """Whether the head should sample `chunk`: the one before has begun, and no sink or commit is waited for."""
        if self._entered[stream] < chunk:
            return False
        first = self.blocks[0]
        if (first.commits_due(chunk), first.reference_due(chunk)) == (
            first.commits_due(max(chunk - 1, 0)),
            first.reference_due(max(chunk - 1, 0)),
        ):
            return True
        return first.step_ready(stream, chunk, 0)

    # -- work ---------------------------------------------------------------------------------------------------------

    def _enter(self, entry: Entry) -> None:
        """A sampled chunk (or the end of its stream) at the head of the route."""
        stream, chunk = entry.stream, entry.chunk
        if entry.tensors is None:
            self.head.end(stream)
            self._send(self.plan.head, Message("end", stream=stream, chunk=chunk))
            self._close_head(stream)
            return
        self.trace.add("encode", chunk, entry.began, entry.took_s)
        if entry.reference:
            prefill = Message("prefill", stream=stream, tensors=entry.reference)
            for worker, message in to_rows(self.plan, [prefill]):
                self._send(worker, message)
        self._send(self.plan.decode, Message("sound", stream=stream, chunk=chunk, tensors=entry.companion))
        step = Message("step", stream=stream, chunk=chunk, epoch=entry.epoch, tensors=entry.tensors)
        self._send(self.plan.head, step)

    def _execute(self, task: Task) -> None:
        m = task.message
        stage = m.kind if m.kind in ("final", "end") else self._name(Cell(m.step, m.block), m)
        self._at = f"{stage} of chunk {m.chunk} of stream {m.stream}"
        if m.kind == "final":
            self._finish(m.stream)
        elif m.kind == "step":
            self._step(m)
        elif m.kind == "end":
            self._end(m)
        else:
            self._maintain(task)

    def _step(self, m: Message) -> None:
        block, cell, tensors = self.blocks[m.block], Cell(m.step, m.block), dict(m.tensors)
        if cell == (0, 0) and self.head:
            self._entered[m.stream] = m.chunk + 1
            self.head.ask(self._may_enter)
        start = self.trace.clock()
        if "text" in tensors:
            block.set_text(m.stream, m.epoch, tensors["text"])
        given = ChunkConditioning(tensors.get("audio"), tensors.get("actions"))
        x = tensors["x"].to(self.parts.device)
        incoming = tensors.pop("hidden", x)
        distance = int(tensors["distance"][m.step])
        out = block.step(m.stream, m.chunk, m.step, m.epoch, incoming, given, distance)
        if m.block == len(self.plan.blocks) - 1:
            tensors["x"] = self.sampler.update(m.step, x, out, self._noise(m))
        else:
            tensors["hidden"] = out
        took = self._timed(self._name(cell, m), m.chunk, start)
        times = m.times | {self.index: m.times.get(self.index, 0.0) + took}
        following = self.plan.after(cell)
        if following is None:
            self._final(replace(m, tensors=tensors, times=times))
            return
        step, b = following
        self._send(self.plan.owner(following), replace(m, step=step, block=b, tensors=tensors, times=times))

    def _noise(self, m: Message) -> Tensor | None:
        """The draw for the step after `m`, where the sampler takes one."""
        step = m.step + 1
        if step == self.sampler.steps or not self.sampler.needs_noise(step):
            return None
        given = m.tensors.get(f"noise{step}")
        return self.draws[m.stream].noise(m.chunk, step, m.tensors["x"].shape) if given is None else given

    def _final(self, m: Message) -> None:
        """Latents are final: on to the last stage, and to every bank that is made from them."""
        final = Message("final", stream=m.stream, chunk=m.chunk, times=m.times, tensors={"x": m.tensors["x"]})
        self._send(self.plan.decode, final)
        for worker, message in made_from(self.plan, self.config.model, m):
            self._send(worker, message)

    def _maintain(self, task: Task) -> None:
        """A prefill or commit of one bank; the first of this block's banks sends hidden states on along the row."""
        m, block, tensors = task.message, self.blocks[task.message.block], task.message.tensors
        start = self.trace.clock()
        incoming = tensors.get("hidden", tensors["x"]).to(self.parts.device, self.parts.dtype)
        if m.kind == "prefill":
            if "text" in tensors:
                block.set_text(m.stream, m.epoch, tensors["text"])
            out = block.prefill(m.stream, task.level, m.chunk, m.epoch, incoming)
        else:
            out = block.commit(m.stream, task.level, m.chunk, incoming, int(tensors["distance"][-1]))
        self._timed(self._name(Cell(m.step, m.block), m), m.chunk, start)
        row = self.plan.rows[m.step]
        if m.block + 1 < len(row) and task.level == block.levels[0]:
            self._send(row[m.block + 1], replace(m, block=m.block + 1, tensors=tensors | {"hidden": out}))

    def _finish(self, stream: int) -> None:
        start = self.trace.clock()
        finished = self.finish.run(stream)
        times = finished.times | {self.index: finished.times.get(self.index, 0.0) + self.trace.clock() - start}
        self._send(self.plan.encode, Message("done", stream=stream, chunk=finished.chunk, times=times))
        self.trace.flush()
        self.notify(stream, self.finish.streams[stream].timeline)

    # -- the end ------------------------------------------------------------------------------------------------------

    def _end(self, m: Message) -> None:
        """The end of a stream passes the route behind its last chunk."""
        if m.step == self.plan.workload.steps:
            self.finish.streams[m.stream].outputs.close()
            self._open["finish"].discard(m.stream)
            return
        cell = Cell(m.step, m.block)
        if cell == self.cells[-1]:
            for block in self.blocks.values():
                block.close(m.stream)
            self._open["cells"].discard(m.stream)
        following = self.plan.after(cell)
        if following is None:
            self._send(self.plan.decode, replace(m, step=self.plan.workload.steps, block=0))
        else:
            self._send(self.plan.owner(following), replace(m, step=following.step, block=following.block))

    def _close_head(self, stream: int) -> None:
        lane = self.head.lanes[stream]
        if lane.ended and lane.done >= lane.asked - 1:
            self._open["head"].discard(stream)

    def _check_owed(self) -> None:
        """Streams that stand still with no source to wait for are a failure, not something to wait for.

        Only the head can tell: it knows what is under way. Dead or silent neighbours are found by the channels.
        """
        if not self.head or self.head.sampling:
            self._moved = self.trace.clock()
            return
        if self.trace.clock() - self._moved > self.config.launcher.timeout_s:
            stream, chunk = self.head.oldest() or (min(self._open["head"]), self._entered[min(self._open["head"])])
            raise PeerLost(f"nothing moves: chunk {chunk} of stream {stream} is not back; {self._where()}")

    def _where(self) -> str:
        """What this worker did last, for whoever looks for a failure."""
        return f"worker {self.index} had come to {self._at}"

    # -- small things -------------------------------------------------------------------------------------------------

    def _name(self, cell: Cell, m: Message) -> str:
        """A stage as reports call it: `step0`, `step0.block1`, `commit.block0`, `prefill`."""
        stage = f"step{cell.step}" if m.kind == "step" else m.kind
        return stage if len(self.plan.blocks) == 1 else f"{stage}.block{cell.block}"

    def _timed(self, stage: str, chunk: int, start: float) -> float:
        took = self.trace.clock() - start
        self.trace.add(stage, chunk, start, took)
        return took

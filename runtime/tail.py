"""The last stages that a worker owns: decode and post on a thread each, and an output thread for every stream."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from conf.schema import Config
from parallel.message import Message
from parallel.pacing import OUTPUT as WRITING
from parallel.passes import Pass
from parallel.plan import Plan
from runtime.board import Board
from runtime.decoding import Decoding
from runtime.guard import Guard
from runtime.messages import STOPPED
from runtime.orders import Open
from runtime.output import Output, Sidecar
from runtime.parts import Parts
from runtime.report import Timeline
from runtime.saving import DECODER_PART, NOTHING, Mark, Saver, Whole, parts
from runtime.snapshot import OUTPUT
from runtime.stages import StageThread
from runtime.timing import Timer
from runtime.turn import STAGE, Turn
from stages.denoise.sampler import require_finite_steps
from stages.inputs import FINITE

TOLD_S = 0.25
"""How often a stream's progress is told, at most."""


@dataclass(frozen=True)
class Saved:
    """A cut of a stream is whole, or was given up; where a state was due, it is written out, or was given up."""

    stream: int
    chunk: int
    whole: bool


class Tail:
    """One worker's last stages.

    Args:
        plan, index: the plan and which of its workers this is.
        config: the run.
        held: what the worker holds.
        timer, board, guard, saver, turn: the worker's.
        deliver: takes what stages have done, from their threads.
    """

    def __init__(
        self,
        plan: Plan,
        index: int,
        config: Config,
        held: Parts,
        timer: Timer,
        board: Board,
        guard: Guard,
        saver: Saver,
        turn: Turn,
        deliver: Callable[[object], None],
    ):
        self.plan, self.index, self.config, self.held = plan, index, config, held
        self.timer, self.trace = timer, timer.trace
        self.board, self.guard, self.saver, self.deliver = board, guard, saver, deliver
        self.stages = tuple(stage.name for stage in plan.stages)
        """Names of the plan's last stages, in order; a pass on the i-th has step S + i."""
        self._last = plan.workload.steps + max(
            (i for i, stage in enumerate(plan.stages) if stage.worker == index), default=-1
        )
        owned = {stage.name for stage in plan.stages if stage.worker == index}
        self.sidecars: dict[tuple[int, int], Sidecar] = {}
        """Of chunks that have not been put out yet, by (stream, chunk)."""
        self.orders: dict[int, Open] = {}
        self.decodings: dict[int, Decoding] = {}
        self.outputs: dict[int, Output] = {}
        work = {"decode": self._decode, "post": self._post}
        self.shared = {
            name: StageThread(name, work[name], deliver, guard, held.queue, partial(turn, STAGE))
            for name in work
            if name in owned
        }
        """Threads that all streams share."""
        self.own: dict[int, StageThread] = {}
        """Output threads, by stream."""
        self._puts_out = "output" in owned
        self._told: dict[int, float] = {}
        """When each stream's progress was told last."""
        for thread in self.shared.values():
            thread.start()

    # -- what the loop asks -------------------------------------------------------------------------------------------

    def open(self, order: Open) -> None:
        """A new stream.

        Raises:
            OSError: the state that it goes on from cannot be read.
        """
        stream, keep = order.stream, order.keep
        self.orders[stream] = order
        if self._puts_out:
            if keep:
                self.saver.puts_out()
            made = (keep.first, keep.frames) if keep else (0, 0)
            timeline = Timeline(self.config.model.fps, self.trace.clock, *made)
            output = self.outputs[stream] = self.held.kept.outputs.pop(stream, None) or Output(
                order.config,
                self.config.model,
                partial(self.held.outputs, self.config, order),
                timeline,
                self.trace,
                keep,
                "decode" in self.stages,
                order.source.session is not None,
            )
            output.hold()
            if keep and keep.journal:
                output.resumed = lambda chunk: self.board.event({"event": "shown", "stream": stream, "chunk": chunk})
            self.own[stream] = StageThread(
                "output", partial(self._output, output), self.deliver, self.guard, self.held.queue.device.queue()
            )
            self.own[stream].start()
        if self.held.decoder:
            state = keep.state if keep else None
            self.decodings[stream] = Decoding.of(self.held.decoder, self.config.model, state)

    def sidecar(self, message: Message) -> None:
        """What goes with a chunk has come."""
        if not message.hollow:
            self.sidecars[message.stream, message.chunk] = Sidecar.of(message.tensors, message.moments)

    def put(self, item: Pass, message: Message) -> None:
        """Have a stage's pass worked on; it comes back as `Performed`."""
        name = self.name(item)
        (self.shared.get(name) or self.own[item.stream]).put(item, message)

    def name(self, item: Pass) -> str:
        """The stage of a pass."""
        return self.stages[item.step - self.plan.workload.steps]

    def forget(self, stream: int) -> None:
        """A stream has ended here."""
        self.orders.pop(stream, None)
        self.outputs.pop(stream, None)
        self.decodings.pop(stream, None)
        self._told.pop(stream, None)
        for key in [key for key in self.sidecars if key[0] == stream]:
            del self.sidecars[key]
        if thread := self.own.pop(stream, None):
            thread.close()

    def close(self, keeps: bool = False) -> None:
        """Finish every file and end every thread; errors are the streams'.

        Args:
            keeps: whether streams go on in another generation: files stay open then, and what waits is thrown away.
        """
        if keeps:
            # A viewer who has paused holds up nobody else's next generation.
            for output in self.outputs.values():
                output.release()
        for thread in (*self.shared.values(), *self.own.values()):
            thread.close(drop=keeps)
        if keeps:
            self.held.kept.outputs |= self.outputs
            return
        for stream, output in self.outputs.items():
            with self.guard(stream, "closing its files"):
                output.close()

    def doing(self) -> list[tuple[Pass, float]]:
        """Passes that the stages are at, and since when, in seconds of `time.perf_counter`."""
        threads = (*self.shared.values(), *list(self.own.values()))
        return [at for thread in threads if (at := thread.at) is not None]

    # -- work, on the stages' threads ---------------------------------------------------------------------------------

    def _decode(self, item: Pass, m: Message) -> Message:
        stream, chunk = item.stream, item.chunk
        if item.kind == "save":
            done = False
            try:
                if not m.hollow:
                    self.decodings[stream].cut(self.saver, stream, chunk, Mark.of(m.note))
                    done = True
            finally:
                if not done:
                    self.saver.part(stream, chunk, DECODER_PART, None)
        elif item.kind == "end":
            self.decodings.pop(stream, None)
        elif not m.hollow:
            x, sidecar = m.tensors["x"], self._sidecar(item)
            with self.timer("decode", chunk) as span:
                self.decodings[stream].prime(sidecar.lasting)
                m.tensors = m.tensors | {"frames": self.decodings[stream](x)}
            m.spans = [*m.spans, (self.index, span)]  # the worker's, whose device it uses
        return m

    def _post(self, item: Pass, m: Message) -> Message:
        if item.kind == "stage" and not m.hollow:
            with self.timer("post", item.chunk) as span:
                m.tensors = m.tensors | {"frames": self.held.post(m.tensors["frames"])}
            m.spans = [*m.spans, (self.index, span)]
        return m

    def _output(self, output: Output, item: Pass, m: Message) -> Message:
        stream, chunk = item.stream, item.chunk
        if item.kind == "save":
            self._save(output, item, m)
        elif item.kind == "end":
            self._end(output, item, m)
        elif not m.hollow:
            start, sidecar = self.trace.clock(), self._sidecar(item)
            require_finite_steps(m.tensors[FINITE], self.plan.workload.steps, chunk)
            output.write(chunk, m.tensors["x"], m.tensors.get("frames"), sidecar)
            m.times[WRITING] = self.trace.clock() - start
            self._tell_progress(stream, output, TOLD_S)
        m.tensors = {}
        return m

    def _save(self, output: Output, item: Pass, m: Message) -> None:
        """Complete a cut when its parts are there; of a stream that was given up, wait for its parts to drop them."""
        stream, chunk, keep, mark = item.stream, item.chunk, self.orders[item.stream].keep, Mark.of(m.note)
        level = self.plan.workload.rule.level
        banks = (
            (self.plan.owner(cell), cell.block, cell.step) for cell in self.plan.route if level(cell.step) == cell.step
        )
        awaited = parts(banks, "decode" in self.stages, self.plan.degree)

        def then(whole: bool) -> None:
            self.deliver(Saved(stream, chunk, whole))

        try:
            if m.hollow or chunk < output.next:
                raise OSError(NOTHING)  # of chunks that were put out before, later ones have changed what is here
            output.save(self.saver, stream, chunk, awaited, mark, then)
        except Exception as error:
            awaited.discard(OUTPUT)
            output.awaits(chunk)

            def dropped(whole: bool) -> None:
                then(whole)
                output.given_up(chunk)

            whole = Whole(stream, chunk, keep, awaited, {}, {}, dropped, failure=str(error), disk=mark.disk)
            whole.ready.set()
            self.saver.complete(whole)
            if not isinstance(error, OSError):
                raise  # a disk that refuses costs the state, anything else the stream

    def _end(self, output: Output, item: Pass, m: Message) -> None:
        """Finish a stream's files, and tell its user how it went."""
        stream, keep = item.stream, self.orders[item.stream].keep
        with self.guard(stream, "closing its files"):
            output.finished = m.note != STOPPED and not m.hollow
            if keep and keep.first and not m.hollow:
                output.open()  # it may go on from its end, with nothing to add
            output.close()
            output.wait_saved()
        self.saver.remove(stream)
        self._tell_progress(stream, output)
        self.board.event({"event": "ended", "stream": stream, "report": output.report(self.board.refused(stream))})

    # -- small things -------------------------------------------------------------------------------------------------

    def _sidecar(self, item: Pass) -> Sidecar:
        """What came with a chunk; the last stage here lets go of it."""
        key = item.stream, item.chunk
        return self.sidecars.pop(key) if item.step == self._last else self.sidecars[key]

    def _tell_progress(self, stream: int, output: Output, every_s: float = 0.0) -> None:
        """Tell where a stream is, unless that was told just now; chunks may be much faster than anyone reads."""
        now = self.trace.clock()
        if output.timeline.chunks and now - self._told.get(stream, -every_s) >= every_s:
            self._told[stream] = now
            self.board.tell(f"progress/{stream}", output.timeline.progress()._asdict())

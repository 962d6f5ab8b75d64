"""A worker's cells: what its passes do with the tensors of a message. When they run, and what follows, is not here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

from torch import Tensor

from parallel.message import Message
from parallel.passes import MARKS, ROWS, Pass
from parallel.plan import Cell, Plan
from runtime.block import Block
from runtime.orders import Open
from runtime.parts import Parts
from runtime.saving import Saver, bank_part
from runtime.timing import Timer
from stages.denoise.draws import Draws
from stages.denoise.sampler import finite_steps
from stages.inputs import CARRY, FINITE, SEED, noise_name, part

Work = Callable[[Pass, Message], Message]
"""Does what a pass of one kind is for; returns the message that goes on."""
Row = Callable[[Block, Pass, Message, Tensor | None], Tensor | None]
"""Does that for a kind along rows: on a block, with latents or hidden states; returns what the next block takes in."""


class Cells:
    """The blocks of one worker, and the passes over them.

    Args:
        plan, index: the plan and which of its workers this is.
        parts: what this worker holds.
        blocks: its layers.
        timer: times every pass.
        saver: writes what marks cut.

    Attributes:
        work: by kind of pass; of a kind along rows it is the method `_KIND`.
    """

    def __init__(self, plan: Plan, index: int, parts: Parts, blocks: dict[int, Block], timer: Timer, saver: Saver):
        self.plan, self.index, self.parts, self.blocks, self.timer = plan, index, parts, blocks, timer
        self.sampler, self.saver = parts.sampler, saver
        for block in blocks.values():
            block.use(saver)
        self.draws: dict[int, Draws] = {}
        own = {"step": self._step, "save": self._save, "end": self._end}
        rows = plan.workload.passes.on(ROWS)
        self.work: dict[str, Work] = own | {kind: partial(self._write, getattr(self, f"_{kind}")) for kind in rows}
        self._last = max((cell for cell in plan.route if plan.owner(cell) == index), default=None)

    # -- streams ------------------------------------------------------------------------------------------------------

    def open(self, order: Open) -> None:
        """Take banks for a stream, and put them where a state left them.

        Raises:
            torch.OutOfMemoryError, RuntimeError: the device has no room.
            OSError: the state cannot be read.
        """
        stream, keep = order.stream, order.keep
        self.draws[stream] = Draws(order.config.seed, order.config.id)
        for block in self.blocks.values():
            block.open(stream)
        for number, block in self.blocks.items() if keep and keep.place else ():
            for level in self.plan.levels_of(self.index, number):
                block.restore(stream, level, *keep.place)

    def close(self, stream: int) -> None:
        """Let go of a stream."""
        for block in self.blocks.values():
            block.close(stream)
        self.draws.pop(stream, None)

    # -- passes -------------------------------------------------------------------------------------------------------

    def run(self, item: Pass, m: Message) -> Message:
        """Run a pass; of a hollow stream only marks do anything."""
        if m.hollow and self.plan.workload.passes[item.kind].path != MARKS:
            return m
        return self.work[item.kind](item, m)

    def _step(self, item: Pass, m: Message) -> Message:
        """One step over one block; after the last block the next step's input (or final latents) is in `x`."""
        block, tensors = self.blocks[item.block], dict(m.tensors)
        with self.timer(self.name(item), item.chunk) as span:
            self._begin_epoch(block, item, m)
            given, x, schedule = part("given", tensors), tensors["x"], block.denoiser.schedule
            first, together = schedule.first_step(item.chunk), schedule.together(item.step)
            if (item.step, item.block) == (first, 0):
                tensors["x"] = x = block.entering(item.stream, item.chunk, x)
            entering = x[:, :, : len(together) * schedule.chunk_frames] if schedule.joint else x
            incoming = tensors.pop("hidden", entering)
            own = m.timestep if item.step == first else 0.0
            out = block.step(item.stream, item.chunk, item.step, m.epoch, incoming, given, m.distances[item.step], own)
            if item.block == len(self.plan.blocks) - 1:
                noise = partial(self._noise, item, tensors)
                tensors["x"] = x = self.sampler.advance(together, schedule.chunk_frames, x, out, noise, own)
                tensors[FINITE] = finite_steps(x, tensors.get(FINITE, first))
                if schedule.seeded and schedule.commits(item.chunk) and item.step + 1 == self.sampler.steps:
                    tensors[SEED] = entering
                if schedule.joint and item.step + 1 == self.sampler.steps:
                    tensors["x"], tensors[CARRY] = x.split(
                        [schedule.chunk_frames, x.shape[2] - schedule.chunk_frames], 2
                    )
            else:
                tensors["hidden"] = out
        m.tensors, m.spans = tensors, [*m.spans, (self.index, span)]
        return m

    def _noise(self, item: Pass, tensors: dict[str, Tensor], behind: int, step: int) -> Tensor:
        """The draw with which a chunk enters a step: `item`'s, or one so many chunks behind it."""
        given = tensors.get(noise_name(behind, step))
        if given is not None:
            return given
        batch, channels, _, *size = tensors["x"].shape
        shape = batch, channels, len(self.parts.denoisers[item.block].model.frames(item.chunk + behind)), *size
        return self.draws[item.stream].noise(item.chunk + behind, step, shape)

    def _write(self, run: Row, item: Pass, m: Message) -> Message:
        """A pass along rows, over one bank."""
        tensors, block = m.tensors, self.blocks[item.block]
        with self.timer(self.name(item), item.chunk):
            incoming = tensors.get("hidden", tensors.get("x"))
            incoming = None if incoming is None else incoming.to(self.parts.dtype)
            self._begin_epoch(block, item, m)
            out = run(block, item, m, incoming)
        # Not changed in place: passes on other levels may be made from the same message. Later blocks are given hidden
        # states in place of the attention sink's inputs.
        kept = {name: t for name, t in tensors.items() if not name.startswith("sink.") and name != CARRY}
        return replace(m, tensors={} if out is None else kept | {"hidden": out})

    @staticmethod
    def _prefill(block: Block, item: Pass, m: Message, x: Tensor | None) -> Tensor | None:
        return block.prefill(item.stream, item.level, item.chunk, m.epoch, part("sink", m.tensors) if x is None else x)

    @staticmethod
    def _commit(block: Block, item: Pass, m: Message, x: Tensor | None) -> Tensor | None:
        return block.commit(item.stream, item.level, item.chunk, x, m.distances[-1], m.tensors.get(CARRY))

    @staticmethod
    def _recache(block: Block, item: Pass, m: Message, x: Tensor | None) -> Tensor | None:
        return block.recache(item.stream, item.level, item.chunk, m.epoch, x, m.distances[0])

    def _save(self, item: Pass, m: Message) -> Message:
        """Cut the bank of a cell; it is written later, on another thread. One that steps share is that of the first."""
        if item.step != max(item.level, self.plan.workload.first_step(item.chunk)):
            return m
        if m.hollow:
            for rank in range(len(self.plan.group(self.index))):
                name = bank_part(self.index, item.block, item.level, rank)
                self.saver.part(item.stream, item.chunk, name, None)
            return m
        with self.timer(self.name(item), item.chunk):
            self.blocks[item.block].cut(item.stream, item.level, item.chunk, self.index, item.block, m.note)
        return m

    def _end(self, item: Pass, m: Message) -> Message:
        """The stream's last pass over the last cell here gives its banks back."""
        if Cell(item.step, item.block) == self._last:
            self.close(item.stream)
        return m

    @staticmethod
    def _begin_epoch(block: Block, item: Pass, m: Message) -> None:
        if states := part("epoch", m.tensors):
            block.set_states(item.stream, m.epoch, states)

    # -- small things -------------------------------------------------------------------------------------------------

    def name(self, item: Pass) -> str:
        """A stage as reports call it: `step0`, `step0.block1`, `commit.block0`, `prefill`, `decode`, `output`."""
        if item.step >= self.plan.workload.steps:
            return self.plan.stages[item.step - self.plan.workload.steps].name
        if self.plan.workload.passes[item.kind].path == MARKS:
            return item.kind
        stage = item.kind if self.plan.workload.passes[item.kind].path == ROWS else f"{item.kind}{item.step}"
        return stage if len(self.plan.blocks) == 1 else f"{stage}.block{item.block}"

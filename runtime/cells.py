"""A worker's cells: what its passes do with the tensors of a message. When they run, and what follows, is not here."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from torch import Tensor

from conf.schema import StreamConfig
from parallel.message import Message
from parallel.passes import MARKS, ROUTE, STAGES, Pass
from parallel.plan import Plan
from runtime.block import Block
from runtime.parts import Parts
from runtime.state import State
from runtime.trace import Trace
from stages.denoise.denoiser import ChunkConditioning
from stages.denoise.draws import Draws


class Cells:
    """The blocks of one worker, and the passes over them.

    Args:
        plan, index: the plan and which of its workers this is.
        parts: what this worker holds.
        blocks: its layers.
        trace: told how long each pass took.
    """

    def __init__(self, plan: Plan, index: int, parts: Parts, blocks: dict[int, Block], trace: Trace):
        self.plan, self.index, self.parts, self.blocks, self.trace = plan, index, parts, blocks, trace
        self.sampler = parts.sampler
        self.draws: dict[int, Draws] = {}

    def open(self, stream: int, config: StreamConfig) -> None:
        """A new stream; its banks are made when its first pass comes."""
        self.draws[stream] = Draws(config.seed, config.id)

    def resume(self, stream: int, state: State) -> None:
        """Put a stream's banks where a state left them."""
        for number, block in self.blocks.items():
            for level in self.plan.levels_of(self.index, number):
                block.restore(stream, level, str(state.folder))

    def close(self, stream: int) -> None:
        """Let go of a stream's banks."""
        for block in self.blocks.values():
            block.close(stream)

    def forget(self, stream: int) -> None:
        """Drop what else was kept of a stream that has ended here."""
        self.draws.pop(stream, None)

    # -- passes -----------------------------------------------------------------------------------------------------

    def step(self, item: Pass, m: Message) -> Message:
        """One step over one block; after the last block the next step's input (or final latents) is in `x`."""
        if not m.tensors:
            return m
        start, block, tensors = self.trace.clock(), self.blocks[item.block], dict(m.tensors)
        if "text" in tensors:
            block.set_text(item.stream, m.epoch, tensors["text"])
        given = ChunkConditioning.of(tensors)
        x = tensors["x"]
        incoming, distance = tensors.pop("hidden", x), m.distances[item.step]
        out = block.step(item.stream, item.chunk, item.step, m.epoch, incoming, given, distance)
        if item.block == len(self.plan.blocks) - 1:
            tensors["x"] = self.sampler.update(item.step, x, out, self._noise(item, tensors))
        else:
            tensors["hidden"] = out
        m.tensors, m.times[self.index] = tensors, m.times.get(self.index, 0.0) + self._timed(item, start)
        return m

    def _noise(self, item: Pass, tensors: dict[str, Tensor]) -> Tensor | None:
        """The draw for the step after `item`, where the sampler takes one."""
        step = item.step + 1
        if step == self.sampler.steps or not self.sampler.needs_noise(step):
            return None
        given = tensors.get(f"noise{step}")
        return self.draws[item.stream].noise(item.chunk, step, tensors["x"].shape) if given is None else given

    def write(self, item: Pass, m: Message) -> Message:
        """A pass along rows: of one bank of a block."""
        if not m.tensors:
            return m
        start, block, tensors = self.trace.clock(), self.blocks[item.block], m.tensors
        incoming = tensors.get("hidden", tensors.get("x"))
        incoming = None if incoming is None else incoming.to(self.parts.dtype)
        if "text" in tensors:
            block.set_text(item.stream, m.epoch, tensors["text"])
        out = getattr(self, f"_{item.kind}")(block, item, m, incoming)
        self._timed(item, start)
        # Not changed in place: passes on other levels may be made from the same message.
        return replace(m, tensors={} if out is None else tensors | {"hidden": out})

    @staticmethod
    def _prefill(block: Block, item: Pass, m: Message, incoming: Tensor) -> Tensor:
        return block.prefill(item.stream, item.level, item.chunk, m.epoch, incoming)

    @staticmethod
    def _recache(block: Block, item: Pass, m: Message, incoming: Tensor | None) -> Tensor | None:
        return block.recache(item.stream, item.level, item.chunk, m.epoch, incoming, m.distances[0])

    @staticmethod
    def _commit(block: Block, item: Pass, m: Message, incoming: Tensor) -> Tensor:
        return block.commit(item.stream, item.level, item.chunk, incoming, m.distances[-1])

    def save(self, item: Pass, folder: Path) -> dict[str, str]:
        """The bank of a cell to a state; returns the files' names and sha256. A bank that steps
        share is that of step 0, its level.

        Raises:
            OSError: the disk refuses.
        """
        block = self.blocks[item.block]
        if item.step != item.level:
            return {}
        with self.trace.span(self.name(item), item.chunk):
            return block.save(item.stream, item.level, str(folder))

    # -- small things -------------------------------------------------------------------------------------------------

    def name(self, item: Pass) -> str:
        """A pass as reports call it: `step0`, `step0.block1`, `commit.block0`, `prefill`, `decode`, `output`, `end`."""
        path = self.plan.workload.passes[item.kind].path
        if path == STAGES:
            return self.plan.stage_of(item)
        if path == MARKS:
            return item.kind
        stage = f"{item.kind}{item.step}" if path == ROUTE else item.kind
        return stage if len(self.plan.blocks) == 1 else f"{stage}.block{item.block}"

    def _timed(self, item: Pass, start: float) -> float:
        """Note how long a pass took; returns the seconds."""
        took = self.trace.clock() - start
        self.trace.add(self.name(item), item.chunk, start, took)
        return took

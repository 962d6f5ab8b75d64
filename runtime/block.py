"""A block of layers on a worker: its banks and states, stream by stream. When a pass may run the schedule says."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from conf.schema import ModelConfig
from runtime.banks import copy_early, cut_bank, load_bank
from runtime.early import Expected, Rewrites
from runtime.pool import BankPool
from runtime.saving import BANK, Mark, Saver, bank_part
from runtime.snapshot import FINISHED
from runtime.state import snapshot
from stages.denoise.bank import Bank
from stages.denoise.denoiser import Denoiser, StreamBanks
from stages.denoise.finished import Finished
from stages.inputs import Given, inputs_of, with_chunk


@dataclass
class BankState:
    """How far one bank is.

    Attributes:
        bank: keys and values.
        epoch: of the last chunk that was put in.
        commits: chunks whose clean keys and values are in.
        reference: the chunk from which the reference in the bank holds; -1: none.
        expected: when it is cut next.
        part: what its part of cuts is called; empty: it was not cut yet.
    """

    bank: Bank
    epoch: int = -1
    commits: int = 0
    reference: int = -1
    expected: Expected = field(default_factory=Expected)
    part: str = ""


@dataclass
class BlockStream:
    """One stream on one block."""

    held: StreamBanks
    """Of the block's pool."""
    banks: dict[int, BankState]
    finished: Finished
    """Of the first block with latents; others are given hidden states."""
    given: dict[int, tuple[Given, int]] = field(default_factory=dict)
    """What was given for chunks that may still be committed, and their epochs."""
    states: dict[int, Any] = field(default_factory=dict)
    """By epoch."""


class Block:
    """The cells of one block on one worker.

    Args:
        denoiser: the block's layers.
        steps: steps run here.
        pool: of the block's banks; None: one that is empty.
    """

    def __init__(self, denoiser: Denoiser, steps: tuple[int, ...], pool: BankPool | None = None):
        self.denoiser, self.steps = denoiser, steps
        self.pool = pool or BankPool(denoiser, tuple(dict.fromkeys(denoiser.level(s) for s in steps)), 0)
        self.model: ModelConfig = denoiser.model
        self.references = tuple(v for v in denoiser.schedule.versions if v.kind == "prefill")
        self.inputs = with_chunk(inputs_of(self.model))
        self.rewrites = Rewrites(self.model, denoiser.schedule)
        self.streams: dict[int, BlockStream] = {}
        self.saver: Saver | None = None

    def use(self, saver: Saver) -> None:
        """Have cuts written by `saver`."""
        self.saver = saver

    def open(self, stream: int) -> None:
        """Take banks for a stream.

        Raises:
            torch.OutOfMemoryError, RuntimeError: the device has no room for them.
        """
        held = self.pool.take()
        states = {level: BankState(bank) for level, bank in held.banks.items()}
        self.streams[stream] = BlockStream(held, states, Finished(self.denoiser.schedule.kept, self.inputs))

    def close(self, stream: int) -> None:
        """Give a stream's banks back; nothing happens where it has none."""
        if stream in self.streams:
            self.pool.give(self.streams.pop(stream).held)
            if self.saver:
                self.saver.forget(stream, BANK)

    def clear(self) -> None:
        """Give all streams' banks back."""
        for stream in list(self.streams):
            self.close(stream)

    # -- work -------------------------------------------------------------------------------------------------------

    @torch.inference_mode()
    def set_states(self, stream: int, epoch: int, inputs: Given) -> None:
        """Inputs of an epoch, once."""
        states = self.streams[stream].states
        if epoch not in states:
            states[epoch] = self.denoiser.network.states(inputs)

    def _view(self, stream: int, level: int, epoch: int) -> StreamBanks:
        held = self.streams[stream]
        return held.held.view(level, held.states.get(epoch))

    def entering(self, stream: int, chunk: int, x: Tensor) -> Tensor:
        """Latents of all chunks that are denoised together with `chunk`, of which `x` are those that enter."""
        return self.streams[stream].finished.entering(chunk, x)

    def step(self, stream: int, chunk: int, step: int, epoch: int, x: Tensor, given: Given, distance: int,
        timestep: float = 0.0,
    ) -> Tensor:  # fmt: skip
        """The step's forward over this block; advances its bank. The network is told the step's timestep or another."""
        level, held = self.denoiser.level(step), self.streams[stream]
        self._early(stream, held.banks[level], chunk)
        out = self.denoiser.step(self._view(stream, level, epoch), step, chunk, x, given, distance, timestep)
        if step == self._last_step(level):
            held.banks[level].epoch = epoch
        if self.denoiser.schedule.commits(chunk):
            held.given[chunk] = given, epoch
        self._forget_states(held)
        return out

    def prefill(self, stream: int, level: int, holds: int, epoch: int, sink: Given | Tensor) -> Tensor:
        """Put an attention sink's inputs (or hidden states of them) that hold from chunk `holds` in a bank."""
        out = self.denoiser.prefill(self._view(stream, level, epoch), sink)
        self.streams[stream].banks[level].reference = holds
        return out

    def commit(
        self, stream: int, level: int, chunk: int, x: Tensor, distance: int, carry: Tensor | None = None
    ) -> Tensor:
        """Put a finished chunk's clean keys and values in a bank.

        Args:
            carry: latents of chunks behind it, for the first block.
        """
        held = self.streams[stream]
        given, epoch = held.given[chunk]
        out = self.denoiser.commit(self._view(stream, level, epoch), chunk, x, given, distance)
        held.banks[level].commits = chunk + 1
        held.finished.add(chunk, x if self.denoiser.network.first else None, given, carry)
        if all(s.commits > chunk for s in held.banks.values()):
            del held.given[chunk]
        return out

    def recache(
        self, stream: int, level: int, chunk: int, epoch: int, hidden: Tensor | None, distance: int
    ) -> Tensor | None:
        """Make a bank anew with the states of an epoch that begins with `chunk`; None for a stream that was cancelled.

        Args:
            hidden: what the block before gave; the first block has latents of its own.
        """
        past = self.streams[stream].finished.joined(self.denoiser.schedule.recached(chunk))
        if past is None:
            return None
        x, given = past
        incoming = x if hidden is None else hidden
        return self.denoiser.recache(self._view(stream, level, epoch), chunk, incoming, given, distance)

    # -- going on ---------------------------------------------------------------------------------------------------

    def cut(self, stream: int, level: int, chunk: int, worker: int, block: int, note: str) -> None:
        """Have a bank, and what the first block runs again, written as they are now, before `chunk`.

        Args:
            worker, block: whose bank, for the name of the part.
            note: of the mark.
        """
        held, share, done = self.streams[stream], self.denoiser.share, False
        name = bank_part(worker, block, level, share.rank)
        try:
            again = held.finished.content() if held.finished.most and self.denoiser.network.first else {}
            state = held.banks[level]
            cut_bank(self.saver, stream, chunk, name, level, state.bank, share, again, Mark.of(note), self.rewrites)
            state.expected.made(chunk)
            state.part, done = name, True
        finally:
            if not done:
                self.saver.part(stream, chunk, name, None)

    def _early(self, stream: int, state: BankState, chunk: int) -> None:
        """Before a pass of `chunk`: have copied what the chunk behind it would wait for, if a cut is between them."""
        if state.expected.begins(chunk) and state.bank is not None:
            copy_early(self.saver, stream, state.part, state.bank, chunk, self.rewrites)

    def restore(self, stream: int, level: int, folder: str, cut: int) -> None:
        """Take a bank from what `runtime.state.snapshot` finds there."""
        state, stream_held = snapshot(folder, cut), self.streams[stream]
        held = stream_held.banks[level]
        load_bank(state, level, held.bank, self.denoiser.share)
        held.commits, held.expected = state.chunk, Expected(state.chunk)
        held.reference = max((v.in_force_from for v in self.references if v.in_force_from < state.chunk), default=-1)
        if stream_held.finished.most:
            network = self.denoiser.network
            content = {name: tensor.to(network.device) for name, tensor in state.read(FINISHED)[0].items()}
            stream_held.finished.restore(content, latents=network.first)

    def _last_step(self, level: int) -> int:
        return max(s for s in self.steps if self.denoiser.level(s) == level)

    def _forget_states(self, held: BlockStream) -> None:
        """Drop states that no bank here will be asked for again: epochs only rise, bank by bank."""
        oldest = min(s.epoch for s in held.banks.values())
        needed = {epoch for _, epoch in held.given.values()}
        if any(v.source >= 0 and s.reference < v.in_force_from for v in self.references for s in held.banks.values()):
            needed.add(0)  # a recalibration is made from chunk 0, and read with its states
        for epoch in [e for e in held.states if e < oldest and e not in needed]:
            del held.states[epoch]

"""A block of layers on a worker: its banks and text for every stream. When a pass may run is the schedule's to say."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from conf.schema import ModelConfig
from runtime.banks import load_bank, save_bank
from runtime.state import FINISHED, State, write
from runtime.versions import references
from stages.denoise.bank import Bank
from stages.denoise.denoiser import ChunkConditioning, Denoiser, StreamBanks
from stages.denoise.finished import Finished
from stages.denoise.layers import KeysValues


@dataclass
class BankState:
    """How far one bank is.

    Attributes:
        bank: keys and values.
        epoch: of the last chunk that was put in.
        commits: chunks whose clean keys and values are in.
        reference: the chunk from which the reference in the bank holds; -1: none.
    """

    bank: Bank
    epoch: int = -1
    commits: int = 0
    reference: int = -1


@dataclass
class BlockStream:
    """One stream on one block."""

    banks: dict[int, BankState]
    finished: Finished
    """Of the first block with latents; others are given hidden states."""
    given: dict[int, tuple[ChunkConditioning, int]] = field(default_factory=dict)
    """Conditioning and epoch of chunks that may still be committed."""
    texts: dict[int, dict[int, KeysValues]] = field(default_factory=dict)


class Block:
    """The cells of one block on one worker.

    Args:
        denoiser: the block's layers.
        steps: steps run here.
    """

    def __init__(self, denoiser: Denoiser, steps: tuple[int, ...]):
        self.denoiser, self.steps = denoiser, steps
        self.model: ModelConfig = denoiser.model
        self.references = references(self.model)
        self.streams: dict[int, BlockStream] = {}

    @property
    def levels(self) -> tuple[int, ...]:
        return tuple(dict.fromkeys(self.denoiser.level(s) for s in self.steps))

    def stream(self, stream: int) -> BlockStream:
        """A stream's state, opened when it first appears."""
        if stream not in self.streams:
            banks = self.denoiser.open(self.levels).banks
            states = {level: BankState(bank) for level, bank in banks.items()}
            self.streams[stream] = BlockStream(states, Finished(self.model.recache_chunks))
        return self.streams[stream]

    def close(self, stream: int) -> None:
        self.streams.pop(stream, None)

    # -- work -------------------------------------------------------------------------------------------------------

    @torch.inference_mode()
    def set_text(self, stream: int, epoch: int, rows: Tensor) -> None:
        """Text rows of an epoch, once."""
        texts = self.stream(stream).texts
        if epoch not in texts:
            texts[epoch] = self.denoiser.network.text_states(rows)

    def _view(self, stream: int, level: int, epoch: int) -> StreamBanks:
        held = self.stream(stream)
        return StreamBanks({level: held.banks[level].bank}, held.texts[epoch])

    def step(
        self, stream: int, chunk: int, step: int, epoch: int, x: Tensor, given: ChunkConditioning, distance: int
    ) -> Tensor:
        """The step's forward over this block; advances its bank."""
        level, held = self.denoiser.level(step), self.stream(stream)
        out = self.denoiser.step(self._view(stream, level, epoch), step, chunk, x, given, distance)
        if step == self._last_step(level):
            held.banks[level].epoch = epoch
        if self.denoiser.commits(chunk):
            held.given[chunk] = given, epoch
        self._forget_texts(held)
        return out

    def prefill(self, stream: int, level: int, holds: int, epoch: int, reference: Tensor) -> Tensor:
        """Put a reference that holds from chunk `holds` in a bank."""
        out = self.denoiser.prefill(self._view(stream, level, epoch), reference)
        self.stream(stream).banks[level].reference = holds
        return out

    def commit(self, stream: int, level: int, chunk: int, x: Tensor, distance: int) -> Tensor:
        """Put a finished chunk's clean keys and values in a bank."""
        held = self.stream(stream)
        given, epoch = held.given[chunk]
        out = self.denoiser.commit(self._view(stream, level, epoch), chunk, x, given, distance)
        held.banks[level].commits = chunk + 1
        held.finished.add(chunk, x if self.denoiser.network.first else None, given)
        if all(s.commits > chunk for s in held.banks.values()):
            del held.given[chunk]
        return out

    def recache(
        self, stream: int, level: int, chunk: int, epoch: int, hidden: Tensor | None, distance: int
    ) -> Tensor | None:
        """Make a bank anew with the text of an epoch that begins with `chunk`; None for a stream that was cancelled.

        Args:
            hidden: what the block before gave; the first block has latents of its own.
        """
        past = self.stream(stream).finished.joined(self.denoiser.recached(chunk))
        if past is None:
            return None
        x, given = past
        incoming = x if hidden is None else hidden
        return self.denoiser.recache(self._view(stream, level, epoch), chunk, incoming, given, distance)

    # -- going on ---------------------------------------------------------------------------------------------------

    def save(self, stream: int, level: int, folder: str) -> dict[str, str]:
        """Write a bank, and what the first block runs again, to a state; returns the files' names and sha256.

        Raises:
            OSError: the disk refuses.
        """
        held = self.stream(stream)
        files = save_bank(Path(folder), level, held.banks[level].bank, self.denoiser.share)
        if files and held.finished.most and self.denoiser.network.first:
            files |= write(Path(folder), FINISHED, held.finished.content())
        return files

    def restore(self, stream: int, level: int, folder: str) -> None:
        """Take a bank from a state."""
        state, stream_held = State(Path(folder)), self.stream(stream)
        held = stream_held.banks[level]
        load_bank(state, level, held.bank, self.denoiser.share)
        held.commits = state.chunk
        held.reference = max((v.in_force_from for v in self.references if v.in_force_from < state.chunk), default=-1)
        if stream_held.finished.most:
            stream_held.finished.restore(state.read(FINISHED)[0], latents=self.denoiser.network.first)

    def _last_step(self, level: int) -> int:
        return max(s for s in self.steps if self.denoiser.level(s) == level)

    def _forget_texts(self, held: BlockStream) -> None:
        """Drop text that no bank here will be asked for again: epochs only rise, bank by bank."""
        oldest = min(s.epoch for s in held.banks.values())
        needed = {epoch for _, epoch in held.given.values()}
        if any(v.source >= 0 and s.reference < v.in_force_from for v in self.references for s in held.banks.values()):
            needed.add(0)  # a recalibration is made from chunk 0, and read with its text
        for epoch in [e for e in held.texts if e < oldest and e not in needed]:
            del held.texts[epoch]

"""Inference rules to compare a student under: which history it reads, and what its attention sink is.

| | |
|---|---|
| history `same_level` | every step reads what the same step wrote: one bank per step |
| history `clean` | all steps read finished chunks, committed at t = 0: one bank |
| sink `clean` | the reference, or the first chunk, at t = 0 |
| sink `noisy` | the reference at each bank's own noise level; or the first chunk as its last write left it |
| sink `none` | no attention sink; the window stays as long as it was |
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from conf.schema import ModelConfig
from stages.denoise.bank_pass import BankPass
from stages.denoise.denoiser import Denoiser, StreamBanks
from stages.denoise.history import Place
from stages.denoise.network import Network
from stages.denoise.schedule import Schedule
from stages.inputs import REFERENCE, Given

HISTORIES, SINKS = ("same_level", "clean"), ("none", "noisy", "clean")


@dataclass(frozen=True)
class Rules:
    """One way to run a model. `None` stands for the model's own."""

    history: str | None = None
    sink: str = "clean"

    def __str__(self) -> str:
        return f"history {self.history or 'own'}, sink {self.sink}"

    def of(self, model: ModelConfig) -> ModelConfig:
        """The model under these rules."""
        model = replace(model, context=self.history or model.context)
        return replace(model, reference=False, sink_frames=0) if self.sink == "none" else model

    def denoiser(self, model: ModelConfig, network: Network, rows: int, columns: int) -> Denoiser:
        """The passes of the model under these rules."""
        kind = NoisySink if self.sink == "noisy" else Denoiser
        return kind(self.of(model), network, rows, columns)


@dataclass(frozen=True)
class _NoisySchedule(Schedule):
    def commits(self, chunk: int) -> bool:
        """As ever, but a chunk of the attention sink keeps what its steps wrote."""
        return super().commits(chunk) and chunk * self.chunk_frames >= self.sink_frames


class NoisySink(Denoiser):
    """A denoiser whose attention sink is never clean: what SAF's ablation shows to freeze the picture."""

    def __init__(self, *args):
        super().__init__(*args)
        self.schedule = _NoisySchedule(**vars(self.schedule))

    @torch.inference_mode()
    def prefill(self, stream: StreamBanks, sink: Given, states: Any = None) -> Tensor:
        """As `Denoiser.prefill`, with the reference noised to the level of each bank's last step."""
        reference = out = sink[REFERENCE]
        frames, states = self.layout.reference, stream.states if states is None else states
        positions = range(-frames, 0)
        place = Place(positions, ((0, 0, frames),), ((0, frames),))
        noise = torch.randn(reference.shape, generator=torch.Generator().manual_seed(0)).to(reference)
        for level, bank in stream.banks.items():
            step = level if self.model.rule.bank_per_step else self.sampler.steps - 1
            sigma = self.sampler.sigmas[step]
            x = ((1 - sigma) * reference + sigma * noise).to(self.network.device, self.network.dtype)
            attend = BankPass(bank, self.rope.table(positions), place, self.core)
            drive = self.network.drive(self._constants[step], states, {}, self.share.take)
            out = self.network.through(self.network.enter_sink({REFERENCE: x}), drive, attend)
        return out

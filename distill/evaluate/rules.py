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

import torch
from torch import Tensor

from conf.schema import ModelConfig
from stages.denoise.bank import BankPass
from stages.denoise.denoiser import Denoiser, StreamBanks
from stages.denoise.layers import KeysValues
from stages.denoise.network import Drive, Network

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


class NoisySink(Denoiser):
    """A denoiser whose attention sink is never clean: what SAF's ablation shows to freeze the picture."""

    def commits(self, chunk: int) -> bool:
        """As `Denoiser.commits`, but a chunk of the attention sink keeps what its steps wrote."""
        return super().commits(chunk) and chunk * self.model.chunk_frames >= self.model.sink_frames

    @torch.inference_mode()
    def prefill(self, stream: StreamBanks, reference: Tensor, text: dict[int, KeysValues] | None = None) -> Tensor:
        """As `Denoiser.prefill`, with the reference noised to the level of each bank's last step."""
        frames, out = self.layout.reference, reference
        positions = range(-frames, 0)
        noise = torch.randn(reference.shape, generator=torch.Generator().manual_seed(0)).to(reference)
        for level, bank in stream.banks.items():
            step = level if self.model.rule.bank_per_step else self.sampler.steps - 1
            sigma = self.sampler.sigmas[step]
            x = ((1 - sigma) * reference + sigma * noise).to(self.network.device, self.network.dtype)
            attend = BankPass(bank, self.rope.table(positions), positions, [(0, 0, frames)], frames, self.core)
            drive = Drive(self._terms[step], stream.text if text is None else text, token_type=1)
            out = self.network(x, drive, attend, self._shape(frames))
        return out

"""Published rules of what a chunk attends to, as settings over a model's own, to run one set of weights under each.

Numbers of a publication are scaled to the window that the weights were trained with (12 latent frames, chunks of 3), as
`says` tells. The sampler, its steps and the codec stay the model's own: only the history is another.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from conf.contexts import CONTEXTS
from conf.errors import UserError
from conf.schema import ModelConfig
from stages.denoise.bank_pass import BankPass
from stages.denoise.denoiser import Denoiser, StreamBanks
from stages.denoise.history import Place, history_of
from stages.denoise.layout import Layout
from stages.denoise.schedule import Schedule, schedule_of
from stages.inputs import REFERENCE, Given, inputs_of

STEADY = 60
"""Chunks over which attended tokens are averaged: a multiple of every rule's period."""


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


@dataclass(frozen=True)
class Rule:
    """One row of the comparison.

    Attributes:
        name: as the table has it.
        says: who published it, and what was scaled.
        settings: of `ModelConfig`, over the model's own.
        kind: the passes.
    """

    name: str
    says: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    kind: type[Denoiser] = Denoiser

    def of(self, model: ModelConfig) -> ModelConfig:
        """The model under this rule.

        Raises:
            UserError: it cannot run under it, and why.
        """
        found = replace(model, **self.settings)
        if missing := CONTEXTS[found.context].missing:
            raise UserError(f"model.context={found.context}", missing, "use another context")
        inputs_of(found)
        return found

    def trained(self, model: ModelConfig) -> bool:
        """Whether the weights were trained for it: their own rule is the only one."""
        return self.kind is Denoiser and self.of(model) == model


_BARE = {"reference": False, "sink_frames": 0}
_SLOTS = {"reference": False, "sink_frames": 3, "positions": "abs", "refresh_frames": 50}
RULES = (
    Rule("own", "one bank per step, the reference or the first chunk as a clean attention sink"),
    Rule("no sink", "own without an attention sink", _BARE),
    Rule("noisy sink", "own, whose attention sink is as noisy as the step (SAF's ablation)", kind=NoisySink),
    Rule(
        "SINK-SHIFT",
        "arXiv 2512.04677: own, with the attention sink 30, then 4 to 30 frames ahead, as published",
        {"positions": "sink_shift"},
    ),
    Rule(
        "clean, no sink",
        "Self-Forcing: one bank of finished chunks; window 12 for 21",
        _BARE | {"context": "clean", "positions": "abs"},
    ),
    Rule(
        "clean", "LongLive: the same with the model's own attention sink; window 12 as published", {"context": "clean"}
    ),
    Rule(
        "EMA sink",
        "Reward Forcing: clean, and what leaves the window is averaged into a sink of 3 frames; window 12 for 9",
        {"context": "clean", "sink_frames": 3, "sink_ema": 0.999},
    ),
    Rule(
        "deep sink",
        "Deep Forcing without compression: clean, half of the window is an attention sink that moves along; "
        "6 of 12 for 10 to 14 of 21",
        {"context": "clean", "sink_frames": 6, "deep_sink": True},
    ),
    Rule(
        "compressed",
        "Deep Forcing: sink 3 and budget 9 of 12 for 10 and 16 of 21; 4 recent and 2 chosen frames as published",
        {
            "context": "clean",
            "sink_frames": 3,
            "deep_sink": True,
            "compress": {"budget_frames": 9, "recent_frames": 4, "reuse": 7},
        },
    ),
    Rule(
        "stream batch",
        "StreamDiffusionV2: one bank per step, the first 4 frames stay; 12 slots for 6, chunks of 3 for 1, "
        "positions refreshed at 50 as published",
        _SLOTS | {"context": "stream_batch"},
    ),
    Rule(
        "one bank",
        "StreamDiffusionV2 one chunk at a time: the same in one bank, written by every step",
        _SLOTS | {"context": "one_bank"},
    ),
    Rule(
        "joint window",
        "Rolling Forcing: the chunks of all 4 steps in one pass; window 15 for 21",
        {"context": "joint_window", "reference": False, "sink_frames": 3, "window_frames": 15},
    ),
)


def attended(model: ModelConfig, tokens: int) -> float:
    """Keys that a token is compared with in all passes of a chunk, once the window is full.

    Args:
        model: under its rule.
        tokens: of a latent frame.
    """
    layout, schedule = Layout.of(model, tokens), schedule_of(model)
    history, total = history_of(model, layout), 0
    full = history.distinct.stop
    for chunk in range(full, full + STEADY):
        places = [
            history.step(chunk, step, model.rule.bank_per_step or step == 0)
            for step in range(schedule.first_step(chunk), len(schedule.steps))
        ]
        places += [history.commit(chunk)] if schedule.commits(chunk) else []
        for place in places:
            total += layout.fixed + tokens * (sum(count for _, count in place.reads) + place.own * len(place.frames))
    return total / STEADY

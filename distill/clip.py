"""One forward over whole clips, with the history that inference will have, and gradients through all of it.

A clip is run as up to three segments, each with its own time and conditioning, as a stream runs its passes:

    reference   at t = 0, without sound                 (a stream's prefill)
    clean sink  first chunk(s) at t = 0                 (a stream's commit of them; causal clips only)
    body        all chunks at their noise levels        (a stream's steps, of all chunks at once)

Keys and values of earlier segments are kept, functionally, for later ones. Who reads what, and at which
positions, is a list of `stages.denoise.passes.View`: of `same_level_views` for causal clips, everything for the
bidirectional teacher. So the network sees in training exactly what it sees behind its banks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import torch
from torch import Tensor

from conf.schema import ModelConfig
from distill.attention import attend as training_attention
from distill.model import Given
from stages.denoise.attention import History
from stages.denoise.passes import View, same_level_views
from stages.denoise.rope import Rope, rotate
from stages.denoise.sampler import zero_timestep
from stages.dit.network import Drive, Transformer
from stages.inputs import REFERENCE

Past = dict[int, tuple[Tensor, Tensor, Tensor]]
"""By layer: keys without positions, keys turned to their home, and values of all frames so far."""


class Segment:
    """Self-attention of one segment: reads the keys and values of earlier segments, and leaves its own with them.

    Does what `stages.denoise.passes.ClipPass` does, but turns each key once for every position it is read at and
    not once for every view: most are only ever read at the position where they were made, their home.

    Args:
        rope: rotations.
        views: who reads what; those whose queries lie in this segment are this segment's.
        frames: sequence frames lo ... hi - 1 of this segment.
    """

    def __init__(self, rope: Rope, views: Sequence[View], frames: range):
        self.tokens, self.frames = len(rope.spatial), frames
        own = [v for v in views if v.queries[0] in frames]
        homes = {f: p for v in views for f, p in zip(v.queries, v.query_positions, strict=True)}
        self.home = rope.table([homes[f] for f in frames])
        self.reads = []
        for view in own:
            away = [i for i, f in enumerate(view.keys) if homes[f] != view.key_positions[i]]
            split = away[-1] + 1 if away else 0
            table = rope.table(view.key_positions[:split]) if split else None
            self.reads.append((self._runs(view.keys[:split]), table, self._runs(view.keys[split:]), self._span(view)))

    def _span(self, view: View) -> slice:
        """Tokens of the view's queries within this segment; they are consecutive frames."""
        return slice(
            (view.queries[0] - self.frames[0]) * self.tokens, (view.queries[-1] + 1 - self.frames[0]) * self.tokens
        )

    def _runs(self, frames: Sequence[int]) -> list[slice]:
        """Token slices of runs of consecutive frames."""
        runs: list[list[int]] = []
        for frame in frames:
            if runs and runs[-1][1] == frame:
                runs[-1][1] += 1
            else:
                runs.append([frame, frame + 1])
        return [slice(lo * self.tokens, hi * self.tokens) for lo, hi in runs]

    def over(self, past: Past) -> History:
        """The attention of a forward; `past` holds what earlier segments of that forward left, by layer."""

        def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            # What attention computes in on a CPU; converted here once instead of for every view.
            now = (k, rotate(k, self.home), v.float() if v.device.type == "cpu" else v)
            if layer in past:
                now = tuple(torch.cat(pair, dim=1) for pair in zip(past[layer], now, strict=True))
            past[layer] = now
            raw, keys, values = now
            q = rotate(q, self.home)
            parts = []
            for moved, table, still, span in self.reads:
                read = _take(keys, still)
                if moved:
                    read = torch.cat([rotate(_take(raw, moved), table), read], dim=1)
                parts.append(training_attention(q[:, span], read, _take(values, [*moved, *still]), None))
            return torch.cat(parts, dim=1).to(v.dtype)

        return attend


def _take(x: Tensor, runs: Sequence[slice]) -> Tensor:
    return x[:, runs[0]] if len(runs) == 1 else torch.cat([x[:, run] for run in runs], dim=1)


class WholeClip:
    """Forwards over clips of one length.

    Args:
        model: the model, for its window, attention sink and positions.
        grid: rows and columns of tokens of a latent frame.
        frames: latent frames of a clip.
        causal: chunk by chunk under `same_level`, or all frames reading all frames (the teacher).
        device: where the forwards run.
    """

    def __init__(
        self,
        model: ModelConfig,
        grid: tuple[int, int],
        frames: int,
        causal: bool,
        device: torch.device | str = "cpu",
    ):
        self.model, self.frames, self.causal = model, frames, causal
        self.reference = int(model.reference)
        self.sink = model.sink_frames if causal else 0
        if causal and frames % model.chunk_frames:
            raise ValueError(f"{frames} frames are no whole number of chunks of {model.chunk_frames}")
        views = same_level_views(model, frames // model.chunk_frames) if causal else _bidirectional(model, frames)
        rope = Rope(model.network.head_dim, *grid, device)
        ends = [0, self.reference, self.reference + self.sink, self.reference + self.sink + frames]
        spans = [range(lo, hi) for lo, hi in pairwise(ends)]
        self.of_reference, self.of_sink, self.of_body = (Segment(rope, views, s) if s else None for s in spans)

    def __call__(
        self, network: Transformer, x: Tensor, timesteps: Tensor, given: Given, clean: Tensor | None = None
    ) -> Tensor:
        """Velocity [B, C, f, h, w], float32.

        Args:
            network: all its layers.
            x: noisy latents [B, C, f, h, w].
            timesteps: 0 ... 1000, [B, 1] where a clip's frames share one, else [B, f].
            given: conditioning.
            clean: latents whose first frames are the clean attention sink, where the model has one.
        """
        # Time is small and everything hangs on it: float32, as at inference.
        with torch.autocast(x.device.type, enabled=False):
            body = network.time_terms(network.time_embeddings(timesteps), given.actions)
            zero = network.time_embeddings(zero_timestep())
            still = network.time_terms(zero) if self.of_reference else None
            first = frames_of(given, range(self.sink))
            committed = network.time_terms(zero, first.actions) if self.of_sink else None
        text = network.text_states(given.text)
        past: Past = {}
        if self.of_reference:
            refer(network, given.reference, Drive(still, text), self.of_reference.over(past))
        if self.of_sink:
            drive = Drive(committed, text, heard(first))
            network(clean[:, :, : self.sink], drive, self.of_sink.over(past))
        return network(x, Drive(body, text, heard(given)), self.of_body.over(past)).float()


def heard(given: Given) -> dict[str, Tensor]:
    """What the layers are given of a clip's conditioning; actions are in their time terms already."""
    return {} if given.audio is None else {"audio": given.audio}


def refer(network: Transformer, reference: Tensor, drive: Drive, attend: History) -> None:
    """A stream's prefill: leave keys and values of a reference [B, C, 1, h, w]."""
    network.through(network.enter_sink({REFERENCE: reference}), drive, attend)


def frames_of(given: Given, frames: range) -> Given:
    """The conditioning of some of the frames."""
    span = slice(frames.start, frames.stop)
    audio = None if given.audio is None else given.audio[:, span]
    actions = None if given.actions is None else given.actions[:, span]
    return replace(given, audio=audio, actions=actions)


def _bidirectional(model: ModelConfig, frames: int) -> list[View]:
    """The reference reads itself, as a prefill does, and every frame reads it and all frames."""
    r = int(model.reference)
    everything, positions = range(r + frames), range(-r, frames)
    views = [View(range(r), range(r), range(-r, 0), range(-r, 0))] if r else []
    return [*views, View(range(r, r + frames), everything, range(frames), positions)]

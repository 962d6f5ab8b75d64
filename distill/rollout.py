"""Self-rollouts: the student makes its own clips in training, under the history rules of inference.

`SameLevel` is the rollout of SAF (arXiv 2609.38114): step first, all chunks of the clip in one forward that reads
noisy history of the same level and the clean attention sink. Its serial depth is the exit step, and the gradient of
the exit step flows through the history. `Clean` is that of arXiv 2506.08009: chunk first, over clean
history that was written by a commit and takes no gradient.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext

import torch
from torch import Tensor

from conf.schema import ModelConfig
from distill.clip import Past, Segment, WholeClip, frames_of, heard, refer
from distill.model import Given
from stages.denoise.layout import Layout
from stages.denoise.passes import View
from stages.denoise.rope import Rope
from stages.denoise.sampler import Sampler, zero_timestep
from stages.dit.network import Drive, Transformer


class SameLevel:
    """Step-first rollouts of whole clips.

    Args:
        model: for its sampler, attention sink and window.
        grid: rows and columns of tokens of a latent frame.
        frames: latent frames of a clip.
        device: where it runs.
    """

    def __init__(self, model: ModelConfig, grid: tuple[int, int], frames: int, device: torch.device | str = "cpu"):
        self.sampler = Sampler.of(model)
        self.sink = model.sink_frames
        self.body = WholeClip(model, grid, frames, True, device)
        self.first = WholeClip(model, grid, self.sink, True, device) if self.sink else None

    def __call__(
        self, network: Transformer, given: Given, noise: Sequence[Tensor], exit_step: int, gradient: bool = False
    ) -> Tensor:
        """The x0 estimate [B, C, f, h, w] of the exit step.

        Args:
            network: the student.
            given: conditioning.
            noise: what enters each step (Euler uses the first only), each [B, C, f, h, w].
            exit_step: the last step run, from 0.
            gradient: whether the exit step is differentiable; the steps before never are.
        """
        clean = None
        if self.first is not None:
            # The clean attention sink is what its own chunks become; they read nothing that comes after them.
            part, cut = frames_of(given, range(self.sink)), [n[:, :, : self.sink] for n in noise]
            with torch.no_grad():
                clean = self._steps(self.first, network, part, cut, exit_step, False, torch.zeros_like(cut[0]))
        return self._steps(self.body, network, given, noise, exit_step, gradient, clean)

    def _steps(self, clip, network, given, noise, exit_step, gradient, clean) -> Tensor:
        x = noise[0]
        for step in range(exit_step):
            with torch.no_grad():
                v = self.velocity(clip, network, x, step, given, clean)
                x = self.sampler.update(step, x, v, noise[step + 1])
        with nullcontext() if gradient else torch.no_grad():
            return x - self.sampler.sigmas[exit_step] * self.velocity(clip, network, x, exit_step, given, clean)

    def velocity(self, clip, network, x: Tensor, step: int, given: Given, clean: Tensor | None) -> Tensor:
        """One forward of all chunks at the level of `step`."""
        return clip(network, x, torch.full((len(x), 1), self.sampler.timestep(step), device=x.device), given, clean)


class Clean:
    """Chunk-first rollouts over clean history. Arguments as of `SameLevel`."""

    def __init__(self, model: ModelConfig, grid: tuple[int, int], frames: int, device: torch.device | str = "cpu"):
        self.sampler, self.c, self.frames = Sampler.of(model), model.chunk_frames, frames
        rope, r = Rope(model.network.head_dim, *grid, device), int(model.reference)
        layout, distance = Layout.of(model, 1), model.sink_shift.distance_min
        views = [View(range(r), range(r), range(-r, 0), range(-r, 0))] if r else []
        for first in range(0, frames, self.c):
            end = first + self.c
            anchors = layout.sink_positions(model.positions, first, self.c, model.sink_shift, distance)
            window = range(first if first < model.sink_frames else layout.window_start(end), end)
            keys = [*range(len(anchors)), *(r + f for f in window)]
            views.append(View(range(r + first, r + end), keys, range(first, end), [*anchors, *window]))
        self.of_reference = Segment(rope, views, range(r)) if r else None
        self.of_chunks = [
            Segment(rope, views, range(r + first, r + first + self.c)) for first in range(0, frames, self.c)
        ]

    def __call__(
        self, network: Transformer, given: Given, noise: Sequence[Tensor], exit_step: int, gradient: bool = False
    ) -> Tensor:
        """As `SameLevel.__call__`."""
        with torch.no_grad():
            past = self.prefill(network, given)
        chunks = []
        for i in range(len(self.of_chunks)):
            x = self.enter(network, given, noise, exit_step, i, past)
            with nullcontext() if gradient else torch.no_grad():
                made = self.leave(network, given, x, exit_step, i, past)
            chunks.append(made)
            with torch.no_grad():
                self._velocity(network, given, made.detach(), None, i, past)
        return torch.cat(chunks, dim=2)

    def prefill(self, network: Transformer, given: Given) -> Past:
        """The history of a new stream."""
        past: Past = {}
        if self.of_reference is not None:
            drive = Drive(_terms(network, None), network.text_states(given.text))
            refer(network, given.reference, drive, self.of_reference.over(past))
        return past

    @torch.no_grad()
    def enter(self, network: Transformer, given: Given, noise: Sequence[Tensor], exit_step: int, i: int, past: Past):
        """What chunk `i` is when it enters the exit step."""
        frames = slice(i * self.c, (i + 1) * self.c)
        x = noise[0][:, :, frames]
        for step in range(exit_step):
            v = self._velocity(network, given, x, step, i, dict(past))
            x = self.sampler.update(step, x, v, noise[step + 1][:, :, frames])
        return x

    def leave(self, network: Transformer, given: Given, x: Tensor, exit_step: int, i: int, past: Past) -> Tensor:
        """Chunk `i`'s x0 estimate at the exit step, from what entered it; leaves the history as it is."""
        return x - self.sampler.sigmas[exit_step] * self._velocity(network, given, x, exit_step, i, dict(past))

    def _velocity(self, network, given: Given, x: Tensor, step: int | None, i: int, past: Past) -> Tensor:
        """A step's forward of chunk `i`, or (step None) its commit at t = 0; its keys and values join `past`."""
        own = frames_of(given, range(i * self.c, (i + 1) * self.c))
        timestep = None if step is None else self.sampler.timestep(step)
        drive = Drive(_terms(network, timestep, own.actions), network.text_states(given.text), heard(own))
        return network(x, drive, self.of_chunks[i].over(past)).float()

    def backward(
        self, network: Transformer, given: Given, noise: Sequence[Tensor], exit_step: int, wanted: Tensor
    ) -> None:
        """Accumulate the gradient of sum(wanted * rollout) chunk by chunk: the graph of one chunk is alive at a time.

        Equals the joint graph's backward, since history takes no gradient (arXiv 2512.04677; RELIC's
        replayed back-propagation, arXiv 2512.04040).
        """
        with torch.no_grad():
            past = self.prefill(network, given)
        for i, goal in enumerate(wanted.split(self.c, dim=2)):
            x = self.enter(network, given, noise, exit_step, i, past)
            made = self.leave(network, given, x, exit_step, i, past)
            # Conditioning's own graph (encoders) is shared by all chunks.
            (made * goal).sum().backward(retain_graph=True)
            with torch.no_grad():
                self._velocity(network, given, made.detach(), None, i, past)


def _terms(network: Transformer, timestep: float | None, actions: Tensor | None = None):
    """Time terms in float32, at t = 0 where there is no timestep."""
    time = zero_timestep() if timestep is None else torch.full((1, 1), timestep)
    with torch.autocast(network.device.type, enabled=False):
        return network.time_terms(network.time_embeddings(time), actions)


ROLLOUTS = {"same_level": SameLevel, "clean": Clean}

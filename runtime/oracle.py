"""The sequential oracle: one stream, one device, in the plainest order.

Every plan is held against this loop, bit for bit, so it contains no worker, channel or plan code.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from itertools import count

import torch
from torch import Tensor

import devices
from runtime.conditioning import Conditioning
from runtime.timing import Timer
from stages.denoise.denoiser import Denoiser, StreamBanks
from stages.denoise.finished import Finished
from stages.denoise.sampler import finite_steps, require_finite_steps
from stages.inputs import REFERENCE, Given, with_chunk


@dataclass
class Memory:
    """What a stream remembers between two chunks, its conditioning aside.

    Attributes:
        banks: keys and values.
        finished: what is kept of the latest chunks for those to come.
        chunk: the one that comes next.
        anchor: what a recalibration still to come puts in: inputs of the attention sink.
    """

    banks: StreamBanks
    finished: Finished
    chunk: int = 0
    anchor: Given = field(default_factory=dict)


def _noise_behind(conditioning: Conditioning, chunk: int, behind: int, step: int) -> Tensor:
    """The draw with which the chunk so many behind `chunk` enters a step."""
    return conditioning.noise(chunk + behind, step)


@torch.inference_mode()
def generate(
    denoiser: Denoiser, conditioning: Conditioning, timer: Timer, memory: Memory | None = None
) -> Iterator[torch.Tensor]:
    """The final latents [1, C, c, h, w] of chunk 0, 1, 2, ... until the conditioning ends.

    Args:
        denoiser: the whole network on one device.
        conditioning: what to draw, read and encode for every chunk.
        timer: times every pass.
        memory: what to go on from; None: the stream begins.

    Raises:
        UserError: a step left latents that are not finite.
    """
    sampler, schedule = denoiser.sampler, denoiser.schedule
    device, dtype, c = devices.of(denoiser.network.device), denoiser.network.dtype, schedule.chunk_frames
    if memory is None:
        finished = Finished(schedule.kept, with_chunk(conditioning.inputs))
        memory = Memory(denoiser.open(), finished, 0, conditioning.sink())
    banks, finished, anchor = memory.banks, memory.finished, memory.anchor
    anchor_states = denoiser.network.states(conditioning.first_states()) if memory.chunk and anchor else None

    for chunk in count(memory.chunk):
        with timer("encode", chunk):
            given: Given | None = conditioning.chunk(chunk)
        if given is None:
            return
        # Once for all passes, and for a recache, which joins them with those of a saved state.
        given = {name: device.upload(tensor) for name, tensor in given.items()}
        if epoch := conditioning.states(chunk):
            denoiser.set_states(banks, epoch)
        if chunk == 0:
            anchor_states = banks.states

        # The attention sink's versions: the reference from chunk 0, the model's own first frame from chunk e (beside
        # what lasts). Each is read with the states of the chunk it was made from.
        if any(v.kind == "prefill" and v.in_force_from == chunk for v in schedule.versions):
            with timer("prefill", chunk):
                denoiser.prefill(banks, anchor, anchor_states)

        # Another prompt: what is in the window is read again, with it.
        if schedule.recache_chunks and 0 < chunk == conditioning.epoch(chunk):
            with timer("recache", chunk):
                past = finished.joined(schedule.recached(chunk))
                denoiser.recache(banks, chunk, *past, conditioning.distance(chunk, 0))

        x = finished.entering(chunk, device.upload(conditioning.entering(chunk).to(dtype)))
        finite = schedule.first_step(chunk)
        for step in range(schedule.first_step(chunk), sampler.steps):
            with timer(f"step{step}", chunk):
                together = schedule.together(step)
                entering = x[:, :, : len(together) * c] if schedule.joint else x
                own = conditioning.timestep(chunk) if step == schedule.first_step(chunk) else 0.0
                v = denoiser.step(banks, step, chunk, entering, given, conditioning.distance(chunk, step), own)
                noise = partial(_noise_behind, conditioning, chunk)
                x = sampler.advance(together, c, x, v, noise, own)
                finite = finite_steps(x, finite)
        x, carry = (x[:, :, :c], x[:, :, c:]) if schedule.joint else (x, None)

        if schedule.commits(chunk):
            with timer("commit", chunk):
                written = entering if schedule.seeded else x
                denoiser.commit(banks, chunk, written, given, conditioning.distance(chunk, sampler.steps))
                finished.add(chunk, x, given, carry)
        if schedule.renewed and chunk == schedule.renewed.source:
            anchor = conditioning.lasting() | {REFERENCE: x[:, :, :1]}
        require_finite_steps(finite, sampler.steps, chunk)
        yield x

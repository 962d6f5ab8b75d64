"""The sequential oracle: one stream, one device, in the plainest order.

Every plan is held against this loop, bit for bit, so it contains no worker, channel or plan code.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count

import torch

from runtime.conditioning import Conditioning
from runtime.trace import Trace
from stages.denoise.denoiser import ChunkConditioning, Denoiser, StreamBanks
from stages.denoise.finished import Finished


@dataclass
class Memory:
    """What a stream remembers between two chunks, its conditioning aside.

    Attributes:
        banks: keys and values.
        finished: the chunks that a new prompt would run again.
        chunk: the one that comes next.
        anchor: what a recalibration still to come puts in: a latent frame, and motion frames behind it.
    """

    banks: StreamBanks
    finished: Finished
    chunk: int = 0
    anchor: torch.Tensor | None = None


@torch.inference_mode()
def generate(
    denoiser: Denoiser, conditioning: Conditioning, trace: Trace, memory: Memory | None = None
) -> Iterator[torch.Tensor]:
    """The final latents [1, C, c, h, w] of chunk 0, 1, 2, ... until the conditioning ends.

    Args:
        denoiser: the whole network on one device.
        conditioning: what to draw, read and encode for every chunk.
        trace: told how long each pass took.
        memory: what to go on from; None: the stream begins.
    """
    model, sampler = denoiser.model, denoiser.sampler
    device, dtype = denoiser.network.device, denoiser.network.dtype
    if memory is None:
        memory = Memory(denoiser.open(), Finished(model.recache_chunks), 0, conditioning.reference())
    banks, finished, anchor = memory.banks, memory.finished, memory.anchor
    anchor_text = denoiser.network.text_states(conditioning.first_text()) if memory.chunk and anchor is not None else {}

    for chunk in count(memory.chunk):
        with trace.span("encode", chunk):
            given: ChunkConditioning | None = conditioning.chunk(chunk)
        if given is None:
            return
        if (context := conditioning.text(chunk)) is not None:
            denoiser.set_text(banks, context)
        if chunk == 0:
            anchor_text = banks.text

        # The attention sink's versions: the reference from chunk 0, the model's own first frame from chunk e (beside
        # the same motion frames). Each is read with the text of the chunk it was made from.
        if model.reference and chunk in (0, model.recalibrate_chunk):
            with trace.span("prefill", chunk):
                denoiser.prefill(banks, anchor, anchor_text)

        # Another prompt: what is in the window is read again, with it.
        if model.recache_chunks and 0 < chunk == conditioning.epoch(chunk):
            with trace.span("recache", chunk):
                past = finished.joined(denoiser.recached(chunk))
                denoiser.recache(banks, chunk, *past, conditioning.distance(chunk, 0))

        x = conditioning.noise(chunk, 0).to(device, dtype)
        for step in range(sampler.steps):
            with trace.span(f"step{step}", chunk):
                v = denoiser.step(banks, step, chunk, x, given, conditioning.distance(chunk, step))
                later = step + 1 < sampler.steps and sampler.needs_noise(step + 1)
                x = sampler.update(step, x, v, conditioning.noise(chunk, step + 1) if later else None)

        if denoiser.commits(chunk):
            with trace.span("commit", chunk):
                denoiser.commit(banks, chunk, x, given, conditioning.distance(chunk, sampler.steps))
                finished.add(chunk, x, given)
        if chunk == 0:
            anchor = torch.cat([x[:, :, :1], *(() if anchor is None else [anchor[:, :, 1:].to(x)])], 2)
        yield x

"""Codecs against float32 on the processor, chunk by chunk as a stream has them, with random weights at full width."""

from __future__ import annotations

from functools import cache, partial
from typing import Any

import torch
from torch import Tensor

from benchmarks import models
from benchmarks.gpu.rows import Bench, Row, distance
from benchmarks.record import bar
from stages.build import build_decoder, build_encoder, video_frames
from stages.compiled import compile_decoder

TOLERANCE = {"float32": 5e-3, "bfloat16": 5e-2}
"""Relative distance. torch lets convolutions of float32 round their operands to TF32 (1e-3)."""
SIZE, CHUNKS = (6, 8), 3
"""Of a latent; small, since the processor does the same in float32."""
HALVES = {"decoder": build_decoder, "encoder": build_encoder}


@torch.inference_mode()
def coded(kind: str, half: str, dtype: str, device: torch.device, small: bool, compiled: bool = False) -> Tensor:
    """What half a codec makes of a stream of random chunks, in float32 on the processor."""
    width = ["codec.width=8"] if small and kind == "wan" else []
    model = models.model("wan21_t2v_1_3b", [f"codec.kind={kind}", f"dtype={dtype}", *width])
    codec = HALVES[half](model, device)
    if compiled and not small:
        compile_decoder(codec)
    height, across = (2, 3) if small else SIZE
    g, state, found = torch.Generator().manual_seed(0), codec.start(), []
    for chunk in range(CHUNKS):
        frames = video_frames(model.codec, model.chunk_frames, first=chunk == 0)
        shape = {
            "decoder": (1, model.network.in_channels, model.chunk_frames, height, across),
            "encoder": (1, 3, frames, 8 * height, 8 * across),
        }[half]
        found.append(codec(torch.randn(shape, generator=g).to(device, getattr(torch, dtype)), state).float().cpu())
    return torch.cat(found, 2)


@cache
def reference(kind: str, half: str, small: bool) -> Tensor:
    """What all others are held against."""
    return coded(kind, half, "float32", torch.device("cpu"), small)


def check(kind: str, half: str, dtype: str, bench: Bench) -> dict[str, Any]:
    far = distance(coded(kind, half, dtype, bench.device, bench.small), reference(kind, half, bench.small))
    return bar(f"{far:.1e}", f"<= {TOLERANCE[dtype]:.0e}", far <= TOLERANCE[dtype])


def compiles(bench: Bench) -> dict[str, Any]:
    """The large decoder, compiled, against itself without."""
    expected, found = (coded("wan", "decoder", "bfloat16", bench.device, bench.small, c) for c in (False, True))
    far = distance(found, expected)
    how = ", not compiled: a rehearsal" if bench.small else ""
    return bar(f"{far:.1e}{how}", f"<= {TOLERANCE['bfloat16']:.0e}", far <= TOLERANCE["bfloat16"])


ROWS = [
    Row(f"codec {kind} {half} {dtype}", 4 if kind == "wan" else 2, partial(check, kind, half, dtype))
    for kind, half in (("wan", "decoder"), ("taehv", "decoder"), ("wan", "encoder"), ("small", "decoder"))
    for dtype in ("bfloat16", "float32")
]
COMPILED = [Row("compile codec wan decoder", 60, compiles)]

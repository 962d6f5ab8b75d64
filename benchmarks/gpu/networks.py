"""A few layers of every network against float32 on the processor: as they are, in 8 bits, compiled, and as graphs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor

from benchmarks import made_up, models
from benchmarks.alone import PIXELS
from benchmarks.gpu.rows import Bench, Row, allowed, distance, needs
from benchmarks.record import bar
from conf.schema import ModelConfig
from stages.build import build_network
from stages.compiled import compile_network
from stages.denoise import graphs
from stages.denoise.denoiser import Denoiser
from stages.dit import fp8
from stages.dit.fp8 import Scaled
from stages.dit.layers import Affine
from stages.inputs import Axis, inputs_of, on

Prepare = Callable[[Denoiser], object]
"""What is done to a denoiser before it runs."""

WIDTH = (
    "network.dim=512", "network.ffn_dim=1024", "network.heads=4", "network.layers=2", "height=128", "width=128",
)  # fmt: skip
"""Heads as wide as those of the large models."""
NARROW = (
    "network.dim=32", "network.ffn_dim=64", "network.heads=2", "network.layers=2", "height=64", "width=64",
)  # fmt: skip
TEXT = ("network.text_dim=64", "network.text_tokens=16")
LARGE: dict[str, tuple[str, ...]] = {
    "live_avatar_14b": (*TEXT, "network.audio.layers=[0]"),
    "wan21_t2v_1_3b": TEXT,
    "matrix_game_2": (
        "network.image_dim=64", "network.image_tokens=17", "network.actions.layers=[0]", "network.actions.embedded=16",
        "network.actions.heads=2", "network.actions.width=128",
    ),
    "lingbot_world_fast": (*TEXT, "window_frames=12"),
}  # fmt: skip
"""Models, and what else a network of two layers needs."""
NETWORKS = (*LARGE, "pocket_world", "nano")
CHUNKS, SMALL_CHUNKS = 13, 6
"""The ring holds four: every slot is seen three times, so a graph is recorded, and started again."""
TOLERANCE = {"float32": 2e-3, "bfloat16": 3e-2, "per_tensor": 1e-1, "per_row": 1e-1}
"""Relative distance from float32: rounding of weights and activations to bfloat16 or to e4m3, through two layers; of
float32, that of convolutions (of sound) to TF32, which torch allows."""
SAME = {"float32": 1e-4, "bfloat16": 2e-2}
"""Of one network, compiled from not compiled: other roundings of the same numbers."""
PRODUCT, ROUNDED = 1e-2, 6e-2
"""Of an 8-bit product from the same of its dequantised operands, and from the one that is meant."""


def shallow(name: str, dtype: str, small: bool) -> ModelConfig:
    """A model with a few narrow layers."""
    width = (*(NARROW if small else WIDTH), *LARGE[name]) if name in LARGE else ()
    return models.model(name, [*width, f"dtype={dtype}"])


@torch.inference_mode()
def passes(model: ModelConfig, device: torch.device, chunks: int, prepare: Sequence[Prepare] = ()) -> Tensor:
    """Velocities of the first and the last step of every chunk of a stream, in float32 on the processor.

    Weights and inputs are pure functions of the model, whatever the device.
    """
    dtype, n = getattr(torch, model.dtype), model.network
    size = model.height // PIXELS, model.width // PIXELS
    rows, columns = (a // p for a, p in zip(size, n.patch[1:], strict=True))
    denoiser = Denoiser(model, build_network(model, device), rows, columns)
    for change in prepare:
        change(denoiser)
    g = torch.Generator().manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=g).to(device, dtype)

    inputs, stream, found = inputs_of(model), denoiser.open(), []
    denoiser.set_states(stream, {one.name: random(*one.full()) for one in on(inputs, Axis.EPOCH)})
    if sink := on(inputs, Axis.SINK):
        denoiser.prefill(stream, {one.name: random(*one.full(size, n.before)) for one in sink})
    for chunk in range(chunks):
        given = made_up.of_chunk(model, size, chunk, random)
        latents = random(1, n.in_channels, model.chunk_frames, *size)
        for step in (0, model.step_count - 1):
            v = denoiser.step(stream, step, chunk, latents, given, model.sink_shift.distance_min + chunk % 7)
            found.append(v.clone())
    return torch.stack(found).float().cpu()


def quantised(kind: str) -> Prepare:
    return lambda denoiser: denoiser.network.quantise(kind)


@cache
def reference(name: str, small: bool) -> Tensor:
    """What all others are held against: float32 on the processor."""
    return passes(shallow(name, "float32", small), torch.device("cpu"), SMALL_CHUNKS if small else CHUNKS)


def here(model: ModelConfig, bench: Bench, *prepare: Prepare) -> Tensor:
    """The same passes on the device under test."""
    return passes(model, bench.device, SMALL_CHUNKS if bench.small else CHUNKS, prepare)


def plain(name: str, dtype: str, bench: Bench) -> dict[str, Any]:
    """A network as it is."""
    far = distance(here(shallow(name, dtype, bench.small), bench), reference(name, bench.small))
    return bar(f"{far:.1e}", f"<= {TOLERANCE[dtype]:.0e}", far <= TOLERANCE[dtype])


def eight(name: str, kind: str, bench: Bench) -> dict[str, Any]:
    """A network in 8 bits. The processor's 8-bit products take long: a rehearsal does those of two networks."""
    needs(not bench.small or name in [*LARGE][:2], "a rehearsal has 8 bits in two networks")
    allowed(lambda: fp8.check(kind, bench.device, torch.bfloat16))
    found = here(shallow(name, "bfloat16", bench.small), bench, quantised(kind))
    far = distance(found, reference(name, bench.small))
    return bar(f"{far:.1e}", f"<= {TOLERANCE[kind]:.0e}", far <= TOLERANCE[kind])


@torch.inference_mode()
def product(kind: str, bench: Bench) -> dict[str, Any]:
    """One 8-bit product, of the shapes of a large layer."""
    allowed(lambda: fp8.check(kind, bench.device, torch.bfloat16))
    far = {"same operands": 0.0, "meant": 0.0, "8-bit values that differ": 0.0}
    for tokens, inside, outside in ((48, 32, 64),) if bench.small else ((264, 5120, 5120), (77, 5120, 13824)):
        g = torch.Generator().manual_seed(0)
        x, weight = (torch.randn(n, inside, generator=g).bfloat16() for n in (tokens, outside))
        made = Scaled.made(Affine(weight, torch.randn(outside, generator=g).bfloat16()), kind)
        own = Scaled(*(t.to(bench.device) for t in made))
        values, scale = made.quantised(x)
        of_device, _ = own.quantised(x.to(bench.device))
        scales = made.scale.view(-1, 1) if made.scale.dim() else made.scale
        same = values.float() * scale @ (made.weight.float() * scales).t() + made.bias.float()
        meant = x.float() @ weight.float().t() + made.bias.float()
        y = own.product(values.to(bench.device), scale.to(bench.device), torch.bfloat16)
        differ = (of_device.float().cpu() != values.float()).double().mean().item()
        for what, value in zip(
            far, (distance(y, same), distance(own.of(x.to(bench.device)), meant), differ), strict=True
        ):
            far[what] = max(far[what], value)
    passed = far["same operands"] <= PRODUCT and far["meant"] <= ROUNDED and far["8-bit values that differ"] <= 1e-3
    value = ", ".join(f"{what}: {value:.1e}" for what, value in far.items())
    return bar(value, f"<= {PRODUCT:.0e}, {ROUNDED:.0e}, 1e-03", passed)


def compiles(name: str, dtype: str, kind: str | None, bench: Bench) -> dict[str, Any]:
    """Compiled regions against the same network without. Tracing takes long: a rehearsal does it once."""
    needs(not bench.small or name == "live_avatar_14b", "a rehearsal compiles one network")
    if kind:
        allowed(lambda: fp8.check(kind, bench.device, torch.bfloat16))
    model, first = shallow(name, dtype, bench.small), [quantised(kind)] if kind else []
    # The processor's compiler takes longer than all other rows of a rehearsal: traced there, and run as it was.
    backend = "eager" if bench.small else "inductor"
    compiled = here(model, bench, *first, lambda denoiser: compile_network(denoiser.network, backend))
    far = distance(compiled, here(model, bench, *first))
    return bar(f"{far:.1e} by {backend}", f"<= {SAME[dtype]:.0e}", far <= SAME[dtype])


def recorded(name: str, bench: Bench) -> dict[str, Any]:
    """Passes as graphs against the same passes as they are: every slot of the ring, bit for bit."""
    model, wish = shallow(name, "bfloat16", bench.small), "auto" if bench.small else "always"
    found, expected = here(model, bench, lambda denoiser: graphs.attach(denoiser, wish)), here(model, bench)
    differ = sum(not torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    how = "" if bench.device.type == "cuda" else ", without graphs: there are none on this device"
    return bar(f"{differ} of {len(found)} passes differ{how}", "0", differ == 0)


PLAIN = [
    Row(f"network {name} {dtype}", 1, partial(plain, name, dtype))
    for dtype in ("bfloat16", "float32")
    for name in NETWORKS
]
KINDS = "per_tensor", "per_row"
PRODUCTS = [Row(f"fp8 product {kind}", 1, partial(product, kind)) for kind in KINDS]
EIGHT = [Row(f"fp8 {kind} {name}", 1, partial(eight, name, kind)) for kind in KINDS for name in LARGE]
GRAPHS = [Row(f"graphs {name}", 2, partial(recorded, name)) for name in NETWORKS]
COMPILED = [
    Row(f"compile {name} {dtype}{' ' + kind if kind else ''}", 25, partial(compiles, name, dtype, kind))
    for name, dtype, kind in (
        ("live_avatar_14b", "bfloat16", None),
        ("wan21_t2v_1_3b", "bfloat16", "per_row"),
        ("nano", "float32", None),
        ("matrix_game_2", "bfloat16", None),
        ("lingbot_world_fast", "bfloat16", None),
    )
]

"""8-bit linears: their error is that of rounding to e4m3, and a network with them stays near itself without."""

from functools import partial
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from conf.errors import UserError
from conf.schema.model import FP8
from stages.codec.base import parameter_bytes
from stages.dit import fp8
from stages.dit.layers import Affine
from tests.stages.denoise.test_s2v import TEXT, build, latents, model_of, normal

STEP = 2.0**-4
"""Largest relative error of rounding to e4m3, which keeps 3 bits behind the leading one."""


def product(spread: float = 0.0) -> tuple[torch.Tensor, Affine]:
    """Tokens and a linear whose rows differ in size by e^spread and more."""
    rows, columns = (normal(s, n, 1).mul(spread).exp() for s, n in ((1, 40), (2, 48)))
    return normal(3, 40, 64) * rows, Affine(normal(4, 48, 64) * columns / 8, normal(5, 48))


def relative(ours: torch.Tensor, exact: torch.Tensor) -> float:
    return float((ours - exact).norm() / exact.norm())


@pytest.mark.parametrize("kind", FP8)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_error_is_that_of_rounding(kind, dtype):
    x, linear = product()
    linear = Affine(*(t.to(dtype) for t in linear))
    ours, exact = fp8.Scaled.made(linear, kind).of(x.to(dtype)), F.linear(x.to(dtype).double(), *map(
        torch.Tensor.double, linear))  # fmt: skip
    assert ours.dtype == dtype
    # Every product is off by both factors' roundings at most, so the sum is by the sum of magnitudes times that.
    magnitudes = F.linear(x.abs().double(), linear.weight.abs().double())
    slack = 2.0**-7 if dtype == torch.bfloat16 else 1e-5
    assert ((ours - exact).abs() <= (2 * STEP + STEP**2) * magnitudes + slack * exact.abs() + 1e-3).all()
    assert 1e-3 < relative(ours.double(), exact) < 0.04


def test_a_scale_for_each_row_is_nearer_where_rows_differ():
    x, linear = product(spread=4.0)
    exact = F.linear(x.double(), *map(torch.Tensor.double, linear))
    errors = {kind: fp8.Scaled.made(linear, kind).of(x).double() - exact for kind in FP8}
    typical = {kind: float((e.norm(dim=1) / exact.norm(dim=1)).median()) for kind, e in errors.items()}
    assert typical["per_row"] < 0.05 < typical["per_tensor"]


def test_products_are_those_of_the_dequantised_tensors():
    x, linear = product()
    for kind in FP8:
        made = fp8.Scaled.made(linear, kind)
        values, scale = fp8.scaled(x, kind == "per_row")
        weight = made.weight.float() * (made.scale.t() if made.scale.dim() else made.scale)
        torch.testing.assert_close(
            made.of(x), F.linear(values.float() * scale, weight, made.bias), rtol=1e-5, atol=1e-5
        )


def test_nothing_and_the_largest_value_are_kept():
    made = fp8.Scaled.made(product()[1], "per_row")
    assert torch.equal(made.of(torch.zeros(2, 3, 64)), made.bias.expand(2, 3, 48))
    values, scale = fp8.scaled(torch.tensor([[3.0e38, 1.0], [-1.0e-30, 0.0]]), True)
    assert values.float().isfinite().all() and scale.isfinite().all()


@pytest.mark.parametrize("kind", FP8)
def test_a_network_stays_near_itself(kind):
    model = model_of(dim=64, heads=2)
    x, given = latents(1, 3), {"audio": normal(2, 1, 3, 6, 64)}
    outs, sizes = [], []
    for eight in (False, True):
        denoiser = build(model)
        if eight:
            fp8.quantise(denoiser.network, kind)
        stream = denoiser.open([0])
        denoiser.set_states(stream, {"text": TEXT})
        denoiser.prefill(stream, {"reference": latents(3, 1), "motion": latents(4, 19)})
        outs.append(denoiser.step(stream, 0, 0, x, given, 4))
        large = [*denoiser.network.blocks.values(), denoiser.network.audio_injector]
        sizes.append(sum(map(parameter_bytes, large)))
    assert 1e-3 < relative(outs[1], outs[0]) < 0.1
    assert sizes[1] < 0.35 * sizes[0]  # of float32: a quarter, and biases, gains and modulation


def test_what_stays():
    denoiser = build(model_of(dim=64, heads=2))
    fp8.quantise(denoiser.network, "per_tensor")
    eight = {n.rsplit(".", 1)[0] for n, t in denoiser.network.state_dict().items() if t.dtype == fp8.E4M3}
    assert not [n for n in eight if not n.startswith(("blocks.", "audio_injector."))]
    left = [n for n, m in denoiser.network.named_modules() if isinstance(m, torch.nn.Linear)]
    assert {n.split(".")[0] for n in left} == {"text_embedding", "time_embedding", "time_projection", "head"}


@pytest.mark.parametrize(
    ("arch", "can"),
    [("gfx942:sramecc+:xnack-", False), ("gfx90a", False), ("gfx950:sramecc+:xnack-", True), ("gfx1201", True)],
)
def test_amds_gpus_are_told_apart_by_their_architecture(monkeypatch, arch, can):
    """torch reports a compute capability of 9.x for those that have none of these products, too."""
    monkeypatch.setattr(torch.version, "hip", "7.0")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 4))
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(gcnArchName=arch))
    check = partial(fp8.check, "per_row", torch.device("cuda"), torch.bfloat16)
    if can:
        check()
    else:
        with pytest.raises(UserError, match=f"needs gfx950 or gfx12, this GPU is {arch.partition(':')[0]};"):
            check()


def test_old_devices_and_other_types_are_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    with pytest.raises(UserError, match=r"model.fp8=per_row: needs compute capability 8.9 or newer, .* has 8.0"):
        fp8.check("per_row", torch.device("cuda"), torch.bfloat16)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    fp8.check("per_row", torch.device("cuda"), torch.bfloat16)
    with pytest.raises(UserError, match=r"set model.dtype=bfloat16"):
        fp8.check("per_row", torch.device("cuda"), torch.float32)

"""Every family and rule on cards that are not there: no tensor is on the host or on another card than the rest, and
every operation exists there for the types and layouts it is given."""

from contextlib import contextmanager
from functools import partial

import pytest
import torch
from torch._subclasses.fake_tensor import unset_fake_temporarily
from torch.utils._python_dispatch import TorchDispatchMode

from conf.schema.model import FP8
from devices import kinds
from runtime.pool import BankPool
from runtime.warm import drive, warm_decoder
from stages import weights
from stages.build import build_decoder, build_network
from stages.denoise.denoiser import Denoiser
from stages.denoise.sampler import finite_steps
from stages.dit import fp8
from stages.dit.layers import Affine
from tests.devices.fake_cuda import Card, cards
from tests.helpers import config_of, sampled
from tests.runtime.test_recorded_runs import MODELS

pytestmark = pytest.mark.filterwarnings("ignore:Accessing the data pointer of FakeTensor")
ROWS = COLUMNS = 4
FEW = ("model.network.layers=2", "model.network.audio.layers=[1]")
"""Layers that show what there is to show."""
SMALL = {
    name: (*made, *(FEW if made[0] == "model=nano" else ())) for name, made in MODELS.items() if name != "in bfloat16"
}
FIRST, SECOND = torch.device("cuda:0"), torch.device("cuda:1")
WHOLE = "clean, sink, recache, renoise", "Wan", "Live Avatar"
"""Models that have all that the rest has."""
EIGHT = [("bfloat16", kind) for kind in FP8]


@contextmanager
def outline_of(outline):
    """Modules without values are made without cards: torch cannot change the type of theirs."""
    with unset_fake_temporarily(), outline():
        yield


@pytest.fixture(autouse=True)
def there(monkeypatch):
    monkeypatch.setattr(weights, "outline", partial(outline_of, weights.outline))
    monkeypatch.setitem(kinds.KINDS, "cuda", Card)
    monkeypatch.setattr(kinds, "_MADE", {})
    with cards():
        yield


def placed(*overrides: str, device: torch.device = FIRST, layers: range | None = None) -> Denoiser:
    model = config_of(*overrides).model
    denoiser = Denoiser(model, build_network(model, device, layers), ROWS, COLUMNS)
    if model.fp8:
        denoiser.network.quantise(model.fp8)
    return denoiser


def moved(module: torch.nn.Module, device: torch.device) -> torch.nn.Module:
    """A module that was made without cards, on one: torch cannot move such a module there."""
    for part in module.modules():
        for held in (part._parameters, part._buffers):
            for name, t in held.items():
                if t is not None:
                    held[name] = torch.empty_strided(t.shape, t.stride(), dtype=t.dtype, device=device)
    return module


def driven(denoiser: Denoiser) -> set[tuple[torch.device, torch.dtype]]:
    """Prefills, steps, commits and recaches; returns where what came out is, and its type."""
    found = set()

    def runner(banks, key, work, entering):
        out = work(banks.states, entering)
        found.add((out.device, out.dtype))
        return out

    denoiser.runner = runner
    pool = BankPool(denoiser, range(denoiser.model.levels), 1)
    drive(pool, pool.take(), range(6), recaches=True)
    return found


@pytest.mark.parametrize(
    ("model", "dtype", "eight"),
    sampled(
        [(model, *kind) for model in SMALL for kind in (("float32", "null"), ("bfloat16", "null"), *EIGHT)],
        {(model, "bfloat16", "null") for model in SMALL} | {(model, "bfloat16", FP8[1]) for model in WHOLE},
    ),
)
def test_passes_stay_on_their_card(model, dtype, eight):
    denoiser = placed(*SMALL[model], f"model.dtype={dtype}", f"model.fp8={eight}")
    assert driven(denoiser) == {(FIRST, getattr(torch, dtype))}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_range_of_layers_is_on_the_card_of_its_worker(dtype):
    overrides = (*SMALL["clean, sink, recache, renoise"], f"model.dtype={dtype}")
    for device, layers in ((FIRST, range(1)), (SECOND, range(1, 2))):
        assert driven(placed(*overrides, device=device, layers=layers)) == {(device, getattr(torch, dtype))}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("codec", ["wan", "taehv", "small"])
def test_decoders_stay_on_their_card(codec, dtype):
    width = () if codec == "taehv" else ("model.codec.width=4",)
    model = config_of("model=nano", f"model.codec.kind={codec}", *width, f"model.dtype={dtype}").model
    with unset_fake_temporarily():
        decoder = build_decoder(model, torch.device("cpu"))
    decoder = moved(decoder, SECOND)
    out = decoder(torch.zeros(1, 16, 3, 4, 4, dtype=getattr(torch, dtype), device=SECOND), decoder.start())
    assert out.device == SECOND
    warm_decoder(decoder, model, (4, 4))


@pytest.mark.parametrize("sampler", ["euler", "renoise"])
def test_what_follows_a_step_stays_there(sampler):
    denoiser = placed("model=nano", *FEW, f"model.sampler={sampler}")
    x = torch.zeros(1, 16, 3, 8, 8, device=FIRST)
    for step in range(denoiser.sampler.steps):
        noise = torch.zeros_like(x) if denoiser.sampler.needs_noise(step + 1) else None
        x = denoiser.sampler.update(step, x, torch.zeros_like(x), noise)
        assert x.device == finite_steps(x, 0).device == FIRST


@pytest.mark.parametrize("device", [SECOND, torch.device("cpu")], ids=str)
def test_latents_of_another_place_are_refused(device):
    """The test of these tests: a mix shows."""
    denoiser = placed("model=nano", *FEW, "model.reference=false", "model.positions=abs")
    banks = denoiser.open()
    denoiser.set_states(banks, {"text": torch.zeros(1, 8, 32)})
    given = {"audio": torch.zeros(1, 3, 4, 24), "actions": torch.zeros(1, 3, 20)}
    denoiser.step(banks, 0, 0, torch.zeros(1, 16, 3, 8, 8, device=FIRST), given)
    with pytest.raises(RuntimeError, match="device"):
        denoiser.step(banks, 0, 0, torch.zeros(1, 16, 3, 8, 8, device=device), given)


# -- 8-bit products ---------------------------------------------------------------------------------------------------


class Products(TorchDispatchMode):
    """Keeps what 8-bit products were given."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        if operation is torch.ops.aten._scaled_mm.default:
            bound = {a.name: v for a, v in zip(operation._schema.arguments, args, strict=False)}
            self.calls.append(bound | (kwargs or {}))
        return operation(*args, **(kwargs or {}))


@pytest.mark.parametrize("kind", FP8)
@pytest.mark.parametrize("model", ["same_level, recalibrated", "Live Avatar"])
def test_8_bit_products_get_what_cuda_takes(model, kind):
    """cuBLASLt and CUTLASS: first matrix by rows, second by columns, sizes of the weight in sixteens, float32 scales of
    one value each or [M, 1] and [1, N], bias and result in bfloat16."""
    denoiser = placed(*SMALL[model], "model.dtype=bfloat16", f"model.fp8={kind}")
    with Products() as found:
        driven(denoiser)
    assert found.calls
    for call in found.calls:
        a, b = call["self"], call["mat2"]
        (m, k), n = a.shape, b.shape[1]
        assert a.dtype == b.dtype == fp8.E4M3
        assert a.stride() == (k, 1) and b.stride() == (1, k)
        assert k % 16 == n % 16 == 0
        shapes = ((m, 1), (1, n)) if kind == "per_row" else ((), ())
        scales = call["scale_a"], call["scale_b"]
        assert tuple(tuple(s.shape) for s in scales) == shapes
        assert all(s.dtype == torch.float32 and s.is_contiguous() and s.device == FIRST for s in scales)
        assert call["out_dtype"] == call["bias"].dtype == torch.bfloat16 and call["use_fast_accum"]


def test_scales_of_another_layout_are_refused():
    """The test of these tests: the operation itself looks at them."""
    linear = Affine(
        torch.zeros(48, 32, device=FIRST, dtype=torch.bfloat16), torch.zeros(48, device=FIRST, dtype=torch.bfloat16)
    )
    made = fp8.Scaled.made(linear, "per_row")
    x = torch.zeros(5, 32, device=FIRST, dtype=torch.bfloat16)
    assert made.of(x).shape == (5, 48)
    values, scale = made.quantised(x)
    for wrong in (scale.t(), scale[0, 0], scale.half()):
        with pytest.raises(RuntimeError, match="scal"):
            made.product(values, wrong, torch.bfloat16)
    with pytest.raises(RuntimeError, match="16"):
        fp8.Scaled.made(Affine(linear.weight[:40], linear.bias[:40]), "per_tensor").of(x)

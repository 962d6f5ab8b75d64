"""8-bit linears: e4m3 weights and activations, products by `torch._scaled_mm`.

A transformation of a loaded network, from outside: its large products are replaced, and their 16-bit weights freed,
layer by layer. Everything is 8-bit but the embeddings of text and time, the head, and what
runs outside the network (sound, convolutions). Weights are scaled once; activations by the largest magnitude of what is
at hand: over all tokens (`per_tensor`; q, k and v, one product, have one scale) or of each token (`per_row`, with a
scale for each of the weight's rows, too).

The largest magnitude over all tokens is the same under every plan, but not where processes share a pass
(`plan.sequence_parallel`): they see their own tokens.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

import devices
from conf.errors import UserError
from stages.dit.layers import Affine, Layer, Product, Weights
from stages.dit.network import Transformer

E4M3 = torch.float8_e4m3fn
LARGEST = torch.finfo(E4M3).max
OLDEST = (8, 9)
"""Compute capability: Ada and Hopper are the first with 8-bit matrix units."""
AMD = ("gfx950", "gfx12")
"""How AMD's architectures begin whose matrix units take these types; those of `gfx942` take others (e4m3fnuz)."""


def scaled(x: Tensor, per_row: bool) -> tuple[Tensor, Tensor]:
    """[N, d] to e4m3 values and what they are to be multiplied by, float32 [] or [N, 1]."""
    wide = x.float()
    largest = wide.abs().amax(dim=-1, keepdim=True) if per_row else wide.abs().amax()
    scale = largest.clamp(min=1e-12) / LARGEST
    # Rounding may put the largest value above the range, which has no infinity to catch it.
    return (wide / scale).clamp(-LARGEST, LARGEST).to(E4M3), scale


class Scaled(NamedTuple):
    """An 8-bit `Affine`.

    Attributes:
        weight: e4m3 [out, in].
        bias: [out], in the model's dtype; None: it has none.
        scale: float32, [] or one for each row, [1, out].
    """

    weight: Tensor
    bias: Tensor | None
    scale: Tensor

    @staticmethod
    def made(product: Affine, kind: str) -> Scaled:
        """Of a product in the model's dtype."""
        weight, scale = scaled(product.weight.detach(), kind == "per_row")
        bias = None if product.bias is None else product.bias.detach()
        return Scaled(weight, bias, scale.view(1, -1) if scale.dim() else scale)

    def of(self, x: Tensor) -> Tensor:
        """[..., in] to [..., out]."""
        y = self.product(*self.quantised(x.flatten(0, -2)), x.dtype)
        return y.unflatten(0, x.shape[:-1])

    def quantised(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens [N, in] as this product takes them, and their scale."""
        return scaled(x, self.scale.dim() > 0)

    def product(self, values: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
        """[N, out] in `dtype`."""
        return torch._scaled_mm(
            values, self.weight.t(), scale, self.scale, bias=self.bias, out_dtype=dtype, use_fast_accum=True
        )


class ScaledLinear(nn.Module):
    """An `nn.Linear` in 8 bits: parts that the layers do not fuse."""

    def __init__(self, product: Scaled):
        super().__init__()
        for name, tensor in product._asdict().items():
            self.register_buffer(name, tensor)

    def forward(self, x: Tensor) -> Tensor:
        return product_of(self).of(x)


def check(kind: str, device: torch.device, dtype: torch.dtype) -> None:
    """Refuse where there are no 8-bit products of this kind.

    Raises:
        UserError: the device is too old or of another kind, or the model's dtype is not what they give.
    """
    if device.type == "cuda":
        found, arch = devices.of(device).capability(), devices.of(device).arch()
        if found and found < OLDEST:
            raise UserError(
                f"model.fp8={kind}", f"needs compute capability 8.9 or newer, this device has {found[0]}.{found[1]}",
                "set model.fp8=null",
            )  # fmt: skip
        if arch and not arch.startswith(AMD):
            raise UserError(f"model.fp8={kind}", f"needs {' or '.join(AMD)}, this GPU is {arch}", "set model.fp8=null")
        if dtype != torch.bfloat16:
            raise UserError(
                f"model.fp8={kind}", f"gives bfloat16 on CUDA, not {str(dtype)[6:]}", "set model.dtype=bfloat16"
            )
    elif device.type not in ("cpu", "meta"):
        raise UserError(f"model.fp8={kind}", f"is not for devices of kind {device.type}", "set model.fp8=null")


def quantise(network: Transformer, kind: str) -> Transformer:
    """Replace a loaded network's large products by 8-bit ones, for good.

    To be called once, after the `Denoiser` was made, which fuses.

    Raises:
        UserError: see `check`.
    """
    check(kind, network.device, network.dtype)
    for layer in network.blocks.values():
        _quantise_layer(layer, kind)
        _quantise_all(layer, kind)  # what a family has put in it
    if hasattr(network, "audio_injector"):
        _quantise_all(network.audio_injector, kind)
    return network


def _quantise_all(part: nn.Module, kind: str) -> None:
    for name, module in list(part.named_modules()):
        # The matrix units take sixteens; a narrow audio token may be no multiple of that.
        if isinstance(module, nn.Linear) and not any(n % 16 for n in module.weight.shape):
            parent = part.get_submodule(name.rpartition(".")[0])
            setattr(parent, name.rpartition(".")[2], _linear(module, kind))


def _linear(module: nn.Linear, kind: str) -> ScaledLinear:
    return ScaledLinear(Scaled.made(Affine(module.weight, module.bias), kind))


def product_of(module: nn.Linear | ScaledLinear) -> Product:
    """What a part does, as data."""
    if isinstance(module, ScaledLinear):
        return Scaled(module.weight, module.bias, module.scale)
    return Affine(module.weight, module.bias)


def _quantise_layer(layer: Layer, kind: str) -> None:
    own, cross = layer.self_attn, layer.cross_attn
    fused: Weights = layer.fused
    products: dict[str, Product] = {
        name: Scaled.made(getattr(fused, name), kind) for name in ("out", "query_text", "out_text", "up", "down")
    }
    products["qkv"] = tuple(Scaled.made(part, kind) for part in fused.qkv)
    layer.fused = fused._replace(**products)
    # The forward reads `fused`; modules hold the same tensors, so that they count as the network's own.
    del own.q, own.k, own.v
    own.qkv = ScaledLinear(products["qkv"][0])
    own.o, cross.q, cross.o = (ScaledLinear(products[name]) for name in ("out", "query_text", "out_text"))
    cross.k, cross.v = _linear(cross.k, kind), _linear(cross.v, kind)
    layer.ffn[0], layer.ffn[2] = ScaledLinear(products["up"]), ScaledLinear(products["down"])

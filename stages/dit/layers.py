"""The transformer layer: self-attention, text cross-attention and feed-forward, modulated by time.

Shapes: B batch, f latent frames, n tokens of a frame, N = f n tokens, d width. Module names give the
published checkpoint keys. A layer does not know where its self-attention's history is: it hands q, k, v to
`attend`, and whoever runs the pass decides.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stages.denoise.attention import Attend, History, KeysValues


class Affine(NamedTuple):
    """A matrix product with a bias, if it has one, as data: its parameters, and how to apply them."""

    weight: Tensor
    bias: Tensor | None

    def of(self, x: Tensor) -> Tensor:
        """[..., in] to [..., out]."""
        return F.linear(x, self.weight, self.bias)


class Product(Protocol):
    """What stands where an `Affine` does: a tuple of tensors that knows how to be applied (`stages.dit.fp8`)."""

    def of(self, x: Tensor) -> Tensor:
        """[..., in] to [..., out]."""


class Modulation(NamedTuple):
    """One layer's six modulation terms, each float32 and as `per_token` shapes it; `scale` holds 1 + scale."""

    shift1: Tensor
    scale1: Tensor
    gate1: Tensor
    shift2: Tensor
    scale2: Tensor
    gate2: Tensor


def per_token(term: Tensor) -> Tensor:
    """A term [B or 1, f or 1, d] against tokens [B, f, n, d]: [.., f, 1, d], or [d] if it is one for all tokens."""
    return term.reshape(-1) if term.numel() == term.shape[-1] else term.unsqueeze(2)


def reusable(x: Tensor) -> Tensor | None:
    """`x` as the output buffer of the operation that consumes it, unless a gradient will need its value.

    It is still in the cache, where a fresh buffer would not be: between two matrix products that is most of what
    an elementwise operation costs. For the same reason a layer's branches have one name, `y`: what is done with is
    freed, and its memory is what the next operation writes. A compiler sees to all this itself.
    """
    return None if torch.is_grad_enabled() or torch.compiler.is_compiling() else x


def rms_norm(x: Tensor, weight: Tensor, eps: Tensor) -> Tensor:
    """x / rms(x) * weight over the last dimension, in float32, before the heads are split; x's memory may be reused.

    Written out: within a forward, torch's own rms_norm takes twice as long on a CPU.
    """
    norm = torch.linalg.vector_norm(x.float(), dim=-1, keepdim=True)
    scale = torch.addcmul(eps, norm, norm, value=1 / x.shape[-1]).rsqrt_()
    if torch.is_grad_enabled():
        return (x * scale).to(x.dtype) * weight
    return x.mul_(scale).mul_(weight)


class RMSNorm(nn.Module):
    """The gain of an RMS norm, under the published name."""

    def __init__(self, dim: int, eps: float):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        # `full` is a kernel, `tensor` would be a copy from the host, which a CUDA graph cannot hold.
        return rms_norm(x, self.weight, torch.full((), self.eps, device=x.device))


def modulate(x: Tensor, shift: Tensor, scale: Tensor, eps: float) -> Tensor:
    """LayerNorm(x) * scale + shift for float32 x [B, N, d] and `per_token` terms."""
    if scale.dim() == 1:
        # One term for all tokens is a LayerNorm with that weight and bias: a single fused kernel.
        return torch.layer_norm(x, scale.shape, scale, shift, eps)
    normed = F.layer_norm(x, x.shape[-1:], None, None, eps)
    framed = normed.unflatten(1, (scale.shape[1], -1))
    return torch.addcmul(shift, framed, scale).flatten(1, 2)


def gated(x: Tensor, y: Tensor, gate: Tensor) -> Tensor:
    """x + y * gate in float32, for x, y [B, N, d] and a `per_token` gate; y's memory may be reused."""
    if gate.dim() == 1:
        return torch.addcmul(x, y, gate, out=reusable(y) if y.dtype == x.dtype else None)
    frames = gate.shape[1]
    return torch.addcmul(x.unflatten(1, (frames, -1)), y.unflatten(1, (frames, -1)), gate).flatten(1, 2)


class Attention(nn.Module):
    """Projections and q/k norms shared by self-attention and every cross-attention."""

    def __init__(self, dim: int, heads: int, eps: float, context_dim: int | None = None):
        super().__init__()
        self.dim, self.heads = dim, heads
        self.q = nn.Linear(dim, dim)
        self.k = nn.Linear(context_dim or dim, dim)
        self.v = nn.Linear(context_dim or dim, dim)
        self.o = nn.Linear(dim, dim)
        self.norm_q = RMSNorm(dim, eps)
        self.norm_k = RMSNorm(dim, eps)

    def _split(self, x: Tensor) -> Tensor:
        return x.view(*x.shape[:-1], self.heads, -1)

    def queries(self, x: Tensor) -> Tensor:
        """[B, N, d] to normalised queries [B, N, heads, head_dim]."""
        return self._split(self.norm_q(self.q(x)))

    def keys_values(self, context: Tensor) -> KeysValues:
        """[B, M, context_dim] to normalised keys and values, each [B, M, heads, head_dim]."""
        return self._split(self.norm_k(self.k(context))), self._split(self.v(context))

    def merge(self, y: Tensor) -> Tensor:
        """[B, N, heads, head_dim] to [B, N, d]."""
        return self.o(y.flatten(2))


def joined(parts: list[Tensor]) -> Tensor:
    """Contiguous tensors one after the other along their first dimension: copied, unless that is where they lie."""
    whole, size = parts[0], parts[0].nbytes
    behind = all(p.data_ptr() == whole.data_ptr() + i * size for i, p in enumerate(parts))
    if not (behind and whole.untyped_storage().nbytes() >= len(parts) * size):
        return torch.cat(parts)
    shape = (len(parts) * whole.shape[0], *whole.shape[1:])
    return whole.as_strided(shape, whole.stride(), whole.storage_offset())


class Weights(NamedTuple):
    """A layer's parameters as its forward reads them.

    Between two matrix products nothing of Python is in the cache either, and finding parameters through modules
    costs as much as the elementwise operations do; so inference finds them once.
    """

    qkv: tuple[Product, ...]
    """One product for q, k and v, or one for each."""
    gains: Tensor
    """Of q's and k's norms, [2, d]."""
    out: Product
    norm_text: tuple[Tensor, Tensor]
    query_text: Product
    gain_text: Tensor
    eps: Tensor
    """Of the q/k norms: a float32 scalar, since a number would be made into one at every use."""
    out_text: Product
    up: Product
    down: Product


def project(x: Tensor, w: Weights, heads: int) -> tuple[Tensor, Tensor, Tensor]:
    """[B, N, d] to self-attention's q, k (normalised, without positions) and v, each [B, N, heads, head_dim]."""
    batch, tokens, dim = x.shape
    x = w.qkv[0].of(x) if len(w.qkv) == 1 else torch.cat([part.of(x) for part in w.qkv], -1)
    qkv = x.view(batch, tokens, 3, dim)
    q, k = rms_norm(qkv[:, :, :2], w.gains, w.eps).view(batch, tokens, 2, heads, -1).unbind(2)
    return q, k, qkv[:, :, 2].view(batch, tokens, heads, -1)


def wide(x: Tensor) -> Tensor:
    """`x` in float32; even a conversion to the same type takes its time."""
    return x if x.dtype == torch.float32 else x.float()


def narrow(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Float32 `x` in `dtype`, likewise."""
    return x if dtype == torch.float32 else x.to(dtype)


# A layer is three regions of pure arithmetic with its two attentions between them. All that depends on history,
# positions or the layer's number is between them too, so one compiled region serves all layers and all chunks. Where a
# family puts something of its own behind an attention, the region there is two.


def before_attention(x: Tensor, m: Modulation, w: Weights, heads: int, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """Tokens [B, N, d] to self-attention's q, k and v."""
    return project(narrow(modulate(wide(x), m.shift1, m.scale1, eps), x.dtype), w, heads)


def after_self(x: Tensor, y: Tensor, m: Modulation, w: Weights) -> Tensor:
    """Tokens and what self-attention gave to the float32 residual."""
    return gated(wide(x), w.out.of(y.reshape(x.shape)), m.gate1)


def text_queries(x: Tensor, w: Weights, heads: int, eps: float, dtype: torch.dtype) -> Tensor:
    """The float32 residual to text attention's queries."""
    batch, tokens, dim = x.shape
    y = narrow(torch.layer_norm(x, (dim,), *w.norm_text, eps), dtype)
    return rms_norm(w.query_text.of(y), w.gain_text, w.eps).view(batch, tokens, heads, -1)


def between_attentions(
    x: Tensor, y: Tensor, m: Modulation, w: Weights, heads: int, eps: float
) -> tuple[Tensor, Tensor]:
    """Tokens and what self-attention gave to the float32 residual and text attention's queries."""
    dtype = x.dtype
    x = after_self(x, y, m, w)
    return x, text_queries(x, w, heads, eps, dtype)


def after_text(x: Tensor, y: Tensor, w: Weights) -> Tensor:
    """The float32 residual, which is used up, with what text attention gave."""
    return torch.add(x, w.out_text.of(y.reshape(x.shape)), out=reusable(x))


def feed_forward(x: Tensor, m: Modulation, w: Weights, eps: float, dtype: torch.dtype) -> Tensor:
    """The float32 residual to tokens [B, N, d] in `dtype`."""
    y = w.up.of(narrow(modulate(x, m.shift2, m.scale2, eps), dtype))
    y = w.down.of(F.gelu(y, approximate="tanh", out=reusable(y)))
    return narrow(gated(x, y, m.gate2), dtype)


def after_attention(x: Tensor, y: Tensor, m: Modulation, w: Weights, eps: float, dtype: torch.dtype) -> Tensor:
    """The float32 residual, which is used up, and what text attention gave to tokens [B, N, d] in `dtype`."""
    y = after_text(x, y, w)
    return feed_forward(y, m, w, eps, dtype)


class Regions(NamedTuple):
    """The three, and the halves of the last two, as they are or compiled."""

    before: Callable[..., tuple[Tensor, Tensor, Tensor]] = before_attention
    between: Callable[..., tuple[Tensor, Tensor]] = between_attentions
    after: Callable[..., Tensor] = after_attention
    after_self: Callable[..., Tensor] = after_self
    queries: Callable[..., Tensor] = text_queries
    after_text: Callable[..., Tensor] = after_text
    feed: Callable[..., Tensor] = feed_forward

    def compiled(self, one: Callable[[Callable], Callable]) -> Regions:
        """Each of them as `one` makes it."""
        return Regions(*map(one, self))


Added = Callable[[Tensor], Tensor]
"""From a layer's float32 residual [B, N, d] to the residual that it goes on with, float32 too. Without gradients it may
write into what it is given."""


class Inside(NamedTuple):
    """What a family puts into a layer; None: nothing.

    Attributes:
        after_self: behind self-attention.
        after_text: behind text attention, ahead of the feed-forward.
    """

    after_self: Added | None = None
    after_text: Added | None = None


NOTHING = Inside()


class Layer(nn.Module):
    """One transformer layer."""

    def __init__(self, index: int, dim: int, ffn_dim: int, heads: int, eps: float):
        super().__init__()
        self.index, self.heads, self.eps = index, heads, eps
        self.self_attn = Attention(dim, heads, eps)
        self.cross_attn = Attention(dim, heads, eps)
        self.norm3 = nn.LayerNorm(dim, eps)
        self.ffn = nn.Sequential(nn.Linear(dim, ffn_dim), nn.GELU(approximate="tanh"), nn.Linear(ffn_dim, dim))
        self.modulation = nn.Parameter(torch.empty(1, 6, dim))
        nn.init.normal_(self.modulation, std=dim**-0.5)
        self.fused: Weights | None = None
        self.regions = Regions()

    def weights(self) -> Weights:
        """The parameters, in the order of the forward."""

        def affine(module: nn.Linear) -> Affine:
            return Affine(module.weight, module.bias)

        own, cross, (up, _, down) = self.self_attn, self.cross_attn, self.ffn
        return Weights(
            qkv=(affine(own.q), affine(own.k), affine(own.v)),
            gains=torch.stack([own.norm_q.weight, own.norm_k.weight]),
            out=affine(own.o),
            norm_text=(self.norm3.weight.float(), self.norm3.bias.float()),
            query_text=affine(cross.q),
            gain_text=cross.norm_q.weight,
            eps=torch.tensor(self.eps, device=own.q.weight.device),
            out_text=affine(cross.o),
            up=affine(up),
            down=affine(down),
        )

    def fuse(self) -> None:
        """Prepare for inference: q, k and v become one product. To be called again once the weights are in place.

        Their parameters become views of it, so nothing is held twice; if they are that already, nothing is moved.
        """
        own = self.self_attn
        products, norms = (own.q, own.k, own.v), (own.norm_q, own.norm_k)
        weight, bias = (joined([getattr(p, name).data for p in products]) for name in ("weight", "bias"))
        gains = joined([n.weight.data for n in norms]).view(2, -1)
        for part, w, b in zip(products, weight.chunk(3), bias.chunk(3), strict=True):
            part.weight.data, part.bias.data = w, b
        for norm, gain in zip(norms, gains, strict=True):
            norm.weight.data = gain
        with torch.no_grad():
            self.fused = self.weights()._replace(qkv=(Affine(weight, bias),), gains=gains)

    def modulated(self, e6: Tensor) -> Modulation:
        """The layer's terms for projected time embeddings [B or 1, f or 1, 6, d]; constant for a given step."""
        shift1, scale1, gate1, shift2, scale2, gate2 = (per_token(t) for t in (self.modulation.float() + e6).unbind(2))
        return Modulation(shift1, 1 + scale1, gate1, shift2, 1 + scale2, gate2)

    def forward(
        self, x: Tensor, m: Modulation, text: KeysValues, attend: History, core: Attend, inside: Inside = NOTHING
    ) -> Tensor:
        """[B, N, d] to [B, N, d]; the residual stays in float32 within the layer."""
        w = self.weights() if self.fused is None or torch.is_grad_enabled() else self.fused
        dtype, run = x.dtype, self.regions
        y = attend(self.index, *run.before(x, m, w, self.heads, self.eps))
        if inside.after_self is None:
            residual, y = run.between(x, y, m, w, self.heads, self.eps)
        else:
            residual = inside.after_self(run.after_self(x, y, m, w))
            y = run.queries(residual, w, self.heads, self.eps, dtype)
        if inside.after_text is None:
            return run.after(residual, core(y, *text, None), m, w, self.eps, dtype)
        residual = inside.after_text(run.after_text(residual, core(y, *text, None), w))
        return run.feed(residual, m, w, self.eps, dtype)

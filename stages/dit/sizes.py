"""Sizes of the shared transformer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from conf.errors import positive
from conf.schema import NetworkConfig

PUBLISHED = {
    "dim": ("dim",),
    "ffn_dim": ("ffn_dim",),
    "heads": ("num_heads", "num_attention_heads"),
    "layers": ("num_layers",),
    "patch": ("patch_size",),
    "in_channels": ("in_dim", "in_channels"),
    "out_channels": ("out_dim", "out_channels"),
    "freq_dim": ("freq_dim",),
    "text_dim": ("text_dim",),
    "text_tokens": ("text_len",),
    "eps": ("eps",),
}
"""Sizes by our names, and what the original `config.json` and that of diffusers call them."""
SUPPORTED = {
    "qk_norm": (True, "rms_norm_across_heads"),
    "cross_attn_norm": (True,),
    "image_dim": (None,),
    "added_kv_proj_dim": (None,),
    "pos_embed_seq_len": (None,),
}
"""What `config.json` may say of things that the layers here have in one form only."""


@dataclass
class LayerSizes(NetworkConfig):
    """Sizes of the diffusion transformer, whatever its cross-attention reads."""

    ffn_dim: int = 128
    freq_dim: int = 256
    eps: float = 1e-6

    def __post_init__(self):
        super().__post_init__()
        for name in ("ffn_dim", "freq_dim"):
            positive(f"model.network.{name}", getattr(self, name), most=1_000_000)

    @property
    def widths(self) -> dict[str, int]:
        return {"dim": self.dim, "ffn_dim": self.ffn_dim}

    @property
    def context_rows(self) -> int:
        """Rows that cross-attention reads."""
        raise NotImplementedError

    @property
    def beside(self) -> dict[str, int]:
        """Inputs that enter with the latents, as channels behind theirs, in order: how many each has, by name."""
        return {}

    def states_values(self) -> int:
        return 2 * self.context_rows * self.dim

    def layer_flops(self, new: int, keys: int) -> Sequence[float]:
        """2 n (4 d^2 + 2 d^2 + 2 d f) in the projections of self-attention, of cross-attention (its keys and values
        are kept) and in the feed-forward; 4 n m d in attention over m keys."""
        d = self.dim
        linear = 2 * new * (6 * d * d + 2 * d * self.ffn_dim)
        attention = 4 * new * d * (keys + self.context_rows)
        return [float(linear + attention)] * self.layers

    def layer_values(self, new: int, keys: int) -> Sequence[float]:
        """A product of n rows by [a, b] and a bias has n a + a b + b + n b: q, k and v in one, o, cross-attention's q
        and o, and the feed-forward; attention has q, k, v and y, over m keys and over the context."""
        d, f, t = self.dim, self.ffn_dim, self.context_rows
        linear = new * (12 * d + 2 * f) + 6 * d * d + 2 * d * f + 7 * d + f
        attention = 4 * new * d + 2 * (keys + t) * d
        return [float(linear + attention)] * self.layers


@dataclass
class TransformerSizes(LayerSizes):
    """The same of one whose cross-attention reads text."""

    text_dim: int = 32
    text_tokens: int = 8
    """Text rows; shorter prompts are padded with zero rows, which take part."""

    def __post_init__(self):
        super().__post_init__()
        for name in ("text_dim", "text_tokens"):
            positive(f"model.network.{name}", getattr(self, name), most=1_000_000)

    @property
    def context_rows(self) -> int:
        return self.text_tokens

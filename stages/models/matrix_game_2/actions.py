"""What is pressed and turned, in a layer: two attentions along time, each with a history of its own.

Latent L reads the twelve video frames 4L - 12 to 4L - 1. A mouse comes first: each place of the frame makes queries,
keys and values of its own hidden state with what was turned, and sees that place alone. Keys come second: tokens ask,
and there is one key and value for each latent frame. Neither is modulated by the step's time, gated, or normed before.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stages.denoise.attention import KeysValues
from stages.dit.fp8 import product_of
from stages.dit.layers import Product, narrow, reusable
from stages.inputs import FRAMES_PER_LATENT
from stages.models.matrix_game_2.sizes import KEYBOARD, MOUSE, WINDOW, Actions

EPS = 1e-6


def windows(rows: Tensor) -> Tensor:
    """Rows of video frames [B, 9 + 4 f, k] to those that f latent frames read [B, f, 12 k], the oldest first."""
    return rows.unfold(1, WINDOW, FRAMES_PER_LATENT).transpose(2, 3).flatten(2)


def rms(x: Tensor) -> Tensor:
    """x / rms(x) over the channels of a head, in float32; it has no gain."""
    wide = x.float()
    return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + EPS)).to(x.dtype)


class Unapplied(nn.Module):
    """The gain of a norm that the published files hold and the published network does not apply. It was never trained,
    so it is ones; here it is read, as every weight of a file is, and not applied either."""

    def __init__(self, width: int):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))


class MouseWeights(NamedTuple):
    """Parameters of the mouse's part, up to its attention."""

    up: Product
    down: Product
    norm: tuple[Tensor, Tensor]
    qkv: Product


# Regions of pure arithmetic between the attentions, as `stages.dit.layers` has them. x is a layer's float32 residual.


def mouse_parts(x: Tensor, read: Tensor, w: MouseWeights, heads: int) -> tuple[Tensor, Tensor, Tensor]:
    """x [B, f n, d] and what its latent frames read [B, f, 12 a] to q, k and v, each [B, f n, heads, head_dim]."""
    own = read[:, :, None].expand(-1, -1, x.shape[1] // read.shape[1], -1).flatten(1, 2)
    y = w.up.of(torch.cat([narrow(x, read.dtype), own], -1))
    y = w.down.of(F.gelu(y, approximate="tanh"))
    q, k, v = w.qkv.of(F.layer_norm(y, y.shape[-1:], *w.norm)).unflatten(-1, (3, heads, -1)).unbind(2)
    return rms(q), rms(k), v


def key_queries(x: Tensor, w: Product, heads: int, dtype: torch.dtype) -> Tensor:
    """x to the queries of keys that are pressed [B, f n, heads, head_dim]."""
    return rms(w.of(narrow(x, dtype)).unflatten(-1, (heads, -1)))


def added(x: Tensor, y: Tensor, w: Product) -> Tensor:
    """x, which is used up, with what an attention gave."""
    return torch.add(x, w.of(y.flatten(2)), out=reusable(x))


class Regions(NamedTuple):
    """The three, as they are or compiled."""

    mouse: Callable[..., tuple[Tensor, Tensor, Tensor]] = mouse_parts
    queries: Callable[..., Tensor] = key_queries
    added: Callable[..., Tensor] = added

    def compiled(self, one: Callable[[Callable], Callable]) -> Regions:
        """Each of them as `one` makes it."""
        return Regions(*map(one, self))


WHOLE = Regions()


class ActionModule(nn.Module):
    """A layer's part, under the published names: `mouse_attn_q` asks the keyboard, despite its name.

    Args:
        dim: of the network.
        actions: sizes.
    """

    def __init__(self, dim: int, actions: Actions):
        super().__init__()
        a = self.actions = actions
        width, m, head = a.embedded, a.width, a.head_dim
        self.keyboard_embed = nn.Sequential(nn.Linear(a.keyboard, width), nn.SiLU(), nn.Linear(width, width))
        if a.mouse:
            self.mouse_mlp = nn.Sequential(
                nn.Linear(dim + WINDOW * a.mouse, m), nn.GELU(approximate="tanh"), nn.Linear(m, m), nn.LayerNorm(m)
            )
            self.t_qkv, self.proj_mouse = nn.Linear(m, 3 * m, bias=False), nn.Linear(m, dim, bias=False)
            self.img_attn_q_norm, self.img_attn_k_norm = Unapplied(head), Unapplied(head)
        self.mouse_attn_q = nn.Linear(dim, m, bias=False)
        self.keyboard_attn_kv = nn.Linear(WINDOW * width, 2 * m, bias=False)
        self.key_attn_q_norm, self.key_attn_k_norm = Unapplied(head), Unapplied(head)
        self.proj_keyboard = nn.Linear(m, dim, bias=False)

    def keyboard(self, rows: Tensor) -> KeysValues:
        """Keys of video frames [B, 9 + 4 f, keys] to keys and values of latent frames, each [B, f, heads, head_dim]."""
        kv = self.keyboard_attn_kv(windows(self.keyboard_embed(rows)))
        k, v = kv.unflatten(-1, (2, self.actions.heads, -1)).unbind(2)
        return rms(k), v

    def forward(
        self, x: Tensor, mouse: Tensor | None, keyboard: KeysValues, attend: Callable[..., Tensor], run: Regions = WHOLE
    ) -> Tensor:
        """A layer's float32 residual [B, f n, d] to the residual that it goes on with.

        Args:
            mouse: what its latent frames read [B, f, 12 axes]; None: there is no mouse.
            keyboard: of `keyboard`.
            attend: (q, k, v, adapter) -> y, over the layer's history of it.
        """
        heads, dtype = self.actions.heads, keyboard[0].dtype
        if mouse is not None:
            up, _, down, norm = self.mouse_mlp
            w = MouseWeights(product_of(up), product_of(down), (norm.weight, norm.bias), product_of(self.t_qkv))
            x = run.added(x, attend(*run.mouse(x, mouse, w, heads), MOUSE), product_of(self.proj_mouse))
        q = run.queries(x, product_of(self.mouse_attn_q), heads, dtype)
        return run.added(x, attend(q, *keyboard, KEYBOARD), product_of(self.proj_keyboard))

"""Matrix-Game 2, written straight down: no banks, no clean passes, nothing kept.

Every pass goes over all latents of the stream from the first: those of finished chunks at t = 0, the chunk's own at its
time. Who sees whom is said by blocks: a latent sees those before the end of its block that are in its window. All is
computed in float64, so what differs is the other's rounding.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from tests.stages.denoise.straight_history import Wan

C = 3
"""Latents of a block."""


class Game(Wan):
    """The network.

    Attributes:
        window: latents, those of the block included.
        keys, mouse: of all video frames [frames, ..]; `mouse` None: there is none.
    """

    def __init__(
        self, weights: dict[str, Tensor], heads: int, layers: int, rows: int, columns: int, picture: Tensor,
        window: int, action_heads: int, turned: int, keys: Tensor, mouse: Tensor | None,
    ):  # fmt: skip
        super().__init__(weights, heads, layers, rows, columns, picture)
        self.window, self.action_heads, self.pairs = window, action_heads, turned // 2
        self.keys, self.mouse = keys.double(), None if mouse is None else mouse.double()

    def layer_norm(self, name: str, x: Tensor) -> Tensor:
        off = x - x.mean(-1, keepdim=True)
        return (
            off / torch.sqrt((off * off).mean(-1, keepdim=True) + 1e-5) * self.w[f"{name}.weight"]
            + (self.w[f"{name}.bias"])
        )

    def context(self, text: Tensor) -> Tensor:
        h = self.linear("img_emb.proj.1", self.layer_norm("img_emb.proj.0", text))
        h = h * (1 + torch.erf(h / math.sqrt(2))) / 2
        return self.layer_norm("img_emb.proj.4", self.linear("img_emb.proj.3", h))

    def seen(self, latent: int) -> range:
        """Latents that one sees."""
        end = latent // C * C + C
        return range(max(0, end - self.window), end)

    def whole(self, x: Tensor, timesteps: list[float]) -> Tensor:
        """Velocity of all latents [1, 2 C + 4, L, h, w] of a stream."""
        return self.velocity(x, timesteps, self.read)

    def read(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        n, count = self.tokens, len(q) // self.tokens
        q, k = self.turned(q, list(range(count))), self.turned(k, list(range(count)))
        out = []
        for latent in range(count):
            there = slice(self.seen(latent).start * n, self.seen(latent).stop * n)
            out.append(self.attention(q[latent * n : latent * n + n], k[there], v[there]))
        return torch.cat(out)

    # -- what is pressed ----------------------------------------------------------------------------------------------

    def before_feed(self, i: int, x: Tensor) -> Tensor:
        if f"blocks.{i}.action_model.mouse_attn_q.weight" not in self.w:
            return x
        if self.mouse is not None:
            x = self.moved(f"blocks.{i}.action_model", x)
        return self.pressed(f"blocks.{i}.action_model", x)

    def product(self, name: str, x: Tensor) -> Tensor:
        return x @ self.w[f"{name}.weight"].T

    def frames(self, of: Tensor, latent: int) -> Tensor:
        """The twelve rows that a latent reads, side by side."""
        return torch.cat([of[max(0, t)] for t in range(4 * latent - 12, 4 * latent)])

    def split(self, x: Tensor) -> Tensor:
        """[n, width] to normed heads [n, heads, width / heads]."""
        x = x.unflatten(-1, (self.action_heads, -1))
        return x * torch.rsqrt((x * x).mean(-1, keepdim=True) + 1e-6)

    def on_time(self, x: Tensor, latents: list[int]) -> Tensor:
        """[n, heads, head] of these latents, of whose channels the first pairs turn."""
        out = x.clone()
        for j in range(self.pairs):
            angle = torch.tensor(latents).double() * 256.0 ** (-j / self.pairs)
            cos, sin, a, b = angle.cos()[:, None], angle.sin()[:, None], x[..., 2 * j], x[..., 2 * j + 1]
            out[..., 2 * j], out[..., 2 * j + 1] = a * cos - b * sin, a * sin + b * cos
        return out

    def look(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """One query [heads, head] to [width]."""
        scores = (q[None] * k).sum(-1) / math.sqrt(q.shape[-1])
        return (scores.softmax(0)[..., None] * v).sum(0).flatten()

    def moved(self, part: str, x: Tensor) -> Tensor:
        n, count = self.tokens, len(x) // self.tokens
        x = x.clone()
        for place in range(n):
            z = torch.stack([torch.cat([x[f * n + place], self.frames(self.mouse, f)]) for f in range(count)])
            y = self.linear(f"{part}.mouse_mlp.2", self.gelu(self.linear(f"{part}.mouse_mlp.0", z)))
            q, k, v = self.product(f"{part}.t_qkv", self.layer_norm(f"{part}.mouse_mlp.3", y)).chunk(3, -1)
            q, k = (self.on_time(self.split(of), list(range(count))) for of in (q, k))
            v = v.unflatten(-1, (self.action_heads, -1))
            for f in range(count):
                there = slice(self.seen(f).start, self.seen(f).stop)
                x[f * n + place] += self.product(f"{part}.proj_mouse", self.look(q[f], k[there], v[there]))
        return x

    def pressed(self, part: str, x: Tensor) -> Tensor:
        n, count = self.tokens, len(x) // self.tokens
        rows = self.linear(f"{part}.keyboard_embed.2", F.silu(self.linear(f"{part}.keyboard_embed.0", self.keys)))
        read = torch.stack([self.frames(rows, f) for f in range(count)])
        k, v = self.product(f"{part}.keyboard_attn_kv", read).chunk(2, -1)
        k, v = self.on_time(self.split(k), list(range(count))), v.unflatten(-1, (self.action_heads, -1))
        at = [f for f in range(count) for _ in range(n)]
        q = self.on_time(self.split(self.product(f"{part}.mouse_attn_q", x)), at)
        out = [self.look(one, k[self.seen(f)], v[self.seen(f)]) for one, f in zip(q, at, strict=True)]
        return x + self.product(f"{part}.proj_keyboard", torch.stack(out))


def stream(
    net: Game, levels: list[float], noise: Callable[[int, int], Tensor], picture: Tensor, chunks: int
) -> Iterator[Tensor]:
    """Final latents of each chunk.

    Args:
        levels: of the steps, falling.
        noise: (chunk, step) to the noise with which it enters.
        picture: its latents and those behind it [1, C, n, h, w]; the last holds for ever.
    """
    done: list[Tensor] = []
    for i in range(chunks):
        count = C * (i + 1)
        mask = torch.zeros(1, 4, count, *picture.shape[3:]).double()
        mask[:, :, 0] = 1
        beside = picture[:, :, [min(f, picture.shape[2] - 1) for f in range(count)]].double()
        x = noise(i, 0).double()
        for s, level in enumerate(levels):
            entering = torch.cat([torch.cat([*done, x], 2), mask, beside], 1)
            v = net.whole(entering, [0.0] * (count - C) + [1000 * level] * C)[:, :, -C:]
            x = x - level * v
            if s + 1 < len(levels):
                x = (1 - levels[s + 1]) * x + levels[s + 1] * noise(i, s + 1).double()
        done.append(x)
        yield x

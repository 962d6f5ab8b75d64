"""Published history rules, written straight down: no banks, no rings, no slots, no positions made beforehand.

Each rule keeps plain lists, per layer, of the keys and values of frames (or single tokens), does to them what its
authors' code does, and attends to whatever is then in the list. Keys are kept as the published code keeps them: raw and
rotated at every read (Reward Forcing), rotated once and turned on in place (Deep Forcing). All is computed in float64,
so what differs is the other's rounding.

The network is Wan's, with a timestep for each frame. Weights come by their published names.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

Read = Callable[[int, Tensor, Tensor, Tensor], Tensor]
"""Self-attention of a layer: (layer, q, k, v), each [tokens, d] and without positions, to [tokens, d]."""
Noise = Callable[[int, int], Tensor]
"""(chunk, step) to the noise [1, C, c, h, w] with which it enters the step."""
FrameKV = tuple[Tensor, Tensor]
"""Keys and values of a frame, each [tokens of a frame, d]."""

CHUNK = 3
"""Latent frames, in all of these rules."""


def levels(timesteps: list[int], shift: float) -> list[float]:
    """Noise levels of a list of 1000: entries 1000 - n of the grid of 1000, which falls and is shifted."""
    grid = [shift * u / (1 + (shift - 1) * u) for u in (n / 1000 for n in range(1000, 0, -1))]
    return [grid[1000 - n] for n in timesteps]


class Wan:
    """The network. Widths are read from the weights; the rest is told."""

    def __init__(self, weights: dict[str, Tensor], heads: int, layers: int, rows: int, columns: int, text: Tensor):
        self.w = {name: tensor.double() for name, tensor in weights.items()}
        self.heads, self.layers, self.rows, self.columns = heads, layers, rows, columns
        self.dim = len(self.w["patch_embedding.bias"])
        self.tokens = rows * columns
        """Of a frame."""
        self.text = self.context(text.double())

    def context(self, text: Tensor) -> Tensor:
        """What cross-attention reads [rows, d]."""
        return self.linear("text_embedding.2", self.gelu(self.linear("text_embedding.0", text)))

    def linear(self, name: str, x: Tensor) -> Tensor:
        return x @ self.w[f"{name}.weight"].T + self.w[f"{name}.bias"]

    def gelu(self, x: Tensor) -> Tensor:
        return F.gelu(x, approximate="tanh")

    def norm(self, x: Tensor) -> Tensor:
        return (x - x.mean(-1, keepdim=True)) / torch.sqrt(x.var(-1, unbiased=False, keepdim=True) + 1e-6)

    def rms(self, name: str, x: Tensor) -> Tensor:
        return x * torch.rsqrt((x * x).mean(-1, keepdim=True) + 1e-6) * self.w[f"{name}.weight"]

    def attention(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """[n, d], [m, d], [m, d]: no mask, ever."""
        q, k, v = (t.unflatten(-1, (self.heads, -1)).transpose(0, 1) for t in (q, k, v))
        scores = q @ k.transpose(1, 2) / math.sqrt(q.shape[-1])
        return (scores.softmax(-1) @ v).transpose(0, 1).flatten(1)

    def turned(self, x: Tensor, frames: list[int]) -> Tensor:
        """Tokens [n of each frame, d] rotated to (frame, row, column)."""
        spots = [(f, r, c) for f in frames for r in range(self.rows) for c in range(self.columns)]
        return self._turned(x, spots)

    def turned_on(self, x: Tensor, frames: int) -> Tensor:
        """Rotated tokens [n, d] rotated further in time alone."""
        return self._turned(x, [(frames, 0, 0)] * len(x))

    def _turned(self, x: Tensor, spots: list[tuple[int, int, int]]) -> Tensor:
        pairs = self.dim // self.heads // 2
        split = [pairs - 2 * (pairs // 3), pairs // 3, pairs // 3]
        turns = [10000 ** (-torch.arange(n).double() / n) for n in split]
        angles = torch.cat([torch.outer(torch.tensor(spots).double()[:, a], turns[a]) for a in range(3)], 1)
        z = torch.view_as_complex(x.view(len(x), self.heads, pairs, 2).contiguous())
        return torch.view_as_real(z * torch.polar(torch.ones_like(angles), angles)[:, None]).flatten(1)

    def velocity(self, x: Tensor, timesteps: list[float], read: Read) -> Tensor:
        """Latents [1, C, f, h, w] to their velocity, at a timestep for each frame."""
        _, _, count, height, width = x.shape
        # A timestep is told in float32 by everyone, and its sine is of what was told.
        told = torch.tensor(timesteps, dtype=torch.float32).double()
        half = self.w["time_embedding.0.weight"].shape[1] // 2
        angles = torch.outer(told, 10000 ** (-torch.arange(half).double() / half))
        e = self.linear("time_embedding.0", torch.cat([angles.cos(), angles.sin()], 1))
        e = self.linear("time_embedding.2", F.silu(e))
        e6 = self.linear("time_projection.1", F.silu(e)).view(count, 6, self.dim)
        # Each frame's terms, for each of its tokens.
        e, e6 = (terms.repeat_interleave(self.tokens, 0) for terms in (e, e6))

        weight = self.w["patch_embedding.weight"]
        h = F.conv3d(x, weight, self.w["patch_embedding.bias"], stride=weight.shape[2:]).flatten(2).transpose(1, 2)[0]
        for i in range(self.layers):
            h = self.layer(i, h, e6, read)
        shift, scale = (self.w["head.modulation"][0, part] + e for part in range(2))
        out = self.linear("head.head", self.norm(h) * (1 + scale) + shift)
        out = out.view(count, self.rows, self.columns, 1, 2, 2, -1)
        return out.permute(6, 0, 3, 1, 4, 2, 5).reshape(1, -1, count, height, width)

    def layer(self, i: int, x: Tensor, e6: Tensor, read: Read) -> Tensor:
        b = f"blocks.{i}"
        b1, s1, g1, b2, s2, g2 = (self.w[f"{b}.modulation"] + e6).unbind(1)
        h = self.norm(x) * (1 + s1) + b1
        q = self.rms(f"{b}.self_attn.norm_q", self.linear(f"{b}.self_attn.q", h))
        k = self.rms(f"{b}.self_attn.norm_k", self.linear(f"{b}.self_attn.k", h))
        v = self.linear(f"{b}.self_attn.v", h)
        x = self.between(i, x + g1 * self.linear(f"{b}.self_attn.o", read(i, q, k, v)))
        h = self.norm(x) * self.w[f"{b}.norm3.weight"] + self.w[f"{b}.norm3.bias"]
        q = self.rms(f"{b}.cross_attn.norm_q", self.linear(f"{b}.cross_attn.q", h))
        k = self.rms(f"{b}.cross_attn.norm_k", self.linear(f"{b}.cross_attn.k", self.text))
        v = self.linear(f"{b}.cross_attn.v", self.text)
        x = self.before_feed(i, x + self.linear(f"{b}.cross_attn.o", self.attention(q, k, v)))
        h = self.norm(x) * (1 + s2) + b2
        return x + g2 * self.linear(f"{b}.ffn.2", self.gelu(self.linear(f"{b}.ffn.0", h)))

    def between(self, i: int, x: Tensor) -> Tensor:
        """What a layer has between its attentions: nothing."""
        return x

    def before_feed(self, i: int, x: Tensor) -> Tensor:
        """What it has behind the second of them, likewise."""
        return x


class CleanPassLoop(ABC):
    """Self-Forcing's loop, which Reward Forcing and Deep Forcing share: all steps of a chunk, then a pass at t = 0.

    Whatever changes the cache does so on a chunk's first step, in every layer, before attention; later steps and the
    clean pass write over the chunk's own entries.
    """

    def __init__(self, net: Wan, sigmas: list[float], noise: Noise):
        self.net, self.sigmas, self.noise = net, sigmas, noise

    def run(self, chunks: int) -> Iterator[Tensor]:
        """Final latents of each chunk."""
        for i in range(chunks):
            x = self.noise(i, 0).double()
            for s, sigma in enumerate(self.sigmas):
                x = x - sigma * self.forward(i, x, sigma, s == 0)
                if s + 1 < len(self.sigmas):
                    level = self.sigmas[s + 1]
                    x = (1 - level) * x + level * self.noise(i, s + 1).double()
            self.forward(i, x, 0.0, False)
            yield x

    def forward(self, chunk: int, x: Tensor, sigma: float, first_step: bool) -> Tensor:
        def read(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            return self.read(layer, chunk, first_step, q, k, v)

        return self.net.velocity(x, [1000 * sigma] * CHUNK, read)

    @abstractmethod
    def read(self, layer: int, chunk: int, first_step: bool, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Change the cache and attend."""

    def frames(self, k: Tensor, v: Tensor) -> list[FrameKV]:
        return list(zip(k.split(self.net.tokens), v.split(self.net.tokens), strict=True))


class RewardForcing(CleanPassLoop):
    """9 frames: an attention sink of 3 that averages, 3 before the chunk, and the chunk. Keys are raw, positions slots.

    Args:
        alpha: what the attention sink keeps of itself.
    """

    def __init__(self, net: Wan, sigmas: list[float], noise: Noise, alpha: float):
        super().__init__(net, sigmas, noise)
        self.alpha = alpha
        self.cache: list[list[FrameKV]] = [[] for _ in range(net.layers)]

    def read(self, layer: int, chunk: int, first_step: bool, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        cache = self.cache[layer]
        if not first_step:
            cache[-3:] = self.frames(k, v)
        elif len(cache) < 9:
            cache += self.frames(k, v)
        else:
            sink, evicted, past = cache[:3], cache[3:6], cache[6:]
            a = self.alpha
            merged = [
                (a * sink_k + (1 - a) * old_k, a * sink_v + (1 - a) * old_v)
                for (sink_k, sink_v), (old_k, old_v) in zip(sink, evicted, strict=True)
            ]
            cache[:] = [*merged, *past, *self.frames(k, v)]
        slots = list(range(len(cache)))
        keys = self.net.turned(torch.cat([key for key, _ in cache]), slots)
        return self.net.attention(self.net.turned(q, slots[-3:]), keys, torch.cat([value for _, value in cache]))


class DeepSink(CleanPassLoop):
    """21 frames, the first 10 to 15 of which are an attention sink that is moved along. Keys are rotated where their
    frames are, and those of the attention sink are turned on in place."""

    def __init__(self, net: Wan, sigmas: list[float], noise: Noise, sink: int, window: int = 21):
        super().__init__(net, sigmas, noise)
        self.sink, self.window = sink, window
        self.cache: list[list[FrameKV]] = [[] for _ in range(net.layers)]
        self.sink_start = [0] * net.layers

    def read(self, layer: int, chunk: int, first_step: bool, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        cache, f0 = self.cache[layer], CHUNK * chunk
        own = [f0, f0 + 1, f0 + 2]
        new = self.frames(self.net.turned(k, own), v)
        if not first_step:
            cache[-3:] = new
        elif len(cache) + 3 <= self.window:
            cache += new
        else:
            del cache[self.sink : self.sink + 3]
            cache += new
            by = f0 - self.window - self.sink_start[layer]
            cache[: self.sink] = [(self.net.turned_on(key, by), value) for key, value in cache[: self.sink]]
            self.sink_start[layer] += by
        keys, values = (torch.cat(part) for part in zip(*cache, strict=True))
        return self.net.attention(self.net.turned(q, own), keys, values)


@dataclass
class Token:
    """An entry of a cache of single tokens: its key, rotated, its value, and how often it was kept."""

    name: tuple[int, int]
    """Its frame, and which of the frame's tokens it is."""
    key: Tensor
    value: Tensor
    kept: int = 0


@dataclass(frozen=True)
class Choice:
    """What a compression kept.

    Attributes:
        chunk, layer: where.
        indices: of the kept among the candidates, in order.
        names: of the kept: frame, and which token of it.
        margin: by how much the last one kept won over the best one dropped, in parts of the largest score.
        barred: how many of the dropped would have been kept, had they not been kept too often before.
    """

    chunk: int
    layer: int
    indices: list[int]
    names: list[tuple[int, int]]
    margin: float
    barred: int


class Compression(CleanPassLoop):
    """Deep Forcing's participative compression.

    Args:
        reuse: how often a token may be kept; None: for ever.
        window, sink, budget, recent: in frames.

    Attributes:
        choices: all of them, in order.
        places: tokens that are kept.
    """

    def __init__(
        self, net: Wan, sigmas: list[float], noise: Noise, reuse: int | None,
        window: int = 21, sink: int = 10, budget: int = 16, recent: int = 4,
    ):  # fmt: skip
        super().__init__(net, sigmas, noise)
        self.reuse, self.window, self.sink, self.budget, self.recent = reuse, window, sink, budget, recent
        self.cache: list[list[Token]] = [[] for _ in range(net.layers)]
        self.queries: list[list[Tensor]] = [[] for _ in range(net.layers)]
        """The latest of each layer's rotated queries, of all passes."""
        self.sink_start = [0] * net.layers
        self.choices: list[Choice] = []
        self.places = (budget - sink - recent) * net.tokens

    def read(self, layer: int, chunk: int, first_step: bool, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        cache, n, f0 = self.cache[layer], self.net.tokens, CHUNK * chunk
        own = [f0, f0 + 1, f0 + 2]
        q, k = self.net.turned(q, own), self.net.turned(k, own)
        self.queries[layer] = [*self.queries[layer], *q][-self.recent * n :]
        names = [(frame, token) for frame in own for token in range(n)]
        new = [Token(*parts) for parts in zip(names, k, v, strict=True)]
        if not first_step:
            cache[-3 * n :] = new
        else:
            cache += new
            if len(cache) > self.window * n:
                self.compress(layer, chunk)
        keys, values = torch.stack([t.key for t in cache]), torch.stack([t.value for t in cache])
        return self.net.attention(q, keys, values)

    def compress(self, layer: int, chunk: int) -> None:
        cache, n, f0 = self.cache[layer], self.net.tokens, CHUNK * chunk
        sink, rest = cache[: self.sink * n], cache[self.sink * n :]
        candidates, recent = rest[: -self.recent * n], rest[-self.recent * n :]
        head_dim = self.net.dim // self.net.heads
        # Heads lie side by side, so one product of whole rows is the sum over the heads.
        asked = torch.stack(self.queries[layer]).sum(0)
        scores = [float(asked @ t.key) / (self.net.heads * math.sqrt(head_dim)) for t in candidates]

        ranked = sorted(range(len(candidates)), key=lambda j: scores[j], reverse=True)
        allowed = [j for j in ranked if self.reuse is None or candidates[j].kept < self.reuse]
        kept = sorted(allowed[: self.places])
        for j in kept:
            candidates[j].kept += 1
        self.choices.append(
            Choice(
                chunk, layer, kept, [candidates[j].name for j in kept],
                (scores[allowed[self.places - 1]] - scores[allowed[self.places]]) / max(abs(score) for score in scores),
                len(set(ranked[: self.places]) - set(kept)),
            )
        )  # fmt: skip

        by = f0 - self.budget - self.sink_start[layer]
        for token, key in zip(sink, self.net.turned_on(torch.stack([t.key for t in sink]), by), strict=True):
            token.key = key
        self.sink_start[layer] += by
        self.cache[layer][:] = [*sink, *(candidates[j] for j in kept), *recent]


class RollingForcing:
    """Windows of S chunks at rising noise: chunk i is at step w - i of window w. The attention sink is chunk 0.

    Args:
        chunks: of the stream. The last S - 1 of them are finished in shorter windows.
        attended: frames whose keys a pass sees, at most.
    """

    def __init__(self, net: Wan, sigmas: list[float], noise: Noise, chunks: int, attended: int = 21):
        self.net, self.sigmas, self.noise, self.chunks, self.attended = net, sigmas, noise, chunks, attended
        self.cache: list[list[FrameKV]] = [[] for _ in range(net.layers)]
        """Of finished frames, all of them; keys are raw."""

    def run(self) -> Iterator[Tensor]:
        """Final latents of each chunk."""
        steps = len(self.sigmas)
        x: dict[int, Tensor] = {}
        for w in range(self.chunks + steps - 1):
            a, b = max(0, w - steps + 1), min(self.chunks - 1, w)
            if b == w:
                x[w] = self.noise(w, 0).double()
            window = list(range(a, b + 1))
            v = self.joint(a, torch.cat([x[i] for i in window], 2), [self.sigmas[w - i] for i in window])
            for i, own in zip(window, v.split(CHUNK, 2), strict=True):
                step = w - i
                x[i] = x[i] - self.sigmas[step] * own
                if step + 1 < steps:
                    level = self.sigmas[step + 1]
                    x[i] = (1 - level) * x[i] + level * self.noise(i, step + 1).double()
            if w >= steps - 1:
                self.clean(a, x[a])
                yield x.pop(a)

    def joint(self, a: int, x: Tensor, sigmas: list[float]) -> Tensor:
        """One forward over the window. It sees the attention sink, recent frames and itself, and writes nothing."""
        f0, q_frames = CHUNK * a, x.shape[2]
        own = list(range(f0, f0 + q_frames))
        recent = list(range(max(3, f0 - (self.attended - q_frames - 3)), f0)) if a else []
        sink = [0, 1, 2] if a else []
        positions = [f0 - len(recent) - 3 + j for j in range(3)] if a else []

        def read(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            past = [self.cache[layer][frame] for frame in (*sink, *recent)]
            keys = self.net.turned(torch.cat([*(key for key, _ in past), k]), [*positions, *recent, *own])
            return self.net.attention(self.net.turned(q, own), keys, torch.cat([*(value for _, value in past), v]))

        return self.net.velocity(x, [1000 * sigma for sigma in sigmas for _ in range(CHUNK)], read)

    def clean(self, a: int, x: Tensor) -> None:
        """The finished chunk at t = 0: it is kept, and sees the latest frames at their own places."""
        f0 = CHUNK * a
        own, seen = [f0, f0 + 1, f0 + 2], list(range(max(0, f0 + 3 - self.attended), f0 + 3))

        def read(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            self.cache[layer] += zip(k.split(self.net.tokens), v.split(self.net.tokens), strict=True)
            keys, values = (torch.cat(part) for part in zip(*(self.cache[layer][f] for f in seen), strict=True))
            return self.net.attention(self.net.turned(q, own), self.net.turned(keys, seen), values)

        self.net.velocity(x, [0.0] * CHUNK, read)

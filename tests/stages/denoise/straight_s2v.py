"""Live Avatar's forward, written straight down: no banks, no ring, no caches, no block ranges.

Everything is recomputed for every forward from lists of what was stored, keys are put side by side, and rotations are
products of complex numbers, token by token. Weights come by their published names; all is computed in float64, so what
differs is the other's rounding.
"""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor


class Straight:
    """The network at one step. Widths are read from the weights; `heads` and layers are told."""

    def __init__(self, weights: dict[str, Tensor], heads: int, layers: int, injected: list[int]):
        self.w = {name: tensor.double() for name, tensor in weights.items()}
        self.heads, self.layers, self.injected = heads, layers, injected
        self.dim = weights["patch_embedding.bias"].shape[0]
        self.past: list[list[tuple[Tensor, Tensor]]] = [[] for _ in range(layers)]
        self.sink: list[tuple[Tensor, Tensor]] = []

    # -- small parts ------------------------------------------------------------------------------------------------

    def linear(self, name: str, x: Tensor) -> Tensor:
        return x @ self.w[f"{name}.weight"].T + self.w[f"{name}.bias"]

    def norm(self, x: Tensor, eps: float) -> Tensor:
        return (x - x.mean(-1, keepdim=True)) / torch.sqrt(x.var(-1, unbiased=False, keepdim=True) + eps)

    def rms(self, name: str, x: Tensor) -> Tensor:
        return x * torch.rsqrt((x * x).mean(-1, keepdim=True) + 1e-6) * self.w[f"{name}.weight"]

    def conv(self, name: str, x: Tensor) -> Tensor:
        weight = self.w[f"{name}.weight"]
        return F.conv3d(x, weight, self.w[f"{name}.bias"], stride=weight.shape[2:]).flatten(2).transpose(1, 2)[0]

    def attention(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """[n, d], [m, d], [m, d]."""
        q, k, v = (t.unflatten(-1, (self.heads, -1)).transpose(0, 1) for t in (q, k, v))
        scores = q @ k.transpose(1, 2) / math.sqrt(q.shape[-1])
        return (scores.softmax(-1) @ v).transpose(0, 1).flatten(1)

    def turned(self, x: Tensor, places: list[tuple[int, int, int]]) -> Tensor:
        """Rotated by (frame, row, column), one of each token."""
        width = self.dim // self.heads
        pairs = width // 2
        split = [pairs - 2 * (pairs // 3), pairs // 3, pairs // 3]
        angles = torch.cat(
            [
                torch.tensor([[p[axis] * 10000 ** (-2 * j / (2 * n)) for j in range(n)] for p in places]).double()
                for axis, n in enumerate(split)
            ],
            1,
        )
        turn = torch.polar(torch.ones_like(angles), angles)[:, None]
        z = torch.view_as_complex(x.double().view(len(x), self.heads, pairs, 2).contiguous())
        return torch.view_as_real(z * turn).flatten(1)

    def time(self, t: float) -> tuple[Tensor, Tensor]:
        width = self.w["time_embedding.0.weight"].shape[1]
        f = torch.tensor([t * 10000 ** (-i / (width // 2)) for i in range(width // 2)], dtype=torch.float64)
        e = self.linear("time_embedding.2", F.silu(self.linear("time_embedding.0", torch.cat([f.cos(), f.sin()]))))
        return e, self.linear("time_projection.1", F.silu(e)).view(6, self.dim)

    # -- the layers --------------------------------------------------------------------------------------------------

    def layer(self, i: int, x: Tensor, e6: Tensor, text: Tensor, read) -> Tensor:
        """`read(q, k, v)` is self-attention's; q, k and v have no positions yet."""
        b = f"blocks.{i}"
        b1, s1, g1, b2, s2, g2 = self.w[f"{b}.modulation"][0] + e6
        h = self.norm(x, 1e-6) * (1 + s1) + b1
        q = self.rms(f"{b}.self_attn.norm_q", self.linear(f"{b}.self_attn.q", h))
        k = self.rms(f"{b}.self_attn.norm_k", self.linear(f"{b}.self_attn.k", h))
        x = x + g1 * self.linear(f"{b}.self_attn.o", read(q, k, self.linear(f"{b}.self_attn.v", h)))
        h = self.norm(x, 1e-6) * self.w[f"{b}.norm3.weight"] + self.w[f"{b}.norm3.bias"]
        x = x + self.cross(f"{b}.cross_attn", h, text)
        h = self.norm(x, 1e-6) * (1 + s2) + b2
        return x + g2 * self.linear(f"{b}.ffn.2", F.gelu(self.linear(f"{b}.ffn.0", h), approximate="tanh"))

    def cross(self, name: str, h: Tensor, context: Tensor) -> Tensor:
        q = self.rms(f"{name}.norm_q", self.linear(f"{name}.q", h))
        k = self.rms(f"{name}.norm_k", self.linear(f"{name}.k", context))
        return self.linear(f"{name}.o", self.attention(q, k, self.linear(f"{name}.v", context)))

    def text(self, rows: Tensor, tokens: int) -> Tensor:
        padded = torch.cat([rows, rows.new_zeros(tokens - len(rows), rows.shape[1])])
        return self.linear("text_embedding.2", F.gelu(self.linear("text_embedding.0", padded), approximate="tanh"))

    # -- the attention sink --------------------------------------------------------------------------------------------

    def places(self, frames: list[int], rows: list[int], columns: list[int]) -> list[tuple[int, int, int]]:
        return [(f, r, c) for f in frames for r in rows for c in columns]

    def sink_places(self, rows: int, columns: int, reference: int) -> list[tuple[int, int, int]]:
        def some(count: int, of: int) -> list[int]:
            return [int(p) for p in np.linspace(0, of - 1, count)]

        whole = list(range(rows)), list(range(columns))
        return [
            *self.places([reference], *whole),
            *self.places([-1], *whole),
            *self.places([-3], some(rows // 2, rows), some(columns // 2, columns)),
            *self.places([-19, -14, -9, -4], some(rows // 4, rows), some(columns // 4, columns)),
        ]

    def prefill(self, reference: Tensor, motion: Tensor, text: Tensor, rows: int, columns: int) -> None:
        """reference [1, C, 1, h, w], motion [1, C, 19, h, w]: keys without positions, and values, of every layer."""
        kind = self.w["trainable_cond_mask.weight"]
        old, middle, new = motion.split([16, 2, 1], dim=2)
        x = torch.cat([
            self.conv("patch_embedding", reference) + kind[1],
            self.conv("frame_packer.proj", new) + kind[2],
            self.conv("frame_packer.proj_2x", middle) + kind[2],
            self.conv("frame_packer.proj_4x", old) + kind[2],
        ])  # fmt: skip
        places, (_, e6) = self.sink_places(rows, columns, 30), self.time(0.0)
        self.sink = []

        def read(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            self.sink.append((k, v))
            return self.attention(self.turned(q, places), self.turned(k, places), v)

        for i in range(self.layers):
            x = self.layer(i, x, e6, text, read)

    # -- one chunk ----------------------------------------------------------------------------------------------------

    def chunk(self, index: int, x: Tensor, t: float, text: Tensor, audio: Tensor, distance: int, pose=None) -> Tensor:
        """Latents [1, C, 3, h, w] to a velocity. `audio`: features [layers, inputs, 12]."""
        _, channels, count, height, width = x.shape
        first, rows, columns = count * index, height // 2, width // 2
        n = rows * columns
        posed = torch.zeros_like(x) if pose is None else pose
        h = self.conv("patch_embedding", x) + self.conv("cond_encoder", posed) + self.w["trainable_cond_mask.weight"][0]
        own = self.places([first, first + 1, first + 2], list(range(rows)), list(range(columns)))
        sink_places = self.sink_places(rows, columns, 30 + max(0, first - (30 - distance)))
        local, whole = self.heard(audio)
        e, e6 = self.time(t)
        for i in range(self.layers):

            def read(q: Tensor, k: Tensor, v: Tensor, i: int = i) -> Tensor:
                self.past[i] = [*self.past[i], (self.turned(k, own), v)][-4:]
                keys = [k for k, _ in self.past[i]] + [self.turned(self.sink[i][0], sink_places)]
                values = [v for _, v in self.past[i]] + [self.sink[i][1]]
                return self.attention(self.turned(q, own), torch.cat(keys), torch.cat(values))

            h = self.layer(i, h, e6, text, read)
            if i in self.injected:
                j, frames = self.injected.index(i), []
                for f in range(count):
                    some = h[f * n : (f + 1) * n]
                    shift, scale = self.linear(
                        f"audio_injector.injector_adain_layers.{j}.linear", F.silu(whole[f])
                    ).chunk(2)
                    asks = self.norm(some, 1e-5) * (1 + scale) + shift
                    frames.append(some + self.cross(f"audio_injector.injector.{j}", asks, local[f]))
                h = torch.cat(frames)
        shift, scale = self.w["head.modulation"][0] + e
        out = self.linear("head.head", self.norm(h, 1e-6) * (1 + scale) + shift)
        out = out.view(count, rows, columns, 1, 2, 2, channels)
        return out.permute(6, 0, 3, 1, 4, 2, 5).reshape(1, channels, count, height, width)

    def heard(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Local tokens [3, 5, d] and the global one [3, d] of features [layers, inputs, 12]."""
        c = "casual_audio_encoder"
        share = F.silu(self.w[f"{c}.weights"][0])
        mixed = (share * features).sum(0) / share.sum()
        mixed = torch.cat([mixed[:, :1].repeat(1, 73), mixed], 1)[None]

        def conv(name: str, x: Tensor, stride: int) -> Tensor:
            x = torch.cat([x[..., :1], x[..., :1], x], -1)
            return F.conv1d(
                x, self.w[f"{c}.encoder.{name}.conv.weight"], self.w[f"{c}.encoder.{name}.conv.bias"], stride
            )

        def activated(x: Tensor) -> Tensor:
            return F.silu(self.norm(x.transpose(1, 2), 1e-6)).transpose(1, 2)

        def rest(x: Tensor) -> Tensor:
            x = activated(conv("conv3", activated(conv("conv2", activated(x), 2)), 2))
            assert x.shape[-1] == 22
            return x[0, :, 19:].T

        local = conv("conv1_local", mixed, 1).chunk(4, dim=1)
        tokens = [rest(x) for x in local] + [self.w[f"{c}.encoder.padding_tokens"][0, 0].expand(3, -1)]
        whole = self.linear(f"{c}.encoder.final_linear", rest(conv("conv1_global", mixed, 1)))
        return torch.stack(tokens, 1), whole

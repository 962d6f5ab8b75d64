"""The attention back end of training: `sdpa`'s function, faster backwards on CPUs.

Registered as `training`. On a CPU, torch's fused kernel takes several times longer backwards in bfloat16 than in
float32, and longer than plain matrix products where there are few keys (text rows, audio tokens). Elsewhere it is
`sdpa`.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from stages.denoise.attention import BACKENDS, Backend

FEW = 16
"""Up to this many keys, two batched matrix products win."""


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """q [B, N, heads, head_dim], k and v [B, M, heads, head_dim] to [B, N, heads, head_dim], in v's dtype."""
    dtype, kind = v.dtype, v.device.type
    q, k, v = (t.transpose(1, 2) for t in (q, k, v))
    if kind != "cpu":
        y = F.scaled_dot_product_attention(q.to(dtype), k.to(dtype), v, attn_mask=mask)
    elif k.shape[2] <= FEW and mask is None:
        weights = torch.matmul(q * q.shape[-1] ** -0.5, k.transpose(-1, -2))
        y = torch.matmul(torch.softmax(weights.float(), -1).to(dtype), v)
    else:
        with torch.autocast(kind, enabled=False):
            y = F.scaled_dot_product_attention(q.float(), k.float(), v.float(), attn_mask=mask)
    return y.to(dtype).transpose(1, 2)


KINDS = (torch.float32, torch.bfloat16)
BACKENDS["training"] = Backend(attend, "torch", {"cpu": KINDS, "cuda": KINDS})

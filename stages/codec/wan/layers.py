"""Building blocks of the Wan2.1 VAE, for inference on one stream at a time.

Every layer is called with `(x, cache)`: `x` is [B, C, T, H, W], `cache` the list in the stream's `CodecState`.
Causal convolutions own one slot of it each; the other layers work frame by frame and ignore it. Submodules
carry the names and numbers of the published checkpoint, gaps included (activations have no parameters).

Tensors stay in channels-last memory throughout: frames fold into the batch, channels reduce and history is
joined without a transposing copy, and convolution kernels take that layout as it is.
"""

from __future__ import annotations

from collections import OrderedDict

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Cache = list[Tensor | None]


class Chain(nn.Sequential):
    """Layers one after the other, each given the stream's cache."""

    def forward(self, x: Tensor, cache: Cache) -> Tensor:
        for layer in self:
            x = layer(x, cache)
        return x


class CausalConv3d(nn.Conv3d):
    """3D convolution that looks back in time only: same padding in space, its own history in front in time.

    The history is what the next call needs and no more, kernel - stride input frames: 2 for the 3-frame
    kernels of Wan2.1, 1 where they step by 2. Before the first call it is silence (zeros).
    """

    def __init__(self, inputs: int, outputs: int, kernel: tuple[int, int, int] = (3, 3, 3), stride: int = 1):
        space = (0, kernel[1] // 2, kernel[2] // 2)
        super().__init__(inputs, outputs, kernel, stride=(stride, 1, 1), padding=space)
        self.past = kernel[0] - stride
        self.slot = -1  # set by `number_slots`

    def remember(self, x: Tensor, cache: Cache) -> Tensor:
        """History and `x` joined along time, leaving the new history in the slot."""
        past = cache[self.slot]
        x = F.pad(x, (0, 0, 0, 0, self.past, 0)) if past is None else torch.cat([past, x], dim=2)
        # A copy, since a slice would keep the whole joined tensor alive until the next call.
        cache[self.slot] = x[:, :, -self.past :].clone()
        return x

    def forward(self, x: Tensor, cache: Cache) -> Tensor:
        return super().forward(self.remember(x, cache))


class RMSNorm(nn.Module):
    """x / |x| * sqrt(C) * gamma over the channels (dimension 1) of frames or video, then SiLU if asked.

    Args:
        channels: C.
        dims: how many dimensions follow the channels in the published shape of gamma.
        silu: follow with SiLU, as everywhere but before attention.
    """

    EPS = 1e-24  # on the mean square, only to map 0 to 0; published: |x| is at least 1e-12

    def __init__(self, channels: int, dims: int = 3, silu: bool = True):
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(channels, *[1] * dims))
        self.silu = silu

    def forward(self, x: Tensor, cache: Cache | None = None) -> Tensor:
        # sqrt(C) / |x| is one over the root mean square, so the fused kernel (float32 inside) does it all.
        y = F.rms_norm(x.movedim(1, -1), x.shape[1:2], self.gamma.flatten(), self.EPS).movedim(-1, 1)
        return F.silu(y, inplace=True) if self.silu else y


class ResidualBlock(nn.Module):
    """Two times RMS norm, SiLU and causal convolution, plus the input (by a 1x1x1 convolution if widths differ)."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        layers = {
            "0": RMSNorm(inputs),
            "2": CausalConv3d(inputs, outputs),
            "3": RMSNorm(outputs),
            "6": CausalConv3d(outputs, outputs),
        }
        self.residual = Chain(OrderedDict(layers))
        self.shortcut = nn.Conv3d(inputs, outputs, 1) if inputs != outputs else nn.Identity()

    def forward(self, x: Tensor, cache: Cache) -> Tensor:
        return self.residual(x, cache).add_(self.shortcut(x))


class FrameAttention(nn.Module):
    """Single-head self-attention among the pixels of each frame."""

    def __init__(self, channels: int):
        super().__init__()
        self.norm = RMSNorm(channels, dims=2, silu=False)
        self.to_qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.proj = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor, cache: Cache) -> Tensor:
        frames = fold(x)
        tokens = self.to_qkv(self.norm(frames)).flatten(2).transpose(1, 2)  # [B T, H W, 3 C]
        y = F.scaled_dot_product_attention(*tokens.unsqueeze(1).chunk(3, dim=-1)).squeeze(1)
        y = self.proj(y.transpose(1, 2).unflatten(2, frames.shape[2:]))
        return unfold(y, len(x)).add_(x)


class Downsample(nn.Module):
    """Halves height and width and, if `temporal`, the frame rate.

    The very first frame of a stream keeps its place: it skips the temporal convolution and becomes its history.
    """

    def __init__(self, channels: int, temporal: bool):
        super().__init__()
        self.resample = nn.ModuleDict({"1": nn.Conv2d(channels, channels, 3, stride=2)})
        self.time_conv = CausalConv3d(channels, channels, (3, 1, 1), stride=2) if temporal else None

    def forward(self, x: Tensor, cache: Cache) -> Tensor:
        # Wan2.1 pads right and bottom only, which a convolution's own padding cannot express.
        x = unfold(self.resample["1"](F.pad(fold(x), (0, 1, 0, 1))), len(x))
        if self.time_conv is None:
            return x
        if cache[self.time_conv.slot] is None:
            self.time_conv.remember(x, cache)
            return x
        return self.time_conv(x, cache)


class Upsample(nn.Module):
    """Doubles height and width, halves the channels and, if `temporal`, doubles the frame rate.

    The first latent of a stream skips the temporal convolution and leaves silence, not itself, as history.
    """

    def __init__(self, channels: int, temporal: bool):
        super().__init__()
        self.resample = nn.ModuleDict({"1": nn.Conv2d(channels, channels // 2, 3, padding=1)})
        self.time_conv = CausalConv3d(channels, 2 * channels, (3, 1, 1)) if temporal else None

    def forward(self, x: Tensor, cache: Cache) -> Tensor:
        if self.time_conv is not None:
            if cache[self.time_conv.slot] is None:
                self.time_conv.remember(torch.zeros_like(x), cache)
            else:
                x = interleave(self.time_conv(x, cache))
        frames = F.interpolate(fold(x), scale_factor=2.0, mode="nearest-exact")
        return unfold(self.resample["1"](frames), len(x))


def fold(x: Tensor) -> Tensor:
    """Video [B, C, T, H, W] as frames [B T, C, H, W]; a view in channels-last memory."""
    return x.transpose(1, 2).flatten(0, 1)


def unfold(frames: Tensor, batch: int) -> Tensor:
    """Frames [B T, C, H, W] as video [B, C, T, H, W], a view."""
    return frames.unflatten(0, (batch, -1)).transpose(1, 2)


def interleave(x: Tensor) -> Tensor:
    """[B, 2 C, T, H, W] to [B, C, 2 T, H, W]: the first C channels of frame t become frame 2 t, the rest 2 t + 1."""
    halves = x.movedim(1, -1).chunk(2, dim=-1)
    return torch.stack(halves, dim=2).flatten(1, 2).movedim(-1, 1)


def number_slots(module: nn.Module) -> int:
    """Give each causal convolution in `module` its own cache slot, in order; how many there are."""
    convolutions = [m for m in module.modules() if isinstance(m, CausalConv3d)]
    for slot, convolution in enumerate(convolutions):
        convolution.slot = slot
    return len(convolutions)


def channels_last(module: nn.Module) -> None:
    """Lay the convolution weights of `module` out channels-last, in place; otherwise every call reorders them."""
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    for m in module.modules():
        if isinstance(m, nn.Conv2d | nn.Conv3d):
            m.weight.data = m.weight.data.contiguous(memory_format=formats[m.weight.dim()])

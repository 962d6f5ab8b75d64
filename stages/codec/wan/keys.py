"""Names of the Wan2.1 VAE's weights: from diffusers (`AutoencoderKLWan`) to the original `Wan2.1_VAE.pth`.

And what shapes under those names tell.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

from torch import Size, Tensor

from conf.errors import UserError

# Layers of a residual block: diffusers names them, the original numbers them within a Sequential.
_RESIDUAL = {
    "norm1": "residual.0",
    "conv1": "residual.2",
    "norm2": "residual.3",
    "conv2": "residual.6",
    "conv_shortcut": "shortcut",
}
_R = rf"({'|'.join(_RESIDUAL)})"
_HALF = r"(encoder|decoder)"
_RESAMPLE = r"(resample\.1|time_conv)"

# diffusers module -> original module, given `n`, the layers per decoder level, and the pattern's groups.
# diffusers nests the decoder's levels and lists the encoder's layers in one row; the original has rows in both.
_MODULES: list[tuple[str, Callable[..., str]]] = [
    (r"quant_conv", lambda n: "conv1"),
    (r"post_quant_conv", lambda n: "conv2"),
    (rf"{_HALF}\.conv_in", lambda n, half: f"{half}.conv1"),
    (rf"{_HALF}\.norm_out", lambda n, half: f"{half}.head.0"),
    (rf"{_HALF}\.conv_out", lambda n, half: f"{half}.head.2"),
    (rf"{_HALF}\.mid_block\.resnets\.([01])\.{_R}", lambda n, half, i, r: f"{half}.middle.{2 * int(i)}.{_RESIDUAL[r]}"),
    (rf"{_HALF}\.mid_block\.attentions\.0\.(norm|to_qkv|proj)", lambda n, half, part: f"{half}.middle.1.{part}"),
    (rf"encoder\.down_blocks\.(\d+)\.{_R}", lambda n, i, r: f"encoder.downsamples.{i}.{_RESIDUAL[r]}"),
    (rf"encoder\.down_blocks\.(\d+)\.{_RESAMPLE}", lambda n, i, part: f"encoder.downsamples.{i}.{part}"),
    (
        rf"decoder\.up_blocks\.(\d+)\.resnets\.(\d+)\.{_R}",
        lambda n, level, i, r: f"decoder.upsamples.{n * int(level) + int(i)}.{_RESIDUAL[r]}",
    ),
    (
        rf"decoder\.up_blocks\.(\d+)\.upsamplers\.0\.{_RESAMPLE}",
        lambda n, level, part: f"decoder.upsamples.{n * int(level) + n - 1}.{part}",
    ),
]


def _translated(key: str, blocks: int) -> str | None:
    module, _, parameter = key.rpartition(".")
    if parameter in ("weight", "bias", "gamma"):
        for pattern, name in _MODULES:
            if match := re.fullmatch(pattern, module):
                # One block more than in the encoder, and the upsampler.
                return f"{name(blocks + 2, *match.groups())}.{parameter}"
    return None


def original_key(key: str, blocks: int = 2) -> str:
    """The original name of one diffusers weight; `blocks` is the model's `num_res_blocks`."""
    if (found := _translated(key, blocks)) is None:
        raise UserError(
            f"vae weight {key}",
            "must be a weight of a Wan2.1 VAE under its name in diffusers",
            "give the vae folder of a Wan2.1 diffusers model, or Wan2.1_VAE.pth as it is",
        )
    return found


def original_name(key: str) -> str:
    """As `original_key`, but names that are not diffusers' pass unchanged."""
    return _translated(key, 2) or key


def original_keys(state: Mapping[str, Tensor], blocks: int = 2) -> dict[str, Tensor]:
    """A diffusers state dict under its original names; the tensors themselves are the same in both."""
    return {original_key(key, blocks): value for key, value in state.items()}


def width(shapes: Mapping[str, Size]) -> int | None:
    """Channels at full resolution, by shapes under original names; None: of a half that is not whole."""
    known = (shapes[key][0] for key in ("decoder.head.0.gamma", "encoder.conv1.bias") if key in shapes)
    return next(known, None)

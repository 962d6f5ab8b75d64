"""Attention by one named kernel is what torch gives when it is told to use no other, and tells nobody else."""

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode

from stages.denoise.attention import BACKENDS
from tests.devices.fake_cuda import cards

SHAPES = [(1, 12, 20, 2, 16), (2, 1, 7, 3, 8), (1, 33, 33, 4, 64)]
"""Batch, queries, keys, heads, width."""


def tensors(shape, dtype=torch.float32, device="cpu"):
    batch, queries, keys, heads, width = shape
    draw = torch.Generator().manual_seed(0)
    made = [torch.randn(batch, n, heads, width, generator=draw).to(dtype) for n in (queries, keys, keys)]
    mask = torch.rand(queries, keys, generator=draw) > 0.3
    mask[:, 0] = True
    return [t.to(device) for t in made], mask.to(device)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_it_is_torchs_own_bit_for_bit(shape, dtype, masked):
    given, mask = tensors(shape, dtype)
    found = []
    for name in ("sdpa_flash", "sdpa"):
        leaves = [t.clone().requires_grad_() for t in given]
        with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
            out = BACKENDS[name].run(*leaves, mask if masked else None)
        out.float().square().sum().backward()
        found.append([out, *(t.grad for t in leaves)])
    assert all(torch.equal(*pair) for pair in zip(*found, strict=True))


class Flags(TorchDispatchMode):
    """Keeps which attention is run, and whether other threads may run another."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        if "attention" in str(operation):
            self.found.append((operation.overloadpacket.__name__, torch.backends.cuda.mem_efficient_sdp_enabled()))
        return operation(*args, **(kwargs or {}))


def test_other_threads_keep_their_kernels():
    given, _ = tensors(SHAPES[0])
    with Flags() as flags, torch.inference_mode():
        BACKENDS["sdpa_flash"].run(*given, None)
    assert flags.found == [("_scaled_dot_product_flash_attention_for_cpu", True)]


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("name", ["sdpa_cudnn", "sdpa_flash", "sdpa_efficient"])
def test_what_a_gpu_is_given_fits_its_kernel(name, masked):
    with cards(), Flags() as flags:
        given, mask = tensors(SHAPES[0], torch.bfloat16, "cuda:0")
        if masked and name == "sdpa_flash":
            with pytest.raises(ValueError, match="takes no mask"):
                BACKENDS[name].run(*given, mask)
            return
        out = BACKENDS[name].run(*given, mask if masked else None)
    assert out.shape == given[0].shape and out.dtype == torch.bfloat16 and out.device == torch.device("cuda:0")
    kernel = name.removeprefix("sdpa_")
    assert flags.found == [(f"_scaled_dot_product_{kernel}_attention", True)]

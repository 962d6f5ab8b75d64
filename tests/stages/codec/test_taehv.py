"""The small distilled decoder: published names, streaming, and the layout's own frame-by-frame rule."""

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from conf.errors import UserError
from stages.codec.taehv.codec import load
from stages.codec.taehv.network import TaehvDecoder
from stages.weight_file import WeightFile
from stages.weights import initialise


def decoder() -> TaehvDecoder:
    module = TaehvDecoder().eval().requires_grad_(False)
    initialise(module, 1)
    return module


def latents(frames: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(1, 16, frames, 2, 3, generator=torch.Generator().manual_seed(seed))


def published() -> dict[str, tuple[int, ...]]:
    """Keys and shapes of the decoder's half of taew2_1, level by level."""
    keys = {"decoder.1.weight": (256, 16, 3, 3), "decoder.1.bias": (256,)}
    for at, width, narrower, rate in ((3, 256, 128, 1), (9, 128, 64, 2), (15, 64, 64, 2)):
        for block in range(at, at + 3):
            for part, into in ((0, 2 * width), (2, width), (4, width)):
                keys |= {f"decoder.{block}.conv.{part}.weight": (width, into, 3, 3)}
                keys |= {f"decoder.{block}.conv.{part}.bias": (width,)}
        keys |= {f"decoder.{at + 4}.conv.weight": (rate * width, width, 1, 1)}
        keys |= {f"decoder.{at + 5}.weight": (narrower, width, 3, 3)}
    return keys | {"decoder.22.weight": (3, 64, 3, 3), "decoder.22.bias": (3,)}


def frame_by_frame(state: dict[str, torch.Tensor], clip: torch.Tensor) -> torch.Tensor:
    """The layout's rule, from its parameters alone: each time step goes through, and blocks see the one before."""
    past: dict[int, torch.Tensor] = {}

    def conv(x, name):
        weight = state[f"decoder.{name}.weight"]
        return F.conv2d(x, weight, state.get(f"decoder.{name}.bias"), padding=weight.shape[-1] // 2)

    def level(x: torch.Tensor, at: int):
        if at > 15:
            yield conv(x.relu(), "22")
            return
        for block in range(at, at + 3):
            y = torch.cat([x, past.get(block, torch.zeros_like(x))], 1)
            past[block] = x
            for part in (0, 2):
                y = conv(y, f"{block}.conv.{part}").relu()
            x = (conv(y, f"{block}.conv.4") + x).relu()
        x = conv(x.repeat_interleave(2, -1).repeat_interleave(2, -2), f"{at + 4}.conv")
        for time in x.split(state[f"decoder.{at + 4}.conv.weight"].shape[1], 1):
            yield from level(conv(time, f"{at + 5}"), at + 6)

    out = [y for z in clip.unbind(2) for y in level(conv(torch.tanh(z / 3) * 3, "1").relu(), 3)]
    return torch.stack(out[3:], 2).clamp(0, 1) * 2 - 1


def test_names_and_shapes_are_the_published_ones():
    assert {name: tuple(t.shape) for name, t in decoder().state_dict().items()} == published()


def test_any_cut_into_calls_gives_the_whole_clip():
    module, clip = decoder(), latents(7)
    whole = module(clip, module.start())
    assert whole.shape == (1, 3, module.frames(7, first=True), 16, 24)
    assert module.frames(7, first=True) == 25
    for cut in ((1, 3, 3), (3, 3, 1), (1,) * 7):
        state, sizes = module.start(), set()
        parts = [module(part, state) for part in clip.split(cut, 2)]
        sizes.add(state.nbytes)
        torch.testing.assert_close(torch.cat(parts, 2), whole, rtol=1e-5, atol=1e-5)
    assert whole.std() > 0.01


def test_it_is_the_layout_frame_by_frame():
    module, clip = decoder(), latents(4)
    torch.testing.assert_close(
        module(clip, module.start()), frame_by_frame(module.state_dict(), clip), rtol=1e-5, atol=1e-5
    )


def test_streams_do_not_touch_each_other():
    module, a, b = decoder(), latents(3, 1), latents(3, 2)
    alone = module(a, module.start())
    one, other = module.start(), module.start()
    mixed = []
    for i in range(3):
        mixed.append(module(a[:, :, i : i + 1], one))
        module(b[:, :, i : i + 1], other)
    torch.testing.assert_close(torch.cat(mixed, 2), alone, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["taew2_1.pth", "taew2_1.safetensors"])
def test_published_files_are_read(name, tmp_path):
    source = decoder().state_dict()
    # Such files may hold a rate of two at the first level too, and they hold an encoder.
    wide = torch.cat([torch.zeros_like(source["decoder.7.conv.weight"]), source["decoder.7.conv.weight"]])
    content = source | {"decoder.7.conv.weight": wide, "encoder.0.weight": torch.zeros(64, 3, 3, 3)}
    content = {k: v.contiguous() for k, v in content.items()}
    path = tmp_path / name
    torch.save(content, path) if path.suffix == ".pth" else save_file(content, path)
    module = TaehvDecoder().requires_grad_(False)
    load(module, WeightFile(path))
    assert all(torch.equal(t, source[n]) for n, t in module.state_dict().items())


def test_another_file_is_refused(tmp_path):
    content = {k: v.contiguous() for k, v in decoder().state_dict().items()}
    path = tmp_path / "other.safetensors"
    save_file(content | {"decoder.1.weight": torch.zeros(256, 48, 3, 3)}, path)
    with pytest.raises(UserError, match=r"decoder.1.weight must have shape \[256, 16, 3, 3\], found \[256, 48, 3, 3\]"):
        load(TaehvDecoder().requires_grad_(False), WeightFile(path))
    save_file({k: v for k, v in content.items() if "22" not in k}, path)
    with pytest.raises(UserError, match=r"lacks decoder.22.weight"):
        load(TaehvDecoder().requires_grad_(False), WeightFile(path))

"""The upscaler: a stream in pieces is the stream, its state is small, and it costs what it may."""

import pytest
import torch
import torch.nn.functional as F

from stages.post_upscale import SCALE, UpscaleConfig, Upscaler, load, operations, save

SMALL = UpscaleConfig(width=16, fine=8, blocks=2, reference=4)
PER_SECOND = 8e9
"""Operations allowed for a second of video."""


def upscaler_of(config: UpscaleConfig = SMALL) -> Upscaler:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        upscaler = Upscaler(config)
        for parameter in upscaler.parameters():
            torch.nn.init.normal_(parameter, std=0.1)
    return upscaler.eval().requires_grad_(False)


def video(frames: int, seed: int = 0, size: int = 16) -> torch.Tensor:
    return torch.rand(1, 3, frames, size, size, generator=torch.Generator().manual_seed(seed)) * 2 - 1


@pytest.mark.parametrize("referenced", [False, True])
def test_a_stream_in_pieces_is_the_stream(referenced):
    upscaler, frames = upscaler_of(), video(9)
    reference = video(1, seed=2, size=16 * SCALE)[:, :, 0] if referenced else None
    whole, state = upscaler(frames, upscaler.start(reference)), upscaler.start(reference)
    parts = [upscaler(part, state) for part in frames.split([4, 1, 4], dim=2)]
    torch.testing.assert_close(torch.cat(parts, dim=2), whole, rtol=0, atol=1e-6)
    assert whole.shape == (1, 3, 9, 64, 64)
    assert whole.abs().max() <= 1


def test_no_frame_is_shown_later_ones():
    upscaler, frames = upscaler_of(), video(6)
    changed = frames.clone()
    changed[:, :, 4:] = video(2, seed=5)
    before, after = (upscaler(f, upscaler.start()) for f in (frames, changed))
    assert torch.equal(before[:, :, :4], after[:, :, :4])
    assert not torch.equal(before[:, :, 4:], after[:, :, 4:])


def test_the_past_counts_and_its_memory_does_not_grow():
    upscaler = upscaler_of()
    sizes = []
    state = upscaler.start()
    for i in range(4):
        last = upscaler(video(4, seed=i), state)
        sizes.append(sum(average.numel() for average in state.averages))
    assert len(set(sizes)) == 1
    assert not torch.equal(last, upscaler(video(4, seed=3), upscaler.start()))


def test_a_still_picture_stays_still():
    upscaler, frames = upscaler_of(), video(1).expand(-1, -1, 8, -1, -1)
    made = upscaler(frames, upscaler.start())
    torch.testing.assert_close(made, made[:, :, :1].expand_as(made), rtol=0, atol=1e-6)


def test_a_reference_is_seen_and_none_is_a_grey_one():
    upscaler, frames = upscaler_of(), video(2)
    none = upscaler(frames, upscaler.start())
    torch.testing.assert_close(upscaler(frames, upscaler.start(torch.zeros(1, 3, 64, 64))), none)
    assert not torch.equal(upscaler(frames, upscaler.start(video(1, size=64)[:, :, 0])), none)


def test_untrained_it_enlarges():
    frames = video(2)
    made = Upscaler(SMALL)(frames, Upscaler(SMALL).start())
    wanted = F.interpolate(frames[0].transpose(0, 1), scale_factor=SCALE, mode="bilinear").transpose(0, 1)[None]
    torch.testing.assert_close(made, wanted)


def test_operations_are_counted_and_few():
    counted = []

    def count(module, inputs, output):
        kernel = module.kernel_size[0] * module.kernel_size[1]
        counted.append(2 * output.numel() * module.in_channels * kernel)

    upscaler = Upscaler()
    for module in upscaler.modules():
        if isinstance(module, torch.nn.Conv2d):
            module.register_forward_hook(count)
    upscaler(video(1, size=64), upscaler.start())
    assert sum(counted) == operations(upscaler.config, 64, 64)
    assert 16 * sum(counted) <= PER_SECOND


def test_a_file_gives_the_network_back(tmp_path):
    upscaler, frames = upscaler_of(), video(3)
    save(upscaler, tmp_path / "upscale.safetensors", {"steps": "7"})
    again = load(tmp_path / "upscale.safetensors")
    assert again.config == SMALL
    torch.testing.assert_close(again(frames, again.start()), upscaler(frames, upscaler.start()), rtol=0, atol=0.02)
    assert [p.name for p in tmp_path.iterdir()] == ["upscale.safetensors"]

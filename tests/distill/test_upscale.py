"""Training of the upscaler: it learns, it resumes to the bit, and what it exports can be loaded."""

import numpy as np
import pytest
import torch

from conf.errors import UserError
from distill.loop import parse
from distill.upscale import Run, Settings, edge_energy, loss_of, measured
from distill.upscale_clips import GREY, Store, draw
from stages.post_upscale import UpscaleConfig, load

TINY = UpscaleConfig(width=16, fine=8, blocks=1, reference=4)
CODEC = "assets/weights/codec.safetensors"


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """Folders of a few clips, drawn once."""
    folder = tmp_path_factory.mktemp("clips")
    for name, count in (("clips", 4), ("held_out", 2)):
        for _ in Store(folder / name, CODEC, count, held_out=name == "held_out", frames=4).fill():
            pass
    return folder


def run_of(drawn, folder, **changes) -> Run:
    folder.mkdir(exist_ok=True)
    for name in ("clips", "held_out"):
        if not (folder / name).exists():
            (folder / name).symlink_to(drawn / name)
    fields = {"clips": 4, "held_out": 2, "steps": 6, "batch": 2, "crop": 16, "warmup": 2, "bf16": False}
    return Run(Settings(run=str(folder), **fields | changes), TINY)


def test_a_run_that_stops_goes_on_as_if_it_had_not(drawn, tmp_path):
    whole = run_of(drawn, tmp_path / "whole")
    losses = [whole.advance() for _ in range(6)]
    first = run_of(drawn, tmp_path / "parts")
    parts = [first.advance() for _ in range(3)]
    first.save()
    second = run_of(drawn, tmp_path / "parts")
    assert second.step == 3
    parts += [second.advance() for _ in range(3)]
    assert parts == losses
    for name, tensor in whole.mean.state_dict().items():
        assert torch.equal(tensor, second.mean.state_dict()[name]), name


def test_other_widths_are_refused(drawn, tmp_path):
    run_of(drawn, tmp_path).save()
    with pytest.raises(UserError, match="other widths"):
        Run(Settings(run=str(tmp_path), clips=4, held_out=2), UpscaleConfig(width=32))


def test_it_learns_measures_and_exports(drawn, tmp_path):
    run = run_of(drawn, tmp_path, steps=60, lr=4e-3, export=str(tmp_path / "u.safetensors"))
    low, high, reference = run.clips.batch(99, 8, 32)

    def loss():
        with torch.no_grad():
            return loss_of(run.mean.raw(low, run.mean.start(reference)), high, run.settings).item()

    before = loss()
    for _ in range(40):
        run.advance()
    assert loss() < before
    numbers = run.export()
    again = measured(load(tmp_path / "u.safetensors"), run.held_out)
    assert abs(again["psnr_avatar"] - numbers["psnr_avatar"]) < 0.1


def test_clips_are_the_same_scene_twice():
    for number in (0, 1):
        low, high, reference = draw(number, frames=4)
        small = high.reshape(4, 64, 4, 64, 4, 3).mean(axis=(2, 4))
        assert np.abs(small - low[-4:]).mean() < 6
        assert (reference is None) == (number == 1)


def test_crops_of_all_parts_show_the_same_place(drawn):
    store = Store(drawn / "clips", CODEC, 4)
    low, high, reference = store.batch(3, 8, 16)
    assert low.shape == (8, 3, 4, 16, 16) and high.shape == (8, 3, 4, 64, 64) and reference.shape == (8, 3, 64, 64)
    small = torch.nn.functional.avg_pool2d(high.transpose(1, 2).flatten(0, 1), 4).unflatten(0, (8, 4)).transpose(1, 2)
    away = (small - low).abs().mean(dim=(1, 2, 3, 4))
    swapped = (small.roll(1, 0) - low).abs().mean(dim=(1, 2, 3, 4))
    assert away.mean() < 0.3 * swapped.mean()
    grey = (reference - (GREY / 127.5 - 1)).abs().amax(dim=(1, 2, 3)) < 1e-6
    assert grey.any() and not grey.all()
    assert all(torch.equal(a, b) for a, b in zip(store.batch(3, 8, 16), (low, high, reference), strict=True))


def test_blurred_edges_and_flicker_cost():
    truth = torch.zeros(1, 3, 4, 32, 32)
    truth[..., 16:] = 1.0
    blurred = torch.nn.functional.avg_pool3d(truth, (1, 1, 5), 1, (0, 0, 2), count_include_pad=False)
    flickers = truth + 0.05 * torch.tensor([1.0, -1.0, 1.0, -1.0])[:, None, None]
    settings = Settings(square=0.0, edges=0.0, moving=0.0, texture=0.0)
    steady = truth + 0.05
    assert loss_of(flickers, truth, settings) == pytest.approx(loss_of(steady, truth, settings).item(), rel=1e-4)
    moving = Settings(square=0.0, edges=0.0, texture=0.0)
    assert loss_of(flickers, truth, moving) > 1.5 * loss_of(steady, truth, moving)
    assert loss_of(truth, truth, Settings()) < 1e-6 < loss_of(blurred, truth, Settings())
    assert edge_energy(blurred).max() < edge_energy(truth).max()


def test_settings_are_words():
    assert parse(["steps=7"], Settings(), "the upscaler's training").steps == 7
    with pytest.raises(UserError, match="upscaler"):
        parse(["stepz=7"], Settings(), "the upscaler's training")

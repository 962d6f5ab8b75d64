"""Training of the pocket codec: it learns, it resumes to the bit, and what it exports can be loaded."""

import pytest
import torch

from conf.errors import UserError
from distill.codec import Run, Settings
from distill.codec_quality import Codec, clips, export
from distill.loop import parse, rate
from stages.codec.small.codec import load_half
from stages.codec.small.network import SmallConfig

TINY = SmallConfig(
    channels=8, encoder=(32, 16, 8), decoder=(32, 16, 8), encoder_blocks=(1, 1, 1), decoder_blocks=(1, 1, 1)
)


def settings(folder, **changes) -> Settings:
    return Settings(
        run=str(folder), **{"steps": 6, "batch": 2, "faces": 1, "frames": 8, "size": 32, "bf16": False} | changes
    )


def test_a_run_that_stops_goes_on_as_if_it_had_not(tmp_path):
    whole = Run(settings(tmp_path / "whole"), TINY)
    losses = [whole.advance() for _ in range(6)]
    first = Run(settings(tmp_path / "parts"), TINY)
    parts = [first.advance() for _ in range(3)]
    first.save()
    torch.rand(7)  # whatever else drew random numbers in between
    second = Run(settings(tmp_path / "parts"), TINY)
    assert second.step == 3
    parts += [second.advance() for _ in range(3)]
    assert parts == losses
    for name, tensor in whole.mean.state_dict().items():
        assert torch.equal(tensor, second.mean.state_dict()[name]), name
    assert [p.name for p in (tmp_path / "parts").iterdir()] == ["checkpoint.pt"]


def test_other_widths_are_refused(tmp_path):
    Run(settings(tmp_path), TINY).save()
    with pytest.raises(UserError, match="other widths"):
        Run(settings(tmp_path))


def test_it_learns_and_the_encoder_can_stay(tmp_path):
    run = Run(settings(tmp_path, warmup=5, lr=5e-3, steps=40), TINY)
    losses = [run.advance() for _ in range(24)]
    assert sum(losses[-4:]) < 0.8 * sum(losses[:4])
    run.save()
    frozen = Run(settings(tmp_path, steps=40, freeze=True), TINY)
    before = {k: v.clone() for k, v in frozen.mean.state_dict().items()}
    frozen.advance()
    after = frozen.mean.state_dict()
    assert all(torch.equal(before[k], after[k]) for k in before if k.startswith("encoder."))
    assert not all(torch.equal(before[k], after[k]) for k in before if k.startswith("decoder."))


def test_a_signal_saves_and_ends(tmp_path):
    run = Run(settings(tmp_path, steps=1000), TINY)
    run.stop()
    run.train()
    assert Run(settings(tmp_path), TINY).step == 1


def test_the_rate_rises_holds_and_falls():
    s = Settings(steps=1000, warmup=100, decay=0.5, lr=1.0)
    assert rate(0, s) < rate(50, s) < rate(99, s) == rate(500, s) == 1
    assert rate(750, s) == 0.5 and rate(1000, s) == 0


def test_exported_weights_load_and_latents_are_normalised(tmp_path):
    torch.manual_seed(0)
    quality = export(Codec(TINY), tmp_path / "codec.safetensors", size=32, count=8)
    assert set(quality) == {"avatar", "world"}
    encoder = load_half(tmp_path / "codec.safetensors", "encoder", data="world")
    video = torch.cat([clips("world", 2_000_000 + 4 * i, 4, 24, 32) for i in range(2)])
    latents = encoder(video, encoder.start())
    assert latents.mean(dim=(0, 2, 3, 4)).abs().max() < 0.01
    assert (latents.std(dim=(0, 2, 3, 4)) - 1).abs().max() < 0.02


def test_settings_from_words():
    assert parse(["steps=7", "lr=1e-4", "bf16=false"], Settings(), "the codec's training") == Settings(
        steps=7, lr=1e-4, bf16=False
    )
    with pytest.raises(UserError, match="did you mean steps"):
        parse(["step=7"], Settings(), "the codec's training")

"""Latents that are no numbers any more end their stream, by the step that left them so, and no other stream."""

import json

import pytest
import torch

from conf.errors import UserError
from launch import stream
from runtime.block import Block
from stages.denoise.denoiser import Denoiser
from stages.denoise.sampler import finite_steps, require_finite_steps
from tests.helpers import thorough
from tests.patience import PATIENT_S
from tests.runtime.test_pipeline import PLANS, Running


def test_the_first_step_that_left_them_so_is_named():
    x = torch.zeros(1, 16, 3, 4, 4)
    broken = x.clone()
    broken[0, 3, 1, 2, 0] = float("nan")
    for bad in range(4):
        found = 0
        for step in range(4):
            found = finite_steps(broken if step >= bad else x, found)
        with pytest.raises(UserError, match=rf"^step{bad} of chunk 7: left latents that are not finite"):
            require_finite_steps(found, 4, 7)
    for _ in range(4):
        x = x + 1
    require_finite_steps(torch.tensor(4), 4, 7)


@pytest.mark.parametrize("plan", ["grid", thorough("timestep"), thorough("layers, clean")])
def test_one_stream_ends_and_the_others_go_on(tmp_path, nano, monkeypatch, plan):
    overrides = PLANS[plan]
    context = [o for o in overrides if o.startswith("model")]
    alone = nano("stream.id=b", "stream.chunks=4", "stream.seed=1", *context)
    work = Block.step

    def overflows(self, stream, chunk, step, *rest):
        out = work(self, stream, chunk, step, *rest)
        last = self.denoiser.network.last
        return torch.full_like(out, float("inf")) if (stream, chunk, step, last) == (0, 2, 2, True) else out

    monkeypatch.setattr(Block, "step", overflows)
    with Running(tmp_path, *overrides) as running:
        bad, good = running.open("a", None), running.open("b", 4, seed=1)
        assert running.hash(good) == alone
        report = running.pipeline.report(bad, timeout_s=PATIENT_S)
    assert report["chunks"] == 2 and not report["finished"]
    assert report["error"]["user"] and report["error"]["line"].startswith("step2 of chunk 2: left latents that are not")


def test_on_one_device_too(tmp_path, monkeypatch, capsys):
    """One line, exit code 2, and what was made before stays."""
    work = Denoiser.step

    def overflows(self, banks, step, chunk, *rest):
        out = work(self, banks, step, chunk, *rest)
        return out * float("nan") if (step, chunk) == (1, 1) else out

    monkeypatch.setattr(Denoiser, "step", overflows)
    code = stream.main(["model=nano", "stream.chunks=3", "sink.video=null", f"output_dir={tmp_path / 'out'}"])
    assert code == 2
    assert "error: step1 of chunk 1: left latents that are not finite" in capsys.readouterr().err
    report = json.loads((tmp_path / "out/report.json").read_text())
    assert report["chunks"] == 1 and report["error"]["kind"] == "UserError"

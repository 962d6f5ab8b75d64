"""A worker that is lost while a video is drawn anew: file and encoder go on where the newest cut stood."""

from __future__ import annotations

import json

import torch

from benchmarks.unchanged import WAN
from launch import stream
from tests.checkpoints import vae_tensors
from tests.helpers import config_of
from tests.launch.losing import EXACT, ended, going, recovered, strike
from tests.stages.sources.made_video import moving, write_video

CHUNKS = 70


def test_the_worker_that_reads_and_encodes_is_lost(tmp_path, capsys):
    video = write_video(tmp_path / "in.mkv", moving(9 + 12 * (CHUNKS - 1), 32, 48), 16)
    torch.save(vae_tensors(4), tmp_path / "vae.pth")
    base = [
        "model=wan21_t2v_1_3b", *WAN, f"model.codec.checkpoint={tmp_path / 'vae.pth'}", "model.noise_scale=0.8",
        f"source.video={video}", "sink.video=null", "device=cpu",
    ]  # fmt: skip
    assert stream.main([*base, f"output_dir={tmp_path / 'alone'}"]) == 0
    capsys.readouterr()
    alone = json.loads((tmp_path / "alone" / "report.json").read_text())
    spread = ("plan=layers", "plan.workers=2", "launcher.threads=false", *EXACT)
    with going(config_of(*base, *spread, "launcher.recover_s=0.05", f"output_dir={tmp_path / 'out'}"), 30) as run:
        strike(run, run.plan.encode)
        record = recovered(run)
        assert record["cut"]["0"] > 0
        assert ended(run) == (alone["latents_sha256"], CHUNKS)

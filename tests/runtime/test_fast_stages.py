"""8-bit products and compiled regions as a run's options: every plan still gives the oracle's latents."""

import pytest

from parallel.builders import build
from runtime.workload import describe
from tests.helpers import config_of

EIGHT = ("model.fp8=per_row", "stream.chunks=2", "stream.height=16", "stream.width=16")


def test_plans_agree_in_8_bits(nano):
    exact = nano(*EIGHT[1:])
    oracle = nano(*EIGHT)
    assert oracle != exact
    assert nano(*EIGHT, "plan=timestep", "plan.workers=4") == oracle
    assert nano(*EIGHT, "plan=layers", "plan.workers=2") == oracle


def test_plans_know_what_8_bits_weigh(job):
    options = ("model=nano", *EIGHT, "plan=layers", "plan.workers=2", "sink.video=null")
    report, config = job(*options), config_of(*options, "output_dir=unused")
    plan = build(config.plan, describe(config))
    assert list(report["weight_bytes"].values()) == [plan.weight_bytes(m.worker, m.rank) for m in plan.members]


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("device.graphs=always", "CUDA graphs are for CUDA devices, not cpu"),
        ("device.graphs=sometimes", "must be one of never, auto, always"),
        ("model.fp8=per_column", "must be one of per_tensor, per_row"),
        ("model.attention=flash3", "needs a device of kind cuda, not cpu; use one of sdpa, sdpa_flash"),
    ],
)
def test_what_cannot_be_is_said(job, override, said):
    assert said in job.fails("model=nano", "stream.chunks=2", "sink.video=null", "device=cpu", override)


def test_widths_for_8_bits(job):
    line = job.fails("model=nano", "model.fp8=per_row", "model.network.ffn_dim=90")
    assert line.startswith("model.fp8=per_row: needs widths in sixteens, not ffn_dim=90")


def test_a_small_decoder_in_place_of_the_vae(job):
    wan = ("model=nano", "model.codec.width=4", "stream.chunks=2", "stream.height=16", "stream.width=16")
    full = job(*wan, "model.codec.kind=wan")
    small = job(*wan, "model.codec.kind=taehv", "plan=timestep", "plan.workers=2")
    assert small["latents_sha256"] == full["latents_sha256"]
    assert small["frames"] == full["frames"]

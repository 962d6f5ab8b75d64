"""`everframe plan`: what it says about every worker, what it refuses, and that nothing loads."""

import subprocess
import sys
from pathlib import Path

import pytest

from launch import plan
from parallel.builders import build
from runtime.workload import describe
from tests.helpers import config_of

ROOT = Path(__file__).parents[2]
PLANS = {
    "sequential": (["plan=sequential"], ["encode, steps 0-3 of layers 0-5, decode"]),
    "timestep": (["plan=timestep"], ["encode, step 0 of layers 0-5", "step 3 of layers 0-5", "decode"]),
    "timestep on 3": (["plan=timestep", "plan.workers=3"], ["steps 0-1 of layers 0-5", "step 3 of layers 0-5, decode"]),
    "layers": (["plan=layers", "plan.layers=[5,1]"], ["encode, steps 0-3 of layers 0-4", "steps 0-3 of layer 5"]),
    "grid": (["plan=grid"], ["steps 0-1 of layers 0-2", "steps 2-3 of layers 3-5"]),
}


@pytest.fixture
def told(capsys, monkeypatch):
    """told(*overrides): what the command prints; nothing may be loaded meanwhile."""
    import stages.build

    monkeypatch.setattr(stages.build, "load_file", None, raising=False)
    monkeypatch.setattr(stages.build, "build_network", None)
    monkeypatch.setattr(stages.build, "build_decoder", None)

    def run(*overrides: str) -> str:
        assert plan.main(["model=nano", *overrides]) == 0
        return capsys.readouterr().out

    return run


@pytest.mark.parametrize("name", PLANS)
def test_every_worker_is_told_of(told, name, tmp_path):
    overrides, phrases = PLANS[name]
    text = told(*overrides, f"output_dir={tmp_path}/out")
    made = build(config_of("model=nano", *overrides).plan, describe(config_of("model=nano", *overrides)))
    for worker in range(made.workers):
        # In the table of holdings, that of loads and the drawing.
        assert sum(line.startswith(f"worker {worker} ") for line in text.splitlines()) >= 2
        assert f"worker {worker}|" in text
        assert plan.human(made.weight_bytes(worker)) in text
    assert all(phrase in text for phrase in phrases)
    assert f"In flight: {made.in_flight} chunk" in text
    assert max(len(line) for line in text.splitlines()) <= 110
    assert "\x1b" not in text
    assert not (tmp_path / "out").exists()


def test_what_travels(told):
    config = config_of("model=nano", "plan=grid")
    w = describe(config)
    lines = [" ".join(line.split()) for line in told("plan=grid").splitlines()]
    assert f"worker 0 worker 1 hidden {plan.human(w.hidden_bytes + w.latent_bytes)} 2 per chunk" in lines
    assert f"worker 1 worker 2 latents {plan.human(w.latent_bytes)} 1 per chunk" in lines
    total = 4 * w.hidden_bytes + 8 * w.latent_bytes
    assert f"On its route a chunk is sent 8 times, {plan.human(total)} in all." in lines


def test_what_a_sink_costs(told):
    text = " ".join(told("plan=timestep", "model.recalibrate_chunk=4").split())
    assert "reference chunk 0 0 Is made before chunk 0 enters" in text
    assert "recalibration chunk 4 1 Chunk 4 waits for the sink made of chunk 0, once;" in text
    assert "with model.recalibrate_chunk=5 it would not" in text
    first = ("model.reference=false", "model.positions=slot", "model.sink_frames=3")
    text = " ".join(told("plan=timestep", *first).split())
    assert "first chunk as sink chunk 1 4 Chunk 1 waits until chunk 0 is finished" in text
    text = " ".join(told("plan=timestep", "plan.workers=4", "model.context=clean").split())
    assert "one chunk every 2.5 periods: with model.context=clean a chunk waits" in text


def test_several_streams_share_weights(told):
    assert "weights and banks, 3 streams" in told("plan=timestep", "stream.count=3")


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        (["plan=timestep", "plan.workers=7"], "plan.workers=7: plan=timestep here is 4 workers, or 5 with decode"),
        (["plan=layers", "plan.layers=[3,4]"], "plan.layers=[3, 4]: must be sizes above zero that add up to 6 layers"),
        (["model.context=joint_window"], "needs no reference"),
        (["stream.chunks=3", "stream.seconds=4"], "give one of the two"),
        (["plan=gird"], "did you mean grid?"),
        (["stream.height=40"], "stream.height=40: must be a multiple of 16"),
    ],
    ids=lambda value: " ".join(value)[:60] if isinstance(value, list) else "",
)
def test_refusals_are_those_of_the_stream(capsys, overrides, line):
    assert plan.main(["model=nano", *overrides]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ")
    assert line in captured.err
    assert captured.err.count("\n") == 1


def test_everframe_plan():
    found = subprocess.run(
        [sys.executable, "-m", "launch", "plan", "launcher=torchrun", "plan=timestep"],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert found.returncode == 0, found.stderr
    assert found.stdout.startswith("model=nano plan=timestep")


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0 B"), (999, "999 B"), (4224, "4.22 kB"), (405_123, "405 kB"), (999_600, "1.00 MB"), (10.4e9, "10.4 GB")],
)
def test_sizes(size, text):
    assert plan.human(size) == text

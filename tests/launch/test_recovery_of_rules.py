"""Every published history rule survives a lost worker: banks that are chosen from, averaged into or carried on come
back from their cuts as they were."""

import os
import signal

import pytest

from benchmarks.unchanged import MODELS
from launch.running import start
from runtime.pipeline import run_all
from runtime.pulse import key
from tests.helpers import config_of, thorough
from tests.launch.losing import EXACT
from tests.launch.test_recovery import until
from tests.patience import PATIENT_S

CHUNKS, HIT = 400, (100, 240)
LAYERS, STEPS = ("plan=layers", "plan.workers=2"), ("plan=timestep", "plan.workers=2")
ADAPTIVE = (*MODELS["small stream batch"], "model.adaptive_sink=0.5")
RULES = {
    "joint window": (MODELS["small Rolling Forcing"], LAYERS),
    "compression": (MODELS["small Deep Forcing"], LAYERS),
    "deep sink": ((*MODELS["small Deep Forcing"], "model.compress=null"), STEPS),
    "averages": (MODELS["small Reward Forcing"], STEPS),
    "stream batch": (ADAPTIVE, STEPS),
    "step by step": ((*ADAPTIVE, "model.stream_batch=false"), LAYERS),
}


@pytest.mark.parametrize("rule", ["joint window", *map(thorough, [*RULES][1:])])
def test_the_latents_are_those_of_an_undisturbed_run(tmp_path, job, rule):
    model, plan = RULES[rule]
    what = (*model, "sink.video=null", "device=cpu", f"stream.chunks={CHUNKS}")
    expected = job(*what)["latents_sha256"]
    config = config_of(
        *what, *plan, "launcher=local", "launcher.threads=false", *EXACT,
        f"launcher.cuts={tmp_path}", f"output_dir={tmp_path}/run", "sink.trace=none",
    )  # fmt: skip
    with start(config, first=lambda pipeline: run_all(pipeline, config)) as run:
        for member, chunk in enumerate(HIT):
            until(lambda at=chunk: (run.pipeline.progress(0) or {"chunks": 0})["chunks"] >= at, lambda: run.over)
            told = run.board.told(key(run.generation.processes[member]))
            known = len(run.supervisor.records)
            os.kill(int(told["process"].split("/")[1]), signal.SIGKILL)
            until(lambda known=known: len(run.supervisor.records) > known, lambda: run.over)
        run.wait(PATIENT_S)
        assert run.pipeline.result(0)["latents_sha256"] == expected
        assert len(run.supervisor.records) == len(HIT)

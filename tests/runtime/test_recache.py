"""A new prompt that makes the bank anew: the same under every plan, and what a straight recomputation gives."""

import pytest
import torch

from runtime.oracle import generate
from runtime.trace import Trace
from tests.helpers import config_of

SIZES = ("model.context=clean", "model.prompt_switch=recache", "model.sampler=renoise")
MODELS = {
    "longlive": ("model.reference=false", "model.positions=abs", "model.sink_frames=3"),
    "no sink": ("model.reference=false", "model.positions=abs", "model.window_frames=6"),
    "all at once": ("model.sink_frames=3", "model.window_frames=9", "model.recalibrate_chunk=5"),
}
EVENTS = "stream.events=[{chunk: 1, prompt: early}, {chunk: 5, prompt: later}, {chunk: 6, prompt: third}]"
BASE = ("stream.chunks=8", "stream.prompt=hello", EVENTS, *SIZES)
PLANS = {
    "timestep": ("plan=timestep",),
    "timestep on 3": ("plan=timestep", "plan.workers=3"),
    "layers": ("plan=layers", "plan.layers=[3,2,1]"),
    "grid": ("plan=grid",),
    "grid uneven": ("plan=grid", "plan.steps=[3,1]", "plan.layers=[1,5]"),
}


@pytest.fixture(scope="module")
def oracle():
    return {}


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("plan", PLANS)
def test_exact(nano, oracle, plan, model):
    if model not in oracle:
        oracle[model] = nano(*BASE, *MODELS[model])
    assert nano(*BASE, *MODELS[model], *PLANS[plan]) == oracle[model]

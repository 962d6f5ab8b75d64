"""Versions of the attention sink, and the messages that make them."""

import torch

from conf.schema import ModelConfig, PlanConfig
from parallel.builders import build
from parallel.message import Message
from parallel.plan import Version, Workload
from runtime.versions import announced, made_from, references, versions

FINAL = {"x": torch.arange(2.0 * 3).view(1, 2, 3, 1, 1), "distance": torch.tensor([4, 4, 4, 4, 9])}


def model_of(**changes) -> ModelConfig:
    return ModelConfig(**{"positions": "slot"} | changes)


def test_versions_of_each_kind_of_model():
    assert versions(model_of()) == ()
    avatar = model_of(reference=True, recalibrate_chunk=4)
    assert versions(avatar) == references(avatar) == (Version(-1, 0), Version(0, 4))
    world = model_of(sink_frames=6)
    assert versions(world) == (Version(0, 1, "commit"), Version(1, 2, "commit"))
    assert references(world) == ()
    # A recalibration at chunk 1 beside a first chunk as attention sink: same source and chunk, two versions.
    both = model_of(reference=True, sink_frames=3, recalibrate_chunk=1)
    assert announced(both) == {("prefill", 0): -1, ("prefill", 1): 0, ("commit", 0): 0}
    assert announced(model_of(context="clean", sink_frames=3)) == {}


def test_final_latents_go_to_every_row():
    plan = build(PlanConfig("grid"), Workload(steps=4, layers=6))
    model = model_of(reference=True, recalibrate_chunk=4)
    sent = made_from(plan, model, Message("step", chunk=0, tensors=FINAL))
    assert [(worker, m.kind, m.chunk, m.step) for worker, m in sent] == [(0, "prefill", 4, 0), (2, "prefill", 4, 1)]
    assert torch.equal(sent[0][1].tensors["x"], FINAL["x"][:, :, :1])
    assert made_from(plan, model, Message("step", chunk=1, tensors=FINAL)) == []
    clean = model_of(context="clean")
    assert [m.kind for _, m in made_from(plan, clean, Message("step", chunk=9, tensors=FINAL))] == ["commit"] * 2

"""Versions of the attention sink."""

from conf.schema import ModelConfig
from parallel.plan import Version
from runtime.versions import versions
from stages.models.wan.sizes import Sizes


def model_of(**changes) -> ModelConfig:
    return ModelConfig(**{"network": Sizes(), "positions": "slot"} | changes)


def test_versions_of_each_kind_of_model():
    assert versions(model_of()) == ()
    avatar = model_of(reference=True, recalibrate_chunk=4)
    assert versions(avatar) == (Version(-1, 0), Version(0, 4))
    world = model_of(sink_frames=6)
    assert versions(world) == (Version(0, 1, "commit"), Version(1, 2, "commit"))

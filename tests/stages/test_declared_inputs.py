"""Declared conditions: what a chunk's tensors are in one, what reaches back, what a file of tensors may hold."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from stages.inputs import Axis, Input, inputs_of, made_of, marked, on, part, with_chunk
from stages.sources.tensors import keys_of
from tests.helpers import config_of


@given(reach=st.integers(0, 9), own=st.integers(1, 6), chunks=st.integers(1, 6))
def test_chunks_that_reach_back_join_to_what_one_long_chunk_would_be(reach, own, chunks):
    """Before the stream the first entry stands for all; windows overlap, and in one they are there once."""
    one = Input("keys", Axis.FRAME, (reach + own, 2), reach=reach)
    rows = torch.arange(2.0 * own * chunks).view(1, -1, 2)
    before, made = None, []
    for own_rows in rows.split(own, 1):
        made.append(one.within(own_rows, before))
        before = one.left(made[-1])
        assert made[-1].shape == (1, reach + own, 2)
    whole = torch.cat([*[rows[:, :1]] * reach, rows], 1)
    assert torch.equal(one.joined(made), whole)
    for i, chunk in enumerate(made):
        assert torch.equal(chunk, whole[:, i * own : (i + 1) * own + reach])


def test_latents_are_joined_along_their_frames():
    pose = Input("pose", Axis.LATENT, (4, 3, None, None), latents=True)
    parts = [torch.full((1, 4, 3, 2, 2), float(i)) for i in range(2)]
    assert torch.equal(pose.joined(parts), torch.cat(parts, 2))
    assert pose.full((2, 2)) == (1, 4, 3, 2, 2)
    assert Input("motion", Axis.SINK, (4, None, None, None), latents=True).full((2, 2), 19) == (1, 4, 19, 2, 2)


def test_marks_keep_names_apart():
    tensors = {"x": torch.zeros(1)} | marked("given", {"x": torch.ones(1)}) | marked("sink", {"a": torch.ones(2)})
    assert set(part("given", tensors)) == {"x"} and part("given", tensors)["x"].item() == 1
    assert set(part("sink", tensors)) == {"a"} and not part("epoch", tensors)


MODELS = {
    "nano": ({"text", "reference"}, {"audio", "actions"}),
    "pocket_world": ({"text"}, {"actions"}),
    "nano_video": ({"text"}, set()),
    "wan21_t2v_1_3b": ({"text"}, set()),
    "live_avatar_14b": ({"text", "reference", "motion"}, {"audio", "pose"}),
}


@pytest.mark.parametrize("model", MODELS)
def test_what_the_models_that_ship_declare(model):
    found = inputs_of(config_of(f"model={model}").model)
    once, chunkwise = MODELS[model]
    assert {one.name for one in on(found, Axis.SINK, Axis.EPOCH)} == once
    assert {one.name for one in with_chunk(found)} == chunkwise
    assert (made_of(found, "audio") is not None) == ("audio" in chunkwise)
    assert len({one.name for one in found}) == len(found)


def test_bytes_of_a_chunk_are_those_of_its_dtype():
    audio = made_of(inputs_of(config_of("model=live_avatar_14b").model), "audio")
    assert audio.bytes(torch.bfloat16, (88, 48)) == 3 * 6 * 5120 * 2
    actions = made_of(inputs_of(config_of("model=pocket_world").model), "actions")
    assert actions.bytes(torch.bfloat16, (8, 8)) == 3 * 20 * 4


def test_keys_of_a_file_follow_from_the_list():
    found = keys_of(inputs_of(config_of("model=live_avatar_14b").model))
    assert set(found) == {
        "noise.000000.step.0", "sink_distance", "context", "context.000000", "reference_latent", "motion_latents",
        "audio_features.000000", "pose_latents.000000",
    }  # fmt: skip
    assert set(keys_of(inputs_of(config_of("model=pocket_world").model))) == {
        "noise.000000.step.0", "sink_distance", "context", "context.000000",
    }  # fmt: skip


def test_a_tensor_of_the_whole_stream_is_known_by_its_name_alone():
    keys = Input("keys", Axis.FRAME, (12, 2), key="keyboard", whole=True)
    assert set(keys_of((keys,))) == {"noise.000000.step.0", "sink_distance", "keyboard"}

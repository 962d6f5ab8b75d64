"""Messages survive packing bit for bit, and what cannot travel is refused before anything is sent."""

from __future__ import annotations

from dataclasses import fields

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from parallel.message import ALIGN, HEADER_BYTES, KIND_BYTES, Message, body_bytes, pack, unpack

DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.int64, torch.uint8, torch.bool]
numbers = st.integers(-(2**63), 2**63 - 1)


@st.composite
def tensors(draw) -> torch.Tensor:
    """A random tensor, often not contiguous, with every bit pattern its dtype has (NaN payloads included)."""
    dtype = draw(st.sampled_from(DTYPES))
    shape = draw(st.lists(st.integers(0, 5), max_size=5))
    count = torch.Size(shape).numel()
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    bits = torch.randint(0, 2 if dtype == torch.bool else 256, (count * dtype.itemsize,), generator=generator)
    tensor = bits.to(torch.uint8).view(dtype).view(shape)
    return tensor.transpose(0, -1) if shape and draw(st.booleans()) else tensor


seconds = st.floats(allow_nan=False)
given_tensors = st.dictionaries(st.text(max_size=8), tensors(), max_size=5)
messages = given_tensors.flatmap(
    lambda tensors: st.builds(
        Message,
        kind=st.text(st.characters(min_codepoint=32, max_codepoint=126), min_size=1, max_size=KIND_BYTES),
        **dict.fromkeys(("stream", "chunk", "step", "block", "epoch"), numbers),
        times=st.dictionaries(st.integers(-(2**15), 2**15 - 1), st.floats(allow_nan=False, width=32), max_size=8),
        tensors=st.just(tensors),
        note=st.text(max_size=20),
        distances=st.lists(numbers, max_size=4).map(tuple),
        sent=seconds,
        timestep=seconds,
        moments=st.dictionaries(st.text(max_size=8), seconds, max_size=4),
        hollow=st.just(False) if tensors else st.booleans(),
    )
)


def bits(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes()


@settings(max_examples=150)
@given(messages)
def test_round_trip_is_bit_exact(message):
    header, body = pack(message)
    assert header.dtype == torch.uint8
    assert header.shape == (HEADER_BYTES,)
    assert body_bytes(header) == (0 if body is None else body.numel())
    copy = unpack(header, body)
    for name in {field.name for field in fields(Message)} - {"tensors"}:
        assert getattr(copy, name) == getattr(message, name), name
    assert list(copy.tensors) == list(message.tensors)
    for name, tensor in message.tensors.items():
        arrived = copy.tensors[name]
        assert (arrived.dtype, arrived.shape) == (tensor.dtype, tensor.shape)
        assert bits(arrived) == bits(tensor)


def test_tensors_are_aligned_views_of_one_body():
    header, body = pack(Message("step", tensors={"a": torch.ones(3), "b": torch.ones(5, dtype=torch.bfloat16)}))
    arrived = unpack(header, body).tensors
    assert [(t.data_ptr() - body.data_ptr()) % ALIGN for t in arrived.values()] == [0, 0]
    body.zero_()
    assert all(not tensor.any() for tensor in arrived.values())


def test_a_body_is_a_copy_and_may_lie_in_a_longer_buffer():
    latents = torch.ones(8, requires_grad=True)
    header, body = pack(Message("step", tensors={"latents": latents}))
    buffer = torch.cat([body, torch.full((100,), 7, dtype=torch.uint8)])
    with torch.no_grad():
        latents.zero_()
    assert unpack(header, buffer).tensors["latents"].eq(1).all()


@pytest.mark.parametrize(
    ("message", "words"),
    [
        (Message("x" * (KIND_BYTES + 1)), "must be 1 to 16 printable ASCII characters"),
        (Message(""), "must be 1 to 16 printable ASCII characters"),
        (Message("stép"), "must be 1 to 16 printable ASCII characters"),
        (Message("step\0"), "must be 1 to 16 printable ASCII characters"),
        (Message("step", hollow=True, tensors={"x": torch.ones(1)}), "it is hollow, but has tensors x"),
        (Message("step", times={2**15: 0.1}), "workers signed 16-bit"),
        (Message("step", times={0: 1e300}), "times float32"),
        (Message("step", tensors={"x" * HEADER_BYTES: torch.ones(1)}), "of header, there are"),
        (Message("step", times=dict.fromkeys(range(1000), 0.1)), "times of 1000 workers need .* of header, there are"),
        (Message("step", chunk=2**63), "64-bit"),
        (Message("step", tensors={"x": torch.ones(1, dtype=torch.complex64)}), "complex64; can travel: float64"),
        (Message("step", tensors={"x": torch.ones(1), "y": torch.ones(1, device="meta")}), "on one device"),
    ],
)
def test_what_cannot_travel_is_refused(message, words):
    with pytest.raises(ValueError, match=words):
        pack(message)


def test_times_of_several_hundred_workers_travel_beside_a_usual_load():
    load = {"latents": torch.zeros(1, 16, 3, 60, 104), "audio": torch.zeros(1, 5)}
    times = dict.fromkeys(range(-2, 600), 0.125)
    message = Message("step", times=times, tensors=load, moments={"entered": 0.1}, distances=(1,) * 4)
    assert unpack(*pack(message)).times == times


def test_times_are_rounded_to_float32_and_moments_are_not():
    message = Message("step", times={0: 0.1}, moments={"accepted": 0.1}, sent=0.1)
    copy = unpack(*pack(message))
    assert copy.times == {0: torch.tensor(0.1).item()}
    assert (copy.moments, copy.sent) == ({"accepted": 0.1}, 0.1)


def test_a_strange_header_or_short_body_is_refused():
    header, body = pack(Message("step", tensors={"x": torch.ones(20)}))
    with pytest.raises(ValueError, match="announces 80"):
        unpack(header, body[:-1])
    with pytest.raises(ValueError, match="not a message header"):
        unpack(torch.zeros(HEADER_BYTES, dtype=torch.uint8), body)

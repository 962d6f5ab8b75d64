"""Messages survive packing bit for bit, and what cannot travel is refused before anything is sent."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from parallel.message import ALIGN, HEADER_BYTES, KINDS, Message, body_bytes, pack, unpack

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


messages = st.builds(
    Message,
    kind=st.sampled_from(KINDS),
    **dict.fromkeys(("stream", "chunk", "step", "block", "epoch"), numbers),
    times=st.dictionaries(st.integers(0, 99), st.floats(allow_nan=False), max_size=8),
    tensors=st.dictionaries(st.text(max_size=8), tensors(), max_size=5),
    note=st.text(max_size=20),
)


def bits(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes()


@settings(max_examples=150, deadline=None)
@given(messages)
def test_round_trip_is_bit_exact(message):
    header, body = pack(message)
    assert header.dtype == torch.uint8
    assert header.shape == (HEADER_BYTES,)
    assert body_bytes(header) == (0 if body is None else body.numel())
    copy = unpack(header, body)
    for name in ("kind", "stream", "chunk", "step", "block", "epoch", "times", "note"):
        assert getattr(copy, name) == getattr(message, name)
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
        (Message("hello"), "must be one of step"),
        (Message("step", tensors={"x" * HEADER_BYTES: torch.ones(1)}), "of header, there are"),
        (Message("step", times=dict.fromkeys(range(1000), 0.1)), "of header, there are"),
        (Message("step", chunk=2**63), "64-bit"),
        (Message("step", tensors={"x": torch.ones(1, dtype=torch.complex64)}), "complex64; can travel: float64"),
        (Message("step", tensors={"x": torch.ones(1), "y": torch.ones(1, device="meta")}), "on one device"),
    ],
)
def test_what_cannot_travel_is_refused(message, words):
    with pytest.raises(ValueError, match=words):
        pack(message)


def test_a_strange_header_or_short_body_is_refused():
    header, body = pack(Message("step", tensors={"x": torch.ones(20)}))
    with pytest.raises(ValueError, match="announces 80"):
        unpack(header, body[:-1])
    with pytest.raises(ValueError, match="not a message header"):
        unpack(torch.zeros(HEADER_BYTES, dtype=torch.uint8), body)

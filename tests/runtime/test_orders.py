"""Orders as they travel: typed, whole, and of no other kind."""

import json
import time
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conf.errors import UserError
from conf.schema import Event, SinkConfig, SourceConfig, StreamConfig
from runtime import orders
from runtime.orders import Cancel, Close, Open, Prompt, Status, Stop, from_json, host, to_json
from runtime.state import Keep

STREAM = StreamConfig(chunks=5, seed=3, id="a", prompt="${oc.env:HOME} \u2603", events=[Event(2, "other")])
KEEP = Keep("/states/a", {"model": {"steps": 4, "name": None}}, every=4, on_stop=True, resume="/states/a/chunk.000004")
OPEN = Open(3, STREAM, SourceConfig(audio="-"), SinkConfig(video=None, latents="x.safetensors"), KEEP, number=9)


@pytest.mark.parametrize(
    "order",
    [OPEN, replace(OPEN, keep=None), Stop(), Stop(1, 4), Cancel(2), Status(0), Close(7), Prompt(1, "hi", 2.5, host())],
    ids=lambda order: type(order).__name__,
)
def test_an_order_arrives_as_it_was_given(order):
    assert from_json(to_json(order)) == order


def test_a_moment_of_another_machine_is_the_moment_of_receipt(monkeypatch):
    """Its clock says nothing here: uptimes differ by days."""
    text = to_json(Prompt(1, "hi", 5e9, host(), 3))
    monkeypatch.setattr(orders, "host", lambda: "another")
    before = time.perf_counter()
    prompt = from_json(text)
    assert before <= prompt.accepted <= time.perf_counter()
    assert (prompt.stream, prompt.prompt, prompt.number) == (1, "hi", 3)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"order": "opne"}, 'order="opne": there is no such order; did you mean open'),
        ({"order": ["open"]}, "there is no such order"),
        ({"stream": "3"}, 'open.stream="3": must be a whole number'),
        ({"stream": True}, "open.stream=true: must be a whole number"),
        ({"config": None}, "open.config=null: must be an object"),
        ({"config": {"prompt": 5}}, "open.config.prompt=5: must be text"),
        ({"config": {"chunks": 2.0}}, "open.config.chunks=2.0: must be a whole number"),
        ({"config": {"chunks": 10**30}}, "must be a whole number of at most 64 bits"),
        ({"config": {"chunks": 0}}, "stream.chunks=0: must be above zero"),
        ({"config": {"seconds": float("nan")}}, "open.config.seconds=NaN: must be a finite number"),
        ({"config": {"seconds": 10**400}}, "open.config.seconds=1000.*: must be a number"),
        ({"config": {"seed": 2**64}}, "64 bits"),
        ({"config": {"id": "../a"}}, "must be a name of letters"),
        ({"config": {"id": "x" * 129}}, "at most 128 bytes"),
        ({"config": {"prompt": "x" * 100_001}}, "has 100001 characters"),
        ({"config": {"prompt": "\ud800"}}, "half a character"),
        ({"config": {"chnks": 5}}, "open.config.chnks: there is no such key; did you mean chunks"),
        ({"config": {"events": {"chunk": 1}}}, "open.config.events=.*: must be a list"),
        ({"config": {"events": [{"chunk": "1"}]}}, r'open.config.events\[0\].chunk="1": must be a whole number'),
        ({"source": {"audio": "a\0b"}}, "a NUL"),
        ({"source": {"audio": "x" * 5000}}, "has 5000 characters"),
        ({"sink": {"video": ["x"]}}, "must be text"),
        ({"keep": {"folder": "x"}}, "open.keep.identity: is missing"),
        ({"keep": {"folder": "x", "identity": {}, "resume": 5}}, "open.keep.resume=5: must be text"),
    ],
)
def test_what_breaks_the_schema_is_refused_by_name(change, complaint):
    with pytest.raises(UserError, match=complaint):
        from_json(json.dumps(json.loads(to_json(OPEN)) | change))


JUNK = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
KEYS = st.sampled_from(["order", "stream", "config", "source", "sink", "keep", "number", "prompt", "accepted"])


@settings(max_examples=300)
@given(
    st.text()
    | JUNK.map(json.dumps)
    | st.dictionaries(KEYS, JUNK).map(lambda d: to_json(OPEN)[:-1] + "," + json.dumps(d)[1:])
)
def test_a_text_is_an_order_or_a_users_mistake(text):
    """Nothing else comes out, whatever goes in."""
    try:
        order = from_json(text)
    except UserError as error:
        assert len(str(error)) < 1000
    else:
        assert isinstance(order, orders.Order)

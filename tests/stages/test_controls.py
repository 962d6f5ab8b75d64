"""What is held and turned has one form, and a row of numbers."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conf.errors import UserError
from stages.controls import FORM, MOST, Controls, entry_of, row_of

MANY = Controls(("forward", "back", "left", "right"), axes=("pitch", "yaw"))
ONE = Controls(("none", "jump", "turn_left"), one=True)
TURNS = st.floats(-MOST, MOST) | st.integers(-10, 10)


@given(held=st.lists(st.sampled_from(MANY.keys)), mouse=st.none() | st.tuples(TURNS, TURNS), more=st.integers())
def test_a_row_has_a_number_for_every_key_and_then_those_of_the_axes(held, mouse, more):
    entry = entry_of(None, held, mouse)
    row = MANY.parse(json.loads(json.dumps(entry | {"frame": more, "seq": more})), "line 1")
    assert [key for key, down in zip(MANY.keys, row, strict=False) if down] == [key for key in MANY.keys if key in held]
    assert row[4:] == (mouse or (0, 0)) and all(type(value) is float for value in row)
    assert row_of(json.loads(json.dumps(row))) == row and MANY.fits(json.loads(json.dumps(row)))
    if not held:
        assert MANY.parse({name: entry[name] for name in FORM[2:] if name in entry} or {"keys": []}, "") == row


@given(action=st.sampled_from(MANY.actions), mouse=st.none() | st.tuples(TURNS, TURNS))
def test_an_action_is_that_key_alone(action, mouse):
    keys = [] if action == "none" else [action]
    assert MANY.parse(entry_of(action, None, mouse), "") == MANY.parse(entry_of(None, keys, mouse), "")


def test_a_model_that_knows_one_at_a_time_has_an_index():
    assert [ONE.parse({"action": name}, "") for name in ONE.keys] == [0, 1, 2]
    assert [ONE.parse({"keys": keys}, "") for keys in ([], ["none"], ["jump"], ["jump", "jump"])] == [0, 0, 1, 1]
    assert (ONE.rest, ONE.parse({"mouse": []}, ""), row_of(json.loads("2"))) == (0, 0, 2)
    assert [ONE.fits(row) for row in (0, 2, 3, -1, True, 1.0, [1.0])] == [True, True, *[False] * 5]
    assert Controls.of(ONE.keys) == Controls.of(ONE) == ONE


REFUSED = [
    (MANY, {}, "line 1: has no action"),
    (MANY, {"frame": 3, "key": []}, "has no action"),
    (MANY, {"action": "forwrd"}, "action=forwrd: the model does not know it; did you mean forward?"),
    (MANY, {"action": ["left"]}, "does not know it"),
    (MANY, {"action": None}, "does not know it"),
    (MANY, {"action": "left", "keys": []}, "action=left: stands beside keys"),
    (MANY, {"keys": ["left", "rigth"]}, "keys=rigth: the model does not know it; did you mean right?"),
    (MANY, {"keys": ["none"]}, "keys=none"),
    (MANY, {"keys": "left"}, "is no list of names"),
    (MANY, {"keys": [["left"]]}, "is no list of names"),
    (MANY, {"keys": {"left": 1}}, "is no list of names"),
    (MANY, {"mouse": [0.1]}, "mouse=[0.1]: is a list of pitch, yaw; give 2 numbers"),
    (MANY, {"mouse": 0.1}, "is a list of pitch, yaw"),
    *(
        (MANY, {"mouse": [bad, 0]}, "numbers are from -10 to 10")
        for bad in (10.5, "1", True, None, float("nan"), 1e400)
    ),
    (MANY, {"mouse": [10**400, 0]}, "numbers are from -10 to 10"),
    (ONE, {"keys": ["jump", "turn_left"]}, "keys=['jump', 'turn_left']: the model knows one at a time"),
    (ONE, {"keys": [], "mouse": [0.1, 0.1]}, "the model has no axes; leave it out"),
    (Controls.of(()), {"action": "jump"}, "action=jump: the model does not know it; leave action out"),
]


@pytest.mark.parametrize(("controls", "entry", "said"), REFUSED)
def test_what_a_model_does_not_take_is_one_line(controls, entry, said):
    with pytest.raises(UserError) as refused:
        controls.parse(entry, "line 1")
    assert said in str(refused.value) and str(refused.value).startswith("line 1: ")


@pytest.mark.parametrize("row", [1, "x", None, [], [0.0] * 5, [0.0] * 7, [float("nan")] * 6, [11.0] * 6, [True] * 6])
def test_what_is_no_row_is_known(row):
    assert not MANY.fits(row)

"""What a new session is to be, as it is asked for."""

from __future__ import annotations

import pytest

from conf.errors import UserError
from conf.typed import typed
from serve.asked import LONGEST_PROMPT
from serve.wanted import Wanted

REFUSED = [
    {"colour": "red"},
    {"seed": "7"},
    {"seed": True},
    {"seed": -1},
    {"seed": 1 << 63},
    {"seconds": "60"},
    {"prompt": "x" * (LONGEST_PROMPT + 1)},
    {"prompt": "\0"},
    {"prompt": ["x"]},
    {"queue": 1},
    {"model": 7},
]


@pytest.mark.parametrize("given", REFUSED)
def test_what_is_no_session_is_refused(given):
    with pytest.raises(UserError):
        typed(Wanted, given, "body")


def test_what_is_not_said_is_not_given():
    assert Wanted().given == {}
    assert Wanted(seed=0, queue=True, seconds=2.5).given == {"seed": 0, "seconds": 2.5, "queue": True}

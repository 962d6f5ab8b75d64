"""Why a stream ended, as plain values."""

import json

import pytest

from conf.errors import UserError
from runtime.reasons import LONGEST_LINE, LONGEST_TRACEBACK, Reason, StreamFailed


def raised(error: Exception) -> Exception:
    try:
        raise error
    except Exception as caught:
        return caught


def travelled(reason: Reason) -> Reason:
    return Reason.from_dict(json.loads(json.dumps(reason.to_dict())))


def test_a_user_error_comes_back_as_it_was():
    error = UserError("source.image=x", "is no picture", "give a PNG")
    reason = travelled(Reason.of(raised(error), "worker 0, opening"))
    assert (reason.user, reason.kind, reason.where, reason.traceback) == (True, "UserError", "worker 0, opening", "")
    with pytest.raises(UserError) as told:
        raise reason.error()
    assert (told.value.value, told.value.rule, told.value.remedy) == (error.value, error.rule, error.remedy)


def test_any_other_exception_names_its_kind_its_place_and_its_line():
    reason = travelled(Reason.of(raised(ValueError("no\nsuch   thing")), "worker 1, step2 of chunk 7"))
    assert (reason.user, reason.kind, reason.line) == (False, "ValueError", "ValueError: no such thing")
    assert "in raised" in reason.traceback
    with pytest.raises(StreamFailed, match=r"^worker 1, step2 of chunk 7: ValueError: no such thing$"):
        raise reason.error()


def test_what_is_kept_of_an_exception_is_bounded():
    reason = Reason.of(raised(RuntimeError("x" * 100_000)))
    assert len(reason.line) == LONGEST_LINE and len(reason.traceback) == LONGEST_TRACEBACK
    assert Reason.of(RuntimeError()).line == "RuntimeError"

"""Reports: what streams say of themselves, and totals of streams that come and go."""

import pytest
import torch

from conf.schema import StreamConfig
from runtime.report import Timeline, assemble, stream_report, worker_report
from runtime.trace import Trace
from tests.helpers import config_of

REASON = {"line": "source.audio=x: is bad; use y", "kind": "UserError", "where": "worker 0, opening", "user": True}


def stream(name="0", error=None):
    return stream_report(StreamConfig(id=name), Timeline(16, lambda: 0.0), None, error) | {"finished": error is None}


def told(streams, **totals):
    trace = Trace()
    trace.add("step0", 0, 0.0, 1.0)
    workers = [worker_report(trace, 10, 20, torch.device("cpu"))]
    return assemble(config_of("model=nano"), workers, streams, **totals)


def test_a_stream_that_an_error_ended_says_which():
    assert stream(error=REASON)["error"] == REASON
    assert "error" not in stream()


def test_what_a_visitor_typed_is_not_told():
    asked = StreamConfig(prompt="my name is Ann")
    assert stream_report(asked, Timeline(16, lambda: 0.0), None)["prompt"] == asked.prompt
    assert "Ann" not in str(stream_report(asked, Timeline(16, lambda: 0.0), None, private=True))


def test_the_only_stream_is_the_report():
    report = told([stream()])
    assert (report["stream"], report["finished"], report["streams_total"], report["streams_failed"]) == (
        "0",
        True,
        1,
        0,
    )
    assert "streams" not in report and "traces" not in report


@pytest.mark.parametrize("failed", range(3))
def test_streams_are_counted(failed):
    report = told([stream(str(i), REASON if i < failed else None) for i in range(3)])
    assert (report["streams_total"], report["streams_failed"], report["finished"]) == (3, failed, not failed)


@pytest.mark.parametrize("listed", range(2))
def test_totals_are_of_more_streams_than_are_listed(listed):
    report = told([stream()] * listed, total=2000, failed=3)
    assert (report["streams_total"], report["streams_failed"], len(report["streams"])) == (2000, 3, listed)

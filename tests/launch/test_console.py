"""Whoever reads what a run says may leave: the run goes on, and its exit code is its own."""

import errno
import io
import json
import logging
import os
import sys
from itertools import product

import pytest
from rich.console import Console

from launch import stream
from launch.console import Lasting, lasting
from tests.helpers import sampled


@pytest.fixture
def left():
    """A text stream into a pipe that nobody reads any more."""
    reading, writing = os.pipe()
    os.close(reading)
    yield os.fdopen(writing, "w", buffering=1)


PLANS = {"sequential": ("plan=sequential",), "workers": ("plan=timestep", "plan.workers=2"), "orders": ()}


OFTEN = {("stderr", "sequential"), ("stderr", "workers"), ("stdout", "orders")}


@pytest.mark.parametrize(("which", "plan"), sampled(product(["stderr", "stdout"], PLANS), OFTEN))
def test_a_stream_outlives_who_reads_it(tmp_path, monkeypatch, left, which, plan):
    """Warnings, progress, where the report is and, by orders, how streams stand: all of it is said to nobody."""
    overrides = PLANS[plan]
    if plan == "orders":
        orders = tmp_path / "orders"
        orders.write_text('{"open": "a"}\n{"status": true}\nnonsense\n')
        overrides = (f"control={orders}",)
    monkeypatch.setattr(sys, which, left)
    base = ("model=nano", "stream.chunks=2", "sink.video=null")
    assert stream.main([*base, f"output_dir={tmp_path}/run", *overrides]) == 0
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert (report["totals"] if plan == "orders" else report)["chunks"] == 2
    left.close()  # as the interpreter does at its end: nothing is held back that would fail now


def test_whatever_writes_is_covered(monkeypatch, left):
    monkeypatch.setattr(sys, "stderr", left)
    with lasting():
        print("a print", file=sys.stderr)
        Console(stderr=True).print("rich", style="red")
        Console(stderr=True, force_terminal=True).print("rich")
        handler = logging.StreamHandler()
        handler.handle(logging.LogRecord("x", logging.WARNING, "x", 1, "a warning", None, None))
        assert sys.stderr.fileno() == left.fileno() and not sys.stderr.isatty()
    assert sys.stderr is left
    left.close()


class Refusing(io.StringIO):
    """Refuses its first text for a reason."""

    def __init__(self, reason):
        super().__init__()
        self.reason = reason

    def write(self, text):
        reason, self.reason = self.reason, None
        if reason:
            raise OSError(reason, os.strerror(reason))
        return super().write(text)


def test_what_is_read_slowly_is_not_left():
    """What one write could not take is lost; there is no descriptor here that could be turned away."""
    stream = Refusing(errno.EAGAIN)
    said = Lasting(stream)
    assert [said.write("a"), said.write("bc")] == [1, 2] and stream.getvalue() == "bc"


def test_a_stream_that_is_closed_from_the_start_stays_so(monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)
    with lasting():
        print("to nobody")
        assert sys.stdout is None

"""What a pulse tells beside life: where the time goes, and what it costs the host."""

from __future__ import annotations

import os

import torch.distributed as dist

from runtime.board import Board
from runtime.orders import host
from runtime.pulse import STAGES, Doing, Pulse, key, totals
from runtime.trace import SAMPLES, Samples, Trace


def samples(*durations: float) -> Samples:
    found = Samples()
    for duration in durations:
        found.add(duration)
    return found


def test_a_beat_tells_totals_by_stage():
    board = Board(dist.HashStore(), 3, 4)
    pulse, trace = Pulse(board, 60.0), Trace()
    assert board.told(key(3))["stages"] == {}
    pulse.look = lambda: Doing("a pass", 0.0, 0.0, busy=True, stages=trace.stages)
    for duration in (0.25, 0.5):
        trace.add("decode", 0, 0.0, duration)
    trace.add("wait", -1, 0.0, 2.0)
    pulse._tell()
    assert board.told(key(3))["stages"] == {"decode": [2, 0.75], "wait": [1, 2.0]}


def test_totals_are_of_all_passes_and_bounded_in_size():
    assert totals({"decode": samples(*[0.5] * (SAMPLES + 10))}) == {"decode": [SAMPLES + 10, 0.5 * (SAMPLES + 10)]}
    assert len(totals({str(i): samples(1.0) for i in range(STAGES + 9)})) == STAGES


def test_a_beat_tells_what_the_process_costs():
    board = Board(dist.HashStore(), 0, 1)
    pulse = Pulse(board, 60.0)
    before = board.told(key(0))
    assert before["process"] == f"{host()}/{os.getpid()}"
    while sum(i * i for i in range(20_000)) and board.told(key(0))["cpu_s"] == before["cpu_s"]:
        pulse._tell()
    after = board.told(key(0))
    assert after["cpu_s"] > before["cpu_s"] and after["now_s"] > before["now_s"]

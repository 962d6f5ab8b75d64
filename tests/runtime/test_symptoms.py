"""Who is lost by its pulse, in virtual time."""

import pytest
import torch.distributed as dist

from conf.schema import LauncherConfig
from runtime.board import Board
from runtime.pulse import Doing, Pulse, beat_s, key
from runtime.symptoms import COLD_S, SILENT, STANDSTILLS, STUCK, Symptoms
from runtime.trace import Trace


class Machine:
    """Processes that beat once in half a second, and a supervisor that looks as often."""

    def __init__(self, processes=2, silent_s=5.0, timeout_s=60.0):
        self.symptoms, self.now = Symptoms(silent_s, timeout_s, 1.0), 100.0
        self.pulses = dict.fromkeys(range(processes))

    def pulse(self, process, at="waiting", at_s=0.0, busy=False, longest=None, pid=1):
        before = self.pulses[process]
        beats = before["beats"] + 1 if before and before["process"] == f"host/{pid}" else 1
        told = {"process": f"host/{pid}", "beats": beats, "at": at, "at_s": at_s, "busy": busy}
        self.pulses[process] = told | {"longest": longest or {}}

    def run(self, seconds, *beating, **doing):
        """Let time go by while some beat; returns who is found lost first, and when."""
        for step in range(round(seconds / 0.5)):
            self.now += 0.5
            for process in beating:
                self.pulse(process, at_s=0.5 * (step + 1), **doing)
            if lost := self.symptoms.look(self.pulses, self.now):
                return lost, self.now
        return {}, self.now


def test_a_process_is_lost_that_says_nothing_new_for_too_long():
    machine = Machine()
    assert machine.run(20, 0, 1) == ({}, 120.0)
    lost, now = machine.run(20, 0)
    assert now == 125.0 and lost[1].why == SILENT and lost.keys() == {1}
    assert str(lost[1]) == "silent for 5.0 s, at most 5 s; it had come to waiting"
    machine.symptoms.forget(1)
    del machine.pulses[1]
    assert machine.run(20, 0)[0] == {}


def test_one_that_was_never_heard_may_take_longer():
    machine = Machine(timeout_s=30.0)
    lost, now = machine.run(60, 0)
    assert lost.keys() == {1} and now == 130.5
    assert lost[1].at == "nothing yet"


def test_a_pass_is_stuck_by_the_longest_of_its_kind():
    for longest, limit in ((0.01, 5.0), (0.4, 8.0), (2.0, 40.0)):
        machine = Machine()
        machine.run(3, 0, 1)
        doing = {
            "at": "step2.block1 of chunk 7 of stream 0",
            "busy": True,
            "longest": {"step2.block1": longest, "x": 99},
        }
        lost, now = machine.run(100, 0, 1, **doing)
        assert lost.keys() == {0, 1} and lost[0].why == STUCK and lost[0].limit_s == pytest.approx(limit)
        assert now == 103.0 + limit
    assert str(lost[0]).startswith("stuck: step2.block1 of chunk 7 of stream 0 has taken 40.0 s so far, at most 40 s")


def test_a_pass_that_was_never_seen_may_take_as_long_as_anything():
    machine = Machine(timeout_s=60.0)
    lost, now = machine.run(100, 0, 1, at="decode of chunk 0 of stream 0", busy=True, longest={"step0": 0.1})
    assert now == 160.5 and lost[0].limit_s == 60.0, "it was first heard of at 100.5"


def test_whoever_waits_is_not_stuck_nor_who_waits_for_a_viewer():
    machine = Machine()
    assert machine.run(300, 0, 1, at="step0 of chunk 7 of stream 0", longest={"step0": 0.1})[0] == {}
    assert machine.run(300, 0, 1, at="output of chunk 7 of stream 0", busy=True, longest={"output": 0.1})[0] == {}


def test_who_waits_for_a_silent_one_is_not_lost_with_it():
    machine = Machine()
    machine.run(3, 0, 1)
    lost, _ = machine.run(100, 0, at="step0 of chunk 7 of stream 0", busy=True, longest={"step0": 0.1})
    assert lost.keys() == {1}


def test_a_machine_that_stood_still_gives_everybody_new_time():
    machine = Machine()
    doing = {"at": "step0 of chunk 7 of stream 0", "busy": True, "longest": {"step0": 0.1}}
    machine.run(3, 0, 1, **doing)
    machine.now += 600.0
    # Their own clocks went on meanwhile: the pass has taken ten minutes by them.
    for process in (0, 1):
        machine.pulse(process, at_s=603.0, **doing)
    assert machine.symptoms.look(machine.pulses, machine.now) == {}
    lost, now = machine.run(100, 0, 1, **doing)
    assert now == 703.0 + 5.0 and lost[0].why == STUCK
    machine = Machine()
    machine.run(3, 0, 1)
    machine.now += 600.0
    lost, now = machine.run(100)
    assert lost.keys() == {0, 1} and now == 703.5 + 5.0, "it was not heard since, either"


def found_after(launcher: LauncherConfig, every_s: float, limit_s: float = 100.0) -> float:
    """Seconds until one of two processes is found silent by a supervisor that looks so often; infinity: it is not."""
    symptoms, beat = Symptoms.of(launcher), beat_s(launcher)
    now = stopped = 100.0
    while now < stopped + limit_s:
        beating = {"process": "a", "beats": int(now / beat), "at": "x", "at_s": 0.0, "busy": False}
        if lost := symptoms.look({0: beating, 1: beating | {"process": "b", "beats": 7}}, now):
            assert lost.keys() == {1} and lost[1].why == SILENT
            return now - stopped
        now += every_s
    return float("inf")


@pytest.mark.parametrize("late_s", [0.0, 0.15, 0.3])
@pytest.mark.parametrize(
    "setting", [{"silent_s": 1.0}, {"silent_s": 0.5}, {"silent_s": 5.0, "timeout_s": 0.5}], ids=str
)
def test_short_limits_are_kept_by_a_supervisor_that_is_a_little_late(setting, late_s):
    launcher = LauncherConfig(recover="exact", **setting)
    symptoms = Symptoms.of(launcher)
    assert symptoms.look_s <= beat_s(launcher) / 2
    took, silent_s = found_after(launcher, symptoms.look_s + late_s), launcher.silent_s
    assert silent_s <= took <= silent_s + (1 + STANDSTILLS) * (symptoms.look_s + late_s)


def test_who_is_late_at_every_look_finds_a_silent_one_all_the_same():
    launcher = LauncherConfig(recover="exact", silent_s=1.0)
    assert found_after(launcher, 0.9) <= 1.0 + (1 + STANDSTILLS) * 0.9


def test_a_run_that_begins_may_be_cold():
    symptoms = Symptoms(1.0, 5.0, 0.2)
    nothing = {0: None}
    assert symptoms.look(nothing, 0.0, cold=True) == {}
    found = [now for now in range(1, 100) if symptoms.look(nothing, float(now), cold=True)]
    # A second between two looks is more than a supervisor means to wait: the first ones were held up.
    assert COLD_S <= found[0] <= COLD_S + STANDSTILLS + 1


def test_what_is_missing_of_a_stuck_one_is_more_than_its_longest():
    machine = Machine()
    doing = {"at": "step0 of chunk 7 of stream 0", "busy": True, "longest": {"step0": 0.4}}
    lost, _ = machine.run(100, 0, 1, **doing)
    assert lost[0].seconds == 8.0 and lost[0].missing_s == pytest.approx(7.6)
    machine = Machine()
    machine.run(3, 0, 1)
    lost, _ = machine.run(100, 0)
    assert lost[1].missing_s == lost[1].seconds == 5.0


def test_another_process_in_its_place_has_new_time():
    machine = Machine()
    doing = {"at": "step0 of chunk 7 of stream 0", "busy": True, "longest": {"step0": 0.1}}
    machine.run(4.5, 0, 1, **doing)
    for process in (0, 1):
        machine.pulse(process, at_s=50.0, pid=2, **doing)
    machine.now += 0.5
    assert machine.symptoms.look(machine.pulses, machine.now) == {}
    machine.symptoms.expect(1, machine.now)
    assert machine.run(4.5, 0)[0] == {}, "that it was heard before means nothing"


def test_pulses_beat_often_enough_to_be_missed():
    assert beat_s(LauncherConfig()) == 1.0
    assert beat_s(LauncherConfig(recover="exact")) == 1.0
    assert beat_s(LauncherConfig(recover="exact", silent_s=2.0)) == pytest.approx(0.4)
    assert beat_s(LauncherConfig(silent_s=2.0)) == 1.0
    assert beat_s(LauncherConfig(recover="exact", timeout_s=2.0)) == 0.5
    assert Symptoms.of(LauncherConfig(recover="exact", silent_s=2.0)).silent_s == 2.0


def test_a_beat_tells_the_longest_pass_of_every_stage():
    board = Board(dist.HashStore(), 0, 1)
    pulse, trace = Pulse(board, 60.0, 0.4), Trace()
    pulse.look = lambda: Doing("step0 of chunk 3", 0.0, 0.0, busy=True, stages=trace.stages)
    for duration in (0.25, 0.5, 0.125):
        trace.add("step0", 0, 0.0, duration)
    pulse._tell()
    assert board.told(key(0))["longest"] == {"step0": 0.5}

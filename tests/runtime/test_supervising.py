"""What a supervisor does about workers that say nothing, in virtual time: no process, no device."""

from types import SimpleNamespace

import pytest

from conf.schema import LauncherConfig
from runtime.crew import NoRoom
from runtime.generations import Generation
from runtime.supervisor import Supervisor, Unrecovered

PASS = {"at": "step0 of chunk 3 of stream 0", "busy": True, "longest": {}}
WAITS = {"at": "waiting", "busy": False, "longest": {}}
OUTSIDE = {"at": "output of chunk 3 of stream 0", "busy": True, "longest": {}}


class Run:
    """Processes that do what a test says, as a supervisor sees them."""

    def __init__(self, processes=2, **launcher):
        self.now, self.board = 100.0, {}
        self.config = SimpleNamespace(launcher=LauncherConfig(recover="exact", **launcher), plan="its plan")
        self.plan, self.generation = SimpleNamespace(processes=processes), Generation(0, {}, tuple(range(processes)))
        self.left, self.ended, self.again = set(range(processes)), {}, []
        self.begun, self.room = True, True
        self.pipeline = SimpleNamespace(
            closed=False, streams=[1], missed=lambda: [], order_now=lambda order, processes: None
        )
        self.doing = dict.fromkeys(range(processes), WAITS)
        """What each process tells of itself; None: it is stopped."""
        self.since = dict.fromkeys(range(processes), self.now)
        self.halts: dict[int, float] = {}
        """When each process halts."""
        self.supervisor = Supervisor(self, lambda: self.now)

    def does(self, process, what):
        self.doing[process], self.since[process] = what, self.now

    def beat(self):
        for process in self.left:
            if self.doing[process] is not None:
                told = {"process": process, "beats": self.now, "at_s": self.now - self.since[process]}
                self.board[f"pulse/{process}"] = told | self.doing[process]
            if self.now >= self.halts.get(process, float("inf")):
                self.board[f"halted/0/{process}"] = True

    def doze(self, seconds):
        self.now += seconds
        self.beat()

    def told(self, key):
        return self.board.get(key)

    def name(self, process):
        return f"worker {process}"

    def why(self, process):
        return self.ended[process]

    def end(self, process, why):
        self.left.discard(process)
        self.ended[process] = why

    def look(self, lost):
        pass

    def start_again(self, process):
        if not self.room:
            raise NoRoom("no process can be started")
        self.board.pop(f"pulse/{process}", None)
        self.left.add(process)
        self.again.append(process)


def looking(run, look, seconds):
    """Have it looked for so long, as often as the supervisor wants."""
    end = run.now + seconds
    while run.now < end:
        run.doze(run.supervisor.look_s)
        look({})


@pytest.fixture
def turns(monkeypatch):
    """What generations are begun for, and since when streams stood still."""
    found = []
    monkeypatch.setattr(Supervisor, "_again", lambda self, why, plan, began, seats=None: found.append((why, began)))
    return found


def test_a_loss_counts_from_when_the_silent_one_was_last_heard_of(turns):
    run = Run(silent_s=1.0)
    looking(run, run.supervisor.look, 2.0)
    run.doing[1], stopped = None, run.now
    looking(run, run.supervisor.look, 1.5)
    [(why, began)] = turns
    assert "worker 1 is lost (silent for 1" in why and began == pytest.approx(stopped, abs=0.2)


def test_a_loss_counts_from_when_a_pass_took_longer_than_any_before(turns):
    run = Run(silent_s=5.0)
    looking(run, run.supervisor.look, 2.0)
    run.does(1, PASS | {"longest": {"step0": 0.5}})
    began_at = run.now
    looking(run, run.supervisor.look, 10.5)
    [(why, began)] = turns
    assert "stuck" in why and began == pytest.approx(began_at + 0.5, abs=0.3)


def test_a_dead_one_is_seen_at_once(turns):
    run = Run()
    looking(run, run.supervisor.look, 2.0)
    run.left.discard(1)
    run.supervisor.look({1: "worker 1 is lost (its process ended)"})
    assert turns == [("worker 1 is lost (its process ended)", run.now)]


def test_a_pass_longer_than_silence_comes_to_its_end_before_a_generation_does():
    run = Run(processes=3, silent_s=2.0)
    looking(run, run.supervisor.look, 1.0)
    run.does(0, PASS)  # the first of its kind: it may compile
    run.halts = {0: run.now + 30.0, 1: run.now + 30.0, 2: run.now}  # 1 shares the pass, and does not say so
    run.supervisor._halt(1)
    assert run.ended == {}


def test_who_neither_works_nor_halts_is_ended_as_is_who_waits_outside():
    for doing in (WAITS, OUTSIDE):
        run = Run(silent_s=2.0)
        looking(run, run.supervisor.look, 1.0)
        run.does(0, doing)
        run.halts, began = {1: run.now}, run.now
        run.supervisor._halt(1)
        assert run.ended == {0: "it did not halt"} and run.now == pytest.approx(began + 2.0, abs=0.1)


def test_a_cut_waits_for_nobody_who_may_wait_for_it():
    for doing, most_s in ((WAITS, 5.0), (PASS, 5.0), (OUTSIDE, 1.5)):
        run = Run()
        run.pipeline.streams = [SimpleNamespace(stream=0)]
        run.refuse_end = lambda: None
        looking(run, run.supervisor.look, 1.0)
        run.does(1, doing)
        began = run.now
        run.supervisor._cut()
        assert run.now - began == pytest.approx(most_s, abs=0.1), doing


def test_who_is_stopped_while_others_halt_is_found():
    run = Run(processes=3, silent_s=2.0)
    looking(run, run.supervisor.look, 1.0)
    run.does(0, PASS)
    run.doing[1] = None
    run.halts = {0: run.now + 30.0, 2: run.now}
    run.supervisor._halt(1)
    assert run.ended.keys() == {1} and "silent" in run.ended[1]


def test_who_is_lost_while_it_loads_is_started_again_once():
    run = Run(silent_s=1.0)
    run.begun = False
    looking(run, run.supervisor.look_at_loading, 3.0)
    assert run.again == []
    run.doing[1] = None
    looking(run, run.supervisor.look_at_loading, 2.0)
    assert run.again == [1] and "silent" in run.ended[1] and run.left == {0, 1}
    looking(run, run.supervisor.look_at_loading, 30.0)  # it has not said a word yet
    assert run.again == [1]
    run.doing[1] = WAITS
    looking(run, run.supervisor.look_at_loading, 3.0)
    run.left.discard(1)
    with pytest.raises(Unrecovered, match=r"worker 1 is lost .*, as before when it loaded"):
        run.supervisor.look_at_loading({1: "worker 1 is lost (its process ended)"})


def test_where_it_cannot_be_started_again_the_run_ends_with_a_line():
    run = Run()
    run.begun = run.room = False
    run.left.discard(0)
    with pytest.raises(Unrecovered, match=r"worker 0 is lost \(killed\); no process can be started"):
        run.supervisor.look_at_loading({0: "worker 0 is lost (killed)"})

"""Spans: a ring that does not grow, everything on request, and what a worker that fails leaves behind."""

import json
import threading

import pytest

from runtime import trace as module
from runtime.trace import RECENT_S, RECENT_SPANS, Ring, Trace, worker_trace
from runtime.trace_file import join_traces, offsets


class Clock:
    """A clock that is set."""

    def __init__(self, now=0.0):
        self.now = now

    def __call__(self):
        return self.now


def joined(folder, *traces):
    """The spans of `trace.json`: (track, stage, chunk, start, duration), in its order."""
    events = json.loads(join_traces(folder, [t.pack() for t in traces]).read_text())
    return [(e["tid"], e["name"], e["args"]["chunk"], e["ts"] / 1e6, e["dur"] / 1e6) for e in events if e["ph"] == "X"]


@pytest.mark.parametrize("keep", ["recent", "all"])
def test_what_is_added_is_in_the_file(tmp_path, keep):
    clock, traces = Clock(10.0), [worker_trace(tmp_path, i, keep=keep) for i in range(3)]
    expected = []
    for i, trace in enumerate(traces):
        trace.clock = clock
        for chunk in range(100):
            trace.add(f"step{i}", chunk, chunk / 64, 0.25)
            expected.append((i, f"step{i}", chunk, chunk / 64, 0.25))
        trace.close()
    assert joined(tmp_path, *traces) == expected
    assert [p.name for p in tmp_path.iterdir()] == ["trace.json"]
    titles = [e for e in json.loads((tmp_path / "trace.json").read_text()) if e["ph"] == "M"]
    assert [(e["tid"], e["args"]["name"]) for e in titles] == [(i, f"worker{i}") for i in range(3)]


@pytest.mark.parametrize("keep", ["recent", "all"])
def test_spans_of_other_hosts_are_on_the_first_ones_clock(tmp_path, keep):
    """Worker 1's clock is an hour behind, worker 2's is two minutes before worker 1's, and has no channel to 0."""
    packed = []
    for worker, (clocks, starts) in enumerate((({}, 8.0), ({0: -3600.0, 2: -120.0}, 8.0), ({1: 120.0}, 8.0))):
        trace = worker_trace(tmp_path, worker, keep=keep)
        trace.clock = Clock(10.0)
        trace.add("step0", 0, starts, 1.0)
        trace.close()
        packed.append(json.loads(json.dumps(trace.pack() | {"of": worker, "clocks": clocks})))
    assert offsets(packed) == {0: 0.0, 1: 3600.0, 2: 3480.0}
    join_traces(tmp_path, packed)
    events = json.loads((tmp_path / "trace.json").read_text())
    assert [e["ts"] / 1e6 for e in events if e["ph"] == "X"] == [8.0, 3608.0, 3488.0]


@pytest.mark.parametrize("count", [1, RECENT_SPANS - 1, RECENT_SPANS, RECENT_SPANS + 1, 3 * RECENT_SPANS + 7])
def test_a_ring_holds_the_latest(count):
    ring = Ring()
    for chunk in range(count):
        ring.add(module.Span("step0", chunk, float(chunk), 0.5))
    packed = ring.pack(0.0)
    chunks = [span.chunk for span in Ring.unpack(json.loads(json.dumps(packed)))]
    assert chunks == list(range(max(0, count - RECENT_SPANS), count))


def test_a_ring_forgets_what_is_old(tmp_path):
    trace = Trace(keep="recent", clock=Clock(1000.0))
    for start in (0.0, 1000.0 - RECENT_S - 0.5, 1000.0 - RECENT_S, 999.0):
        trace.add("step0", 0, start, 0.25)
    assert [start for *_, start, _ in joined(tmp_path, trace)] == [1000.0 - RECENT_S, 999.0]


def test_what_travels_is_bounded():
    trace = Trace(keep="recent", clock=Clock(0.0))
    size = 0
    for i in range(2 * RECENT_SPANS):
        # Digits that do not compress.
        trace.add(f"step{i % 50}.block{i % 40}", hash((i, 1)) % 2**60, (i * 0.7548776662466927) % 1.0, 1 / (i + 3))
    size = len(json.dumps(trace.pack()))
    assert size < 2_000_000


def test_without_spans_there_is_no_file(tmp_path):
    trace = worker_trace(tmp_path, 0, keep="none")
    trace.add("step0", 0, 0.0, 0.5)
    trace.close()
    assert trace.pack() is None and join_traces(tmp_path, []) is None and not list(tmp_path.iterdir())
    assert trace.busy(1.0)["step0"]["busy_fraction"] == 0.5


@pytest.mark.parametrize("keep", ["recent", "all"])
def test_a_worker_that_fails_leaves_its_spans_behind(tmp_path, keep):
    with pytest.raises(RuntimeError), worker_trace(tmp_path, 4, keep=keep) as trace:
        trace.add("step0", 7, trace.clock(), 0.5)
        raise RuntimeError
    events = json.loads((tmp_path / "trace.4.part").read_text())
    assert [(e["tid"], e["name"]) for e in events] == [(4, "thread_name"), (4, "step0")]
    worker_trace(tmp_path, 4)  # of the next run in this folder
    assert not list(tmp_path.iterdir())


def test_a_worker_that_ends_well_leaves_nothing_behind(tmp_path):
    with worker_trace(tmp_path, 0) as trace:
        trace.add("step0", 7, trace.clock(), 0.5)
    assert not list(tmp_path.iterdir())


def test_a_part_on_another_host_is_left_out(tmp_path):
    here = [worker_trace(tmp_path / host, i, keep="all") for i, host in enumerate(("a", "b"))]
    for trace in here:
        trace.add("step0", 0, 1.0, 0.5)
        trace.close()
    assert joined(tmp_path / "a", *here) == [(0, "step0", 0, 1.0, 0.5)]


@pytest.mark.parametrize("cut", range(1, 120, 7))
def test_a_part_that_was_cut_still_joins(tmp_path, cut):
    trace = worker_trace(tmp_path, 0, keep="all")
    trace.add("step0", 0, 1.0, 0.5)
    trace.close()
    part = tmp_path / "trace.0.part"
    part.write_bytes(part.read_bytes()[:-cut])
    assert joined(tmp_path, trace) in ([], [(0, "step0", 0, 1.0, 0.5)])


def test_threads_share_a_trace(tmp_path):
    trace, together = Trace(keep="recent", clock=Clock(2.0)), threading.Barrier(4)

    def work():
        together.wait()
        for chunk in range(2000):
            trace.add("output", chunk, 1.0, 0.5)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert trace.stages["output"].count == 8000 and trace.stages["output"].total == 4000.0
    assert len(joined(tmp_path, trace)) == 8000

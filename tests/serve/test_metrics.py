"""What Prometheus is told."""

from __future__ import annotations

import shutil
import subprocess

import pytest
from prometheus_client.parser import text_string_to_metric_families

from serve.metrics import CAUSES, DROPS, ENDS, REJECTIONS, Metrics, Watched


class Clock:
    now = 50.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def metrics(clock):
    found = Metrics(clock)
    found.watch("one", Watched(lambda: 2, lambda: 1, lambda: 3, lambda: [400_000.0, 800_000.0]))
    found.watch("two", Watched(lambda: 0, lambda: 0, lambda: 5))
    return found


def samples(metrics: Metrics) -> dict[tuple[str, tuple], float]:
    families = text_string_to_metric_families(metrics.text()[0].decode())
    return {(s.name, tuple(sorted(s.labels.items()))): s.value for family in families for s in family.samples}


def value(metrics: Metrics, name: str, **labels: str) -> float | None:
    return samples(metrics).get((f"everframe_{name}", tuple(sorted(labels.items()))))


def busy(metrics: Metrics) -> None:
    """Something of everything."""
    metrics.began("one")
    metrics.ended("one", "lease")
    metrics.rejected("one", "late")
    metrics.first_frame("one", 0.3)
    metrics.control("one", 0.4)
    metrics.camera("one", 0.4)
    metrics.chunk("one", 12, 0.25, 0.0)
    metrics.interrupt("one", 0.2)
    metrics.dropped("one", 3, "rate")
    metrics.audio_late("one", 0.02)
    metrics.key_frame("one", "join")
    metrics.generation("one")
    metrics.frozen("one", 1.5)
    metrics.stages("one", "0", {"decode": [4, 0.5], "wait": [9, 3.0]})


def test_what_happens_is_counted_where_it_happens(metrics):
    before = samples(metrics)
    busy(metrics)
    after = samples(metrics)
    changed = {
        (name, dict(labels).get("model", "")) for (name, labels), v in after.items() if before.get((name, labels)) != v
    }
    assert {model for name, model in changed if "process" not in name} == {"one"}
    assert value(metrics, "session_start_total", model="one") == 1
    assert value(metrics, "session_end_total", model="one", reason="lease") == 1
    assert value(metrics, "admission_rejections_total", model="one", reason="late") == 1
    assert value(metrics, "frames_total", model="one") == 12
    assert value(metrics, "frames_dropped_total", model="one", reason="rate") == 3
    assert value(metrics, "audio_late_seconds_total", model="one") == 0.02
    assert value(metrics, "key_frames_total", model="one", cause="join") == 1
    for name, seconds in {
        "time_to_first_frame": 0.3,
        "control_to_frame": 0.4,
        "chunk_latency": 0.25,
        "frame_lateness": 0.0,
        "interrupt_to_silence": 0.2,
    }.items():
        assert value(metrics, f"{name}_seconds_sum", model="one") == seconds, name
        assert value(metrics, f"{name}_seconds_count", model="one") == 1, name


def test_a_chunk_of_which_it_is_not_known_when_it_was_sampled(metrics):
    metrics.chunk("one", 12, None, 0.1)
    assert value(metrics, "chunk_latency_seconds_count", model="one") is None
    assert value(metrics, "frame_lateness_seconds_sum", model="one") == 0.1


def test_gauges_ask_when_somebody_looks(clock):
    running = []
    metrics = Metrics(clock)
    metrics.watch("one", Watched(lambda: len(running), lambda: 7, lambda: 9))
    assert value(metrics, "sessions_running", model="one") == 0
    running.append(1)
    assert value(metrics, "sessions_running", model="one") == 1
    assert value(metrics, "sessions_waiting", model="one") == 7
    assert value(metrics, "sessions_capacity", model="one") == 9
    assert value(metrics, "peer_bitrate_bits_per_second", model="one", aggregate="min") is None


def test_of_rates_the_worst_and_the_mean(metrics):
    assert value(metrics, "peer_bitrate_bits_per_second", model="one", aggregate="min") == 400_000
    assert value(metrics, "peer_bitrate_bits_per_second", model="one", aggregate="mean") == 600_000


def test_counters_stand_at_zero_before_anything_happens(metrics):
    """So that the first one is seen as an increase."""
    for name, label, known in (
        ("session_end_total", "reason", ENDS),
        ("admission_rejections_total", "reason", REJECTIONS),
        ("frames_dropped_total", "reason", DROPS),
        ("key_frames_total", "cause", CAUSES),
    ):
        assert [value(metrics, name, model="two", **{label: one}) for one in known] == [0.0] * len(known)


def test_whatever_callers_send_makes_no_new_series(metrics):
    busy(metrics)
    metrics.rejected("x", "y")
    before = samples(metrics).keys()
    for i in range(50):
        metrics.rejected(f"model{i}", f"reason{i}")
    assert samples(metrics).keys() == before


def test_stages_are_totals_of_the_worker_and_shares_of_time(metrics, clock):
    told = {"decode": [10, 2.0], "wait": [30, 8.0]}
    metrics.stages("one", "0", told)
    where = {"model": "one", "worker": "0", "stage": "decode"}
    assert value(metrics, "stage_busy_ratio", **where) == 0
    clock.now += 4
    metrics.stages("one", "0", {"decode": [20, 4.0], "wait": [40, 10.0]})
    assert value(metrics, "stage_seconds_count", **where) == 20
    assert value(metrics, "stage_seconds_sum", **where) == 4.0
    assert value(metrics, "stage_busy_ratio", **where) == 0, "it is too early to say"
    clock.now += 4
    metrics.stages("one", "0", {"decode": [30, 6.0], "wait": [40, 10.0]})
    assert value(metrics, "stage_busy_ratio", **where) == 0.5
    assert value(metrics, "stage_busy_ratio", model="one", worker="0", stage="wait") is None
    clock.now += 8
    metrics.stages("one", "0", {"decode": [30, 6.0]})
    assert value(metrics, "stage_busy_ratio", **where) == 0
    metrics.stages("one", "0", {"decode": [1, 0.1]})
    assert value(metrics, "stage_seconds_sum", **where) == 0.1, "another process has its place"


def test_nothing_is_labelled_by_session(metrics):
    busy(metrics)
    labels = {label for _, found in samples(metrics) for label, _ in found}
    assert labels == {"model", "reason", "cause", "aggregate", "worker", "stage", "le"}


@pytest.mark.skipif(not shutil.which("promtool"), reason="promtool is not installed")
def test_promtool_finds_nothing_to_say(metrics):
    """But of bits: the rate of a line is told in them everywhere, in bytes nowhere."""
    busy(metrics)
    found = subprocess.run(
        ["promtool", "check", "metrics"], input=metrics.text()[0].decode(), capture_output=True, text=True
    )
    lines = (found.stdout + found.stderr).splitlines()
    assert [line for line in lines if "everframe_peer_bitrate_bits_per_second" not in line] == []


def test_the_table_names_what_is_told(metrics):
    busy(metrics)
    rows = [row.split("|") for row in metrics.table().splitlines()[2:]]
    told = {
        f.name + "_total" * (f.type == "counter"): f for f in text_string_to_metric_families(metrics.text()[0].decode())
    }
    told = {name: family for name, family in told.items() if "_process_" not in name}
    assert {row[1].strip(" `") for row in rows} == told.keys()
    for _, name, kind, labels, said, _ in rows:
        family = told[name.strip(" `")]
        assert (kind.strip(), said.strip()) == (family.type, family.documentation)
        assert set(labels.replace(" ", "").split(",")) == {k for s in family.samples for k in s.labels} - {"le"}

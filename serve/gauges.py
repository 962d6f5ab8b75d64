"""What is looked up when Prometheus asks: sessions that there are and may be, and what workers have told of stages."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from prometheus_client.core import GaugeMetricFamily, Metric, SummaryMetricFamily
from prometheus_client.registry import Collector

PREFIX = "everframe"
BUSY_S = 5.0
"""Over how long a stage's share of the time is taken, at least."""
WAITS = ("wait", "send")
"""Stages in which a worker does nothing."""


class Watched(NamedTuple):
    """What a model's gauges show, asked for when somebody looks; in the thread that asks.

    Attributes:
        running, waiting, capacity: sessions.
        bitrates: bits per second of every viewer's picture.
    """

    running: Callable[[], int]
    waiting: Callable[[], int]
    capacity: Callable[[], int]
    bitrates: Callable[[], Sequence[float]] = tuple


class Stage(NamedTuple):
    """A stage of one worker, as it was heard of.

    Attributes:
        count, seconds: passes since the worker began, and how long they took.
        busy: its share of the time lately.
        since: (moment, seconds) that the next share is taken from.
    """

    count: int
    seconds: float
    busy: float
    since: tuple[float, float]


class Looked(Collector):
    """What is looked up when somebody asks: gauges of models, and the totals of stages.

    Args:
        models: by name.
        stages: by model, worker and stage.
    """

    def __init__(self, models: Mapping[str, Watched], stages: Mapping[tuple[str, str, str], Stage]):
        self._models, self._stages = models, stages

    def describe(self) -> Iterable[Metric]:
        """The families, empty: what they are called."""
        return [*self._gauges().values(), *self._of_stages()]

    def collect(self) -> Iterator[Metric]:
        gauges = self._gauges()
        for model, watched in self._models.items():
            for name in ("running", "waiting", "capacity"):
                gauges[name].add_metric([model], getattr(watched, name)())
            if rates := watched.bitrates():
                gauges["rate"].add_metric([model, "min"], min(rates))
                gauges["rate"].add_metric([model, "mean"], sum(rates) / len(rates))
        yield from gauges.values()
        seconds, busy = self._of_stages()
        for (model, worker, name), stage in list(self._stages.items()):
            labels = [model, worker, name]
            seconds.add_metric(labels, stage.count, stage.seconds)
            if name not in WAITS:
                busy.add_metric(labels, stage.busy)
        yield seconds
        yield busy

    @staticmethod
    def _gauges() -> dict[str, GaugeMetricFamily]:
        said = {
            "running": "Sessions that have a place.",
            "waiting": "Sessions that wait for one.",
            "capacity": "Sessions that there may be at this moment, those that have a place among them.",
        }
        found = {
            name: GaugeMetricFamily(f"{PREFIX}_sessions_{name}", text, labels=["model"]) for name, text in said.items()
        }
        rate = "What the encoder of a viewer's picture is asked for: the least and the mean of all viewers."
        name = f"{PREFIX}_peer_bitrate_bits_per_second"
        return found | {"rate": GaugeMetricFamily(name, rate, labels=["model", "aggregate"])}

    @staticmethod
    def _of_stages() -> tuple[SummaryMetricFamily, GaugeMetricFamily]:
        labels = ["model", "worker", "stage"]
        took = "From a worker's pass beginning on its device to its end, since the worker began."
        share = f"Share of the last {BUSY_S:g} s or more that a worker spent in a stage, as its pulse tells."
        return (
            SummaryMetricFamily(f"{PREFIX}_stage_seconds", took, labels=labels),
            GaugeMetricFamily(f"{PREFIX}_stage_busy_ratio", share, labels=labels),
        )

"""What Prometheus is told: one registry of the gateway, labelled by model, stage, worker and reason, never by session.

Times are base units; every help text says from where to where. What workers do comes with their pulses, so that asking
for metrics asks nobody else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector, disable_created_metrics
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

from serve.gauges import BUSY_S, PREFIX, Looked, Stage, Watched

LONG = (
    0.001,
    0.005,
    0.01,
    0.02,
    0.04,
    0.06,
    0.08,
    0.1,
    0.25,
    0.5,
    0.75,
    1,
    2.5,
    5,
    7.5,
    10,
    20,
    40,
    80,
    160,
    640,
    2560,
)
"""Upper ends, in seconds, of what may include waiting and loading."""
SHORT = (0.005, 0.01, 0.02, 0.03, 0.04, 0.06, 0.08, 0.1, 0.15, 0.2, 0.3, 0.5, 0.75, 1, 2, 5)
"""Likewise of chunks and frames."""
ENDS = ("stopped", "idle", "lease", "drained", "limit", "failed", "vanished", "capacity")
"""Why sessions end."""
REJECTIONS = ("full", "late", "queue", "too_many", "draining")
"""Why nobody more is let in (`serve.admission`)."""
CAUSES = ("join", "loss", "queue", "trim", "rate")
"""Why key frames are asked for."""
DROPS = ("rate", "queue")
"""Why frames are not shown: the viewer's line takes no more, or its queue was full."""
OTHER = "other"
"""In place of a model or a reason that is none of ours: labels are few, whatever callers send."""


class Metrics:
    """All of them.

    Args:
        clock: seconds, monotonic.

    Attributes:
        registry: that they are in.
    """

    def __init__(self, clock: Callable[[], float]):
        disable_created_metrics()  # a second series for each, which nobody reads
        self.clock, self.registry = clock, CollectorRegistry()
        self._models: dict[str, Watched] = {}
        self._stages: dict[tuple[str, str, str], Stage] = {}
        self._counters()
        self._histograms()
        self.registry.register(Looked(self._models, self._stages))
        ProcessCollector(PREFIX, registry=self.registry)

    def _counters(self) -> None:
        def counter(name: str, said: str, *labels: str) -> Counter:
            return Counter(f"{PREFIX}_{name}", said, ["model", *labels], registry=self.registry)

        self._began = counter("session_start_total", "Sessions that were given a place.")
        self._ended = counter("session_end_total", "Sessions that ended after they were given a place.", "reason")
        self._rejected = counter(
            "admission_rejections_total", "Sessions that were asked for and neither began nor were queued.", "reason"
        )
        self._frames = counter("frames_total", "Frames of chunks that began to leave for viewers, once per session.")
        self._dropped = counter("frames_dropped_total", "Frames that were made and not shown to a viewer.", "reason")
        self._audio_late = counter(
            "audio_late_seconds_total", "Sound that reached a session after its chunk was sampled and was dropped."
        )
        self._generations = counter(
            "generations_total", "Times that a pipeline stood still to go on with other workers or another plan."
        )
        self._key_frames = counter("key_frames_total", "Key frames asked of an encoder beside the first one.", "cause")

    def _histograms(self) -> None:
        def histogram(name: str, said: str, buckets: Sequence[float] = SHORT) -> Histogram:
            return Histogram(f"{PREFIX}_{name}", said, ["model"], buckets=buckets, registry=self.registry)

        self._first_frame = histogram(
            "time_to_first_frame_seconds",
            "From a session being given its place to its first frame leaving for a viewer.",
            LONG,
        )
        self._control = histogram(
            "control_to_frame_seconds",
            "From an event being accepted by the gateway to the first frame that shows it leaving for viewers.",
        )
        self._camera = histogram(
            "camera_to_frame_seconds",
            "From a camera's picture being accepted by the gateway to the first frame that shows it leaving.",
        )
        self._chunk = histogram("chunk_latency_seconds", "From a chunk being sampled to its frames being there.")
        self._late = histogram(
            "frame_lateness_seconds",
            "From the moment at which a chunk's first frame was due to its leaving; 0: in time.",
        )
        self._frozen = histogram(
            "frozen_seconds", "From a session's picture standing still for that to the next picture leaving.", LONG
        )
        self._interrupt = histogram(
            "interrupt_to_silence_seconds", "From an interruption being accepted to the last sound before it leaving."
        )

    # -- what happens -------------------------------------------------------------------------------------------------

    def watch(self, model: str, watched: Watched) -> None:
        """A model is served: its gauges ask `watched`, its counters stand at 0."""
        self._models[model] = watched
        for counter in (self._began, self._frames, self._audio_late, self._generations):
            counter.labels(model)
        by_reason = {
            self._ended: ENDS,
            self._rejected: REJECTIONS,
            self._dropped: DROPS,
            self._key_frames: CAUSES,
        }
        for counter, reasons in by_reason.items():
            for reason in reasons:
                counter.labels(model, reason)

    def began(self, model: str) -> None:
        """A session was given a place."""
        self._began.labels(self._known(model)).inc()

    def ended(self, model: str, reason: str) -> None:
        """One has ended; a reason of ENDS."""
        self._ended.labels(self._known(model), _of(ENDS, reason)).inc()

    def rejected(self, model: str, reason: str) -> None:
        """One was refused; a reason of REJECTIONS."""
        self._rejected.labels(self._known(model), _of(REJECTIONS, reason)).inc()

    def first_frame(self, model: str, seconds: float) -> None:
        """A session's first frame left, so long after it was given its place."""
        self._first_frame.labels(self._known(model)).observe(seconds)

    def control(self, model: str, seconds: float) -> None:
        """What shows an event left, so long after the event was accepted."""
        self._control.labels(self._known(model)).observe(seconds)

    def camera(self, model: str, seconds: float) -> None:
        """What shows a camera's picture left, so long after the picture was accepted."""
        self._camera.labels(self._known(model)).observe(seconds)

    def chunk(self, model: str, frames: int, latency_s: float | None, late_s: float) -> None:
        """A chunk began to leave.

        Args:
            model: whose.
            frames: that it has.
            latency_s: since it was sampled; None: that is not known.
            late_s: since it was due; 0: it was in time.
        """
        model = self._known(model)
        self._frames.labels(model).inc(frames)
        self._late.labels(model).observe(late_s)
        if latency_s is not None:
            self._chunk.labels(model).observe(latency_s)

    def interrupt(self, model: str, seconds: float) -> None:
        """The last sound before an interruption left, so long after that was accepted."""
        self._interrupt.labels(self._known(model)).observe(seconds)

    def generation(self, model: str) -> None:
        """A pipeline stands still to go on otherwise."""
        self._generations.labels(self._known(model)).inc()

    def frozen(self, model: str, seconds: float) -> None:
        """A session's picture stood still for that, so long."""
        self._frozen.labels(self._known(model)).observe(seconds)

    def dropped(self, model: str, frames: int, reason: str) -> None:
        """Frames were not shown; a reason of DROPS."""
        self._dropped.labels(self._known(model), _of(DROPS, reason)).inc(frames)

    def audio_late(self, model: str, seconds: float) -> None:
        """So much sound came too late."""
        self._audio_late.labels(self._known(model)).inc(seconds)

    def key_frame(self, model: str, cause: str) -> None:
        """One was asked for; a cause of CAUSES."""
        self._key_frames.labels(self._known(model), _of(CAUSES, cause)).inc()

    def stages(self, model: str, worker: str, stages: Mapping[str, Sequence[float]]) -> None:
        """A worker's pulse was heard.

        Args:
            model, worker: whose.
            stages: passes and seconds in all, since the worker began, by stage.
        """
        now = self.clock()
        for name, (count, seconds) in stages.items():
            key = (self._known(model), worker, name)
            before = self._stages.get(key)
            if before is None or seconds < before.seconds:  # it is new, or another process has its place
                self._stages[key] = Stage(count, seconds, 0.0, (now, seconds))
                continue
            since, then = before.since
            if now - since < BUSY_S:
                self._stages[key] = before._replace(count=count, seconds=seconds)
            else:
                busy = min(1.0, (seconds - then) / (now - since))
                self._stages[key] = Stage(count, seconds, busy, (now, seconds))

    # -- what is told -------------------------------------------------------------------------------------------------

    def text(self) -> tuple[bytes, str]:
        """All of it as Prometheus reads it, and the content type."""
        return generate_latest(self.registry), CONTENT_TYPE_LATEST

    def table(self) -> str:
        """Names, kinds, labels and meanings, as rows of Markdown."""
        rows = ["| name | kind | labels | what |", "|---|---|---|---|"]
        for name, kind, labels, said in sorted(self._described()):
            rows.append(f"| `{name}` | {kind} | {', '.join(labels)} | {said} |")
        return "\n".join(rows) + "\n"

    def _described(self) -> Iterator[tuple[str, str, tuple[str, ...], str]]:
        for metric in vars(self).values():
            if isinstance(metric, Counter | Histogram):
                (family,) = metric.describe()
                suffix = "_total" if family.type == "counter" else ""
                yield f"{family.name}{suffix}", family.type, metric._labelnames, family.documentation
        for family in Looked(self._models, self._stages).describe():
            yield family.name, family.type, tuple(family._labelnames), family.documentation

    def _known(self, model: str) -> str:
        return model if model in self._models else OTHER


def _of(known: Sequence[str], reason: str) -> str:
    return reason if reason in known else OTHER

"""A cluster as the planner sees it: devices in order, links between them, stage times of one model on each kind."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from conf.errors import UserError, nearest
from conf.schema.cluster import ClusterConfig, DeviceKind, Link, StageTimes


@dataclass(frozen=True)
class Subject:
    """What is timed: enough of a model to find its times, or to derive them.

    Attributes:
        model: `model.name`.
        height, width: in pixels.
        dtype: of its weights.
        steps: S.
        layer_flops: arithmetic of each layer in one step; empty: times cannot be derived.
        commit_flops: likewise in a clean pass; empty: as in a step.
        once_flops: likewise of what is made once for all passes of a chunk; empty: nothing is.
        copied, commit_copied: bytes that the history rule reads and writes in each layer beside a step, and beside a
            clean pass.
        decode_pixels: pixels (of frames) that a decoder which is timed by them makes of a chunk; 0: another, or none.
    """

    model: str
    height: int = 0
    width: int = 0
    dtype: str = "bfloat16"
    steps: int = 0
    layer_flops: tuple[float, ...] = ()
    commit_flops: tuple[float, ...] = ()
    once_flops: tuple[float, ...] = ()
    copied: float = 0.0
    commit_copied: float = 0.0
    decode_pixels: int = 0


@dataclass(frozen=True)
class Device:
    """One device: its kind's name and sheet, its machine, its relative speed."""

    kind: str
    sheet: DeviceKind
    node: int
    speed: float

    @property
    def usable_bytes(self) -> float:
        return self.sheet.memory_bytes - self.sheet.reserve_bytes


@dataclass
class Cluster:
    """Devices with the times of one subject.

    Attributes:
        name, note: of the file.
        host_bytes: memory of each machine; None: not known.
        devices: in order.
        intra, inter: links within and between machines.
        times: by (kind, degree), degree 1 for every kind.
    """

    name: str
    devices: tuple[Device, ...]
    intra: Link
    inter: Link
    times: dict[tuple[str, int], StageTimes]
    note: str = ""
    host_bytes: float | None = None
    kinds: frozenset[str] = field(init=False)

    def __post_init__(self):
        self.kinds = frozenset(d.kind for d in self.devices)

    @classmethod
    def of(cls, config: ClusterConfig, subject: Subject) -> Cluster:
        """A cluster's devices, with the times that its file has for `subject`, or derived ones.

        Raises:
            UserError: there are no devices, or no times and nothing to derive them from.
        """
        devices = tuple(
            Device(g.kind, config.kinds[g.kind], g.node, g.speed) for g in config.devices for _ in range(g.count)
        )
        if not devices:
            raise UserError("cluster.devices=[]", "is empty", "choose a cluster (cluster=h100x5) or list devices")
        times = {}
        for kind in dict.fromkeys(d.kind for d in devices):
            known = [t for t in config.times if _matches(t, kind, subject)]
            # A stable sort: measured ones first, otherwise as the file has them.
            for entry in sorted(known, key=lambda t: t.basis != "measured"):
                times.setdefault((kind, entry.degree), entry)
            if (kind, 1) not in times:
                times[kind, 1] = derived(config, kind, subject)
        return cls(config.name, devices, config.intra, config.inter, times, config.note, config.host_bytes)

    @property
    def nodes(self) -> list[int]:
        """The machine of every device."""
        return [device.node for device in self.devices]

    @property
    def uniform(self) -> bool:
        """Whether all devices are of one kind and speed."""
        return len({(device.kind, device.speed) for device in self.devices}) == 1

    def link(self, a: int, b: int) -> Link:
        """Between two devices."""
        return self.intra if self.devices[a].node == self.devices[b].node else self.inter

    def within(self, group: Sequence[int]) -> Link:
        """The slowest link of a group."""
        return self.intra if len({self.devices[d].node for d in group}) == 1 else self.inter

    def bases(self) -> list[str]:
        """Where the times come from, a line for each kind."""
        return [
            f"{kind}: {t.basis}" + (f" ({t.source})" if t.source else "")
            for (kind, degree), t in self.times.items()
            if degree == 1
        ]


def _matches(times: StageTimes, kind: str, subject: Subject) -> bool:
    """Whether times are of this subject; what they do not say fits anything."""
    said = (
        (times.height, subject.height),
        (times.width, subject.width),
        (times.dtype, subject.dtype),
        (times.steps, subject.steps),
    )
    # A picture on its side takes as long.
    size = {times.height, times.width} == {subject.height, subject.width}
    same = size if times.height and times.width else all(s is None or s == of for s, of in said[:2])
    return (
        times.model == subject.model and times.kind == kind and same and all(s is None or s == of for s, of in said[2:])
    )


def derived(config: ClusterConfig, kind: str, subject: Subject) -> StageTimes:
    """Times from arithmetic: a layer takes `flops / rate`, a decoded pixel `pixel_s`, a pass `launch_s` beside its
    layers, none of which takes less, what a history rule copies `bytes / memory_bandwidth`; everything else nothing.

    Raises:
        UserError: the kind has no rate, or the subject's arithmetic is unknown.
    """
    sheet = config.kinds[kind]
    if sheet.flops is None or not subject.layer_flops:
        known = sorted({t.model for t in config.times})
        raise UserError(
            f"cluster={config.name or config.file} has no times of model={subject.model} at "
            f"{subject.height}x{subject.width} on {kind}",
            "and no arithmetic rate (flops) to derive them from",
            "measure them (everframe bench) and add cluster.measured=[FILE]"
            + (f"; {nearest(subject.model, known)}" if known and subject.model not in known else ""),
        )

    def layers(flops: tuple[float, ...], copied: float) -> list[float]:
        moved = copied / sheet.memory_bandwidth if sheet.memory_bandwidth else 0.0
        return [max(own / sheet.flops, sheet.launch_s) + moved for own in flops]

    return StageTimes(
        model=subject.model,
        kind=kind,
        basis="derived",
        source=f"{sum(subject.layer_flops) / 1e12:.3g} TFLOP per step at {sheet.flops / 1e12:.3g} TFLOP/s",
        layer_s=layers(subject.layer_flops, subject.copied),
        commit_s=sum(layers(subject.commit_flops, subject.commit_copied)) if subject.commit_flops else None,
        once_s=sum(layers(subject.once_flops, 0.0)) if any(subject.once_flops) else 0.0,
        pass_s=sheet.launch_s,
        decode_s=subject.decode_pixels * (sheet.pixel_s or 0.0),
    )

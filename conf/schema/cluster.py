"""Devices, the links between them, and how long a model's stages take on them: what the planner counts with.

The format of `conf/cluster/*.yaml`, of a file of one's own (`cluster=FILE.yaml`), and of what `launch.bench` writes
(`cluster.measured=[FILE.yaml]`: any part of the same keys). Units are seconds, bytes, bytes per second and floating
point operations per second throughout. `docs/planner.md` has an annotated example.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from conf.errors import UserError, choice, not_negative, positive
from conf.paths import found

BASES = ("measured", "published", "derived", "given")
"""Where times come from: this machine; somebody's publication; an arithmetic rate; nowhere in particular (tests)."""


@dataclass
class DeviceKind:
    """One kind of device, by its data sheet or by measurement.

    Attributes:
        memory_bytes: of one device, all of it.
        reserve_bytes: what the driver, libraries and the allocator keep for themselves.
        context_bytes: what the driver keeps for each process beyond the first that shares a device.
        peer_bytes: what the library that joins devices keeps in each of two that it joins.
        flops: arithmetic rate that a step sustains, in the model's dtype (not the data sheet's peak). Times of models
            that have no `StageTimes` are derived from it; null: they cannot be.
        launch_s: what launching a layer's kernels takes; in derived times no layer takes less, nor a pass
            beside its layers.
        memory_bandwidth: bytes per second that copies within its memory read and write, for derived times likewise;
            null: they are not counted.
        host_bandwidth: bytes per second from a device to its machine's memory, the way of cuts (`launcher.recover`);
            null: not known.
        pixel_s: seconds that a decoder which is timed by pixels takes for one of a frame, for derived times likewise.
    """

    memory_bytes: float = 0.0
    reserve_bytes: float = 0.0
    context_bytes: float = 0.0
    peer_bytes: float = 0.0
    flops: float | None = None
    launch_s: float = 0.0
    memory_bandwidth: float | None = None
    host_bandwidth: float | None = None
    pixel_s: float | None = None

    def __post_init__(self):
        for name in ("memory_bytes", "flops", "memory_bandwidth", "host_bandwidth", "pixel_s"):
            positive(f"cluster.kinds.*.{name}", getattr(self, name), most=1e18)
        for name in ("reserve_bytes", "context_bytes", "peer_bytes", "launch_s"):
            not_negative(f"cluster.kinds.*.{name}", getattr(self, name))


@dataclass
class DeviceGroup:
    """Devices of one kind in one machine, numbered in the order of the file.

    Attributes:
        kind: a key of `kinds`.
        count: how many.
        node: the machine they are in.
        speed: relative to what the times of this kind say; 0.667 for one that is 1.5 times slower.
    """

    kind: str = "gpu"
    count: int = 1
    node: int = 0
    speed: float = 1.0

    def __post_init__(self):
        positive("cluster.devices[].count", self.count, most=100_000)
        positive("cluster.devices[].speed", self.speed)


@dataclass
class Link:
    """What a message takes from one device to another: `latency_s + bytes / bandwidth`.

    Attributes:
        latency_s: of a message of any size.
        bandwidth: bytes per second.
    """

    latency_s: float = 0.0
    bandwidth: float = math.inf

    def __post_init__(self):
        not_negative("cluster.*.latency_s", self.latency_s)
        positive("cluster.*.bandwidth", self.bandwidth, most=math.inf)

    def seconds(self, size: float) -> float:
        """Time of a message of `size` bytes."""
        return self.latency_s + size / self.bandwidth


@dataclass
class StageTimes:
    """How long the stages of one model take on one device kind: what `launch.bench` measures.

    All times are those of steady running (ring full, compiled, p50) for one chunk of one stream, on one device, at
    `speed` 1. Where several entries match a run, the first measured one is taken, then the first of the others.

    Attributes:
        model, kind: `model.name` and the device kind.
        basis: one of `BASES`; `source` says more (a file, a paper, a rate).
        height, width: in pixels; null: any (no entry is ever scaled to another size).
        dtype: null: any.
        steps: of the model that was measured; null: any.
        degree: processes of one worker (`plan.sequence_parallel`) when this was measured.
        layer_s: of every layer in one step; a single value holds for each layer. Exclusive with `step_s`.
        step_s: one step over all layers, `pass_s` not included; spread evenly over the layers.
        pass_s: what every pass over a block costs on top, however few its layers (launching, packing a message).
        first_s: of the network's first block on top (patch embedding); `last_s`: of its last (head, sampler).
        once_s: of a chunk's first pass over a bank on top, over all layers; spread as a step is.
        commit_s, prefill_s: a clean or attention-sink pass over all layers; null: as a step.
        sample_s: drawing a chunk's noise, on the host, beside whatever the device does.
        encode_s: of a chunk's conditioning; `first_encode_s` of chunk 0 (text, reference); null: the same.
        decode_s: of a chunk; `first_decode_s` of chunk 0; null: the same.
        shown_s: decode time until a chunk's first frame is made, where frames leave as they are made; null: the whole.
        post_s: of a chunk on the stage between decode and output, where there is one.
        output_s: of a chunk, from its pixels until it is out: to the host, sinks. Beside the device's work, on a thread
            of its own for every stream.
        hop_s: what a worker itself spends on sending or receiving one message, on top of what the link takes.
        serial: share of a layer's time that sequence parallelism does not shorten, in 0 to 1.
        step_bytes: memory one pass needs while it runs; null: estimated from the size of hidden states.
        decode_bytes: memory of a stream's decoder state and of decoding; null: counted of the network.
        post_bytes, encode_bytes: the same for post and encode.
    """

    model: str = ""
    kind: str = "gpu"
    basis: str = "given"
    source: str = ""
    height: int | None = None
    width: int | None = None
    dtype: str | None = None
    steps: int | None = None
    degree: int = 1
    layer_s: list[float] | None = None
    step_s: float | None = None
    pass_s: float = 0.0
    first_s: float = 0.0
    last_s: float = 0.0
    once_s: float = 0.0
    commit_s: float | None = None
    prefill_s: float | None = None
    sample_s: float = 0.0
    encode_s: float = 0.0
    first_encode_s: float | None = None
    decode_s: float = 0.0
    first_decode_s: float | None = None
    shown_s: float | None = None
    post_s: float = 0.0
    output_s: float = 0.0
    hop_s: float = 0.0
    serial: float = 0.1
    step_bytes: float | None = None
    decode_bytes: float | None = None
    post_bytes: float | None = None
    encode_bytes: float | None = None

    def __post_init__(self):
        name = f"cluster.times[{self.model}, {self.kind}]"
        choice(f"{name}.basis", self.basis, BASES)
        positive(f"{name}.degree", self.degree)
        if (self.layer_s is None) == (self.step_s is None):
            raise UserError(
                f"{name}", "has layer_s (seconds of each layer in one step) or step_s (of all of them), one of the two",
                "give one",
            )  # fmt: skip
        for key in (
            "step_s", "pass_s", "first_s", "last_s", "once_s", "commit_s", "prefill_s", "encode_s", "first_encode_s",
            "decode_s", "first_decode_s", "shown_s", "post_s", "output_s", "hop_s", "step_bytes", "decode_bytes",
            "post_bytes", "encode_bytes",
        ):  # fmt: skip
            not_negative(f"{name}.{key}", getattr(self, key))
        for value in self.layer_s or []:
            not_negative(f"{name}.layer_s", value)
        if not 0 <= self.serial <= 1:
            raise UserError(f"{name}.serial={self.serial}", "is a share, 0 to 1", "use 0.1")

    def layers(self, count: int) -> list[float]:
        """Seconds of each of `count` layers in one step.

        Raises:
            UserError: `layer_s` is for another number of layers.
        """
        if self.layer_s is None:
            return [self.step_s / count] * count
        if len(self.layer_s) == 1:
            return self.layer_s * count
        if len(self.layer_s) != count:
            raise UserError(
                f"cluster.times[{self.model}, {self.kind}].layer_s has {len(self.layer_s)} values",
                f"the model has {count} layers",
                f"give {count} values, or one for all",
            )
        return list(self.layer_s)


@dataclass
class ClusterConfig:
    """A machine or several.

    Attributes:
        name: of the file; `here`, without devices: they are found.
        note: where its numbers come from, printed with the plans.
        file: a cluster file of one's own (what `cluster=FILE.yaml` sets).
        measured: files with times or links that `launch.bench` wrote, preferred to those given here.
        kinds: device kinds by name.
        host_bytes: memory of each machine, of which half is there for cuts, as Linux has it; null: not known.
        devices: in order; process i of a plan runs on device i unless `plan.devices` says otherwise.
        intra, inter: links between devices of one machine, and of different machines.
        times: of models on kinds.
    """

    name: str = ""
    note: str = ""
    file: str | None = None
    measured: list[str] = field(default_factory=list)
    kinds: dict[str, DeviceKind] = field(default_factory=dict)
    host_bytes: float | None = None
    devices: list[DeviceGroup] = field(default_factory=list)
    intra: Link = field(default_factory=Link)
    inter: Link = field(default_factory=Link)
    times: list[StageTimes] = field(default_factory=list)

    def __post_init__(self):
        self.file = found(self.file)
        self.measured = [found(f) for f in self.measured]
        positive("cluster.host_bytes", self.host_bytes, most=1e18)
        for group in self.devices:
            choice("cluster.devices[].kind", group.kind, self.kinds)

    @property
    def named(self) -> bool:
        """Whether a cluster was asked for, be it the machine at hand."""
        return bool(self.name or self.file)

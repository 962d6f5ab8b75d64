"""What `launch.bench` measures, and where its results go."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial

from conf.errors import UserError, choice, positive
from conf.schema import Config
from conf.schema.stream import fresh_folder

MEASURES = ("stages", "links", "efficiency")


@dataclass
class BenchSettings:
    """A measurement."""

    what: list[str] = field(default_factory=lambda: ["stages", "links"])
    """`stages`: times of passes, encode and decode. `links`: latency and bandwidth between two workers. `efficiency`:
    throughput of a plan on emulated devices, against one chunk per slowest stage."""
    chunks: int = 20
    """Timed, after the ring has filled; of `efficiency` streamed in all."""
    rounds: int = 50
    """Round trips per message size."""
    sizes: list[int] | None = None
    """Bytes of messages, besides 1 KB; null: those of the model's latents and hidden states."""
    kind: str | None = None
    """Name of the device kind in what is written; null: `emulated`, `cpu`, or the GPU's name."""
    file: str = "${output_dir}/measured.yaml"
    """What the planner reads (`cluster.measured=[FILE]`); all percentiles go to the same name with `.json`."""

    def __post_init__(self):
        for value in self.what:
            choice("bench.what", value, MEASURES)
        if not self.what:
            raise UserError("bench.what=[]", "nothing is measured", f"use some of {', '.join(MEASURES)}")
        for name in ("chunks", "rounds"):
            positive(f"bench.{name}", getattr(self, name))
        for size in self.sizes or []:
            positive("bench.sizes", size)


@dataclass
class BenchConfig(Config):
    """One run of `launch.bench`: what `launch.stream` takes, and what is measured of it."""

    bench: BenchSettings = field(default_factory=BenchSettings)
    output_dir: str = field(default_factory=partial(fresh_folder, "bench-"))

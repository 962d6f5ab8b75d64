"""Measurements for the planner.

Takes what `launch.stream` takes. Stage times are those of the model alone on this process's device; links are measured
between two processes of this machine, or, under torchrun, between its first and its last; efficiency is that of the
plan and launcher given, on emulated devices. Prints a table, and writes what `cluster.measured=[FILE]` reads.
"""

from __future__ import annotations

import datetime
import json
import logging
import multiprocessing
import platform
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, replace
from glob import escape
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from omegaconf import OmegaConf
from rich import box
from rich.console import Console
from rich.table import Table

import devices
from conf import disk
from conf.paths import inside
from conf.schema.bench import BenchConfig
from launch import here, stream, torchrun
from launch.cli import run, written
from launch.command import Command
from launch.folder import claimed, look
from launch.signals import stop_event
from parallel.builders import build
from runtime.links import BothWays, Trips, answer_locally, fit
from runtime.measure import percentile, stage_durations, stage_times
from runtime.report import write_json
from runtime.workload import describe

COMMAND = Command("bench", __doc__, schema=BenchConfig)
SMALL = 1024
RUN = "efficiency"
"""The folder of the run that is measured, in that of the results."""
HOP = "hop_s"
"""Measured with the links, and kept with the stage times."""

Found = tuple[dict[str, Any], dict[str, list[float]]]
"""Keys of a cluster file, and seconds by name."""


def _kind(config: BenchConfig) -> str:
    """The device kind's name."""
    if config.bench.kind:
        return config.bench.kind
    if config.device.kind == "emulated":
        return "emulated"
    return here.kind_of(devices.of(devices.choose(config.device.kind)).title())


def stages(config: BenchConfig) -> Found:
    """Times of every stage of the model."""
    durations = stage_durations(config, config.bench.chunks)
    source = f"launch.bench on {platform.node()}, torch {torch.__version__}, {datetime.date.today()}"
    times = asdict(stage_times(config, durations, _kind(config), source))
    return {"times": [{key: value for key, value in times.items() if value is not None}]}, durations


def links(config: BenchConfig) -> Found:
    """Latency and bandwidth between two workers."""
    workload = describe(config)
    sizes = config.bench.sizes or [workload.latent_bytes, workload.hidden_bytes]
    sizes = [SMALL, *sorted({s for s in sizes if s > SMALL})]
    if config.launcher.name == "torchrun":
        key, trips = _torchrun_trips(config, sizes)
    else:
        key, trips = "intra", _local_trips(config, sizes)
    if not trips:
        return {}, {}
    link, own = fit(trips)
    found = {f"message of {t.size} B, one way": t.one_way for t in trips}
    return {key: asdict(link), HOP: own}, found | {f"message of {t.size} B, handled": t.handled for t in trips}


def _local_trips(config: BenchConfig, sizes: list[int]) -> list[Trips]:
    """Between this process and another of its machine."""
    gpu = config.device.may_be_gpu and devices.count() > 0
    patience = config.launcher.timeout_s
    with tempfile.TemporaryDirectory() as folder:
        process = multiprocessing.get_context("spawn").Process(
            target=answer_locally, args=(folder, gpu, patience), daemon=True
        )
        process.start()
        device = devices.choose("auto" if gpu else "cpu", 0)
        ends = BothWays(dist.FileStore(f"{folder}/store", 2), 0, 1, device, patience)
        trips = [ends.ask(size, config.bench.rounds) for size in sizes]
        ends.close()
        process.join(patience)
    return trips


def _torchrun_trips(config: BenchConfig, sizes: list[int]) -> tuple[str, list[Trips]]:
    """Between the first and the last process of a torchrun, as the first sees it."""
    store, rank, world = torchrun.rendezvous(config.launcher.timeout_s)
    last = world - 1
    store.set(f"host/{rank}", platform.node())
    key = "intra" if store.get("host/0") == store.get(f"host/{last}") else "inter"
    trips: list[Trips] = []
    if rank in (0, last) and last:
        device = torchrun.device(config) or torch.device("cpu")
        ends = BothWays(store, rank, last - rank, device, config.launcher.timeout_s)
        trips = [ends.ask(size, config.bench.rounds) for size in sizes] if rank == 0 else ends.answer() or []
        ends.close()
    return key, trips


def efficiency(config: BenchConfig) -> Found:
    """Chunks that leave per slowest stage's time, in steady running on emulated devices: 1 would be perfect."""
    emulated, chunks = replace(config.device, kind="emulated"), replace(config.stream, chunks=config.bench.chunks)
    # A run has a folder of its own.
    config = replace(config, device=emulated, stream=chunks, output_dir=f"{config.output_dir}/{RUN}")
    with stop_event() as stop:
        stream.stream(config, written(config), stop)
    if not torchrun.speaks():
        return {}, {}
    report = json.loads((Path(config.output_dir) / "report.json").read_text())
    streams = report.get("streams", [report])
    plan = build(replace(config.plan, workers=report["workers"]), describe(config))
    e = config.device.emulated
    step_s = e.block_s(range(plan.workload.layers), plan.workload.layers)
    load = plan.load({"step": step_s, "encode": e.encode_s, "decode": e.decode_s, "post": e.post_s})
    period = max(own / (e.speeds[w] if w < len(e.speeds) else 1.0) for w, own in enumerate(load))
    rate = sum(s["fps"] * s["chunks"] / s["frames"] for s in streams)
    Console(stderr=True).print(
        f"efficiency: {rate * period:.3f} of one chunk per {period * 1e3:.0f} ms, {plan.workers} workers, "
        f"launcher={config.launcher.name}"
    )
    return {}, {"period of chunks": [1 / rate], "first frame": [s["time_to_first_frame_s"] for s in streams]}


MEASURES = {"stages": stages, "links": links, "efficiency": efficiency}


def _table(durations: dict[str, list[float]]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    table.add_column("stage")
    for column in ("median", "p99", "samples"):
        table.add_column(column, justify="right")
    for name, values in durations.items():
        times = (f"{percentile(values, p) * 1e3:.3f} ms" for p in (50, 99))
        table.add_row(name, *times, str(len(values)))
    return table


def job(config: BenchConfig, resolved: str) -> None:
    """Measure, print, write."""
    content: dict[str, Any] = {}
    durations: dict[str, list[float]] = {}
    with _folder(config) if torchrun.speaks() else nullcontext():
        for what in config.bench.what:
            keys, found = MEASURES[what](config)
            content |= keys
            durations |= found
        if torchrun.speaks():
            _tell(config, resolved, content, durations)


@contextmanager
def _folder(config: BenchConfig) -> Iterator[None]:
    """The folder of the results is this process's; what an earlier one has left there has been moved."""
    file = Path(config.bench.file)
    own = (inside(path, config.output_dir) for path in (file, file.with_suffix(".json")))
    leaves = [escape(str(path)) for path in own if path]
    look(config, leaves)
    with disk.writing(f"bench.file={file}"):
        disk.look_file(file)
    with claimed(config, leaves):
        yield


def _tell(config: BenchConfig, resolved: str, content: dict[str, Any], durations: dict[str, list[float]]) -> None:
    """Print what was measured, and write it."""
    hop_s = content.pop(HOP, None)
    for times in content.get("times", []) if hop_s is not None else []:
        times[HOP] = hop_s
    Console(highlight=False).print(_table(durations))
    file = Path(config.bench.file)
    with disk.writing(f"bench.file={file}"):
        disk.prepare(file)
    command = f"# everframe bench {' '.join(sys.argv[1:])}"
    disk.write_text(f"bench.file={file}", file, f"{command}\n{OmegaConf.to_yaml(content)}")
    percentiles = {n: {f"p{p}": percentile(v, p) for p in (50, 90, 99)} for n, v in durations.items()}
    write_json(file.with_suffix(".json"), {"seconds": percentiles, "configuration": resolved})
    print(f"measured: {file}")


def main(argv: list[str] | None = None) -> int:
    """The entry point; returns the exit code."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    return run(COMMAND, job, argv, "bench", prepare=torchrun.agree, speaks=torchrun.speaks())


if __name__ == "__main__":
    sys.exit(main())

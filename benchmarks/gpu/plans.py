"""Plans on one device: workers as threads with queues of their own, or as processes.

Every plan must give the hashes that one loop gives, of latents and of pictures: `nano` and the pocket models with
random weights, a prompt change and, where the model has a reference, a recalibration.
"""

from __future__ import annotations

import hashlib
import tempfile
import threading
from collections.abc import Mapping
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import devices
from benchmarks import models
from benchmarks.gpu.rows import Bench, Row, distance, needs
from benchmarks.record import bar
from conf.schema import (
    Config,
    DeviceConfig,
    Event,
    LauncherConfig,
    ModelConfig,
    PlanConfig,
    SinkConfig,
    SourceConfig,
    StreamConfig,
)
from launch.local import launched
from parallel.builders import build
from parallel.plan import Plan
from runtime.orders import Open
from runtime.pipeline import Pipeline, opens, results, run_all
from runtime.reasons import Reason
from runtime.run import SequentialRun
from runtime.running import Start
from runtime.workload import describe
from stages.inputs import inputs_of
from stages.sinks.reader import Reader

CHUNKS, SMALL_CHUNKS, EVENT, RECALIBRATE, SAVED = 10, 6, 5, 4, 5
"""The ring holds four chunks."""
TURNS, SMALL_TURNS, BRIEF, BOTH = 18, 3, 2, 2
"""Streams that come one after the other, their chunks, and streams that come at once."""
PATIENCE_S, PROCESSES_S, COMPILER_S = 15.0, 45.0, 120.0
"""Longest wait for a stream of threads, for one of processes, which have to start, and for one that is compiled."""
SHARED = 1e-4
"""Relative distance that sums in another order leave in float32, where processes share a pass."""

Settings = Mapping[str, Any]

LOOP: Settings = {"name": "sequential"}
PLANS: dict[str, Settings] = {
    "timestep": {"name": "timestep"},
    "grid": {"name": "grid", "grid": [2, 2]},
    "layers": {"name": "layers", "layers": [2, 2, 1, 1]},
}
"""Four workers of passes, and one that decodes."""
TWO: Settings = {"name": "timestep", "steps": [2, 2], "sequence_parallel": 2}
"""Two workers of two processes each, and one that decodes."""
PAIR: Settings = {"name": "timestep", "steps": [2, 2], "decode": 1}
APART: dict[str, Settings] = {
    "layers": {"name": "layers", "layers": [3, 3], "decode": 1},
    "timestep": PAIR,
    "shared": {**LOOP, "sequence_parallel": 2},
    "grid": {"name": "grid", "grid": [2, 2], "decode": 3},
    "shared layers": {"name": "layers", "layers": [3, 3], "decode": 1, "sequence_parallel": 2},
}
"""For two cards, and the last two for four."""
NARROW = (
    "dtype=float32", "network.dim=48", "network.ffn_dim=96", "network.heads=4", "network.layers=2",
    "network.freq_dim=32", "network.text_dim=16", "network.text_tokens=8", "network.audio.layers=[0]",
    "network.audio.wav2vec.layers=3", "network.audio.wav2vec.dim=16", "codec.width=2", "height=64", "width=64",
)  # fmt: skip
"""Every part of the large avatar, at a width of milliseconds."""
TINY = ("network.dim=48", "network.ffn_dim=96", "height=32", "width=32")
"""Of a pocket model in a rehearsal."""


class Streamed(NamedTuple):
    """What is streamed: keys of a model, and the prompts before and after a change."""

    keys: tuple[str, ...]
    prompts: tuple[str, str] = ("hello", "other")


MODELS = {
    "nano": Streamed((f"recalibrate_chunk={RECALIBRATE}",)),
    "nano clean": Streamed((f"recalibrate_chunk={RECALIBRATE}", "context=clean")),
    "pocket_avatar": Streamed((f"recalibrate_chunk={RECALIBRATE}",), ("happy", "sad")),
    "pocket_world": Streamed((), ("day", "night")),
    "live_avatar_14b narrow": Streamed(NARROW),
}
"""By a model's name, and a word on its variant."""


class Made(NamedTuple):
    """What a stream was: hashes of its latents and of its pictures."""

    latents: str
    pictures: str

    def __str__(self) -> str:
        return f"{self.latents[:12]} {self.pictures[:12]}"


def heard(model: ModelConfig) -> dict[str, Tensor]:
    """Features of sound for every chunk, of a model whose own are made by a package that a bare machine lacks."""
    g, made = torch.Generator().manual_seed(0), [one for one in inputs_of(model) if one.ear and one.ear.build]
    return {
        f"{one.key}.{chunk:06d}": torch.randn(one.given_shape, generator=g) for one in made for chunk in range(CHUNKS)
    }


def config(
    bench: Bench,
    name: str,
    plan: Settings,
    folder: Path,
    by: str | None = None,
    graphs: str = "never",
    compiled: bool = False,
    **stream: Any,
) -> Config:
    """A run of a few chunks.

    Args:
        folder: of its own.
        by: what tensors travel by between its processes, as `launcher.transport`; None: workers are threads.
        graphs: as `device.graphs`.
        compiled: whether stages are, which takes longer than all the rest.
        stream: what is asked of the stream beside.

    The device is named: on its own Everframe would leave small models to the processor.
    """
    keys, (before, after) = MODELS[name]
    if bench.small and name.startswith("pocket"):
        keys += TINY
    model = models.model(name.partition(" ")[0], keys)
    tensors = folder / "given.safetensors"
    given = heard(model)
    if given:
        save_file(given, tensors)
    length = SMALL_CHUNKS if bench.small else CHUNKS
    asked = {"chunks": length, "prompt": before, "events": [Event(EVENT, after)]}
    return Config(
        model=model,
        plan=PlanConfig(**plan),
        launcher=LauncherConfig(threads=str(by is None).lower(), transport=by or "auto"),
        device=DeviceConfig(kind=bench.device.type, compile=compiled, graphs=graphs),
        stream=StreamConfig(**asked | stream),
        source=SourceConfig(tensors=str(tensors) if given else None),
        sink=SinkConfig(video=None, trace="none"),
        output_dir=str(folder),
    )


def streamed(given: Config) -> Made:
    """What a configuration makes; raises as `ran`."""
    return ran(given)[0]


def patience(given: Config) -> float:
    """Longest wait for a run, in seconds."""
    if given.device.compile == "true":
        return COMPILER_S
    return PATIENCE_S if given.launcher.threads == "true" else PROCESSES_S


def ran(given: Config) -> tuple[Made, dict[str, Any]]:
    """Run a configuration to its end, and look at all it makes; also returns the stream's report.

    Raises:
        Exception: what a worker failed of, or the stream.
    """
    reader, pictures = Reader("127.0.0.1"), hashlib.sha256()
    given = replace(given, sink=replace(given.sink, reader=reader.address))
    over = threading.Event()

    def read() -> None:
        while chunk := reader.next(over.is_set):
            pictures.update(chunk.frames)

    watching = threading.Thread(target=read, name="reader", daemon=True)
    watching.start()
    try:
        plan = build(given.plan, describe(given))
        (report,) = _alone(given) if plan.processes == 1 else _together(plan, given)
    finally:
        over.set()
        watching.join(PATIENCE_S)
        reader.close()
    if "error" in report:
        raise Reason.from_dict(report["error"]).error()
    return Made(report["latents_sha256"], pictures.hexdigest()), report


def _alone(given: Config) -> list[dict[str, Any]]:
    """Every stream's report by the sequential loop, which knows no worker."""
    run, found = SequentialRun(given, threading.Event()), []
    for number in range(given.stream.count):
        stream = run.stream(number, Path(given.output_dir))
        for _ in stream:
            """It goes on as it is asked to."""
        found.append(stream.report()[0])
    return found


def _together(plan: Plan, given: Config) -> list[dict[str, Any]]:
    """That of workers."""
    start = Start(plan, given, None, lambda pipeline: run_all(pipeline, given))
    with launched(start).start() as running:
        running.wait(patience(given))
        return results(running.pipeline)


@cache
def loop(bench: Bench, name: str, degree: int = 1) -> Made:
    """What all plans are to give: the sequential loop's, or one worker's whose passes several threads share."""
    with tempfile.TemporaryDirectory() as folder:
        return streamed(config(bench, name, {**LOOP, "sequence_parallel": degree}, Path(folder)))


def equal(found: Made, expected: Made, **more: Any) -> dict[str, Any]:
    return bar(str(found), str(expected), found == expected) | {"hashes": found} | more


def again(name: str, bench: Bench) -> dict[str, Any]:
    """The same twice: what the device does is a function of what it is given."""
    with tempfile.TemporaryDirectory() as folder:
        return equal(streamed(config(bench, name, LOOP, Path(folder))), loop(bench, name))


def plan(name: str, settings: Settings, by: str | None, bench: Bench, graphs: str = "never") -> dict[str, Any]:
    """A plan against the loop."""
    with tempfile.TemporaryDirectory() as folder:
        given = config(bench, name, settings, Path(folder), by, graphs)
        found = streamed(given)
    return equal(found, loop(bench, name, settings.get("sequence_parallel", 1)))


def in_turn(bench: Bench) -> dict[str, Any]:
    """Many short streams, each over banks and graphs of the one before it, and then two at once, of which one finds
    none: all as the loop makes them."""
    with tempfile.TemporaryDirectory() as folder:
        brief, both = (
            config(bench, "nano", PLANS["timestep"], Path(folder), graphs="auto", count=n, chunks=chunks, seed=n)
            for n, chunks in ((TURNS, BRIEF), (BOTH, CHUNKS))
        )
        orders = [opens(one) for one in (brief, both)]

        def opened(pipeline: Pipeline, order: Open) -> int:
            return pipeline.open(order.config, order.source, order.sink)

        first, *rest = orders[0]
        start = Start(build(brief.plan, describe(brief)), brief, None, lambda pipeline: opened(pipeline, first))
        with launched(start).start() as running:
            pipeline = running.pipeline
            reports = [pipeline.result(0, PATIENCE_S)]
            reports += [pipeline.result(opened(pipeline, order), PATIENCE_S) for order in rest]
            numbers = [opened(pipeline, order) for order in orders[1]]
            met = not pipeline.ended(numbers[0])
            reports += [pipeline.result(number, PATIENCE_S) for number in numbers]
            running.close()
            running.wait(PATIENCE_S)
        alone = [
            replace(one, plan=PlanConfig(**LOOP), device=replace(one.device, graphs="never")) for one in (brief, both)
        ]
        expected = [report for one in alone for report in _alone(one)]
    wrong = sum(a["latents_sha256"] != b["latents_sha256"] for a, b in zip(reports, expected, strict=True))
    value = f"{wrong} of {len(reports)} differ, the last {BOTH} {'at once' if met else 'not at once'}"
    return bar(value, "0, at once", wrong == 0 and met)


def compiled(bench: Bench) -> dict[str, Any]:
    """Two threads that compile and run the same regions, against one."""
    made = []
    with tempfile.TemporaryDirectory() as folder:
        for settings in (PAIR, LOOP):
            made.append(streamed(config(bench, "nano", settings, Path(folder), compiled=not bench.small)))
    found = equal(*made)
    return found | {"value": f"{found['value']}{', not compiled: a rehearsal' * bench.small}"}


def shared(bench: Bench) -> dict[str, Any]:
    """Two threads that share every pass against one that does it alone."""
    found = []
    with tempfile.TemporaryDirectory() as folder:
        for degree in (1, 2):
            latents = Path(folder) / f"{degree}.safetensors"
            given = config(bench, "nano", {**LOOP, "sequence_parallel": degree}, Path(folder))
            streamed(replace(given, sink=replace(given.sink, latents=str(latents))))
            found.append(torch.cat([chunk for _, chunk in sorted(load_file(latents).items())]))
    far = distance(*found[::-1])
    return bar(f"{far:.1e}", f"<= {SHARED:.0e}", far <= SHARED)


def changed(what: str, bench: Bench) -> dict[str, Any]:
    """The stream without something: it must be another."""
    with tempfile.TemporaryDirectory() as folder:
        given = config(bench, "nano", PLANS["timestep"], Path(folder))
        given = {
            "prompt change": replace(given, stream=replace(given.stream, events=[])),
            "recalibration": replace(given, model=replace(given.model, recalibrate_chunk=None)),
        }[what]
        found = streamed(given)
    expected = loop(bench, "nano")
    return bar(str(found), f"not {expected}", found.latents != expected.latents)


def resumed(bench: Bench) -> dict[str, Any]:
    """Saved under one plan, gone on with under another: the hash of the stream that was never cut."""
    with tempfile.TemporaryDirectory() as saved, tempfile.TemporaryDirectory() as folder:
        first = config(bench, "nano", PLANS["timestep"], Path(saved), chunks=SAVED, save_every_chunks=SAVED)
        streamed(first)
        again = replace(config(bench, "nano", PLANS["layers"], Path(folder)), resume=saved)
        found = streamed(again)
    expected = loop(bench, "nano")
    return bar(found.latents[:12], expected.latents[:12], found.latents == expected.latents)


def over_cards(settings: Settings, bench: Bench) -> dict[str, Any]:
    """A plan whose processes have a card each, and so NCCL between them."""
    with tempfile.TemporaryDirectory() as folder:
        given = config(bench, "nano", settings, Path(folder))
    there, processes = devices.count(), build(given.plan, describe(given)).processes
    needs(there >= processes, f"{processes} processes need as many cards, {there} are visible")
    return plan("nano", settings, "nccl", bench)


def by_processes(name: str, settings: Settings, bench: Bench) -> dict[str, Any]:
    """A plan whose five processes share the device. Starting them takes most of the time: a rehearsal has two, once."""
    if bench.small:
        needs(name == "nano" and settings is PLANS["timestep"], "a rehearsal starts processes once")
        settings = PAIR
    return plan(name, settings, "host", bench)


ROWS = [
    Row("plan loop nano, twice", 4, partial(again, "nano")),
    *(Row(f"plan {label} nano, threads", 2, partial(plan, "nano", one, None)) for label, one in PLANS.items()),
    *(
        Row(f"plan {label} nano, threads, graphs", 4, partial(plan, "nano", PLANS[label], None, graphs="auto"))
        for label in ("timestep", "grid")
    ),
    Row("plan timestep nano, streams in turn", 8, in_turn),
    Row("plan shared nano, threads", 3, partial(plan, "nano", TWO, None)),
    Row("shared against alone", 3, shared),
    Row("prompt change", 2, partial(changed, "prompt change")),
    Row("recalibration", 2, partial(changed, "recalibration")),
    *(
        Row(f"plan {label} {name}, threads", 4, partial(plan, name, PLANS[label], None))
        for name in [*MODELS][1:]
        for label in (PLANS if name == "nano clean" else ("timestep",))
    ),
    Row("resume", 4, resumed),
]
COMPILED = [Row("compile nano, two threads", 40, compiled)]
HOST = [
    Row(f"plan {label} {name}, host", 14, partial(by_processes, name, settings))
    for name in ("nano", "pocket_avatar")
    for label, settings in {**PLANS, "shared": TWO}.items()
]
CARDS = [Row(f"plan {label} nano, NCCL", 20, partial(over_cards, settings)) for label, settings in APART.items()]

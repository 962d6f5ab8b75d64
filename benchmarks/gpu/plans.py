"""Plans on one device: workers as threads with queues of their own, or as processes.

Every plan must give the hashes that one loop gives, of latents and of pictures: `nano` and the pocket models with
random weights, a prompt change and, where the model has a reference, a recalibration.
"""

from __future__ import annotations

import tempfile
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

import devices
from benchmarks.gpu.rows import Bench, Row, distance, needs
from benchmarks.gpu.runs import (
    LOOP,
    MODELS,
    PATIENCE_S,
    PLANS,
    SAVED,
    Made,
    Settings,
    alone,
    config,
    streamed,
)
from benchmarks.record import bar
from conf.schema import PlanConfig
from launch.local import launched
from parallel.builders import build
from runtime.orders import Open
from runtime.pipeline import Pipeline, opens
from runtime.running import Start
from runtime.workload import describe

TURNS, SMALL_TURNS, BRIEF, BOTH = 18, 3, 2, 2
"""Streams that come one after the other, their chunks, and streams that come at once."""
SHARED = 1e-4
"""Relative distance that sums in another order leave in float32, where processes share a pass."""

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
    needs(graphs == "never" or devices.of(bench.device).recorder() is not None, "there are no graphs on this device")
    with tempfile.TemporaryDirectory() as folder:
        given = config(bench, name, settings, Path(folder), by, graphs)
        found = streamed(given)
    return equal(found, loop(bench, name, settings.get("sequence_parallel", 1)))


def in_turn(bench: Bench) -> dict[str, Any]:
    """Many short streams, each over banks and graphs of the one before it, and then two at once, of which one finds
    none: all as the loop makes them."""
    with tempfile.TemporaryDirectory() as folder:
        made = partial(config, bench, "nano", PLANS["timestep"], Path(folder), graphs="auto")
        turns = SMALL_TURNS if bench.small else TURNS
        brief, both = made(count=turns, chunks=BRIEF, seed=1), made(count=BOTH, seed=2)
        first, *others = opens(brief)

        def opened(pipeline: Pipeline, order: Open) -> int:
            return pipeline.open(order.config, order.source, order.sink)

        start = Start(build(brief.plan, describe(brief)), brief, None, lambda pipeline: opened(pipeline, first))
        with launched(start).start() as running:
            pipeline = running.pipeline
            reports = [pipeline.result(0, PATIENCE_S)]
            reports += [pipeline.result(opened(pipeline, order), PATIENCE_S) for order in others]
            numbers = [opened(pipeline, order) for order in opens(both)]
            met = not pipeline.ended(numbers[0])
            reports += [pipeline.result(number, PATIENCE_S) for number in numbers]
            running.close()
            running.wait(PATIENCE_S)
        never = replace(brief.device, graphs="never")
        loops = (replace(one, plan=PlanConfig(**LOOP), device=never) for one in (brief, both))
        expected = [report for one in loops for report in alone(one)]
    wrong = sum(a["latents_sha256"] != b["latents_sha256"] for a, b in zip(reports, expected, strict=True))
    value = f"{wrong} of {len(reports)} differ, the last {BOTH} {'at once' if met else 'not at once'}"
    return bar(value, "0, at once", wrong == 0 and met)


def compiled(bench: Bench) -> dict[str, Any]:
    """Two threads that compile and run the same regions, against one."""
    with tempfile.TemporaryDirectory() as folder:
        made = partial(config, bench, "nano", folder=Path(folder), compiled=not bench.small)
        found = equal(*(streamed(made(plan=settings)) for settings in (PAIR, LOOP)))
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

"""How long the stages of a model take on this device: every pass and layer, encode and decode, in steady running.

A model runs as it does in a stream, alone and in order, and the clock is read where one stage ends and the next begins.
Chunks count once the ring has filled, so all shapes are those of an endless stream.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import pairwise
from typing import Any

import torch
from torch import nn

import devices
from conf.schema import Config, PlanConfig
from conf.schema.cluster import StageTimes
from parallel.builders import build
from runtime.decoding import Decoding
from runtime.encoders import Picture
from runtime.loading import load_parts
from runtime.outputs import open_outputs
from runtime.pipeline import opens
from runtime.workload import describe
from stages.denoise.finished import Finished
from stages.post import to_pictures

PREFILLS = 3
Durations = dict[str, list[float]]
"""Seconds by stage: `encode`, `encode.first`, `prefill`, `step0` ..., `commit`, `decode`, `decode.first`, `output`; and
of every pass of a step its parts `layer0` ..., `first` (patch embedding), `last` (head, sampler), `once` (made in a
chunk's first pass for all of them) and `pass` (the rest)."""


class Watch:
    """A clock that is read in the order of the device's work, without waiting for it.

    Args:
        device: whose.
    """

    def __init__(self, device: torch.device):
        self._device = devices.of(device)

    def read(self) -> Any:
        """A moment."""
        return self._device.moment()

    def between(self, start: Any, end: Any) -> float:
        """Seconds between two moments; waits until the later one has come."""
        return self._device.seconds(start, end)


@contextmanager
def _watched(network: Any, note: Callable[[str], None]) -> Iterator[None]:
    """Have `note` told where the embedding, every layer and the head of a network begin. Emulated ones have none."""
    if not isinstance(network, nn.Module):
        yield
        return
    enter, once = network.enter, network.once

    def entering(*args: Any, **more: Any) -> Any:
        note("first")
        result = enter(*args, **more)
        note("pass")
        return result

    def making(*args: Any, **more: Any) -> Any:
        note("once")
        yield from once(*args, **more)
        note("pass")

    network.enter = entering
    if network.config.once_values(1, 1):
        network.once = making
    hooks = []
    for name, module in network.timed():
        hooks.append(module.register_forward_pre_hook(lambda *_, part=name: note(part)))
        if name == "last":
            hooks.append(module.register_forward_hook(lambda *_: note("pass")))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
        del network.enter
        network.__dict__.pop("once", None)


class _Book:
    """Durations as they come: a stage, and within a step its parts, each until the next begins."""

    def __init__(self, watch: Watch):
        self.watch = watch
        self.found: Durations = defaultdict(list)
        self._parts: list[tuple[str, Any]] | None = None

    def note(self, part: str) -> None:
        """From now on it is this part of a step."""
        if self._parts is not None:
            self._parts.append((part, self.watch.read()))

    @contextmanager
    def stage(self, name: str, counts: bool, parts: bool = False) -> Iterator[None]:
        """Time the enclosed work."""
        start = self.watch.read()
        self._parts = [("pass", start)] if parts else None
        yield
        noted, self._parts = self._parts or [], None
        end = self.watch.read()
        if not counts:
            return
        self.found[name].append(self.watch.between(start, end))
        sums: dict[str, float] = defaultdict(float)
        for (part, began), (_, ended) in pairwise([*noted, ("", end)]):
            sums[part] += self.watch.between(began, ended)
        if any(part.startswith("layer") for part in sums):
            for part, seconds in sums.items():
                self.found[part].append(seconds)


@torch.inference_mode()
def stage_durations(config: Config, chunks: int) -> Durations:
    """Run a model alone on this device, and time `chunks` chunks of it once its ring has filled.

    Raises:
        UserError: a source, a weight file or an output cannot be used.
    """
    # Layers are timed one by one, and a graph is one piece.
    device = replace(config.device, graphs="never")
    config = replace(config, stream=replace(config.stream, chunks=None, seconds=None, count=1), device=device)
    plan = build(PlanConfig("sequential"), describe(config))
    order = opens(config)[0]
    parts = load_parts(plan, 0, config, [order])
    denoiser, sampler, given_by = parts.denoisers[0], parts.sampler, parts.opening(order).make()
    outputs = open_outputs(config, order)
    model, decoding = config.model, Decoding.of(parts.decoder, config.model) if parts.decoder else None
    full = math.ceil((model.ring_frames + model.sink_frames) / model.chunk_frames) + 1
    banks, book = denoiser.open(), _Book(Watch(parts.device))
    schedule, c = denoiser.schedule, model.chunk_frames
    finished = Finished(schedule.kept, ())
    try:
        with _watched(denoiser.network, book.note):
            for chunk in range(full + chunks):
                counts, first = chunk >= full, ".first" if chunk == 0 else ""
                with book.stage(f"encode{first}", counts or chunk == 0):
                    given, states = given_by.chunk(chunk), given_by.states(chunk)
                    x = devices.of(parts.device).upload(given_by.entering(chunk).to(parts.dtype))
                    x = finished.entering(chunk, x)
                if states:
                    denoiser.set_states(banks, states)
                anchor = given_by.sink() if chunk == 0 else {}
                if chunk == 0 and decoding:
                    decoding.prime(given_by.lasting())
                for _ in range(PREFILLS if anchor else 0):
                    with book.stage("prefill", counts=True):
                        denoiser.prefill(banks, anchor)
                for step in range(schedule.first_step(chunk), sampler.steps):
                    together = schedule.together(step)
                    with book.stage(f"step{step}", counts, parts=True):
                        entering = x[:, :, : len(together) * c] if schedule.joint else x
                        v = denoiser.step(banks, step, chunk, entering, given, given_by.distance(chunk, step))
                        book.note("last")
                        x = sampler.advance(
                            together, c, x, v, lambda behind, to, i=chunk: given_by.noise(i + behind, to)
                        )
                x, carry = (x[:, :, :c], x[:, :, c:]) if schedule.joint else (x, None)
                if denoiser.schedule.commits(chunk):
                    with book.stage("commit", counts):
                        written = entering if schedule.seeded else x
                        denoiser.commit(banks, chunk, written, given, given_by.distance(chunk, sampler.steps))
                    finished.add(chunk, None, {}, carry)
                sound = given_by.samples(chunk)
                if parts.decoder:
                    with book.stage(f"decode{first}", counts or chunk == 0):
                        frames = decoding(x)
                with book.stage("output", counts):
                    outputs.latents(x)
                    if parts.decoder:
                        outputs.pictures(to_pictures(frames), sound)
    finally:
        given_by.close()
        outputs.close()
    return dict(book.found)


def percentile(values: list[float], p: float) -> float:
    """The nearest-rank percentile."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(p / 100 * len(ordered)))]


def stage_times(config: Config, durations: Durations, kind: str, source: str) -> StageTimes:
    """Medians, as the planner reads them.

    Args:
        config: what was measured.
        durations: of `stage_durations`.
        kind: of the device.
        source: how they came about, in words.
    """
    model, picture = config.model, Picture.of(config.model, config.stream)
    typical = {name: percentile(values, 50) for name, values in durations.items()}
    layers = [typical[f"layer{i}"] for i in range(model.network.layers)] if "layer0" in typical else None
    around = {f"{part}_s": typical.get(part, 0.0) if layers else 0.0 for part in ("pass", "first", "last")}

    def whole(name: str) -> float | None:
        """A pass without what comes on top of its layers."""
        return max(0.0, typical[name] - sum(around.values())) if name in typical else None

    steps = [typical[f"step{s}"] for s in range(model.step_count) if f"step{s}" in typical]
    return StageTimes(
        model=model.name,
        kind=kind,
        basis="measured",
        source=source,
        height=picture.height,
        width=picture.width,
        dtype=model.dtype,
        steps=model.step_count,
        layer_s=layers,
        step_s=None if layers else percentile(steps, 50),
        once_s=typical.get("once", 0.0) if layers else 0.0,
        commit_s=whole("commit"),
        prefill_s=whole("prefill"),
        encode_s=typical["encode"],
        first_encode_s=typical["encode.first"],
        decode_s=typical.get("decode", 0.0),
        first_decode_s=typical.get("decode.first"),
        output_s=typical["output"],
        **around,
    )

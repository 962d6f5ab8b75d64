"""Streams run under a plan, and hashes of all that they make. For a machine that has torch and little else."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import save_file
from torch import Tensor

from benchmarks import made_up, models
from benchmarks.alone import PIXELS
from benchmarks.gpu.rows import Bench
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
from runtime.pipeline import results, run_all
from runtime.reasons import Reason
from runtime.run import SequentialRun
from runtime.running import Start
from runtime.workload import describe
from stages.inputs import FRAMES_PER_LATENT, controls_of, inputs_of
from stages.sinks.reader import Reader

CHUNKS, SMALL_CHUNKS, EVENT, RECALIBRATE, SAVED = 10, 6, 5, 4, 5
"""The ring holds four chunks."""
PATIENCE_S, PROCESSES_S, COMPILER_S = 15.0, 45.0, 120.0
"""Longest wait for a stream of threads, for one of processes, which have to start, and for one that is compiled."""
Settings = Mapping[str, Any]

LOOP: Settings = {"name": "sequential"}
PLANS: dict[str, Settings] = {
    "timestep": {"name": "timestep"},
    "grid": {"name": "grid", "grid": [2, 2]},
    "layers": {"name": "layers", "layers": [2, 2, 1, 1]},
}
"""Four workers of passes, and one that decodes."""
NARROW = (
    "dtype=float32", "network.dim=48", "network.ffn_dim=96", "network.heads=4", "network.layers=2",
    "network.freq_dim=32", "codec.width=2", "height=64", "width=64",
)  # fmt: skip
TEXT = ("network.text_dim=16", "network.text_tokens=8")
AVATAR = (
    *NARROW, *TEXT, "network.audio.layers=[0]", "network.audio.wav2vec.layers=3", "network.audio.wav2vec.dim=16",
)  # fmt: skip
WALKED = (
    *NARROW, "network.image_dim=20", "network.image_tokens=5", "network.actions.layers=[0]",
    "network.actions.embedded=12", "network.actions.heads=2", "network.actions.width=32",
    "network.actions.turned=[4,6,6]",
)  # fmt: skip
SEEN = (*NARROW, *TEXT, "window_frames=9")
"""Every part of the large models, at a width of milliseconds."""
TINY = ("network.dim=48", "network.ffn_dim=96", "height=32", "width=32")
"""Of a pocket model in a rehearsal."""


class Streamed(NamedTuple):
    """What is streamed: keys of a model, and the prompts before and after a change; None: it takes none."""

    keys: tuple[str, ...]
    prompts: tuple[str, str] | None = ("hello", "other")


MODELS = {
    "nano": Streamed((f"recalibrate_chunk={RECALIBRATE}",)),
    "nano clean": Streamed((f"recalibrate_chunk={RECALIBRATE}", "context=clean")),
    "pocket_avatar": Streamed((f"recalibrate_chunk={RECALIBRATE}",), ("happy", "sad")),
    "pocket_world": Streamed((), ("day", "night")),
    "live_avatar_14b narrow": Streamed(AVATAR),
    "matrix_game_2 narrow": Streamed(WALKED, None),
    "lingbot_world_fast narrow": Streamed(SEEN),
}
"""By a model's name, and a word on its variant."""


class Made(NamedTuple):
    """What a stream was: hashes of its latents and of its pictures."""

    latents: str
    pictures: str

    def __str__(self) -> str:
        return f"{self.latents[:12]} {self.pictures[:12]}"


def given_to(model: ModelConfig) -> dict[str, Tensor]:
    """Tensors of what packages make that a bare machine lacks: features of sound for every chunk, where a network hears
    it; of a picture, which a large model begins with, its rows, and the latents of the whole stream."""
    g, found = torch.Generator().manual_seed(0), {}
    grid = model.height // PIXELS, model.width // PIXELS
    for one in inputs_of(model):
        if one.ear and one.ear.build:
            drawn = {f"{one.key}.{chunk:06d}": one.given_shape for chunk in range(CHUNKS)}
        elif one.described or (one.pictured and one.whole):
            drawn = {one.key: one.full(grid)}
        else:
            drawn = {}
        found |= {name: torch.randn(shape, generator=g) for name, shape in drawn.items()}
    return found


def pressed(model: ModelConfig, folder: Path) -> Path | None:
    """A file of keys in turn; None: the model has none."""
    controls = controls_of(inputs_of(model))
    if controls is None:
        return None
    path = folder / "pressed.jsonl"
    frames = FRAMES_PER_LATENT * model.chunk_frames * CHUNKS
    path.write_text("".join(json.dumps(line) + "\n" for line in made_up.pressed(controls, frames)))
    return path


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
    keys, prompts = MODELS[name]
    if bench.small and name.startswith("pocket"):
        keys += TINY
    model = models.model(name.partition(" ")[0], keys)
    tensors, actions = folder / "given.safetensors", pressed(model, folder)
    found = given_to(model)
    if found:
        save_file(found, tensors)
    asked: dict[str, Any] = {"chunks": SMALL_CHUNKS if bench.small else CHUNKS}
    if prompts:
        asked |= {"prompt": prompts[0], "events": [Event(EVENT, prompts[1])]}
    return Config(
        model=model,
        plan=PlanConfig(**plan),
        launcher=LauncherConfig(threads=str(by is None).lower(), transport=by or "auto"),
        device=DeviceConfig(kind=bench.device.type, compile=compiled, graphs=graphs),
        stream=StreamConfig(**asked | stream),
        source=SourceConfig(tensors=str(tensors) if found else None, actions=actions and str(actions)),
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
        (report,) = alone(given) if plan.processes == 1 else _together(plan, given)
    finally:
        over.set()
        watching.join(PATIENCE_S)
        reader.close()
    if "error" in report:
        raise Reason.from_dict(report["error"]).error()
    return Made(report["latents_sha256"], pictures.hexdigest()), report


def alone(given: Config) -> list[dict[str, Any]]:
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

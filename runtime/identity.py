"""What decides a stream's latents, in plain values that two runs can compare; and so how its state is kept."""

from __future__ import annotations

import hashlib
from dataclasses import asdict, replace
from functools import cache
from pathlib import Path
from secrets import token_hex
from typing import Any

from conf.paths import is_file, is_there
from conf.schema import Config, SinkConfig, StreamConfig
from runtime.encoders import Picture
from runtime.state import FOLDER, Keep, find
from stages.sinks.sha256 import Sha256

WHOLE, SAMPLE, SAMPLES = 1 << 26, 1 << 20, 64
"""Bytes up to which a weight file is hashed whole; a larger one in samples of this size, this many, evenly spread."""


@cache
def fingerprint(path: str | None) -> str | None:
    """A short hash of a weight file, or of a folder's; None: there is none, weights are random."""
    if path is None or not is_there(path):
        return None
    found = hashlib.sha256()
    files = [Path(path)] if is_file(path) else sorted(f for f in Path(path).rglob("*") if f.is_file())
    for file in files:
        size = file.stat().st_size
        found.update(f"{file.name if len(files) > 1 else ''} {size} ".encode())
        with file.open("rb") as content:
            if size <= WHOLE:
                found.update(content.read())
                continue
            for i in range(SAMPLES):
                content.seek(i * (size - SAMPLE) // (SAMPLES - 1))
                found.update(content.read(SAMPLE))
    return found.hexdigest()[:16]


def identity(config: Config, stream: StreamConfig) -> dict[str, Any]:
    """What decides a stream's latents, sources aside. Plans, launchers, sinks and lengths do not."""
    model, picture = asdict(config.model), Picture.of(config.model, stream)
    codec, text = model["codec"], model["text"]
    files = (
        (model, "checkpoint"), (codec, "checkpoint"), (codec, "vae"), (text, "checkpoint"), (text, "tokenizer"),
        (model["clip"], "checkpoint"),
    )  # fmt: skip
    for holder, name in files:
        holder[f"{name} content"] = fingerprint(holder.pop(name))
    for key in ("height", "width"):
        del model[key]  # defaults; what holds is the stream's
    del text["examples"]  # of those who choose one
    if model["attention"] == "auto":
        model["attention"] = "sdpa"  # as it means on a processor, and as states of before say it
    return {
        "model": model,
        "stream": {
            "seed": stream.seed,
            "id": stream.id,
            "prompt": stream.prompt,
            "height": picture.height,
            "width": picture.width,
            "events": {str(event.chunk): event.prompt for event in stream.events},
        },
        # `auto` compiles on GPUs only, whose bits are their own anyway.
        "device": {"threads": config.device.threads, "compile": config.device.compile == "true"},
    }


def keep_of(
    config: Config, stream: StreamConfig, sink: SinkConfig, name: str | None = None, resume: str | None = None
) -> Keep | None:
    """How a stream's state is kept; None where nobody asked for it, and lost workers end the run.

    Args:
        config: the run.
        stream, sink: the stream, and where it goes.
        name: of the stream, where there are several.
        resume: what it is to go on from.

    Raises:
        UserError: what it is to go on from is no state, damaged, or another stream's.
    """
    if not (resume or stream.save_every_chunks or stream.save_on_stop or config.launcher.in_place):
        return None
    folder = Path(config.output_dir).absolute() / FOLDER
    keep = Keep(
        str(folder / name if name else folder), identity(config, stream), stream.save_every_chunks,
        stream.save_on_stop, mark=token_hex(8),
    )  # fmt: skip
    Sha256()  # without it nothing can be saved; better to know now
    if not resume:
        return keep
    state = find(resume, name, keep.identity)
    if stream.chunks is not None and stream.chunks < state.chunk:
        raise state.refuse(
            f"is at chunk {state.chunk}, and stream.chunks={stream.chunks}", "ask for more chunks in all"
        )
    if sink.needs_frames and not state.content["decodes"]:
        raise state.refuse("was saved without pictures, so it has no decoder's state", "set sink.video=null")
    return replace(
        keep,
        resume=str(state.folder),
        first=state.chunk,
        began=state.chunk,
        frames=state.content["frames"],
        mark=state.mark,
    )

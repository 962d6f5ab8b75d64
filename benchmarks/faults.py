"""Faults on demand: a stream named `b-SEAM-ERROR-N` fails with that error at that seam; all others run as ever.

Nothing of the product knows of this. `arm` wraps the functions at the seams in the process that calls it; `in_children`
makes an environment in which every Python process that imports `runtime.worker` arms itself, as Ray's actors do.
"""

from __future__ import annotations

import importlib
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch

from conf.errors import UserError

ERRORS: dict[str, Callable[[str], Exception]] = {
    "UserError": lambda text: UserError(text, "was injected", "take it out"),
    "ValueError": ValueError,
    "OSError": OSError,
    "MemoryError": MemoryError,
    "OutOfMemoryError": torch.OutOfMemoryError,
}


class Seam(NamedTuple):
    """A place where a stream's work may fail: a function, by module, owner (empty: the module itself) and name.

    `after`: calls that still go well. `needs`: what of the run makes the function be called at all.
    """

    module: str
    owner: str
    function: str
    after: int = 0
    needs: str = ""


SEAMS: dict[str, Seam] = {
    "image": Seam("stages.sources.image", "", "load_image"),
    "audio": Seam("stages.sources.audio_file", "AudioFile", "__init__"),
    "hearing": Seam("stages.sources.audio_file", "AudioFile", "read", after=2),
    "actions": Seam("runtime.sources", "ActionFile", "__init__"),
    "tensors": Seam("runtime.sources", "TensorsFile", "__init__"),
    "encoder": Seam("runtime.encoders", "Encoders", "still"),
    "text": Seam("runtime.encoding", "Encoding", "state"),
    "sound": Seam("runtime.encoding", "Encoding", "_heard", after=1),
    "noise": Seam("runtime.conditioning", "Conditioning", "noise", after=1),
    "banks": Seam("runtime.block", "Block", "open"),
    "prefill": Seam("runtime.block", "Block", "prefill"),
    "step": Seam("runtime.block", "Block", "step", after=2),
    "commit": Seam("runtime.block", "Block", "commit", needs="clean"),
    "recache": Seam("runtime.block", "Block", "recache", needs="clean"),
    "update": Seam("stages.denoise.sampler", "Sampler", "update", after=1),
    "decode": Seam("runtime.decoding", "Decoding", "__call__", after=1),
    "post": Seam("stages.post", "Upscale", "__call__", after=1),
    "video opens": Seam("stages.sinks.video", "VideoSink", "__init__"),
    "video": Seam("stages.sinks.video", "VideoSink", "write", after=1),
    "video closes": Seam("stages.sinks.video", "VideoSink", "close"),
    "latents": Seam("stages.sinks.latents", "LatentsSink", "write", after=1),
    "frames": Seam("stages.sinks.frames", "FramesSink", "write", after=1),
    "sheet": Seam("stages.sinks.contact_sheet", "ContactSheet", "add", after=1),
    "hash": Seam("stages.sinks.latents_hash", "LatentsHash", "add", after=1),
    "save": Seam("runtime.output", "Output", "save", needs="saving"),
    "bank cut": Seam("runtime.block", "Block", "cut", needs="saving"),
    "decoder cut": Seam("runtime.decoding", "Decoding", "cut", needs="saving"),
    "join": Seam("runtime.outputs", "", "join", needs="resuming"),
    "sources close": Seam("runtime.conditioning", "Conditioning", "close"),
    "prompt": Seam("runtime.prompts", "Prompts", "steer", needs="prompt"),
    "stop": Seam("runtime.head", "Head", "stop", needs="stop"),
}

_here = threading.local()
_names: dict[int, str] = {}


def name_of(seam: str, error: str, number: int = 0) -> str:
    """The id of a stream that fails so."""
    return f"b-{seam.replace(' ', '_')}-{error}-{number}"


def working_for() -> str:
    """The name of the stream that this thread works for; empty where it works for none, or `note` was not called."""
    return getattr(_here, "name", "")


def note() -> None:
    """From now on it is known for which stream a thread works: guards, which are round all such work, note it."""
    guard = importlib.import_module("runtime.guard").Guard
    worker = importlib.import_module("runtime.worker").Worker
    plain_call, plain_open = guard.__call__, worker._open

    def opened(self: Any, order: Any) -> None:
        _names[order.stream] = order.config.id
        plain_open(self, order)

    class Noted:
        """A guard that notes the stream while it is open."""

        def __init__(self, context: Any, stream: int):
            self.context, self.name = context, _names.get(stream, "")

        def __enter__(self) -> None:
            self.before = working_for()
            _here.name = self.name
            return self.context.__enter__()

        def __exit__(self, *error: Any) -> bool | None:
            _here.name = self.before
            return self.context.__exit__(*error)

    guard.__call__ = lambda self, stream, what: Noted(plain_call(self, stream, what), stream)
    worker._open = opened


def arm() -> None:
    """Wrap every seam."""
    note()
    for seam in SEAMS:
        fail_at(seam, setattr)


def fail_at(seam: str, put: Callable[[Any, str, Any], None]) -> None:
    """Wrap the function at a seam; `put` sets an attribute."""
    where = SEAMS[seam]
    module = importlib.import_module(where.module)
    owner = getattr(module, where.owner) if where.owner else module
    put(owner, where.function, _failing(seam, where, getattr(owner, where.function)))


def _failing(seam: str, where: Seam, work: Callable) -> Callable:
    calls: dict[str, int] = {}

    def wrapped(*args: Any, **more: Any) -> Any:
        name = working_for()
        if name.startswith(f"b-{seam.replace(' ', '_')}-"):
            calls[name] = calls.get(name, 0) + 1
            if calls[name] > where.after:
                raise ERRORS[name.split("-")[2]](f"fault at {seam}")
        return work(*args, **more)

    return wrapped


HOOK = '''
import importlib, importlib.abc, importlib.util, sys

class Arm(importlib.abc.MetaPathFinder):
    """Arms a process when it has imported the worker."""

    def find_spec(self, name, path=None, target=None):
        if name != "runtime.worker":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        run = spec.loader.exec_module

        def exec_module(module):
            run(module)
            importlib.import_module("%s").arm()

        spec.loader.exec_module = exec_module
        return spec

sys.meta_path.insert(0, Arm())
'''


def in_children(folder: Path, module: str = "benchmarks.faults") -> dict[str, str]:
    """The environment of processes that arm themselves, by the `arm` of a module.

    Args:
        folder: gets the hook that Python runs at its start.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "sitecustomize.py").write_text(HOOK % module)
    paths = (str(folder), os.environ.get("PYTHONPATH", ""))
    return os.environ | {"PYTHONPATH": os.pathsep.join(path for path in paths if path)}

"""The public face: `open` a pipeline, `stream` on it, take chunks as they are made.

    with everframe.open("plan.workers=3", model="nano", plan="timestep") as pipeline:
        stream = pipeline.stream(prompt="a maze by day", actions=everframe.LIVE)
        for chunk in stream:                  # frames uint8 [n, H, W, 3], sound float32 [m] or None, index, fps
            stream.act("forward")             # from the next chunk that is sampled on; or keys=[...], mouse=[...]
            stream.prompt("a maze by night")  # likewise
            if chunk.index == 9:
                stream.stop()                 # chunks under way still come
        stream.report                         # its part of report.json

Several streams may be open at once, each read by a thread of its own. A reader that is slow holds up its own stream,
two chunks behind it; one that leaves the loop cancels it. Leaving the `with` ends workers and streams at once.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import asdict, fields, replace
from itertools import chain, count
from types import TracebackType
from typing import Any

import numpy as np
from hydra.core.override_parser.types import Quote, QuotedString

from conf.errors import UserError
from conf.schema import Config, SourceConfig
from conf.typed import shown
from launch import cli, planning, replanning, running
from launch.control import open_stream
from parallel import capability
from runtime.running import Running
from stages.controls import entry_of
from stages.inputs import controls_of, inputs_of
from stages.link import Door
from stages.sinks.reader import Chunk, Reader

__all__ = ["LIVE", "Chunk", "Pipeline", "Stream", "UserError", "open"]

LIVE = "live"
"""As `audio` or `actions` of a stream: they are given with `Stream.hear` and `Stream.act` while it runs."""
DEFAULTS = ("sink.video=null", "sink.trace=none", "sink.reader=of-each-stream")
"""Before what is asked for: chunks go to the program, and no file is written."""
LOADING_POLL_S = 0.05


def open(*overrides: str, **settings: Any) -> Pipeline:
    """Start workers; returns once they have loaded.

    Args:
        overrides: as on the command line, `"plan.workers=3"`.
        settings: the same for keys without a dot, as values: `model="nano"`, `device="cpu"`. What they say of streams,
            sources and sinks holds for every stream, unless that says otherwise.

    Raises:
        UserError: a mistake in them, in one line, such as weights that are not there.
        RuntimeError: a worker failed for another reason.
    """
    return Pipeline(_config([*DEFAULTS, *overrides, *(f"{key}={_word(value)}" for key, value in settings.items())]))


class Pipeline:
    """Running workers. Close it, or use it in a `with`: workers end with it, whatever happened.

    Args:
        config: the run.

    Attributes:
        config: likewise, its plan resolved.
        running: what tells of workers: `running.health()`, `running.pipeline.status()`.
    """

    def __init__(self, config: Config):
        self.config = config
        self._lock, self._streams = threading.Lock(), []
        # On other hosts it says whether they share files; nobody else needs a folder before there are files.
        folder = None if config.launcher.name == "ray" else lambda: None
        self.running: Running = running.start(config, begin=folder)
        try:
            _patiently(self._loaded)
        except BaseException:
            self.close()
            raise

    def _loaded(self) -> None:
        while not self.running.begun:
            with suppress(TimeoutError):
                self.running.wait(LOADING_POLL_S)
                return

    def stream(
        self,
        *,
        image: Any = None,
        audio: Any = None,
        actions: Any = None,
        id: str | None = None,
        sink: dict[str, Any] | None = None,
        **settings: Any,
    ) -> Stream:
        """Begin a stream; iterate over what is returned for its chunks.

        Args:
            image, audio, actions: files, or LIVE for the last two; None: what `open` was told.
            id: its name, part of the key of its random draws; None: the configured one, or a number while that is open.
            sink: files that are written as well, `{"video": "a.mp4"}`; keys are those of `sink`.
            settings: keys of `stream` (`prompt`, `seed`, `seconds`, `chunks`, `events`, ...), others of `source`, and
                `resume`. Without a length it lasts as long as its sources, or until it is stopped.

        Raises:
            UserError: a key or value is wrong, or there is no room for one more stream. What is wrong with a source
                is raised where its chunks are taken.
            RuntimeError: the workers are gone.
        """
        given = {"image": image, "audio": audio, "actions": actions}
        settings |= {name: value for name, value in given.items() if value is not None}
        settings, files = _paths(settings), _paths(sink or {})
        if actions == LIVE and controls_of(inputs_of(self.config.model)) is None:
            model = self.config.model.name
            raise UserError("source.actions=live", f"model={model} takes no actions", "leave actions out")
        source = {field.name: settings.pop(field.name) for field in fields(SourceConfig) if field.name in settings}
        with self._lock:  # so that two have two names
            self._streams = [stream for stream in self._streams if not stream.ended]
            self._streams.append(Stream(self, self._free() if id is None else id, source, files, settings))
            return self._streams[-1]

    def _free(self) -> str:
        taken = {order.config.id for order in self.running.pipeline.streams}
        return next(name for name in chain([self.config.stream.id], map(str, count())) if name not in taken)

    def change(self, plan: str | None = None, workers: int | None = None, **settings: Any) -> int:
        """Go on with another plan. Streams that are open go on with it where they are, with the same latents. Returns
        the number of the generation that has it.

        Args:
            plan: its name, or `auto` for the planner's best; None: that of now.
            workers: of all its processes; None: as many as it needs.
            settings: other keys of `plan` (`steps`, `layers`, `grid`, `encode`, `decode`, ...).

        Raises:
            UserError: a key or value is wrong, the model has no such plan, or it cannot be changed to while it runs.
            RuntimeError: the workers are gone.
        """
        asked = {"name": plan, "workers": workers} | settings
        config = replanning.changed(self.running.pipeline.config, {k: v for k, v in asked.items() if v is not None})
        number = _patiently(self.running.pipeline.change, asdict(config))
        self.config = replace(self.config, plan=config)
        return number

    def close(self) -> None:
        """End every stream and all workers at once; files are playable to where they came."""
        for stream in self._streams:
            stream.close()
        with self.running:
            pass

    def __enter__(self) -> Pipeline:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


class Stream:
    """One endless video. `Pipeline.stream` makes it.

    Attributes:
        id: its name.
    """

    def __init__(
        self, pipeline: Pipeline, id: str, source: dict[str, Any], sink: dict[str, Any], settings: dict[str, Any]
    ):
        self.id, self._pipeline = id, pipeline.running.pipeline
        self._reader, self._doors = Reader(pipeline.running.host), {}
        for name in ("audio", "actions"):
            if source.get(name) == LIVE:
                door = self._doors[name] = Door(pipeline.running.host)
                source[name] = door.address
        changes = settings | {"source": source, "sink": sink | {"reader": self._reader.address}}
        try:
            self._number = _patiently(open_stream, self._pipeline, pipeline.config, id, changes)
        except BaseException:
            self._close_doors()
            raise
        if "actions" in self._doors:
            # A live source waits for its first line, to see what kind its lines are of.
            self.act(controls_of(inputs_of(pipeline.config.model)).actions[0])

    def __iter__(self) -> Iterator[Chunk]:
        """Its chunks, as they are made. Whoever leaves before the last one cancels the stream.

        Raises:
            UserError: a source or sink could not be used.
            RuntimeError: it was ended by a fault, or the workers are gone.
        """
        try:
            while (chunk := self._reader.next(lambda: self.ended)) is not None:
                yield chunk
            _patiently(self._pipeline.result, self._number)
        finally:
            self.close()

    @property
    def ended(self) -> bool:
        """Whether it is over, and its files are finished."""
        try:
            return self._pipeline.until(lambda: self._pipeline.ended(self._number), timeout_s=0.0)
        except Exception:
            return True  # with the workers; whoever asks for more is told why

    @property
    def report(self) -> dict[str, Any]:
        """Its part of `report.json`, once it has ended; chunks that nobody has taken by now are thrown away. With
        `error` where it could not go on.

        Raises:
            RuntimeError: the workers were lost before its end.
        """
        self._close_doors()
        return _patiently(self._pipeline.report, self._number)

    def prompt(self, text: str) -> None:
        """Change its prompt, from the next chunk that is sampled on.

        Raises:
            UserError: it is no text, or the model takes none.
        """
        _patiently(self._pipeline.prompt, self._number, text)

    def act(
        self, action: str | None = None, *, keys: Iterable[str] | None = None, mouse: Iterable[float] | None = None
    ) -> None:
        """Do something, from the next chunk that is sampled on until the next call.

        Args:
            action: a key that is held alone, or the model's word for none.
            keys: in its place, all that are held; a model may know one at a time.
            mouse: how far to turn in each video frame, from -10 to 10, a number for each of the model's axes; None:
                not at all.

        Raises:
            UserError: the model does not know it, or the stream was not opened with `actions=LIVE`.
        """
        model = self._pipeline.config.model
        controls, entry = controls_of(inputs_of(model)), entry_of(action, keys, mouse)
        if controls is None or (action is not None and action not in controls.actions):
            known = ", ".join(controls.actions) if controls else "none"
            raise UserError(f"act({shown(action)})", f"model={model.name} does not know it", f"it knows {known}")
        controls.parse(entry, "act")
        self._give("actions", json.dumps(entry).encode() + b"\n")

    def hear(self, samples: np.ndarray) -> None:
        """Go on with its sound: mono at 16 kHz, float [n] in [-1, 1]. The first chunk waits for it, so give some
        before, or from another thread than the one that takes chunks.

        Raises:
            UserError: the stream was not opened with `audio=LIVE`.
        """
        pcm = np.clip(np.asarray(samples, np.float32).reshape(-1) * 32768, -32768, 32767).round()
        self._give("audio", pcm.astype("<i2").tobytes())

    def _give(self, what: str, data: bytes) -> None:
        if (door := self._doors.get(what)) is None:
            raise UserError(f"{what} of stream {self.id}", "are not live", f"open it with {what}=everframe.LIVE")
        if not door.wait(lambda: door.came or self.ended):
            return
        if door.left:  # it has ended, or its process was lost: then another may be there in its place
            door.again()
            if not door.wait(lambda: True):
                return
        with suppress(OSError):  # it has ended just now, and takes no more
            door.socket.sendall(data)

    def stop(self) -> None:
        """Drain it: nothing more is sampled; chunks under way still come."""
        if not self.ended:
            _patiently(self._pipeline.stop, self._number)

    def close(self) -> None:
        """End it at once; nothing happens to one that has ended."""
        with suppress(RuntimeError):  # the workers have gone, and all streams with them
            if not self.ended:
                _patiently(self._pipeline.cancel, self._number)
        self._close_doors()

    def _close_doors(self) -> None:
        for door in (self._reader, *self._doors.values()):
            door.close()


def _config(overrides: list[str]) -> Config:
    """The configuration, as the command line would have it.

    Raises:
        UserError: a mistake in it.
    """
    config = cli.compose("stream", Config, overrides)
    capability.check(config.model.context)
    if config.launcher.name == "torchrun":
        rule = "has a program in every rank, and streams are opened by one"
        raise UserError("launcher=torchrun", rule, "use launcher=local or ray, or torchrun -m launch.stream")
    for key in ("control", "resume"):
        if (value := getattr(config, key)) is not None:
            raise UserError(f"{key}={value}", "is said of a whole run", "say it of a stream: pipeline.stream(...)")
    return planning.resolve(config)


def _paths(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings with paths as text."""
    return {name: os.fspath(v) if isinstance(v, os.PathLike) else v for name, v in settings.items()}


def _word(value: Any, inside: bool = False) -> str:
    """A value as the command line spells it: text is taken as typed, and quoted inside a list or an object."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, list | tuple):
        return f"[{','.join(_word(v, True) for v in value)}]"
    if isinstance(value, dict):
        return f"{{{','.join(f'{key}: {_word(v, True)}' for key, v in value.items())}}}"
    if isinstance(value, str | os.PathLike):
        text = os.fspath(value)
        return QuotedString(text=text, quote=Quote.single).with_quotes() if inside else text
    return str(value)


def _patiently(call: Any, *arguments: Any) -> Any:
    """What a call returns. Whatever ends workers or a stream and is no mistake of the user's is a RuntimeError."""
    try:
        return call(*arguments)
    except (UserError, RuntimeError):
        raise
    except Exception as error:
        raise RuntimeError(str(error)) from error

"""Orders to a running pipeline: objects of JSON, each of which says one thing to do, whoever gives them."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from conf.errors import UserError, nearest
from conf.schema import Config
from conf.typed import shown, typed
from launch.replanning import changed
from runtime.identity import keep_of
from runtime.outputs import numbered
from runtime.pipeline import Pipeline

Act = Callable[[Any, dict[str, Any]], Any]
"""What an order does: gets the value under its name, and the rest of it."""


def open_stream(pipeline: Pipeline, config: Config, name: Any, changes: dict[str, Any]) -> int:
    """Open a stream that is what the configuration says, but for some settings; returns its number.

    Args:
        name: the stream's.
        changes: settings of the stream, and `source`, `sink` (settings of these) and `resume`.

    Raises:
        UserError: as `Pipeline.open`, or what it is to go on from cannot be used.
    """
    changes = dict(changes)
    source, sink, resume = changes.pop("source", {}), changes.pop("sink", {}), changes.pop("resume", None)
    # A length that is ordered takes the place of the configured one, whichever of the two ways it is given in.
    free = {"chunks": None, "seconds": None} if changes.keys() & {"chunks", "seconds"} else {}
    stream = _changed(config.stream, "stream", free | changes | {"id": name, "count": 1})
    sinks = _changed(numbered(config.sink, stream.id), "sink", sink)
    source = _changed(config.source, "source", source)
    keep = keep_of(config, stream, sinks, stream.id, typed(str | None, resume, "resume"))
    return pipeline.open(stream, source, sinks, keep)


class Orders:
    """Gives a pipeline the orders that everybody may give, and some of whoever made this.

    Args:
        pipeline: who takes them.
        config: what streams are unless an order says otherwise.
        more: further orders, by name.
    """

    def __init__(self, pipeline: Pipeline, config: Config, **more: Act):
        self.pipeline, self.config = pipeline, config
        self.acts: dict[str, Act] = {
            "open": self._open,
            "prompt": self._prompt,
            "stop": lambda name, rest: self._end(pipeline.stop, name, rest),
            "cancel": lambda name, rest: self._end(pipeline.cancel, name, rest),
            "plan": self._plan,
            "status": self._status,
        } | more

    def give(self, order: dict[str, Any]) -> Any:
        """Give one order; returns what it says: of `open` the stream's number, of `plan` that of the generation which
        has it, of `status` how all stands.

        Raises:
            UserError: it says nothing that can be done.
        """
        name = next((name for name in self.acts if name in order), None)
        if name is None:
            given = next(iter(order), "")
            raise UserError(f"order {shown(given)}", "is no order", nearest(given[:80], self.acts))
        rest = dict(order)
        return self.acts[name](rest.pop(name), rest)

    def _open(self, name: Any, order: dict[str, Any]) -> int:
        if taken := order.keys() & {"id", "count"}:
            raise UserError(f"stream.{min(taken)}", "is not for an order to say", 'the name stands in {"open": NAME}')
        return open_stream(self.pipeline, self.config, name, order)

    def _prompt(self, prompt: Any, rest: dict[str, Any]) -> None:
        stream = self.pipeline.number(rest.pop("stream", None))
        refuse_rest(rest, "prompt", "stream")
        self.pipeline.prompt(stream, prompt)

    def _end(self, act: Callable[[int | None], None], name: Any, rest: dict[str, Any]) -> None:
        refuse_rest(rest, "stop and cancel")
        act(None if name is None else self.pipeline.number(name))

    def _plan(self, asked: Any, rest: dict[str, Any]) -> int:
        if isinstance(asked, str):
            asked = {"name": asked, **{key: value for key, value in rest.items() if key != "name"}}
            refuse_rest({key: rest[key] for key in rest if key == "name"}, "plan")
        else:
            refuse_rest(rest, "plan")
        return self.pipeline.change(asdict(changed(self.pipeline.config, asked)))

    def _status(self, _: Any, rest: dict[str, Any]) -> dict[str, Any]:
        refuse_rest(rest, "status")
        streams = {
            name: {"ended": self.pipeline.ended(number)} | (self.pipeline.progress(number) or {})
            for name, number in self.pipeline.names.items()
        }
        plan = {"name": self.pipeline.plan.name, "workers": self.pipeline.plan.processes}
        stands = {"plan": plan, "generation": self.pipeline.generation}
        return stands | {"streams": streams, "workers": self.pipeline.status()}


def parsed(line: bytes | str) -> dict[str, Any]:
    """A line's order as plain values.

    Raises:
        UserError: it is no object of JSON.
    """

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(found := dict(pairs)) < len(pairs):
            raise ValueError("a key stands twice in it")
        return found

    def finite(word: str) -> float:
        raise ValueError(f"{word} is no number")

    try:
        order = json.loads(line, object_pairs_hook=once, parse_constant=finite)
    except (ValueError, RecursionError) as error:
        text = line.decode(errors="replace") if isinstance(line, bytes) else line
        raise UserError(
            shown(text.strip()), f"is not JSON ({error})", 'one order a line, e.g. {"stop": "a"}'
        ) from error
    if not isinstance(order, dict):
        raise UserError(shown(order), "is no order", 'give an object, e.g. {"stop": "a"}')
    return order


def refuse_rest(rest: dict[str, Any], name: str, *known: str) -> None:
    """Refuse what an order says besides."""
    for key in rest:
        remedy = nearest(key[:80], known) if known else "leave it out"
        raise UserError(f"{name}: {shown(key)}", "there is no such key", remedy)


def _changed(settings: Any, group: str, changes: Any) -> Any:
    """Settings with some changed; refused where there is no such setting, or a value is of another type."""
    kind = type(settings)
    typed(dict[str, Any], changes, group)
    return typed(kind, asdict(settings) | changes, group)

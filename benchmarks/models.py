"""Shipped models without Hydra or a YAML library, for machines that have torch and little else.

Reads what `conf/model/*.yaml` are written in: nested keys, values and comments on their own lines, `[..]` and `{..}`
(over several lines, too), plain or quoted words, numbers, `null`, `true`, `false`; and `defaults`.
"""

from __future__ import annotations

import re
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

import conf
from conf.errors import UserError, nearest
from conf.schema import ModelConfig

FOLDER = Path(conf.__file__).parent / "model"
TOKEN = re.compile(r'\s*([\[\]{},:]|"[^"]*"|\'[^\']*\'|[^\[\]{},:\s][^\[\]{},:]*)')
WORDS = {"null": None, "true": True, "false": False}


def _scalar(word: str) -> Any:
    if word[0] in "\"'":
        return word[1:-1]
    if word in WORDS:
        return WORDS[word]
    for kind in (int, float):
        try:
            return kind(word)
        except ValueError:
            continue
    return word


def _value(tokens: list[str]) -> Any:
    """The value that `tokens` begin with, which it takes away."""
    token = tokens.pop(0)
    if token not in "[{":
        return _scalar(token.strip())
    found: Any = [] if token == "[" else {}
    while tokens[0] not in "]}":
        if token == "[":
            found.append(_value(tokens))
        else:
            key = tokens.pop(0).strip()
            tokens.pop(0)  # the colon
            found[key] = _value(tokens)
        if tokens[0] == ",":
            tokens.pop(0)
    tokens.pop(0)
    return found


def parse(text: str) -> dict[str, Any]:
    """The keys of a model's file."""
    root: dict[str, Any] = {}
    levels, pending = [(-1, root)], ""
    for raw in text.splitlines():
        line = re.sub(r"(^|\s)#.*", "", raw).rstrip()
        pending = f"{pending} {line.strip()}" if pending else line
        if not pending or sum(pending.count(c) for c in "[{") > sum(pending.count(c) for c in "]}"):
            continue
        # A list may begin on the line after its key.
        indent, body = len(pending) - len(pending.lstrip()), pending.strip()
        pending = ""
        while levels[-1][0] >= indent:
            levels.pop()
        key, colon, rest = body.partition(":") if body[0] not in "[{" else ("", "", body)
        here = levels[-1][1]
        if not colon:
            parent, name = levels[-2][1], list(levels[-2][1])[-1]
            parent[name] = _value(TOKEN.findall(rest))
        elif rest.strip():
            here[key] = _value(TOKEN.findall(rest))
        else:
            here[key] = {}
            levels.append((indent, here[key]))
    return root


def _merged(below: dict, above: dict) -> dict:
    both = {k: _merged(below[k], v) if isinstance(v, dict) and isinstance(below.get(k), dict) else v
            for k, v in above.items()}  # fmt: skip
    return {**below, **both}


def read(name: str) -> dict[str, Any]:
    """The keys of a shipped model, those it builds on included.

    Raises:
        UserError: there is no such model.
    """
    path = FOLDER / f"{name}.yaml"
    if not path.is_file():
        known = sorted(p.stem for p in FOLDER.glob("*.yaml"))
        raise UserError(f"model={name}", "there is no model of that name", nearest(name, known))
    own, found = parse(path.read_text()), {}
    for base in own.pop("defaults", ["_self_"]):
        found = _merged(found, own if base == "_self_" else read(base))
    return found


def _made(kind: Any, value: Any) -> Any:
    """`value` as the type of a field asks for it."""
    if get_origin(kind) is list:
        return [_made(get_args(kind)[0], v) for v in value]
    kinds = [k for k in (kind, *get_args(kind)) if is_dataclass(k)]
    if not kinds or not isinstance(value, dict):
        return float(value) if kind is float and value is not None else value
    hints = get_type_hints(kinds[0])
    unknown = set(value) - {f.name for f in fields(kinds[0])}
    if unknown:
        raise UserError(f"model: {min(unknown)}", "there is no such key", nearest(min(unknown), hints))
    return kinds[0](**{name: _made(hints[name], v) for name, v in value.items()})


def model(name: str, overrides: list[str] | tuple[str, ...] = ()) -> ModelConfig:
    """A shipped model with random weights, some of its keys replaced.

    Args:
        name: of a file in conf/model.
        overrides: `network.layers=4`, `dtype=float32`, ...

    Raises:
        UserError: no such model or key, or a value breaks a rule.
    """
    keys = read(name) | {"checkpoint": None}
    for override in overrides:
        path, equals, value = override.partition("=")
        if not equals or not value:
            raise UserError(override, "is no override", "write key=value")
        here = keys
        *parents, last = path.split(".")
        for parent in parents:
            here = here.setdefault(parent, {})
        here[last] = _value(TOKEN.findall(value))
    if "codec" in keys:
        keys["codec"] = keys["codec"] | {"checkpoint": None}
    return _made(ModelConfig, keys)

"""Values of unknown origin (a line of JSON, another process, a caller) as the types that a dataclass declares.

JSON has types of its own, so nothing is converted as a command line's words are: a number is no text, and `${...}` in
a prompt is just text. A dataclass's own rules are checked when it is made.
"""

from __future__ import annotations

import json
import math
from dataclasses import MISSING, fields, is_dataclass
from functools import cache
from types import NoneType, UnionType
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from conf.errors import UserError, nearest

T = TypeVar("T")

INTEGERS = range(-(1 << 63), 1 << 64)
"""What 64 bits hold, with or without a sign."""
SCALARS = {str: "text", int: "a whole number", float: "a number", bool: "true or false"}
SHOWN = 60


def shown(value: Any) -> str:
    """A value on one line of printable ASCII, cut at 60 characters."""
    text = json.dumps(value, default=repr)
    return text if len(text) <= SHOWN else f"{text[: SHOWN - 3]}..."


def typed(kind: type[T], value: Any, name: str) -> T:
    """`value` as a `kind`: a dataclass, `list[...]`, `dict[str, ...]`, `... | None`, or one of str, int, float, bool.

    Args:
        kind: the type that is wanted.
        value: what was given; for a dataclass, a dictionary of its fields or an instance, whose fields are checked too.
        name: of the value, for complaints.

    Raises:
        UserError: it is of another type, a field is unknown or missing, or a rule of the dataclass is broken.
    """
    origin, inner = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        if value is None and NoneType in inner:
            return None
        (kind,) = (k for k in inner if k is not NoneType)
        return typed(kind, value, name)
    if kind is Any:
        return value
    if is_dataclass(kind):
        return _made(kind, value, name)
    if origin is list:
        items = _of(list, value, name, "a list")
        return [typed(inner[0], item, f"{name}[{i}]") for i, item in enumerate(items)]
    if origin is dict:
        items = _of(dict, value, name, "an object")
        return {key: typed(inner[1], item, f"{name}.{_key(key)}") for key, item in items.items()}
    return _scalar(kind, value, name)


def _made(kind: type[T], value: Any, name: str) -> T:
    known = {field.name: field for field in fields(kind)}
    if isinstance(value, kind):
        value = {key: getattr(value, key) for key in known}
    value = _of(dict, value, name, "an object")
    for key in value:
        if key not in known:
            raise UserError(f"{name}.{_key(key)}", "there is no such key", nearest(str(key)[:SHOWN], known))
    for key, field in known.items():
        if key not in value and field.default is MISSING and field.default_factory is MISSING:
            raise UserError(f"{name}.{key}", "is missing", "give it")
    hints = _hints(kind)
    return kind(**{key: typed(hints[key], part, f"{name}.{key}") for key, part in value.items()})


@cache
def _hints(kind: type) -> dict[str, Any]:
    return get_type_hints(kind)


def _key(key: Any) -> str:
    return key if isinstance(key, str) and key.isidentifier() and len(key) <= SHOWN else shown(key)


def _of(kind: type[T], value: Any, name: str, wanted: str) -> T:
    if not isinstance(value, kind):
        raise UserError(f"{name}={shown(value)}", f"must be {wanted}", f"give {wanted}")
    return value


def _scalar(kind: type, value: Any, name: str) -> Any:
    wanted = SCALARS[kind]
    if kind is float and type(value) is int and value in INTEGERS:
        value = float(value)
    if type(value) is not kind:  # a bool is an int to isinstance
        raise UserError(f"{name}={shown(value)}", f"must be {wanted}", f"give {wanted}")
    if kind is int and value not in INTEGERS:
        raise UserError(f"{name}={shown(value)}", "must be a whole number of at most 64 bits", "give a smaller one")
    if kind is float and not math.isfinite(value):
        raise UserError(f"{name}={shown(value)}", "must be a finite number", "give a finite number")
    return value

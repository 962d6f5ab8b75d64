"""Settings as the schema declares them: names, types, choices, defaults and what they mean.

One source for `--help`, `docs/configuration.md` and complaints. A setting's text stands under its field or in the
`Attributes:` of its class; its choices and its unit are in the field's metadata, or its name tells them.
"""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Iterable, Iterator
from dataclasses import MISSING, Field, dataclass, field, fields, is_dataclass
from functools import cache
from textwrap import dedent
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from conf.errors import choice

UNITS = (
    (r"(.*\.)?(seconds|\w+_s)", "seconds"),
    (r"(.*\.)?minutes", "minutes"),
    (r".*_bytes", "bytes"),
    (r".*\.fps", "frames per second"),
    (r".*_frames", "latent frames"),
    (r"(.*\.|.*_)chunks", "chunks"),
    (r"(stream|model)\.(height|width)", "pixels"),
    (r"plan\.workers", "processes"),
    (r"(.*\.)?threads", "threads"),
)
"""What a setting counts, by its name, where it is a number."""


def one_of(choices: Iterable[str], default: str | None) -> Any:
    """A field of a schema that takes one of some words; `check_choices` refuses others."""
    return field(default=default, metadata={"choices": tuple(choices)})


def as_typed(default: str) -> Any:
    """A field of a schema that holds text for people: nothing in it refers to another setting."""
    return field(default=default, metadata={"as_typed": True})


def check_choices(made: Any, prefix: str) -> None:
    """Refuse a field made by `one_of` that holds something else.

    Args:
        made: an instance of a schema's dataclass.
        prefix: of its settings, `stream.`; empty for those of the whole.

    Raises:
        UserError: names the setting, its choices and the nearest one.
    """
    for one in fields(made):
        value, choices = getattr(made, one.name), one.metadata.get("choices")
        if choices and value is not None:
            choice(f"{prefix}{one.name}", value, choices)


@dataclass(frozen=True)
class Setting:
    """One setting of a configuration.

    Attributes:
        name: dotted, as the command line takes it.
        kind: its type.
        default: of the schema; None also where there is none.
        text: what it means, one or more sentences.
        choices: words that it takes; empty: any value of its type.
        as_typed: whether nothing in its text refers to other settings.
    """

    name: str
    kind: Any
    default: Any
    text: str
    choices: tuple[str, ...] = ()
    as_typed: bool = False

    @property
    def holds(self) -> Any:
        """Its type, None aside; `Any` where that is not one type."""
        if get_origin(self.kind) not in (Union, UnionType):
            return self.kind
        kinds = [kind for kind in get_args(self.kind) if kind is not NoneType]
        return kinds[0] if len(kinds) == 1 else Any

    @property
    def optional(self) -> bool:
        """Whether it may be null."""
        return self.kind is Any or NoneType in get_args(self.kind)

    @property
    def unit(self) -> str:
        """What a number counts here; empty: nothing in particular."""
        if self.holds not in (int, float):
            return ""
        return next((unit for pattern, unit in UNITS if re.fullmatch(pattern, self.name)), "")

    @property
    def wanted(self) -> str:
        """What it takes, in words: `a number of seconds or null`."""
        of = f" of {self.unit}" if self.unit else ""
        names = {str: "text", bool: "true or false", int: f"a whole number{of}", float: f"a number{of}"}
        said = names.get(self.holds) or _items(self.holds)
        if self.choices:
            said = f"one of {', '.join(self.choices)}"
        return f"{said} or null" if self.optional and self.kind is not Any else said

    @property
    def example(self) -> str:
        """One value that it could have, as the command line takes it."""
        if isinstance(self.default, int | float | str) and self.default != "":
            return {True: "true", False: "false"}[self.default] if self.holds is bool else str(self.default)
        if get_origin(self.holds) is list:
            return _listed(get_args(self.holds)[0])
        return {str: "TEXT", bool: "true", int: "4", float: "1.5"}.get(self.holds, "null")


def _items(kind: Any) -> str:
    """A type that is no scalar, in words: a list says what it lists."""
    if get_origin(kind) is not list:
        return "a value"
    named = {int: "whole numbers", float: "numbers", str: "texts"}.get(get_args(kind)[0])
    return f"a list of {named}" if named else "a list"


def _listed(kind: Any) -> str:
    """A list of values of a kind, as the command line takes it."""
    if is_dataclass(kind):
        inner = ", ".join(f"{f.name}: {_example(f)}" for f in fields(kind) if f.default is not MISSING)
        return f"[{{{inner}}}]"
    return {int: "[2,1,1]", float: "[1.0,0.5]", str: "[one,two]"}.get(kind, "[]")


def _example(one: Field) -> Any:
    return one.default if isinstance(one.default, int | float) else '"..."'


def settings(schema: type, prefix: str = "") -> Iterator[Setting]:
    """Every setting of a configuration type that is no group of others, in order."""
    texts, hints = _texts(schema), get_type_hints(schema)
    for one in fields(schema):
        name, kind = prefix + one.name, hints[one.name]
        if is_dataclass(kind):
            yield from settings(kind, f"{name}.")
        else:
            default = None if one.default is MISSING else one.default
            choices, literal = one.metadata.get("choices", ()), one.metadata.get("as_typed", False)
            yield Setting(name, kind, default, texts.get(one.name, ""), choices, literal)


@cache
def by_name(schema: type) -> dict[str, Setting]:
    """The same by their names."""
    return {one.name: one for one in settings(schema)}


@cache
def about(schema: type, prefix: str = "") -> dict[str, str]:
    """What every group of settings is for: the first sentence of its class, by the group's name."""
    found = {prefix.rstrip("."): _sentence(inspect.getdoc(schema) or "")}
    for name, kind in get_type_hints(schema).items():
        if is_dataclass(kind):
            found |= about(kind, f"{prefix}{name}.")
    return found


def _sentence(text: str) -> str:
    return " ".join(text.split("\n\n")[0].split())


@cache
def _texts(schema: type) -> dict[str, str]:
    """What is said of a class's fields: under each, or in the docstring's `Attributes:`; of its bases, too."""
    found: dict[str, str] = {}
    for base in reversed(schema.__mro__):
        if is_dataclass(base):
            found |= _of_docstring(inspect.getdoc(base) or "") | _under_fields(base)
    return found


def _under_fields(schema: type) -> dict[str, str]:
    body, found = ast.parse(dedent(inspect.getsource(schema))).body[0].body, {}
    waiting: list[str] = []
    for statement in body:
        if isinstance(statement, ast.AnnAssign):
            waiting.append(statement.target.id)
        elif isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant) and waiting:
            found[waiting[-1]] = " ".join(str(statement.value.value).split())
            waiting = []
    return found


def _of_docstring(doc: str) -> dict[str, str]:
    _, _, section = doc.partition("Attributes:\n")
    found: dict[str, str] = {}
    for names, text in re.findall(r"^ {4}([\w, ]+): (.+(?:\n {8}.+)*)", section, re.MULTILINE):
        for name in names.split(", "):
            found[name] = " ".join(text.split())
    return found

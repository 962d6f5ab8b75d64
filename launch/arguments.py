"""What a person types, as Hydra takes it.

A prompt, a path or any other text is taken as it was typed, whatever signs are in it. Numbers, lists and sweeps are
Hydra's, whose grammar is for those who use it on purpose. Every argument is read by itself, so that a complaint names
the one that is wrong.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, is_dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, Quote, QuotedString
from hydra.errors import HydraException

import conf
from conf.errors import UserError, nearest
from conf.settings import Setting, by_name
from conf.typed import INTEGERS, shown
from launch import clusters

T = TypeVar("T")

CONF = Path(conf.__file__).parent
MULTIRUN = ("--multirun", "-m")
ELSEWHERE = ("--config-dir", "-cd", "--config-path", "-cp")
"""Options that name further places of YAML files, with names of their own in every group."""
VALUED = (*ELSEWHERE, "--cfg", "-c", "--package", "-p", "--config-name", "-cn", "--info", "-i")
"""Options of Hydra whose value is an argument of its own."""
UNSET = ("cluster", "experiment")
"""Groups of which no file is chosen unless one is named: `null`."""
FREE = ("hydra", "model.network", "model.lora", "model.compress", "cluster.kinds", "cluster.intra", "cluster.inter")
"""Settings below which there are names that the schema does not know."""


@dataclass(frozen=True)
class Argument:
    """`key=value` as it was typed.

    Attributes:
        marks: Hydra's signs before the key: `+`, `++` or `~`.
        key: dotted, without the package that a group is put in (`@package`).
        value: behind the first `=`; None: there is no `=`.
        whole: all of it.
    """

    marks: str
    key: str
    package: str
    value: str | None
    whole: str

    @classmethod
    def of(cls, given: str) -> Argument:
        """An argument's parts."""
        marks, key, package, _, value = re.fullmatch(r"([+~]*)([^=@]*)(@[^=]*)?(=(.*))?", given, re.DOTALL).groups()
        return cls(marks, key.strip(), package or "", value, given)


@cache
def groups(schema: type) -> tuple[str, ...]:
    """Keys that choose a YAML file (`model=NAME`)."""
    names = [*dict.fromkeys(name.split(".")[0] for name in by_name(schema)), "experiment"]
    return tuple(name for name in names if (CONF / name).is_dir())


@cache
def options(group: str) -> tuple[str, ...]:
    """Names of a group's files."""
    return tuple(sorted(path.stem for path in (CONF / group).glob("*.yaml")))


@cache
def keys(schema: type) -> tuple[str, ...]:
    """Every key that may be set: settings, and what they are in."""
    found = dict.fromkeys(groups(schema))
    for name in by_name(schema):
        parts = name.split(".")
        found |= dict.fromkeys(".".join(parts[: i + 1]) for i in range(len(parts)))
    return tuple(found)


def is_option(argument: str) -> bool:
    """Whether it is an option of the command or of Hydra, and no setting."""
    return argument.startswith("-")


@dataclass(frozen=True)
class Read:
    """A command line that has been read.

    Attributes:
        overrides: what is for Hydra, options included.
        texts: settings that are text for people, as typed: nothing in them has a meaning to Hydra or OmegaConf.
    """

    overrides: list[str]
    texts: dict[str, str]


def read(given: Sequence[str], schema: type) -> Read:
    """Read arguments one by one.

    Args:
        given: as typed: `key=value`, or options, which are left as they are.
        schema: of the command.

    Raises:
        UserError: names the argument, what is wrong with it, and what it could be.
    """
    more = any(a in MULTIRUN for a in given)
    elsewhere = any(a.split("=")[0] in ELSEWHERE or a.startswith("hydra.searchpath") for a in given)
    found = Read([], {})
    for argument, option in _told_apart(given):
        override = argument if option else _override(Argument.of(argument), schema, more, elsewhere)
        if isinstance(override, Text):
            found.texts[override.key] = override.value
        elif override is not None:
            found.overrides.append(override)
    return found


@dataclass(frozen=True)
class Text:
    """A setting that is text for people."""

    key: str
    value: str


def _told_apart(given: Sequence[str]) -> Iterator[tuple[str, bool]]:
    """Every argument, and whether it is an option or an option's value."""
    value = False
    for argument in clusters.arguments(list(given)):
        option = value or is_option(argument)
        value = not value and argument in VALUED
        yield argument, option


def _override(argument: Argument, schema: type, more: bool, elsewhere: bool) -> str | Text | None:
    """One argument as Hydra takes it, or what is not for Hydra; None: it says what holds anyway."""
    known, choosing = keys(schema), groups(schema)
    key = argument.key
    free = any(key == name or key.startswith((f"{name}.", f"{name}/")) for name in FREE)
    if key not in known and not free:
        if argument.value is None and not argument.marks:
            raise UserError(shown_as(argument), "is no setting", "write KEY=VALUE, for example stream.seconds=10")
        raise UserError(shown_as(argument), "there is no such key", nearest(key, known))
    if argument.marks.startswith("~"):
        return argument.whole
    if argument.value is None:
        raise UserError(shown_as(argument), "has no value", f"write {key}=VALUE")
    # A key that exists is set, with or without a plus: there is nothing to be added.
    marks = argument.marks if key not in known else ""
    left, value = f"{marks}{key}{argument.package}", argument.value
    if key in choosing and key in UNSET and value == "null":
        return None
    if key in choosing:
        _check_name(argument, more, elsewhere)
        return f"{left}={value}"
    setting = by_name(schema).get(key)
    if setting is None and key in known and not value.startswith("{"):
        raise UserError(shown_as(argument), "holds other settings", f"set one of them, {_inside(key, known)}")
    is_text = setting is not None and setting.holds is str
    parsed = _parsed(f"{left}={value}") if more or not is_text else None
    if more and parsed is not None and parsed.is_sweep_override():
        return f"{left}={value}"
    if is_text and setting.as_typed:
        return Text(key, value)
    if is_text and not (value == "null" and setting.optional):
        return f"{left}={_quoted(value)}"
    if is_text:
        return f"{left}=null"
    readable = parsed is not None and not parsed.is_sweep_override()
    if not readable and (setting is None or setting.kind is Any):  # a path, if anything
        return f"{left}={_quoted(value)}"
    if not readable or (setting is not None and not _fits(parsed.value(), setting.holds, setting.optional)):
        raise wrong_kind(shown_as(argument), setting)
    return f"{left}={value}"


def _fits(value: Any, kind: Any, optional: bool = False) -> bool:
    """Whether a value that Hydra has read is of a kind; a reference to another setting may be anything."""
    if isinstance(value, QuotedString):
        value = value.text
    if kind is Any or (value is None and optional) or (isinstance(value, str) and "${" in value):
        return True
    if get_origin(kind) is list:
        return isinstance(value, list) and all(_fits(one, get_args(kind)[0]) for one in value)
    if get_origin(kind) is dict:
        return isinstance(value, dict)
    if is_dataclass(kind):
        hints = get_type_hints(kind)
        return isinstance(value, dict) and all(str(k) in hints and _fits(v, hints[str(k)]) for k, v in value.items())
    if isinstance(value, bool) or kind is bool:
        return isinstance(value, bool) and kind is bool
    if isinstance(value, int) and value not in INTEGERS:
        return False
    return isinstance(value, int | float if kind is float else kind)


def _inside(key: str, known: Sequence[str]) -> str:
    return " or ".join([name for name in known if name.startswith(f"{key}.")][:2])


def _check_name(argument: Argument, more: bool, elsewhere: bool) -> None:
    """Refuse a group's value that is no file of it."""
    names = options(argument.key)
    given = argument.value.split(",") if more else [argument.value]
    for name in given:
        if name in names or elsewhere:
            continue
        rule = f"there is no {argument.key} of that name"
        raise UserError(f"{argument.key}={shown(name)[1:-1]}", rule, nearest(name, names))


def _parsed(override: str) -> Override | None:
    """What Hydra makes of an override; None: it cannot read it."""
    try:
        return OverridesParser.create().parse_override(override)
    except (HydraException, RecursionError):
        return None


def _quoted(text: str) -> str:
    """Text as Hydra gives it back."""
    return QuotedString(text=text, quote=Quote.single).with_quotes()


def with_texts(config: T, texts: Mapping[str, str]) -> T:
    """A typed configuration with some settings that are text for people, checked as when it was made."""
    for key, text in texts.items():
        name, _, rest = key.partition(".")
        value = with_texts(getattr(config, name), {rest: text}) if rest else text
        config = replace(config, **{name: value})
    return config


def shown_as(argument: Argument) -> str:
    """An argument for a complaint: on one line, cut where it is long."""
    text = argument.whole if argument.whole.isprintable() else shown(argument.whole)[1:-1]
    return text if len(text) <= 200 else f"{text[:197]}..."


def blamed(overrides: Sequence[str], key: str) -> Argument | None:
    """The last argument that set `key`, or what it is in."""
    while key:
        for given in reversed(overrides):
            argument = Argument.of(given)
            if not is_option(given) and argument.key == key:
                return argument
        key = re.sub(r"(\.|\[)?[^.\[]*$", "", key)
    return None


def refused(overrides: Sequence[str], key: str, schema: type, reason: str) -> UserError:
    """A value of another kind than its setting, as value, rule and remedy."""
    argument, known = blamed(overrides, key), by_name(schema)
    value = shown_as(argument) if argument else key
    setting: Setting | None = known.get(argument.key if argument else key)
    if setting is None:
        return UserError(value, reason, "see --help")
    return wrong_kind(value, setting)


def wrong_kind(value: str, setting: Setting) -> UserError:
    """`value`, as it was typed, is none that a setting takes."""
    return UserError(value, f"must be {setting.wanted}", f"for example {setting.name}={setting.example}")

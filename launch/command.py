"""What a command says of itself: `--help`, from the schema's own texts, and `--version`."""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import metadata
from itertools import groupby
from pathlib import Path

import yaml

from conf.errors import UserError, nearest
from conf.settings import Setting, about, settings
from launch.arguments import CONF, groups, keys, options

HELP, VERSION = ("--help", "-h"), ("--version",)
WIDEST = 110
"""Columns of a help text, at most."""
GRAMMAR = """KEY=VALUE: text is taken as typed, a list is [a,b], nothing is null.{sweeps}
Other options are Hydra's: --cfg job shows the composed configuration, --config-dir DIR adds YAML files."""
SWEEPS = " --multirun runs a job for each of a,b."


@dataclass(frozen=True)
class Command:
    """One command of `everframe`.

    Attributes:
        name: behind `everframe`.
        doc: what it does; the first paragraph is its summary.
        usage: its arguments.
        schema: of its settings; None: it has none.
        sweeps: whether `--multirun` runs a job for each of several values.
    """

    name: str
    doc: str
    usage: str = "[KEY=VALUE ...]"
    schema: type | None = None
    sweeps: bool = True

    def answers(self, arguments: Sequence[str]) -> bool:
        """Print what `--help` or `--version` asks for, if one of them is there.

        `--help KEY` tells of the settings below KEY alone.

        Raises:
            UserError: there is no such KEY.
        """
        if any(a in VERSION for a in arguments):
            print(f"everframe {version()}")
            return True
        if not any(a in HELP for a in arguments):
            return False
        after = next(i for i, a in enumerate(arguments) if a in HELP) + 1
        key = arguments[after] if self.schema and after < len(arguments) else ""
        print(self.help("" if "=" in key or key.startswith("-") or Path(key).exists() else key))
        return True

    def help(self, below: str = "") -> str:
        """The help text, of the settings below a key alone if one is given.

        Raises:
            UserError: there is no such key.
        """
        width = min(WIDEST, shutil.get_terminal_size((WIDEST, 24)).columns)
        if self.schema is None:
            return "\n".join(self._head())
        if below and below not in keys(self.schema):
            raise UserError(f"--help {below}", "there is no such key", nearest(below, keys(self.schema)))
        wanted = [s for s in settings(self.schema) if not below or f"{s.name}.".startswith(f"{below}.")]
        grammar = GRAMMAR.format(sweeps=SWEEPS if self.sweeps else "")
        head = [] if below else [*self._head(), "", grammar, "", *_choices(self.schema, width)]
        return "\n".join([*head, *_listing(self.schema, wanted, width)])

    def _head(self) -> list[str]:
        usage = f"usage: everframe {self.name} {self.usage} [--help{' [KEY]' if self.schema else ''}] [--version]"
        return [usage, "", self.doc.strip(), "", "examples:", *(f"  {line}" for line in examples(self.name))]


def examples(name: str) -> list[str]:
    """Command lines of a command, or of `everframe` as a whole: they name models, as only configurations do."""
    return yaml.safe_load((CONF / "examples.yaml").read_text())[name]


def version() -> str:
    """Of the installed package."""
    try:
        return metadata.version("everframe")
    except metadata.PackageNotFoundError:  # run from its folder
        return "(not installed)"


def takes(setting: Setting) -> str:
    """What a setting takes and its default, on one line."""
    default = "null" if setting.default is None else str(setting.default).lower() if setting.holds is bool else ""
    default = default or (str(setting.default) or '""')
    if setting.default is None and not setting.optional:
        return setting.wanted
    return f"{setting.wanted}; default {default}"


def grouped(wanted: Sequence[Setting]) -> Iterator[tuple[str, list[Setting]]]:
    """Settings by what they are in (`stream`), those of the whole under an empty name."""
    ordered = sorted(wanted, key=lambda s: "." in s.name)
    for prefix, found in groupby(ordered, lambda s: s.name.rpartition(".")[0]):
        yield prefix, list(found)


def _choices(schema: type, width: int) -> list[str]:
    found = ["groups of settings, by the name of a file:"]
    for group in groups(schema):
        line = f"{group}={'|'.join(options(group))}"
        found += textwrap.wrap(line, width, initial_indent="  ", subsequent_indent="      ", break_on_hyphens=False)
    return [*found, ""]


def _listing(schema: type, wanted: Sequence[Setting], width: int) -> list[str]:
    found, purpose = [], about(schema)
    for prefix, some in grouped(wanted):
        title = f"{prefix}: {purpose[prefix]}" if prefix else "of the whole run:"
        found += textwrap.wrap(title, width)
        for setting in some:
            found.append(f"  {setting.name}  ({takes(setting)})")
            found += textwrap.wrap(setting.text, width, initial_indent="      ", subsequent_indent="      ")
        found.append("")
    return found

"""What a configuration names and a folder is: model families (`stages/models/NAME`) and codecs (`stages/codec/NAME`).

A folder has modules of fixed names, each found when it is asked for, so that who only reads sizes loads no network. A
name that is no folder there is taken for a package of somebody else's, which Python has to find.
"""

from __future__ import annotations

import importlib
import pkgutil
from functools import cache
from importlib.util import find_spec
from types import ModuleType

from conf.errors import UserError, nearest

FAMILIES, CODECS = "stages.models", "stages.codec"
SETTINGS = {FAMILIES: "model.family", CODECS: "model.codec.kind"}


@cache
def known(where: str) -> tuple[str, ...]:
    """Names of the folders in a package."""
    return tuple(m.name for m in pkgutil.iter_modules(importlib.import_module(where).__path__) if m.ispkg)


@cache
def _package(where: str, name: str) -> str:
    if name in known(where):
        return f"{where}.{name}"
    try:
        spec = find_spec(name)
        found = spec is not None and spec.submodule_search_locations is not None
    except (ImportError, ValueError):  # a parent that is none, or no name at all
        found = False
    if not found:
        raise UserError(
            f"{SETTINGS[where]}={name}",
            f"is no folder of {where.replace('.', '/')}, nor a package that Python finds",
            nearest(name, known(where)),
        )
    return name


def part(where: str, name: str, module: str) -> ModuleType | None:
    """The module `module` of a folder; None: it has none.

    Args:
        where: FAMILIES or CODECS.
        name: of the folder, or of a package elsewhere.

    Raises:
        UserError: there is no such folder.
    """
    full = f"{_package(where, name)}.{module}"
    return importlib.import_module(full) if find_spec(full) else None


def needed(where: str, name: str, module: str) -> ModuleType:
    """The same, of a module that every folder has.

    Raises:
        UserError: there is no such folder, or it lacks the module.
    """
    if (found := part(where, name, module)) is None:
        raise UserError(f"{SETTINGS[where]}={name}", f"has no {module}.py", f"use one of {', '.join(known(where))}")
    return found


def name_of(module: str) -> str:
    """The family that a module `FAMILY.sizes` is of, as a configuration names it."""
    return module.rpartition(".")[0].removeprefix(f"{FAMILIES}.")

"""Encoders in files of their own, as transformers runs them: what is asked of it, and of their files.

The original files say sizes by their shapes alone; a transformers folder has a `config.json`. A file that is broken, or
of another model, is refused by what it is called.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from conf.errors import UserError
from conf.paths import is_file
from conf.published import read_json
from stages.weight_file import WeightFile
from stages.weights import check, empty, first, load


def transformers_of(setting: str, given: str) -> Any:
    """The library.

    Args:
        setting: that asks for it.
        given: what `source.tensors` may hold in place of what the encoder makes.

    Raises:
        UserError: it is not installed.
    """
    try:
        import transformers
    except ImportError as error:
        remedy = f"pip install 'everframe[encoders]', or give {given} in source.tensors"
        raise UserError(setting, "needs transformers", remedy) from error
    return transformers


def settings_beside(path: Path, setting: str) -> tuple[Path, dict[str, Any]]:
    """`config.json` in a folder, and what it says; nothing where there is none.

    Raises:
        UserError: it cannot be read.
    """
    place = path / "config.json"
    return place, read_json(place, setting) if is_file(place) else {}


@contextmanager
def told_by_shapes(file: WeightFile, what: str) -> Iterator[None]:
    """Refuse a file whose shapes are asked for inside and that lacks one, or has others.

    Raises:
        UserError: it is no `what`.
    """
    try:
        yield
    except KeyError as error:
        raise UserError(file.name, f"is no {what}: lacks {error.args[0]}", "give the model's own") from error
    except (ValueError, IndexError) as error:
        raise UserError(file.name, f"is no {what}, by its shapes", "give the model's own") from error


@contextmanager
def of_library(name: str, rule: str, remedy: str = "download it again") -> Iterator[None]:
    """Refuse what makes the library raise inside, whatever that is.

    Args:
        name: of what is loaded, for the message.
        rule: what is wrong with it; the library's reason follows in brackets.

    Raises:
        UserError: it raised.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(name, f"{rule} ({reason[:100]})", remedy) from error


def loaded(
    make: Callable[[], nn.Module],
    file: WeightFile,
    dtype: torch.dtype,
    device: torch.device | str,
    whole: Mapping[str, torch.Size] | None = None,
) -> nn.Module:
    """A module with a file's weights, which are read a few megabytes at a time. It is not trained.

    Args:
        make: the module.
        whole: every weight that the file has; None: the module's own.

    Raises:
        UserError: the file lacks some of them, or has others.
    """
    module = empty(make, device, dtype)
    whole = {name: value.shape for name, value in module.state_dict().items()} if whole is None else whole
    check(file, whole)
    if missing := [name for name in whole if name not in file.entries]:
        rule = f"lacks {len(missing)} of {len(whole)} keys: {first(missing)}"
        raise UserError(file.name, rule, "is it a checkpoint of this model?")
    load(module, file)
    return module.eval().requires_grad_(False)

"""What a weight file is, told by its names and shapes alone. Every family and codec declares its own kinds of files."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache

import torch

from conf import families
from stages.lora import SPELLINGS

Shapes = Mapping[str, torch.Size]


def _same(key: str) -> str:
    return key


@dataclass(frozen=True)
class FileKind:
    """One kind of weight file.

    Attributes:
        name: in words.
        has: patterns that some of its names match, once translated.
        rename: from names in the file.
        models: in `conf/model`, the one to take where no width fits first; empty: it is a part of a model.
        sizes: of a network, from its shapes: what `model.network` may say of them.
        rows: of a part, what its shapes say, for `launch.inspect`: a line by its title.
    """

    name: str
    has: tuple[str, ...]
    rename: Callable[[str], str] = _same
    models: tuple[str, ...] = ()
    sizes: Callable[[Shapes], dict[str, object]] = lambda shapes: {}
    rows: Callable[[Shapes], dict[str, str]] = lambda shapes: {}


LORA = "LoRA"
LORAS = tuple(FileKind(LORA, (SPELLINGS[i][0].pattern,)) for i in (0, 2))
ENCODERS = (
    FileKind("UMT5 text encoder", (r"token_embedding\.weight", r"blocks\.0\.attn\.q\.weight")),
    FileKind("UMT5 text encoder", (r"shared\.weight", r"encoder\.block\.0\.layer\.0\..*")),
    FileKind("wav2vec2 audio encoder", (r"(wav2vec2\.)?feature_extractor\..*", r"(wav2vec2\.)?encoder\..*")),
)


@cache
def kinds() -> tuple[FileKind, ...]:
    """All that are known, those that ask for most first: of two that fit, the one is a special case of the other."""
    files = [families.part(families.FAMILIES, name, "keys") for name in families.known(families.FAMILIES)]
    files += [families.part(families.CODECS, name, "files") for name in families.known(families.CODECS)]
    declared = [kind for module in files if module for kind in getattr(module, "FILES", ())]
    return *LORAS, *sorted([*declared, *ENCODERS], key=lambda kind: -len(kind.has))


def kind_of(keys: Shapes) -> FileKind | None:
    """The kind of a file with these names; None: none that is known here."""
    for kind in kinds():
        names = [kind.rename(key) for key in keys]
        if all(any(re.fullmatch(pattern, name) for name in names) for pattern in kind.has):
            return kind
    return None

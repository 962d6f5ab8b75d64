"""What a weight file is, told by its names and shapes alone. Every family and codec declares its own kinds of files."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch

from conf import families
from conf.errors import UserError
from stages.lora import PARAMETERS, SPELLINGS
from stages.weight_file import WeightFile

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
        models: in `conf/model`, the one to take where no width fits first; empty: it is a part of a model, or refused.
        fits: what its shapes must be besides, once translated.
        refused: why nothing here can run it; empty: something can.
        setting: the configuration key that takes it.
        sizes: of a network, from its shapes: what `model.network` may say of them.
        rows: what its shapes say beside sizes, for `launch.inspect`: a line by its title.
        saved: how a network's names were saved, in words; empty: in no way that says more of it.
        others: models in `conf/model` of the same network with other rules, which a file that was saved so may be of.
    """

    name: str
    has: tuple[str, ...]
    rename: Callable[[str], str] = _same
    models: tuple[str, ...] = ()
    fits: Callable[[Shapes], bool] = lambda shapes: True
    refused: str = ""
    setting: str = "model.checkpoint"
    sizes: Callable[[Shapes], dict[str, object]] = lambda shapes: {}
    rows: Callable[[Shapes], dict[str, str]] = lambda shapes: {}
    saved: Callable[[Iterable[str]], str] = lambda keys: ""
    others: tuple[str, ...] = ()


LORA = "LoRA"
LORAS = tuple(
    FileKind(LORA, (pattern.pattern,), setting="model.lora")
    for pattern, role in SPELLINGS
    if role in ("A", *PARAMETERS)
)
TEXT, SOUND = "model.text.checkpoint", "model.network.audio.wav2vec.checkpoint"
PICTURE = "model.clip.checkpoint"
ENCODERS = (
    FileKind("UMT5 text encoder", (r"token_embedding\.weight", r"blocks\.0\.attn\.q\.weight"), setting=TEXT),
    FileKind("UMT5 text encoder", (r"shared\.weight", r"encoder\.block\.0\.layer\.0\..*"), setting=TEXT),
    FileKind("CLIP image encoder", (r"visual\.cls_embedding", r"visual\.transformer\.0\..*"), setting=PICTURE),
    FileKind(
        "CLIP image encoder",
        (r"(vision_model\.)?embeddings\.class_embedding", r"(vision_model\.)?encoder\.layers\.0\..*"),
        setting=PICTURE,
    ),
    FileKind(
        "wav2vec2 audio encoder", (r"(wav2vec2\.)?feature_extractor\..*", r"(wav2vec2\.)?encoder\..*"), setting=SOUND
    ),
)


@cache
def kinds() -> tuple[FileKind, ...]:
    """All that are known, those that ask for most first: of two that fit, the one is a special case of the other."""
    files = [families.part(families.FAMILIES, name, "keys") for name in families.known(families.FAMILIES)]
    files += [families.part(families.CODECS, name, "files") for name in families.known(families.CODECS)]
    declared = [kind for module in files if module for kind in getattr(module, "FILES", ())]
    return *LORAS, *sorted([*declared, *ENCODERS], key=lambda kind: -len(kind.has))


def kind_of(keys: Shapes) -> FileKind | None:
    """The kind of a file with these names and shapes; None: none that is known here."""
    translated: dict[Callable[[str], str], dict[str, torch.Size]] = {}
    for kind in kinds():
        if kind.rename not in translated:
            translated[kind.rename] = {kind.rename(key): shape for key, shape in keys.items()}
        shapes = translated[kind.rename]
        if all(any(re.fullmatch(pattern, name) for name in shapes) for pattern in kind.has) and kind.fits(shapes):
            return kind
    return None


def require(file: WeightFile, setting: str) -> FileKind | None:
    """A file's kind. One that is known to be something that `setting` does not take is refused; one of no known kind
    (None) passes.

    Raises:
        UserError: says what it is.
    """
    kind = kind_of({entry.key: entry.shape for entry in file.entries.values()})
    if kind is None:
        return None
    if kind.refused:
        raise refusal(file.name, kind)
    if kind.setting != setting:
        raise UserError(file.name, f"is a {kind.name}", f"give it as {kind.setting}")
    return kind


def told(file: WeightFile, kind: FileKind, network: Any) -> str:
    """What a file that does not fit a network's configuration is, and the settings that its shapes tell otherwise;
    empty: they tell none."""
    sizes = kind.sizes({kind.rename(entry.key): entry.shape for entry in file.entries.values()})
    others = []
    for name, value in sizes.items():
        own: Any = network
        for part in name.split("."):
            own = getattr(own, part, None)
        if own != value:
            others.append(f"model.network.{name}={value}".replace(" ", ""))
    return f"it is {kind.name} of {', '.join(others)}: everframe inspect says what runs it" if others else ""


def refusal(name: str, kind: FileKind) -> UserError:
    """What is said of a file that nothing here can run, wherever it is given."""
    return UserError(name, f"is {kind.name}: {kind.refused}", "docs/checkpoints.md lists what is read")

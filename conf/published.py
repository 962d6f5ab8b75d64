"""Published model folders: which file is which part, and the sizes that `config.json` gives.

Three layouts are read: the original one (`config.json`, `diffusion_pytorch_model*.safetensors`, the codec's file,
`models_t5_*.pth`, `models_clip_*.pth`), a diffusers pipeline (`transformer/`, `vae/`, `text_encoder/`, `tokenizer/`,
`image_encoder/`), and a folder with weights alone, whose sizes are then the configuration's. Files that a layout does
not name are ignored.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from functools import cache
from math import prod
from pathlib import Path
from typing import Any

from conf import hub
from conf.codecs import declared
from conf.errors import UserError
from conf.families import CODECS, known
from conf.paths import is_file, is_folder, is_there
from conf.typed import typed

OTHERS = {
    "text_encoder": ("models_t5_umt5-xxl-enc-bf16.pth", "text_encoder"),
    "tokenizer": ("google/umt5-xxl", "tokenizer"),
    "image_encoder": ("models_clip_open-clip-xlm-roberta-large-vit-huge-14.pth", "image_encoder"),
    "audio_encoder": ("wav2vec2-large-xlsr-53-english", "audio_encoder"),
}

INDEX = ".safetensors.index.json"
WEIGHTS = (
    "diffusion_pytorch_model" + INDEX,
    "diffusion_pytorch_model.safetensors",
    "model" + INDEX,
    "model.safetensors",
    "*" + INDEX,
    "*.safetensors",
    "*.pt",
    "*.pth",
    "*.bin",
    "*.ckpt",
    "*.gguf",
)
"""A network's weights in its folder: the first of these that is there counts."""
EXPERTS = (("transformer", "transformer_2"), ("high_noise_model", "low_noise_model"))
"""Folders inside that of a model whose steps are shared by two networks, in diffusers' layout and the original one."""
TOKENIZERS = ("tokenizer.json", "spiece.model", "tokenizer_config.json")
"""Files by which a folder is known to hold a tokenizer."""
ADAPTER = "adapter_config.json"
"""What PEFT writes beside an adapter's weights."""
BESIDE = ("config.json", ADAPTER, *TOKENIZERS, f"*{INDEX}")
"""What else is read where weights lie, as globs."""
HEADS = ("num_attention_heads", "attention_head_dim")
"""Two sizes that diffusers gives in place of the width."""
LICENCE_BYTES = 1 << 16
"""Of a file that states a licence: as much is looked at."""
SHARD = re.compile(r"-(\d+)-of-(\d+)(?=\.)")


@cache
def parts() -> dict[str, tuple[str, ...]]:
    """Where the parts beside the network lie in a model's folder, in the original layout and in diffusers'."""
    return {"vae": tuple(dict.fromkeys(name for kind in known(CODECS) for name in declared(kind).names)), **OTHERS}


def part(folder: str | Path, name: str) -> Path | None:
    """Where a model's folder holds one of its parts; None if it does not, or is no folder."""
    return first_there(folder, parts()[name])


def first_there(folder: str | Path, places: Sequence[str]) -> Path | None:
    """The first of some places of a folder where something is; None: there is nothing."""
    found = (Path(folder) / place for place in places)
    return next((path for path in found if is_there(path)), None)


def tokenizer(*folders: str | Path) -> Path | None:
    """The first tokenizer in some folders: in a folder of its own inside, or among the other files."""
    for folder in folders:
        if inner := part(folder, "tokenizer"):
            return inner
        if first_there(folder, TOKENIZERS):
            return Path(folder)
    return None


def network_folder(folder: str | Path, setting: str = "model.checkpoint") -> Path:
    """The folder with the network's config and weights: the model's own, or its `transformer`.

    Raises:
        UserError: it holds two networks.
    """
    folder = Path(folder)
    for pair in EXPERTS:
        if all(is_folder(folder / one) for one in pair):
            raise UserError(
                f"{setting}={folder}",
                f"is a model of two experts, one for steps of high noise and one for low (A14B: {' and '.join(pair)}), "
                "which no model here runs",
                "give a model of one network",
            )
    inner = folder / "transformer"
    return inner if not is_there(folder / "config.json") and is_folder(inner) else folder


def weight_files(path: str | Path, setting: str) -> dict[Path, list[str] | None]:
    """The files that hold a network's weights, each with the names that count in it; None: all.

    Args:
        path: a file, an index of shards, or a folder.
        setting: the configuration key, for error messages.

    Raises:
        UserError: there is no such file, no weights, several that might be meant, or a shard is missing.
    """
    given, path = f"{setting}={path}", Path(path)
    if not is_there(path):
        raise UserError(given, *hub.missing(path))
    if is_folder(path):
        path = network_folder(path, setting)
        others = {place for places in parts().values() for place in places}
        found: list[Path] = []
        for pattern in WEIGHTS:
            found = sorted(p for p in path.glob(pattern) if p.name not in others)
            if found:
                break
        if not found:
            raise UserError(
                given, "the folder holds no .safetensors, .pt or .pth file", "point to the folder with the weights"
            )
        if len(found) > 1 and not _whole_set(found):
            named = ", ".join(p.name for p in found[:3])
            raise UserError(given, f"the folder holds several weight files ({named})", "name one of them")
        if len(found) > 1:
            return dict.fromkeys(found)
        path = found[0]
    return _indexed(given, path, setting) if path.name.endswith(INDEX) else {path: None}


def files(path: str | Path) -> Iterator[Path]:
    """Files that are read where a model's setting names a file or a folder: weights, and what is said beside them."""
    path = Path(path)
    for root in (path, *(inner for name in parts() if (inner := part(path, name)))):
        with suppress(UserError, OSError):  # whoever reads it says so
            yield from weight_files(root, "")
        folder = root if is_folder(root) else root.parent
        for place in (folder, folder / "transformer"):
            with suppress(OSError):
                yield from (found for name in BESIDE for found in place.glob(name))


def _indexed(given: str, path: Path, setting: str) -> dict[Path, list[str] | None]:
    files: dict[Path, list[str]] = {}
    for key, name in read_json(path, setting, weight_map=dict[str, str])["weight_map"].items():
        files.setdefault(path.parent / name, []).append(key)
    for file in files:
        if not is_file(file):
            raise UserError(given, f"{file.name}, which {path.name} names, is not there", "download it")
    return files


def _whole_set(files: Sequence[Path]) -> bool:
    """Whether these are all the shards of one file."""
    found = [SHARD.search(f.name) for f in files]
    stems = {SHARD.sub("", f.name) for f in files}
    return all(found) and len(stems) == 1 and {int(m[2]) for m in found} == {len(files)}


def said(folder: str | Path, setting: str = "model.checkpoint") -> dict[str, Any]:
    """What a model's folder says of its network in `config.json`; empty if it has none.

    Raises:
        UserError: the file is broken.
    """
    path = network_folder(folder, setting) / "config.json"
    return read_json(path, setting) if is_there(path) else {}


def licence(path: str | Path) -> str | None:
    """What the folder of a checkpoint states of its licence, and in which files; None: nothing."""
    folder = Path(path) if is_folder(path) else Path(path).parent
    found = {}
    if front := re.match(r"---\s*\n(.*?)\n---", _beginning(folder / "README.md"), re.DOTALL):
        stated = dict(re.findall(r"^(license\w*):[\s-]*(\S.*?)\s*$", front[1], re.MULTILINE))
        found["README.md"] = stated.get("license_name") or stated.get("license", "")
    for file in sorted(folder.glob("LICEN[CS]E*")):
        found[file.name] = next((line.strip() for line in _beginning(file).splitlines() if line.strip()), "")
    return ", ".join(f"{said[:100]} ({name})" for name, said in found.items() if said) or None


def _beginning(path: Path) -> str:
    """A text's first bytes; empty where there is none to read."""
    try:
        with path.open("rb") as file:
            return file.read(LICENCE_BYTES).decode(errors="replace")
    except OSError:
        return ""


def sizes(
    said: dict[str, Any], names: Mapping[str, Sequence[str]], forms: Mapping[str, tuple], wanted: str
) -> dict[str, Any]:
    """Sizes by our dotted names.

    Args:
        said: what a `config.json` says.
        names: what files call a size, by our name.
        forms: what may be said of things that a network has in some forms only; the first is meant where nothing is.
        wanted: what to use instead, in words.

    Raises:
        UserError: it is of another kind of model, or asks for what the network does not have.
    """
    found = {ours: said[name] for ours, theirs in names.items() for name in theirs if name in said}
    if "dim" not in found and said.keys() >= {*HEADS}:
        found["dim"] = prod(typed(int, said[name], f"config.json: {name}") for name in HEADS)
    if "dim" not in found:
        raise UserError("config.json", "is of no model known here", "it must say dim, or heads")
    for name, allowed in forms.items():
        if said.get(name, allowed[0]) not in allowed:
            raise UserError(
                f"config.json: {name}={said[name]}",
                f"is not supported, only {' or '.join(map(str, allowed))}",
                f"use {wanted}",
            )
    return found


def read_json(path: Path, setting: str, **kinds: Any) -> dict[str, Any]:
    """The object in a JSON file.

    Args:
        path: the file.
        setting: the configuration key, for error messages.
        kinds: types of what it says under some names, as `conf.typed` has them; what it does not say is null.

    Raises:
        UserError: it is no JSON, or holds something else.
    """
    given = f"{setting}: {path}"
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(given, f"is no JSON ({error})", "download it again") from error
    if not isinstance(content, dict):
        raise UserError(given, "is no JSON object", "download it again")
    try:
        return content | {name: typed(kind, content.get(name), name) for name, kind in kinds.items()}
    except UserError as error:
        raise UserError(given, f"{error.value} {error.rule}", "mend it, or download it again") from error

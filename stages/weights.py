"""Weights: seeded random ones, or read by key from published files, with every mismatch named."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from conf.errors import UserError

Read = Callable[[str], Tensor]


def initialise(module: nn.Module, seed: int, prefix: str = "") -> None:
    """Random weights, each a pure function of (seed, its name), so that a block range gets the whole's values.

    Matrices are scaled by fan-in; gains stay near one, biases and tables small. Nothing is left at zero, so
    every path of the network takes part in tests.
    """
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            key = hashlib.sha256(f"{seed}/{prefix}{name}".encode()).digest()
            generator = torch.Generator().manual_seed(int.from_bytes(key[:4], "little"))
            values = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim >= 2 and "modulation" not in name.rsplit(".", 1)[-1]:
                values *= parameter[0].numel() ** -0.5
            elif "norm" in name and name.endswith("weight"):
                values = 1 + 0.1 * values
            else:
                values *= 0.1
            parameter.copy_(values)


class WeightFile:
    """Tensors by name from `.safetensors`, a sharded index beside it, or `.pt`/`.pth` (weights only).

    Args:
        path: a file, or a folder that holds `*.safetensors` (with an index if there are several).
        setting: the configuration key, for error messages.
    """

    def __init__(self, path: str | Path, setting: str = "model.checkpoint"):
        self.path, self.setting = Path(path), setting
        if not self.path.exists():
            raise self._error("no such file or folder", "check the path")
        try:
            self._where = self._index()
        except UserError:
            raise
        except Exception as error:
            raise self._error(f"cannot be read as weights ({error})", "give .safetensors, or .pt of tensors") from error

    def _error(self, rule: str, remedy: str) -> UserError:
        return UserError(f"{self.setting}={self.path}", rule, remedy)

    def _index(self) -> dict[str, Path | Tensor]:
        if self.path.is_dir():
            index = sorted(self.path.glob("*.safetensors.index.json"))
            if index:
                return {k: self.path / f for k, f in json.loads(index[0].read_text())["weight_map"].items()}
            files = sorted(self.path.glob("*.safetensors"))
            if not files:
                raise self._error("the folder holds no .safetensors file", "point to the folder with the weights")
            return {key: f for f in files for key in self._safetensors_keys(f)}
        if self.path.suffix == ".safetensors":
            return dict.fromkeys(self._safetensors_keys(self.path), self.path)
        # Never unpickle code: weights_only refuses everything but tensors and plain containers.
        content = torch.load(self.path, map_location="cpu", weights_only=True, mmap=True)
        return {k: v for k, v in content.items() if isinstance(v, Tensor)}

    @staticmethod
    def _safetensors_keys(path: Path) -> list[str]:
        from safetensors import safe_open

        with safe_open(path, framework="pt") as f:
            return list(f.keys())

    def keys(self) -> set[str]:
        return set(self._where)

    @contextmanager
    def reading(self) -> Iterator[Read]:
        """Yields read(name) -> Tensor; files are opened once and read by key, memory-mapped."""
        from safetensors import safe_open

        handles: dict[Path, object] = {}

        def read(name: str) -> Tensor:
            where = self._where[name]
            if isinstance(where, Tensor):
                return where
            if where not in handles:
                handles[where] = safe_open(where, framework="pt")
            return handles[where].get_tensor(name)

        yield read


def load(module: nn.Module, file: WeightFile, prefix: str = "", rename: Callable[[str], str] = lambda k: k) -> None:
    """Fill every parameter and buffer of `module` from the keys `prefix + name` of `file`, and no other key.

    Args:
        module: on its device and dtype; values are converted.
        file: where from.
        prefix: before every name in the file.
        rename: from a name in the file to the module's name.

    Raises:
        UserError: a key is missing, or its shape differs (names the key, expected and found).
    """
    names = {rename(k[len(prefix) :]): k for k in file.keys() if k.startswith(prefix)}  # noqa: SIM118
    state = module.state_dict()
    missing = sorted(set(state) - set(names))
    if missing:
        raise UserError(
            f"{file.setting}={file.path}",
            f"lacks {len(missing)} of {len(state)} keys, first {prefix}{missing[0]}",
            "is it a checkpoint of this model?",
        )
    with torch.no_grad(), file.reading() as read:
        for name, target in state.items():
            found = read(names[name])
            if found.shape != target.shape:
                raise UserError(
                    f"{file.setting}={file.path}",
                    f"{names[name]} must have shape {list(target.shape)}, found {list(found.shape)}",
                    "is it a checkpoint of this model?",
                )
            target.copy_(found)

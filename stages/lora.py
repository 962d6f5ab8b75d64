"""Low-rank adapters, merged into weights as these are read: W + scale (alpha / rank) B A (Hu et al., arXiv 2106.09685).

The spellings of PEFT, diffusers and kohya are read; which weight a pair belongs to is found by the same names as a
checkpoint's. Sums are taken in float32, a few rows at a time, and only for the weights that are read.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from conf.errors import UserError
from conf.paths import is_folder, is_there
from conf.published import read_json
from conf.schema import LoraConfig
from stages.weight_file import WeightFile
from stages.weights import first

SPELLINGS = (
    (re.compile(r"(.+)\.lora_A(\.\w+)?\.weight"), "A"),
    (re.compile(r"(.+)\.lora_B(\.\w+)?\.weight"), "B"),
    (re.compile(r"(.+)[._]lora[._]down\.weight|(.+)\.lora_down(\.\w+)?\.weight"), "A"),
    (re.compile(r"(.+)[._]lora[._]up\.weight|(.+)\.lora_up(\.\w+)?\.weight"), "B"),
    (re.compile(r"(.+)\.alpha"), "alpha"),
)
"""How a module's two factors and its alpha are called (A is [rank, in], B [out, rank])."""

FLATTENED = re.compile(r"lora_(unet|transformer)_")
"""Before names of modules that kohya writes with underscores for dots."""


class Pair(NamedTuple):
    """What is added to one weight: scale * B A."""

    a: str
    b: str
    scale: float


class Lora:
    """One adapter.

    Args:
        config: where it is, and its strength.
        whole: shapes of all weights of the model, by name.
        alpha: where neither its tensors nor its `adapter_config.json` say any; None: the rank.
        rename: from names in a checkpoint to the model's.

    Attributes:
        pairs: by the name of the weight they are added to.

    Raises:
        UserError: it cannot be read, or holds a key, shape or half of a pair that fits no weight.
    """

    def __init__(
        self,
        config: LoraConfig,
        whole: Mapping[str, torch.Size],
        alpha: float | None = None,
        rename: Callable[[str], str] = lambda name: name,
    ):
        self.file = WeightFile(config.path, "model.lora")
        self._said = self._config()
        self.pairs: dict[str, Pair] = {}
        flat = {name.removesuffix(".weight").replace(".", "_"): name for name in whole}
        modules, unknown = {}, []
        for key in self.file.entries:
            module, role = _role(key)
            if role is None or (name := _weight_name(module, flat, rename)) not in whole:
                unknown.append(key)
            else:
                modules.setdefault(name, {"module": module})[role] = key
        if unknown:
            raise UserError(
                self.file.name,
                f"has {len(unknown)} keys that fit no weight of this model: {first(unknown)}",
                "is it a LoRA for this model?",
            )
        for name, found in modules.items():
            self.pairs[name] = self._pair(name, found, whole[name], config.scale, alpha)

    def _config(self) -> dict[str, Any]:
        path = (self.file.path if is_folder(self.file.path) else self.file.path.parent) / "adapter_config.json"
        return read_json(path, "model.lora") if is_there(path) else {}

    def _pair(self, name: str, found: dict[str, str], shape: torch.Size, strength: float, alpha: float | None) -> Pair:
        for role, other in (("A", "B"), ("B", "A")):
            if role not in found:
                raise UserError(
                    self.file.name, f"has {found.get(other, found['module'])} without its other half", "save it again"
                )
        a, b = (self.file.entries[found[role]] for role in "AB")
        rank = a.shape[0]
        inside = torch.Size((rank, shape[1:].numel()))
        for entry, expected in ((a, inside), (b, torch.Size((shape[0], rank)))):
            if entry.shape.numel() != expected.numel() or entry.shape[0] != expected[0]:
                raise UserError(
                    self.file.name,
                    f"{entry.key} must have shape {list(expected)} for {name} {list(shape)}, found {list(entry.shape)}",
                    "is it a LoRA for this model?",
                )
        if "alpha" in found:
            alpha = float(self.file.read(found["alpha"]))
        else:
            said = self._said.get("lora_alpha", alpha)
            alpha = _matching(self._said.get("alpha_pattern") or {}, found["module"], said)
        root = math.sqrt(rank) if self._said.get("use_rslora") else rank
        return Pair(a.key, b.key, strength * (1.0 if alpha is None else alpha / root))

    def factors(self, name: str, device: torch.device) -> tuple[Tensor, Tensor] | None:
        """scale * B [out, rank] and A [rank, in] for a weight, float32 on `device`; None if it is left alone."""
        if (pair := self.pairs.get(name)) is None:
            return None
        a, b = (self.file.read(key).to(device, torch.float32).flatten(1) for key in (pair.a, pair.b))
        return b * pair.scale, a


class Loras:
    """Several adapters as what `load` applies to rows that it reads.

    Args:
        configs: in the order in which they are added.
        whole, alpha, rename: as for `Lora`.
        device: where sums are taken.
    """

    def __init__(
        self,
        configs: Sequence[LoraConfig],
        whole: Mapping[str, torch.Size],
        alpha: float | None,
        device: torch.device,
        rename: Callable[[str], str] = lambda name: name,
    ):
        self.adapters = [Lora(config, whole, alpha, rename) for config in configs]
        self._device = device
        self._held: tuple[str, list[tuple[Tensor, Tensor]]] = ("", [])
        # One buffer for all sums: memory that is taken and freed all the time does not all go back to the system.
        self._sum = torch.empty(0, device=device)

    def __call__(self, name: str, rows: slice, values: Tensor) -> Tensor:
        """Rows of the weight `name` with what the adapters add to them, in float32; as they are if that is nothing.

        The sum holds until the next call.
        """
        if self._held[0] != name:
            found = (adapter.factors(name, self._device) for adapter in self.adapters)
            self._held = name, [factors for factors in found if factors is not None]
        factors = self._held[1]
        if not factors:
            return values
        if self._sum.numel() < values.numel():
            self._sum = torch.empty(values.numel(), device=self._device)
        found = self._sum[: values.numel()].view(len(values), -1)
        found.copy_(values.flatten(1))
        for b, a in factors:
            found.addmm_(b[rows], a)
        return found.view(values.shape)


def _role(key: str) -> tuple[str, str | None]:
    """(module, role) of a key; no role for one that is spelled as none of these."""
    for pattern, role in SPELLINGS:
        if match := pattern.fullmatch(key):
            return next(group for group in match.groups() if group), role
    return key, None


def _weight_name(module: str, flat: Mapping[str, str], rename: Callable[[str], str]) -> str:
    """The name of the weight that a LoRA's module adapts."""
    if FLATTENED.match(module):
        return flat.get(FLATTENED.sub("", module, count=1), module)
    return rename(f"{module}.weight")


def _matching(patterns: Mapping[str, float], module: str, otherwise: float | None) -> float | None:
    """A module's own entry in PEFT's `alpha_pattern`, whose keys match ends of module names."""
    return next((v for key, v in patterns.items() if re.fullmatch(rf"(.*\.)?({key})", module)), otherwise)

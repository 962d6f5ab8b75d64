"""Low-rank adapters, merged into weights as these are read: W + scale (alpha / rank) B A (Hu et al., arXiv 2106.09685).

The spellings of PEFT, diffusers and kohya are read; which weight a pair belongs to is found by the same names as a
checkpoint's. Beside pairs a file may hold whole differences, of weights, biases and modulations, as few-step adapters
do; and magnitudes of rows, which make it a DoRA (arXiv 2402.09353): rows of W + dW are scaled to them. Sums are taken
in float32, a few rows at a time, and only for the weights that are read.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from conf.errors import UserError
from conf.paths import is_folder, is_there
from conf.published import ADAPTER, read_json
from conf.schema import LoraConfig
from stages.weight_file import WeightFile
from stages.weights import extremes, first, require_finite

SPELLINGS = (
    (re.compile(r"(.+)\.lora_A(\..+)?\.weight|(.+)\.lora_A"), "A"),
    (re.compile(r"(.+)\.lora_B(\..+)?\.weight|(.+)\.lora_B"), "B"),
    (re.compile(r"(.+)[._]lora[._]down\.weight|(.+)\.lora_down(\..+)?\.weight"), "A"),
    (re.compile(r"(.+)[._]lora[._]up\.weight|(.+)\.lora_up(\..+)?\.weight"), "B"),
    (re.compile(r"(.+)\.alpha"), "alpha"),
    (re.compile(r"(.+)\.(?:lora_magnitude_vector|dora_scale)(\..+)?"), "magnitude"),
    (re.compile(r"(.+)\.(?:diff|w_norm)"), "weight"),
    (re.compile(r"(.+)\.(?:diff_b|b_norm)"), "bias"),
    (re.compile(r"(.+)\.diff_m"), "modulation"),
)
"""How a module's two factors are called (A is [rank, in], B [out, rank]), its alpha, its magnitude [out], and whole
differences of its parameters, whose roles are these parameters' names. Behind a factor may stand an adapter's name."""

SAID = {"lora_alpha": float | None, "alpha_pattern": dict[str, float] | None, "use_rslora": bool | None}
"""What is read of PEFT's account of an adapter."""

PARAMETERS = ("weight", "bias", "modulation")
"""Roles that are whole differences."""

FLATTENED = re.compile(r"lora_(unet|transformer)_")
"""Before names of modules that kohya writes with underscores for dots."""


class Pair(NamedTuple):
    """What is added to one weight: scale * B A; then, where there is a magnitude, each row is scaled to it."""

    a: str
    b: str
    scale: float
    magnitude: str | None = None


class Change(NamedTuple):
    """What one adapter does to one weight, on the device where sums are taken.

    Attributes:
        a, b: factors [rank, in] and [out, rank], B with its scale; None: no pair.
        magnitude: of rows [out]; None: they keep theirs.
        difference: some rows of a whole difference, read when they are asked for; None: there is none.
        strength: of what is not scaled yet.
    """

    a: Tensor | None
    b: Tensor | None
    magnitude: Tensor | None
    difference: Callable[[slice], Tensor] | None
    strength: float

    def onto(self, found: Tensor, rows: slice) -> None:
        """Change rows of the weight, [n, in] float32, in place."""
        if self.difference is not None:
            found.add_(self.difference(rows).reshape(found.shape), alpha=self.strength)
        if self.b is None:
            return
        if self.magnitude is None:
            found.addmm_(self.b[rows], self.a)
            return
        turned = found.addmm(self.b[rows], self.a)
        turned *= (self.magnitude[rows] / turned.norm(dim=1))[:, None]
        found.lerp_(turned, self.strength)


class Lora:
    """One adapter.

    Args:
        config: where it is, and its strength.
        whole: shapes of all weights of the model, by name.
        alpha: where neither its tensors nor its `adapter_config.json` say any; None: the rank.
        rename: from names in a checkpoint to the model's.

    Attributes:
        pairs: by the name of the weight they are added to.
        differences: keys of whole differences, likewise.
        skipped: keys of parts that the model does not have.

    Raises:
        UserError: it cannot be read, none of it fits the model, or it holds a key of no known kind, several adapters, a
            shape that fits no weight, or half of a pair.
    """

    def __init__(
        self,
        config: LoraConfig,
        whole: Mapping[str, torch.Size],
        alpha: float | None = None,
        rename: Callable[[str], str] = lambda name: name,
    ):
        self.file, self.strength = WeightFile(config.path, "model.lora"), config.scale
        self._said = self._config()
        self.pairs: dict[str, Pair] = {}
        self.differences: dict[str, str] = {}
        self.skipped: list[str] = []
        modules = self._sorted(whole, rename)
        if not modules:
            raise UserError(
                self.file.name,
                f"fits no weight of this model ({len(self.skipped)} keys: {first(self.skipped)})",
                "is it a LoRA for this model?",
            )
        for name, found in modules.items():
            if (key := found.get("difference")) is not None:
                self._fits(key, whole[name], name, whole[name])
                self.differences[name] = key
            if found.keys() - {"difference", "module"}:
                self.pairs[name] = self._pair(name, found, whole[name], alpha)

    def _sorted(self, whole: Mapping[str, torch.Size], rename: Callable[[str], str]) -> dict[str, dict[str, str]]:
        """By the weight that they change, the keys of every role, and the module's name in the file."""
        flat, modules, unknown = {name.replace(".", "_"): name for name in whole}, {}, []
        for key in self.file.entries:
            module, role = role_of(key)
            if role is None:
                unknown.append(key)
                continue
            name = _target(module, role if role in PARAMETERS else "weight", flat, rename)
            role = "difference" if role in PARAMETERS else role
            if name not in whole:
                self.skipped.append(key)
                continue
            other = modules.setdefault(name, {"module": module}).setdefault(role, key)
            if other != key:
                raise UserError(
                    self.file.name, f"holds several adapters: {other} and {key}", "save them in a file each"
                )
        if unknown:
            raise UserError(
                self.file.name,
                f"has {len(unknown)} keys that are no part of a LoRA as it is read here: {first(unknown)}",
                "give pairs (lora_A, lora_B), differences (diff, diff_b, diff_m) or DoRA; no LoHa, no LoKr",
            )
        return modules

    def _config(self) -> dict[str, Any]:
        path = (self.file.path if is_folder(self.file.path) else self.file.path.parent) / ADAPTER
        return read_json(path, "model.lora", **SAID) if is_there(path) else {}

    def _pair(self, name: str, found: dict[str, str], shape: torch.Size, alpha: float | None) -> Pair:
        for role, other in (("A", "B"), ("B", "A")):
            if role not in found:
                raise UserError(
                    self.file.name, f"has {found.get(other, found['module'])} without its other half", "save it again"
                )
        a, b = (self.file.entries[found[role]] for role in "AB")
        rank, magnitude = max(1, a.shape[0] if a.shape else 1), found.get("magnitude")
        self._fits(a.key, torch.Size((rank, shape[1:].numel())), name, shape)
        self._fits(b.key, torch.Size((*shape[:1], rank)), name, shape)
        if magnitude is not None:
            self._fits(magnitude, shape[:1], name, shape)
        if "alpha" in found:
            self._fits(found["alpha"], torch.Size(()), name, shape)
            alpha = float(self.file.read(found["alpha"]))
        else:
            said = self._said.get("lora_alpha")
            patterns = self._said.get("alpha_pattern") or {}
            alpha = self._matching(patterns, found["module"], alpha if said is None else said)
        root = math.sqrt(rank) if self._said.get("use_rslora") else rank
        scale = 1.0 if alpha is None else alpha / root
        return Pair(a.key, b.key, scale if magnitude else self.strength * scale, magnitude)

    def _matching(self, patterns: Mapping[str, float], module: str, otherwise: float | None) -> float | None:
        """A module's own entry in PEFT's `alpha_pattern`, whose keys match ends of module names."""
        try:
            return next((v for key, v in patterns.items() if re.fullmatch(rf"(.*\.)?({key})", module)), otherwise)
        except re.error as error:
            rule = f"alpha_pattern in its {ADAPTER} holds what is no pattern of names ({error})"
            raise UserError(self.file.name, rule, "save it again") from error

    def _fits(self, key: str, expected: torch.Size, name: str, shape: torch.Size) -> None:
        """Refuse a tensor that has other rows than `expected`, or other numbers of values in them."""
        found = self.file.entries[key].shape
        if found.numel() != expected.numel() or found[: len(expected[:1])] != expected[:1]:
            raise UserError(
                self.file.name,
                f"{key} must have shape {list(expected)} for {name} {list(shape)}, found {list(found)}",
                "is it a LoRA for this model?",
            )

    def change(self, name: str, device: torch.device) -> Change | None:
        """What is done to a weight, its factors in float32 on `device`; None if it is left alone.

        Raises:
            UserError: values in the file are not finite.
        """
        pair, whole = self.pairs.get(name), self.differences.get(name)
        if pair is None and whole is None:
            return None

        def read(key: str, rows: slice | None = None) -> Tensor:
            values = self.file.read(key, rows).float()
            require_finite(self.file.name, [(key, extremes(values))])
            return values.to(device)

        a = b = magnitude = None
        if pair is not None:
            a, b = (values.reshape(len(values), -1) for values in (read(pair.a), read(pair.b)))
            b = b * pair.scale
            magnitude = read(pair.magnitude).flatten() if pair.magnitude else None
        return Change(a, b, magnitude, None if whole is None else partial(read, whole), self.strength)


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
        self._held: tuple[str, list[Change]] = ("", [])
        # One buffer for all sums: memory that is taken and freed all the time does not all go back to the system.
        self._sum = torch.empty(0, device=device)

    def __call__(self, name: str, rows: slice, values: Tensor) -> Tensor:
        """Rows of the weight `name` with what the adapters add to them, in float32; as they are if that is nothing.

        The sum holds until the next call.
        """
        if self._held[0] != name:
            found = (adapter.change(name, self._device) for adapter in self.adapters)
            self._held = name, [change for change in found if change is not None]
        changes = self._held[1]
        if not changes:
            return values
        if self._sum.numel() < values.numel():
            self._sum = torch.empty(values.numel(), device=self._device)
        found = self._sum[: values.numel()].view(len(values), -1)
        found.copy_(values.reshape(len(values), -1))
        for change in changes:
            change.onto(found, rows)
        return found.view(values.shape)


def role_of(key: str) -> tuple[str, str | None]:
    """(module, role) of a key; no role for one that is spelled as none of these."""
    for pattern, role in SPELLINGS:
        if match := pattern.fullmatch(key):
            return next(group for group in match.groups() if group), role
    return key, None


def _target(module: str, parameter: str, flat: Mapping[str, str], rename: Callable[[str], str]) -> str:
    """The name of the parameter of a LoRA's module."""
    if FLATTENED.match(module):
        return flat.get(f"{FLATTENED.sub('', module, count=1)}_{parameter}".replace(".", "_"), module)
    return rename(f"{module}.{parameter}")

"""A model's weight file, and how a part is filled from it: with its own weights and no others."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from conf import families
from conf.errors import UserError
from conf.schema import ModelConfig
from stages.encode.text import TextEncoder
from stages.file_kinds import require, told
from stages.inputs import Encoder, inputs_of, made_of
from stages.lora import Loras
from stages.weight_file import WeightFile
from stages.weights import Count, check, ignored, initialise, load, outline


def network_class(model: ModelConfig) -> Callable[..., nn.Module]:
    """The class of a model's network: (sizes, layers, attention) -> network."""
    return families.needed(families.FAMILIES, model.family, "network").Network


def rename_of(model: ModelConfig) -> Callable[[str], str]:
    """From names in the weight files of a model's family to its network's own."""
    keys = families.part(families.FAMILIES, model.family, "keys")
    return keys.rename if keys else lambda name: name


def text_encoder(model: ModelConfig) -> Encoder | None:
    """The small text encoder, whose weights lie in the model's file; None: it has none.

    A model with random weights reads prompts with a random table, too: it means as much as all else it does.
    """
    prompt = made_of(inputs_of(model), "prompt")
    if prompt is None or model.text.checkpoint or (model.text.kind == "umt5" and model.checkpoint is not None):
        return None
    tokens, width = prompt.shape
    return Encoder(lambda: TextEncoder(model.text, width, tokens), "text_encoder.")


def encoders_in_file(model: ModelConfig) -> dict[str, Encoder]:
    """Every encoder whose weights lie in the model's file, by its input."""
    inputs = inputs_of(model)
    found = {one.name: one.encoder for one in inputs if one.encoder}
    text = text_encoder(model)
    return found | ({made_of(inputs, "prompt").name: text} if text else {})


def whole(model: ModelConfig) -> dict[str, torch.Size]:
    """Name and shape of every weight of a model's file, whoever holds it."""
    encoders = encoders_in_file(model).values()
    with outline():
        parts = [(network_class(model)(model.network), ""), *((e.make(), e.prefix) for e in encoders)]
    return {prefix + name: value.shape for part, prefix in parts for name, value in part.state_dict().items()}


class Checkpoint:
    """A model's weight file, checked against the whole model, and its LoRAs: what every part is filled from.

    Attributes:
        file: counts the bytes read.

    Raises:
        UserError: a file is missing, broken or of another model.
    """

    def __init__(self, model: ModelConfig, device: torch.device):
        names = whole(model)
        self.file = WeightFile(model.checkpoint, rename=rename_of(model))
        known = model.family in families.known(families.FAMILIES)  # another's files may have any names
        kind = require(self.file, "model.checkpoint") if known else None
        try:
            check(self.file, names)
        except UserError as error:
            if not (kind and (remedy := told(self.file, kind, model.network))):
                raise
            raise UserError(error.value, error.rule, remedy) from error
        self.loras = Loras(model.lora, names, model.lora_alpha, device, rename_of(model)) if model.lora else None

    def fill(self, module: nn.Module, prefix: str = "", count: Count = ignored) -> None:
        """Read a module's own weights, and no others; `count` hears of their bytes as they come."""
        load(module, self.file, prefix, self.loras, count)


def filled(
    module: nn.Module,
    model: ModelConfig,
    prefix: str,
    checkpoint: Checkpoint | None = None,
    count: Count = ignored,
) -> nn.Module:
    """`module` with its weights: from the checkpoint, or seeded by name; `count` hears of their bytes as they come."""
    if model.checkpoint is None:
        initialise(module, model.init_seed, prefix, count)
    else:
        device = next(module.parameters()).device
        (checkpoint or Checkpoint(model, device)).fill(module, prefix, count)
    return module.eval().requires_grad_(False)

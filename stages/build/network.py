"""A model's network, whole or a range of its layers."""

from __future__ import annotations

import logging
from collections.abc import Callable

import torch

from conf.schema import ModelConfig
from stages.build.checkpoint import Checkpoint, filled, network_class
from stages.build.dtype import torch_dtype
from stages.denoise.network import Network
from stages.weights import empty, first

log = logging.getLogger(__name__)


def build_network(
    model: ModelConfig,
    device: torch.device,
    layers: range | None = None,
    checkpoint: Checkpoint | None = None,
    count: Callable[[int], None] = lambda more: None,
) -> Network:
    """The network, or the block range `layers` of it.

    Args:
        model, device, layers: which, where, and the layers that are wanted; None: all.
        checkpoint: where it is open already.
        count: hears of bytes of weights as they are read or made.
    """
    kind = network_class(model)
    network = empty(lambda: kind(model.network, layers, model.attention), device, torch_dtype(model.dtype))
    if held := [name for name, _ in network.named_buffers()]:
        raise ValueError(f"family {model.family}: buffer {held[0]} would hold nothing; compute it where it is used")
    if model.checkpoint is not None:
        checkpoint = checkpoint or Checkpoint(model, device)
        if network.first:  # one of all blocks says it
            _tell_skipped(checkpoint)
    # Before the weights are read, so that they are never held twice.
    return filled(network.fuse(), model, "", checkpoint, count)


def _tell_skipped(checkpoint: Checkpoint) -> None:
    """Say what of a LoRA is for parts that the model does not have."""
    for adapter in checkpoint.loras.adapters if checkpoint.loras else ():
        if skipped := adapter.skipped:
            rule = "are of parts that this model does not have, and were left out"
            log.warning("%s: %d of its keys %s: %s", adapter.file.name, len(skipped), rule, first(skipped))

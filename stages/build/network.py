"""A model's network, whole or a range of its layers."""

from __future__ import annotations

import logging

import torch

from conf.schema import ModelConfig
from stages.build.checkpoint import Checkpoint, filled, network_class
from stages.build.device import torch_dtype
from stages.denoise.network import Network
from stages.weights import empty, first

log = logging.getLogger(__name__)


def build_network(
    model: ModelConfig, device: torch.device, layers: range | None = None, checkpoint: Checkpoint | None = None
) -> Network:
    """The network, or the block range `layers` of it; `checkpoint` where it is open already."""
    kind = network_class(model)
    network = empty(lambda: kind(model.network, layers, model.attention), device, torch_dtype(model.dtype))
    if held := [name for name, _ in network.named_buffers()]:
        raise ValueError(f"family {model.family}: buffer {held[0]} would hold nothing; compute it where it is used")
    if model.checkpoint is not None:
        checkpoint = checkpoint or Checkpoint(model, device)
        if network.first:  # one of all blocks says it
            _tell_skipped(checkpoint)
    # Before the weights are read, so that they are never held twice.
    return filled(network.fuse(), model, "", checkpoint)


def _tell_skipped(checkpoint: Checkpoint) -> None:
    """Say what of a LoRA is for parts that the model does not have."""
    for adapter in checkpoint.loras.adapters if checkpoint.loras else ():
        if skipped := adapter.skipped:
            rule = "are of parts that this model does not have, and were left out"
            log.warning("%s: %d of its keys %s: %s", adapter.file.name, len(skipped), rule, first(skipped))

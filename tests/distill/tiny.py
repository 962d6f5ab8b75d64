"""Tiny models and runs for the tests of training: seconds, not hours."""

from __future__ import annotations

from dataclasses import replace

import torch

from conf.schema import ModelConfig, TextConfig
from conf.schema.distill import (
    CausalConfig,
    ClipsConfig,
    DistillConfig,
    DmdConfig,
    LogConfig,
    OdeConfig,
    StagesConfig,
    TeacherConfig,
)
from distill.clips import Library
from distill.data.maze import ACTIONS
from distill.model import Batch, Trainee
from stages.codec.small.network import SmallConfig, SmallEncoder
from stages.models.pocket.sizes import AudioConfig, Sizes
from stages.weights import initialise

NETWORK = Sizes(
    dim=24, ffn_dim=32, heads=2, layers=3, in_channels=4, out_channels=4, freq_dim=16, text_dim=8, text_tokens=4
)
ENCODER = SmallConfig(
    channels=4, encoder=(8, 8, 8), decoder=(8, 8, 8), encoder_blocks=(1, 1, 1), decoder_blocks=(1, 1, 1)
)


def model_of(kind: str, **changes) -> ModelConfig:
    """A pocket model in miniature."""
    if kind == "avatar":
        audio = AudioConfig(layers=[0, 2], dim=8)
        network = replace(NETWORK, token_types=True, audio=audio)
        fields = {"reference": True, "text": TextConfig(words=["happy", "teal", "a"])}
    else:
        network = replace(NETWORK, actions=list(ACTIONS))
        fields = {"sink_frames": 3, "text": TextConfig(words=["day", "night"])}
    fields |= {"window_frames": 9, "positions": "slot", "steps": 3, "height": 32, "width": 32}
    return ModelConfig(name=f"tiny_{kind}", network=network, **(fields | changes))


def trainee_of(model: ModelConfig, seed: int = 3) -> Trainee:
    """Random weights, none of them zero."""
    trainee = Trainee(model)
    initialise(trainee, seed)
    return trainee


def batch_of(model: ModelConfig, count: int, frames: int, seed: int = 0) -> Batch:
    """Random clips with random conditioning."""
    g = torch.Generator().manual_seed(seed)
    rows, columns, channels = model.height // 8, model.width // 8, model.network.in_channels
    latents = torch.randn(count, channels, frames, rows, columns, generator=g)
    words = torch.randint(2, (count, 3), generator=g)
    if model.network.actions:
        classes = len(model.network.actions)
        chosen = torch.randint(classes, (count, frames, 4), generator=g)
        return Batch(latents, words, actions=torch.eye(classes)[chosen].flatten(2))
    reference = torch.randn(count, channels, 1, rows, columns, generator=g)
    features = torch.rand(count, 4 * frames, model.network.audio.features, generator=g)
    hears = torch.ones(count, dtype=torch.bool)
    return Batch(latents, words, features, hears, None, reference, -reference, torch.zeros_like(reference[:1]))


def config_of(kind: str, folder, steps: int = 4, **model) -> DistillConfig:
    """A run of a few steps on a few clips."""
    shared = {"steps": steps, "batch": 3, "frames": 6, "warmup": 1, "lr": 1e-3}
    return DistillConfig(
        model=model_of(kind, **model),
        clips=ClipsConfig(kind=kind, count=6, frames=6, folder=str(folder / "clips")),
        stages=StagesConfig(
            teacher=TeacherConfig(**shared),
            causal=CausalConfig(**shared),
            ode=OdeConfig(**shared, trajectories=4, ode_steps=4),
            dmd=DmdConfig(**shared, ratio=2, critic_warmup=1),
        ),
        log=LogConfig(wandb="disabled"),
        run_dir=str(folder),
    )


def library_of(config: DistillConfig) -> Library:
    """Its clips, drawn and encoded by a random encoder."""
    encoder = SmallEncoder(ENCODER).eval().requires_grad_(False)
    initialise(encoder, 5)
    library = Library(config.model, config.clips, encoder)
    for _ in library.fill():
        pass
    return library

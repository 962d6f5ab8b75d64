"""A wav2vec2 model as transformers has it: loaded from a folder, or made with random weights."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import devices
from conf import hub
from conf.errors import UserError
from conf.paths import is_file, is_there
from conf.schema import Wav2VecConfig
from stages.encode.files import of_library, transformers_of
from stages.weight_file import WeightFile
from stages.weights import extremes, initialise, require_finite

SETTING = "model.network.audio.wav2vec.checkpoint"

RATE, HOP, FIELD = 16000, 320, 400
"""Samples in a second, from one state to the next, and under one state."""
GROUPS, POSITIONS = 16, 128
"""Of the convolution that gives wav2vec2 its positions."""


class Wav2Vec:
    """A wav2vec2 model, float32.

    Args:
        config: sizes, and where it lies.
        folder: as transformers writes it (config.json, weights, with or without a head on top); None: random weights.
        seed: of random weights.
        device: where it runs.

    Raises:
        UserError: transformers is not installed, the folder cannot be read, or its sizes are not the network's.
    """

    def __init__(self, config: Wav2VecConfig, folder: str | Path | None, seed: int, device: torch.device | str):
        self.config = config
        self.model = (self._random(seed) if folder is None else self._read(Path(folder))).eval()
        self.model.requires_grad_(False).to(device)

    def _random(self, seed: int) -> torch.nn.Module:
        library = _transformers()
        with torch.random.fork_rng([]):
            made = library.Wav2Vec2Model(library.Wav2Vec2Config(**_sizes(self.config)))
        initialise(made, seed, "wav2vec.")
        return made

    def _read(self, folder: Path) -> torch.nn.Module:
        library = _transformers()
        name = f"{SETTING}={folder}"
        if not is_there(folder):
            raise UserError(name, *hub.missing(folder))
        if not is_file(folder / "config.json"):
            raise UserError(name, "holds no config.json", "give a folder as transformers writes it")
        with of_library(name, "its config.json cannot be read"):
            found = library.Wav2Vec2Config.from_pretrained(folder, local_files_only=True)
        wanted, sizes = (self.config.layers, self.config.dim), (found.num_hidden_layers + 1, found.hidden_size)
        if sizes != wanted:
            raise UserError(
                name,
                f"gives {sizes[0]} hidden states of width {sizes[1]}, the network takes {wanted[0]} of {wanted[1]}",
                "give the model that the network was trained with",
            )
        WeightFile(folder, SETTING)  # says what is no file of weights, where transformers says what it made of it
        with of_library(name, "cannot be loaded"), _quiet(library.utils.logging):
            loaded, info = library.Wav2Vec2Model.from_pretrained(
                folder, local_files_only=True, dtype=torch.float32, output_loading_info=True
            )
        # Without gradients nothing is masked.
        if missing := sorted(set(info["missing_keys"]) - {"masked_spec_embed"}):
            raise UserError(name, f"lacks {len(missing)} keys, first {missing[0]}", "download it again")
        require_finite(name, [(key, extremes(value)) for key, value in loaded.state_dict().items()])
        return loaded

    @torch.inference_mode()
    def states(self, samples: Tensor) -> Tensor:
        """All hidden states [layers, T, dim] of normalised samples [n], n >= 400; the first is the embedding's."""
        device = next(self.model.parameters()).device
        found = self.model(devices.of(device).upload(samples.float()[None]), output_hidden_states=True).hidden_states
        return torch.cat(found)


@contextmanager
def _quiet(logging) -> Iterator[None]:
    """No progress bar, and no warning about the keys of a head that is not wanted."""
    said, shown = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(said)
        if shown:
            logging.enable_progress_bar()


def _transformers() -> Any:
    return transformers_of("model.network.audio.wav2vec", "audio_features")


def _sizes(config: Wav2VecConfig) -> dict:
    """Settings of a model of these sizes, in the proportions of wav2vec2-large-xlsr-53."""
    return {
        "hidden_size": config.dim,
        "num_hidden_layers": config.layers - 1,
        "num_attention_heads": max(1, config.dim // 64),
        "intermediate_size": 4 * config.dim,
        "conv_dim": (config.dim // 2,) * 7,
        "conv_bias": True,
        "feat_extract_norm": "layer",
        "do_stable_layer_norm": True,
        "num_conv_pos_embeddings": POSITIONS,
        "num_conv_pos_embedding_groups": math.gcd(GROUPS, config.dim),
    }


def parameter_count(config: Wav2VecConfig) -> int:
    """Parameters of a model of the published proportions, known without making it: 315,438,720 at 25 x 1024."""
    d, c = config.dim, config.dim // 2
    extractor = 13 * c + 4 * (3 * c * c + 3 * c) + 2 * (2 * c * c + 3 * c)
    projection = 2 * c + c * d + d
    positions = d * (d // math.gcd(GROUPS, d)) * POSITIONS + POSITIONS + d
    return extractor + projection + positions + (config.layers - 1) * (12 * d * d + 13 * d) + 3 * d

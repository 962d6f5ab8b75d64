"""What is trained: the network together with the small encoders of its conditioning, in one file of weights."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, fields, replace
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import distill.attention  # noqa: F401 (registers the back end)
from conf.schema import ModelConfig
from stages.build import encoders_in_file, network_class
from stages.encode.text import MISSING
from stages.weight_file import WeightFile
from stages.weights import load


@dataclass(frozen=True)
class Batch:
    """Clips of F latent frames, as the bank of clips gives them.

    Attributes:
        latents: [B, C, F, h, w].
        words: rows of the text encoder's table, [B, L], `MISSING` where there is none.
        features: sound, [B, 4 F, features], or None for a model without sound.
        hears: [B] whether the sound is given; without it the audio tokens are zeros, which is not silence.
        actions: one-hot [B, F, 4 * classes], zeros where it is not said what is done; None for a model without actions.
        reference: latent of a picture of the same person, perhaps in another mood and place, [B, C, 1, h, w], or None.
        lookalike: the same as the clip has them: what the reference is where no text says what should change.
        nobody: of a grey picture, [1, C, 1, h, w]: what a stream without a reference is given.
    """

    latents: Tensor
    words: Tensor
    features: Tensor | None = None
    hears: Tensor | None = None
    actions: Tensor | None = None
    reference: Tensor | None = None
    lookalike: Tensor | None = None
    nobody: Tensor | None = None

    def __len__(self) -> int:
        return len(self.latents)

    def to(self, device: torch.device | str) -> Batch:
        """The batch on a device."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return Batch(**{name: None if t is None else t.to(device) for name, t in values.items()})

    def dropped(self, text: Tensor, control: Tensor, reference: Tensor) -> Batch:
        """The batch without text, control (sound or actions) and reference where these masks [B] say so.

        This is what classifier-free guidance learns from (Ho and Salimans, arXiv 2207.12598).
        """
        words = self.words.masked_fill(text[:, None], MISSING)
        hears = None if self.hears is None else self.hears & ~control
        actions = None if self.actions is None else self.actions * ~control[:, None, None]
        picture = self.reference
        if picture is not None:
            picture = torch.where(text[:, None, None, None, None], self.lookalike, picture)
            picture = torch.where(reference[:, None, None, None, None], self.nobody, picture)
        return replace(self, words=words, hears=hears, actions=actions, reference=picture)

    def unconditional(self) -> Batch:
        """The batch without text and control; the reference stays: guidance should not exaggerate the person."""
        all_of = torch.ones(len(self), dtype=torch.bool, device=self.latents.device)
        return replace(self.dropped(all_of, all_of, ~all_of), reference=self.reference)


@dataclass(frozen=True)
class Given:
    """A batch's conditioning as the network reads it.

    Attributes:
        text: rows [B, L, text_dim].
        audio: tokens [B, F, 4, audio_dim], or None.
        actions: [B, F, 4 * classes], or None.
        reference: latent [B, C, 1, h, w], or None.
    """

    text: Tensor
    audio: Tensor | None = None
    actions: Tensor | None = None
    reference: Tensor | None = None


class Trainee(nn.Module):
    """The network and its encoders. `weights` gives the names of a model's file: the network's at top level."""

    def __init__(self, model: ModelConfig):
        super().__init__()
        self.network = network_class(model)(model.network, attention="training")
        for encoder in encoders_in_file(model).values():
            setattr(self, encoder.prefix.removesuffix("."), encoder.make())

    def encode(self, batch: Batch) -> Given:
        """Words and sound to rows and tokens."""
        audio = None
        if batch.features is not None:
            audio = self.audio_encoder(batch.features) * batch.hears[:, None, None, None]
        return Given(self.text_encoder.rows(batch.words), audio, batch.actions, batch.reference)

    def weights(self) -> dict[str, Tensor]:
        """The state under the names of a model's file."""
        return {key.removeprefix("network."): value for key, value in self.state_dict().items()}

    def fingerprint(self) -> str:
        """A short name of these very weights."""
        digest = hashlib.sha256()
        for value in self.weights().values():
            digest.update(value.float().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()[:12]

    def load(self, path: str | Path, setting: str = "model.checkpoint") -> Trainee:
        """Read a model's file."""
        file = WeightFile(path, setting)
        load(self.network, file)
        for name, encoder in self.named_children():
            if encoder is not self.network:
                load(encoder, file, f"{name}.")
        return self

    def export(self, path: str | Path, metadata: dict[str, str] | None = None, dtype: torch.dtype = torch.float16):
        """Write a model's file, beside the old one first."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        fresh = path.with_suffix(".new")
        save_file(
            {k: v.to(dtype).cpu().contiguous() for k, v in self.weights().items()}, str(fresh), metadata=metadata or {}
        )
        # safetensors leaves its files readable by their owner alone.
        fresh.chmod(0o644)
        fresh.replace(path)


def begin(model: ModelConfig, seed: int = 0) -> Trainee:
    """A fresh model: it predicts zero, time modulates nothing yet, sound adds nothing yet, and all gates are open.

    Zero heads and projections are those of DiT (Peebles and Xie, arXiv 2212.09748). Its closed gates suit hundreds of
    layers and hundreds of thousands of steps; a few layers learn faster with open ones (loss after 100 steps of the
    avatar's teacher: 0.59 against 0.67).
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        trainee = Trainee(model)
    network = trainee.network
    quiet = [network.head.head, network.time_projection[1]]
    if hasattr(network, "audio_injector"):
        quiet += [attention.o for attention in network.audio_injector.injector.values()]
    for linear in quiet:
        nn.init.zeros_(linear.weight)
        nn.init.zeros_(linear.bias)
    with torch.no_grad():
        # Rows: shift, scale, gate of self-attention, then of the feed-forward.
        network.time_projection[1].bias.unflatten(0, (6, -1))[[2, 5]] = 1.0
    return trainee

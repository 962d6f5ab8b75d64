"""A small text encoder: one learned row per word, trained together with the network.

A prompt is read as a bag of known words. With a word list in the configuration other words are ignored (and
returned, so that the caller can say so); without one every word is known and falls into a hash bucket.
"""

from __future__ import annotations

import hashlib
import re

import torch
from torch import Tensor, nn

import devices
from conf.schema import TextConfig

MISSING = -1
"""In place of a row's number: no word, a row of zeros (the network pads with the same)."""


def split(prompt: str) -> list[str]:
    """Words in lower case, without punctuation; a hyphen or an apostrophe inside a word stays."""
    return re.findall(r"\w+(?:[-'’]\w+)*", prompt.lower())


class TextEncoder(nn.Module):
    """An embedding table. Weights lie in a model's file under `text_encoder.`.

    Args:
        config: the known words, or how many hash buckets there are where none are listed.
        text_dim: width of a row.
        text_tokens: most rows of a prompt.
    """

    def __init__(self, config: TextConfig, text_dim: int, text_tokens: int):
        super().__init__()
        self.numbers = {word: number for number, word in enumerate(dict.fromkeys(w.lower() for w in config.words))}
        self.buckets, self.text_tokens = config.buckets, text_tokens
        self.table = nn.Embedding(len(self.numbers) or config.buckets, text_dim)

    def ids(self, prompt: str) -> tuple[list[int], list[str]]:
        """Row numbers of the prompt's known words (at most `text_tokens`), and the unknown words, both in order."""
        known, unknown = [], []
        for word in split(prompt):
            number = self.numbers.get(word) if self.numbers else _bucket(word, self.buckets)
            if number is None:
                unknown.append(word)
            else:
                known.append(number)
        return known[: self.text_tokens], unknown

    def rows(self, ids: Tensor) -> Tensor:
        """Row numbers [B, L], `MISSING` where there is no word, to rows [B, L, text_dim]."""
        ids = devices.of(self.table.weight.device).upload(ids)
        return self.table(ids.clamp(min=0)) * (ids != MISSING)[..., None]

    def forward(self, prompt: str) -> Tensor:
        """The prompt's rows [1, L, text_dim]; a single row of zeros if it has no known word."""
        known, _ = self.ids(prompt)
        return self.rows(torch.tensor([known or [MISSING]]))


def _bucket(word: str, buckets: int) -> int:
    """The same on every machine and in every process, unlike `hash`."""
    return int.from_bytes(hashlib.sha256(word.encode()).digest()[:8], "little") % buckets

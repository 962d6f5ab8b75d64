"""The published models' text encoder: UMT5 (arXiv 2304.09151), as transformers runs it, from either published layout.

The original file spells T5 in names of its own and says its sizes by its shapes alone; a transformers folder has a
`config.json` beside it. Sizes come from the shapes in both. A prompt gives one row per token, at most `text_tokens`;
rows beyond it are the network's to pad. The published pipelines run all rows under a mask and cut at the prompt's end:
masked keys weigh nothing, so the rows are the same.
"""

from __future__ import annotations

import html
import re
import threading
from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import devices
from conf import hub
from conf.errors import UserError
from conf.paths import is_file, is_folder
from stages.encode.files import loaded, of_library, settings_beside, told_by_shapes, transformers_of
from stages.weight_file import WeightFile

KEYS = (
    (r"token_embedding\.", "embed_tokens."),
    (r"shared\.", "embed_tokens."),
    (r"encoder\.(?!embed_tokens)", ""),
    (r"blocks\.(\d+)\.pos_embedding\.embedding\.", r"block.\1.layer.0.SelfAttention.relative_attention_bias."),
    (r"blocks\.(\d+)\.attn\.", r"block.\1.layer.0.SelfAttention."),
    (r"blocks\.(\d+)\.norm1\.", r"block.\1.layer.0.layer_norm."),
    (r"blocks\.(\d+)\.norm2\.", r"block.\1.layer.1.layer_norm."),
    (r"blocks\.(\d+)\.ffn\.gate\.0\.", r"block.\1.layer.1.DenseReluDense.wi_0."),
    (r"blocks\.(\d+)\.ffn\.fc1\.", r"block.\1.layer.1.DenseReluDense.wi_1."),
    (r"blocks\.(\d+)\.ffn\.fc2\.", r"block.\1.layer.1.DenseReluDense.wo."),
    (r"norm\.", "final_layer_norm."),
)
"""Beginnings of names, in the original file and in transformers' whole model, as transformers' encoder has them."""

COPY = "encoder.embed_tokens.weight"
"""What some savers add: the word embedding a second time."""
INSIDE = "spiece_model"
"""What others add: the tokenizer, as the bytes of its sentencepiece file."""

PUBLISHED = {4096: 5_680_910_336}
"""Parameters of the published encoder (UMT5-XXL), by the width of its rows."""

CACHE_BYTES = 1 << 26
"""Of prompts' rows kept: 16 full ones of the published size in bfloat16."""

SETTING, TOKENIZER = "model.text.checkpoint", "model.text.tokenizer"


def stack_name(key: str) -> str:
    """A name in a file as the encoder stack has it."""
    for pattern, replacement in KEYS:
        if re.match(pattern, key):
            return re.sub(f"^{pattern}", replacement, key)
    return key


def open_weights(path: str | Path) -> WeightFile:
    """The encoder's weights in a file or folder, by transformers' names of its stack."""
    file = WeightFile(path, SETTING, stack_name)
    if copy := file.entries.pop(COPY, None):
        file.entries.setdefault("embed_tokens.weight", copy)
    return file


def parameter_count(path: str | Path) -> int:
    """Parameters in a file, without reading them."""
    return sum(entry.shape.numel() for name, entry in open_weights(path).entries.items() if name != INSIDE)


def cleaned(prompt: str) -> str:
    """A prompt as the published pipelines clean it.

    Broken encodings are mended (where ftfy is installed), HTML entities resolved, twice, all whitespace made single.
    """
    try:
        import ftfy

        prompt = ftfy.fix_text(prompt)
    except ImportError:
        pass
    return " ".join(html.unescape(html.unescape(prompt)).split())


class Umt5Encoder(nn.Module):
    """A prompt's rows; the same prompt is computed once while it is among the latest.

    Args:
        path: the original file, or a transformers folder.
        tokenizer: its tokenizer's folder, as transformers writes it; None: the one inside the file.
        text_dim, text_tokens: width of a row and most rows, as the network reads them.
        dtype, device: of weights and arithmetic.

    Raises:
        UserError: transformers is not installed; files are missing, broken or of another model.
    """

    def __init__(
        self,
        path: str | Path,
        tokenizer: str | Path | None,
        text_dim: int,
        text_tokens: int,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ):
        super().__init__()
        self.text_tokens = text_tokens
        file = open_weights(path)
        inside = file.entries.get(INSIDE) and file.read(INSIDE).flatten().view(torch.uint8).numpy().tobytes()
        file.entries.pop(INSIDE, None)
        self.stack = _filled(file, Path(path), text_dim, dtype, device)
        words = self.stack.config.vocab_size
        if tokenizer is None and inside:
            self.tokenizer = _tokenizer(f"{file.name}: {INSIDE}", partial(_of_pieces, inside), words)
        else:
            self.tokenizer = _tokenizer(f"{TOKENIZER}={tokenizer}", partial(_of_folder, tokenizer), words)
        self._cache: OrderedDict[str, Tensor] = OrderedDict()
        self._lock = threading.Lock()

    def ids(self, prompt: str) -> tuple[list[int], list[str]]:
        """Token numbers of a prompt, the end's included (at most `text_tokens`); and no unknown words, ever."""
        found = self.tokenizer(cleaned(prompt), truncation=True, max_length=self.text_tokens)
        return list(found["input_ids"]), []

    @torch.inference_mode()
    def forward(self, prompt: str) -> Tensor:
        """The prompt's rows [1, L, text_dim], on the CPU."""
        with self._lock:  # streams have threads of their own
            if prompt not in self._cache:
                device = self.stack.embed_tokens.weight.device
                ids = devices.of(device).upload(torch.tensor([self.ids(prompt)[0]]))
                self._cache[prompt] = self.stack(input_ids=ids).last_hidden_state.cpu()
            self._cache.move_to_end(prompt)
            rows = self._cache[prompt]
            while len(self._cache) > 1 and sum(r.nbytes for r in self._cache.values()) > CACHE_BYTES:
                self._cache.popitem(last=False)
            return rows


def _filled(file: WeightFile, path: Path, text_dim: int, dtype: torch.dtype, device: torch.device | str) -> nn.Module:
    """transformers' encoder stack with the file's sizes and weights."""
    transformers = _transformers()
    sizes = _sizes(file)
    if sizes["d_model"] != text_dim:
        raise UserError(
            file.name, f"gives rows of width {sizes['d_model']}, the network takes {text_dim}", "give the model's own"
        )
    place, told = settings_beside(path, SETTING)
    with of_library(f"{SETTING}: {place}", "says no sizes of UMT5"):
        settings = transformers.UMT5Config.from_dict(told | sizes)

    return loaded(lambda: transformers.UMT5EncoderModel(settings).encoder, file, dtype, device)


def _sizes(file: WeightFile) -> dict[str, int]:
    """Fields of `UMT5Config` that the shapes tell."""
    attention, wide = "block.0.layer.0.SelfAttention", "block.0.layer.1.DenseReluDense.wi_0.weight"
    with told_by_shapes(file, "UMT5 encoder"):
        vocabulary, dim = file.entries["embed_tokens.weight"].shape
        buckets, heads = file.entries[f"{attention}.relative_attention_bias.weight"].shape
        inner, ffn = file.entries[f"{attention}.q.weight"].shape[0], file.entries[wide].shape[0]
    layers = {int(found[1]) for name in file.entries if (found := re.match(r"block\.(\d+)\.", name))}
    return {
        "vocab_size": vocabulary,
        "d_model": dim,
        "d_kv": inner // max(1, heads),
        "d_ff": ffn,
        "num_heads": heads,
        "num_layers": 1 + max(layers),
        "relative_attention_num_buckets": buckets,
    }


def _tokenizer(name: str, make: Callable[[], Any], words: int) -> Any:
    """A tokenizer.

    Args:
        name: where it comes from, for messages.
        make: makes it.
        words: that the encoder knows.
    """
    _transformers()
    remedy = f"download it again, or name a tokenizer's folder as {TOKENIZER}"
    with of_library(name, "cannot be loaded", remedy):
        tokenizer = make()
    if len(tokenizer) > words:
        raise UserError(name, f"has {len(tokenizer)} tokens, the text encoder {words}", "give the model's own")
    return tokenizer


def _of_folder(folder: str | Path | None) -> Any:
    """The tokenizer in a folder, as transformers wrote it or as sentencepiece did."""
    if folder is None:
        raise UserError(
            f"{TOKENIZER}=null", "there is no tokenizer beside the text encoder", "name its folder (google/umt5-xxl)"
        )
    if not is_folder(folder):
        raise UserError(f"{TOKENIZER}={folder}", "no such folder", hub.missing(folder)[1])
    pieces = Path(folder) / "spiece.model"
    if is_file(pieces) and not is_file(Path(folder) / "tokenizer.json"):
        return _of_pieces(pieces.read_bytes())
    return _transformers().AutoTokenizer.from_pretrained(folder, local_files_only=True)


def _of_pieces(model: bytes) -> Any:
    """The tokenizer of a sentencepiece model, without sentencepiece: T5's, of the pieces that the model has."""
    from transformers.convert_slow_tokenizer import import_protobuf

    found = import_protobuf().ModelProto.FromString(model)
    if not found.pieces:
        raise ValueError("it has no pieces")
    return _transformers().T5Tokenizer(
        vocab=[(piece.piece, piece.score) for piece in found.pieces],
        extra_ids=0,
        _spm_precompiled_charsmap=found.normalizer_spec.precompiled_charsmap or None,
    )


def _transformers() -> Any:
    return transformers_of("model.text.kind=umt5", "`context`")

"""UMT5 from both published layouts, against transformers' own loading and forward."""

import json

import pytest
import torch
import transformers
from safetensors.torch import save_file

from conf.errors import UserError
from conf.schema import TextConfig
from stages.encode import umt5
from stages.encode.umt5 import Umt5Encoder, cleaned, open_weights, parameter_count
from stages.weights import outline
from tests.checkpoints import T5, random_tensors, sentencepiece, umt5_shapes, write_text_encoder, write_tokenizer

ORIGINAL, TOKENIZER = "models_t5_umt5-xxl-enc-bf16.pth", "google/umt5-xxl"
ROWS = 16
CONFIG = {
    "vocab_size": T5["vocab"], "d_model": T5["dim"], "d_kv": T5["attention"] // T5["heads"], "d_ff": T5["ffn"],
    "num_layers": T5["layers"], "num_heads": T5["heads"], "relative_attention_num_buckets": T5["buckets"],
    "feed_forward_proj": "gated-gelu",
}  # fmt: skip


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """The same weights in the original layout and, beside them, in transformers'; with its model."""
    folder = tmp_path_factory.mktemp("umt5")
    weights = write_text_encoder(folder)
    model = transformers.UMT5EncoderModel(transformers.UMT5Config(**CONFIG)).eval()
    own = model.state_dict()
    # Written down a second time, the other way round from the table that is tested.
    named = {"shared.weight": "token_embedding", "encoder.final_layer_norm.weight": "norm"}
    for i in range(T5["layers"]):
        to, at = f"encoder.block.{i}.layer", f"blocks.{i}"
        named |= {f"{to}.0.SelfAttention.{x}.weight": f"{at}.attn.{x}" for x in "qkvo"}
        named[f"{to}.0.SelfAttention.relative_attention_bias.weight"] = f"{at}.pos_embedding.embedding"
        named |= {f"{to}.{n}.layer_norm.weight": f"{at}.norm{n + 1}" for n in (0, 1)}
        for theirs, ours in (("wi_0", "gate.0"), ("wi_1", "fc1"), ("wo", "fc2")):
            named[f"{to}.1.DenseReluDense.{theirs}.weight"] = f"{at}.ffn.{ours}"
    named["encoder.embed_tokens.weight"] = "token_embedding"
    assert set(named) == set(own) and {f"{n}.weight" for n in named.values()} == set(weights)
    model.load_state_dict({theirs: weights[f"{ours}.weight"] for theirs, ours in named.items()})
    model.save_pretrained(folder / "text_encoder")
    write_tokenizer(folder / "tokenizer")
    return folder, transformers.UMT5EncoderModel.from_pretrained(folder / "text_encoder").eval()


def encoder(folder, weights=ORIGINAL, tokenizer=TOKENIZER, text_dim=T5["dim"], rows=ROWS):
    return Umt5Encoder(folder / weights, tokenizer and folder / tokenizer, text_dim, rows)


@torch.no_grad()
def upstream(model, tokenizer, prompt):
    """As the published pipelines do it: padded to the full length, masked, cut at the prompt's end."""
    given = tokenizer(prompt, padding="max_length", max_length=ROWS, truncation=True, return_tensors="pt")
    rows = model(**given).last_hidden_state
    return rows[:, : int(given.attention_mask.sum())]


@pytest.mark.parametrize("layout", [(ORIGINAL, TOKENIZER), ("text_encoder", "tokenizer")], ids=["original", "folder"])
def test_every_layout_is_transformers_own_loading(layout, published):
    folder, model = published
    tokenizer, ours = transformers.AutoTokenizer.from_pretrained(folder / "tokenizer"), encoder(folder, *layout)
    weights = {n.removeprefix("encoder."): p for n, p in model.state_dict().items() if n != "shared.weight"}
    for name, value in ours.stack.state_dict().items():
        assert torch.equal(value, weights.pop(name)), name
    assert not weights
    prompts = ("a cat walks in the snow", "a red house", "", "the dog " * 30)
    for prompt in prompts:
        ids = torch.tensor([ours.ids(prompt)[0]])
        with torch.no_grad():
            assert torch.equal(ours(prompt), model(ids).last_hidden_state)
        expected = upstream(model, tokenizer, prompt)
        assert ours(prompt).shape == expected.shape
        assert (ours(prompt) - expected).abs().max() <= 1e-5 * expected.abs().max()
    lengths = [ours(prompt).shape[1] for prompt in prompts]
    assert lengths[2] == 1 and lengths[3] == ROWS and len(set(lengths)) == 4
    assert parameter_count(folder / layout[0]) == sum(p.numel() for p in ours.parameters())


def test_a_table_written_twice_is_read_once(published, tmp_path):
    model = published[1]
    tensors = {name: value.clone() for name, value in model.state_dict().items()}
    assert {"shared.weight", umt5.COPY} <= set(tensors)
    torch.save(tensors, tmp_path / "both.pth")
    assert len(open_weights(tmp_path / "both.pth").entries) == len(umt5_shapes())
    del tensors["shared.weight"]
    torch.save(tensors, tmp_path / "one.pth")
    assert "embed_tokens.weight" in open_weights(tmp_path / "one.pth").entries


def test_prompts_are_cleaned():
    assert cleaned("  a cat\n\twalks &amp;amp; sees &lt;snow&gt;  ") == "a cat walks & sees <snow>"


def test_rows_of_a_prompt_are_kept_within_bounds(published, monkeypatch):
    folder, _ = published
    ours, calls = encoder(folder), []
    ours.stack.register_forward_hook(lambda *_: calls.append(1))
    for prompt in ("a cat", "a dog", "a cat"):
        ours(prompt)
    assert len(calls) == 2
    each = ours("a cat").nbytes
    monkeypatch.setattr(umt5, "CACHE_BYTES", 2 * each)
    for prompt in ("red", "a dog", "red", "snow"):
        ours(prompt)
        assert sum(rows.nbytes for rows in ours._cache.values()) <= 2 * each
    assert "red" in ours._cache and "a cat" not in ours._cache


def test_what_a_folder_brings_is_found(published, tmp_path):
    folder, _ = published
    for config, model in ((TextConfig("umt5"), str(folder)), (TextConfig("umt5", checkpoint=str(folder)), None)):
        found = config.beside(model)
        assert (found.checkpoint, found.tokenizer) == (str(folder / ORIGINAL), str(folder / TOKENIZER))
    named = TextConfig("umt5", checkpoint=str(folder / "text_encoder")).beside("elsewhere.pt")
    assert (named.checkpoint, named.tokenizer) == (str(folder / "text_encoder"), str(folder / TOKENIZER))
    assert TextConfig("umt5").beside(str(tmp_path)) == TextConfig("umt5")
    assert TextConfig().beside(str(folder)) == TextConfig()


def test_a_tokenizer_among_the_weights_is_found(tmp_path):
    """As in the encoder's own published folder, and beside a single file."""
    for name in ("config.json", "model.safetensors", "spiece.model"):
        (tmp_path / name).write_text("{}")
    for weights in (tmp_path, tmp_path / "model.safetensors"):
        found = TextConfig("umt5", checkpoint=str(weights)).beside(None)
        assert (found.checkpoint, found.tokenizer) == (str(weights), str(tmp_path))


PIECES = [("<pad>", 0.0, 3), ("</s>", 0.0, 3), ("<unk>", 0.0, 2), ("▁a", -2.0, 1), ("▁cat", -2.5, 1), ("▁", -3.0, 1)]
PIECES += [(letter, -5.0, 1) for letter in "abcdefghijklmnopqrstuvwxyz"]


def test_a_tokenizer_inside_the_file(tmp_path):
    """As ComfyUI's files have it: the bytes of a sentencepiece model, as one more tensor."""
    weights = random_tensors(umt5_shapes())
    inside = {umt5.INSIDE: torch.frombuffer(bytearray(sentencepiece(PIECES)), dtype=torch.uint8)}
    save_file(weights | inside, path := tmp_path / "umt5.safetensors")
    ours = Umt5Encoder(path, None, T5["dim"], ROWS)
    numbers = {piece: i for i, (piece, *_) in enumerate(PIECES)}
    assert ours.ids("a cat")[0] == [numbers["▁a"], numbers["▁cat"], numbers["</s>"]]
    assert ours.ids("cab")[0] == [numbers[p] for p in ("▁", "c", "a", "b", "</s>")]
    assert ours("a cat").shape == (1, 3, T5["dim"])
    assert parameter_count(path) == sum(p.numel() for p in ours.parameters())
    save_file(weights | {umt5.INSIDE: torch.zeros(9, dtype=torch.uint8)}, path)
    with pytest.raises(UserError, match=r"model\.text\.checkpoint=.*: spiece_model: cannot be loaded .*"):
        Umt5Encoder(path, None, T5["dim"], ROWS)


def test_a_folder_with_a_sentencepiece_model_alone(published, tmp_path):
    (tmp_path / "spiece.model").write_bytes(sentencepiece(PIECES))
    ours = Umt5Encoder(published[0] / ORIGINAL, tmp_path, T5["dim"], ROWS)
    assert ours.ids("a cat")[0] == [3, 4, 1]


def test_files_that_do_not_fit_say_so(published, tmp_path):
    folder, _ = published
    with pytest.raises(UserError, match="gives rows of width 24, the network takes 32"):
        encoder(folder, text_dim=32)
    with pytest.raises(UserError, match="no tokenizer beside"):
        encoder(folder, tokenizer=None)
    with pytest.raises(UserError, match=r"model\.text\.tokenizer=.*no such folder"):
        encoder(folder, tokenizer="nowhere")
    with pytest.raises(UserError, match=r"model\.text\.tokenizer=.*cannot be loaded"):
        (tmp_path / "empty").mkdir()
        encoder(folder, tokenizer=tmp_path / "empty")
    weights = torch.load(folder / ORIGINAL)
    torch.save({k: v[:20] if k.startswith("token") else v for k, v in weights.items()}, tmp_path / "few.pth")
    with pytest.raises(UserError, match="has 43 tokens, the text encoder 20"):
        Umt5Encoder(tmp_path / "few.pth", folder / TOKENIZER, T5["dim"], ROWS)
    torch.save(weights | {"blocks.0.extra.weight": torch.zeros(2)}, tmp_path / "more.pth")
    with pytest.raises(UserError, match=r"1 keys that this model does not have: blocks\.0\.extra\.weight"):
        Umt5Encoder(tmp_path / "more.pth", folder / TOKENIZER, T5["dim"], ROWS)
    (tmp_path / "sizes").mkdir()
    (tmp_path / "sizes/config.json").write_text('{"dropout_rate": ["much"]}')
    torch.save(weights, tmp_path / "sizes/model.pth")
    with pytest.raises(UserError, match=r"sizes/config\.json: says no sizes of UMT5 \(.*dropout_rate"):
        Umt5Encoder(tmp_path / "sizes", folder / TOKENIZER, T5["dim"], ROWS)
    del weights["token_embedding.weight"]
    torch.save(weights, tmp_path / "less.pth")
    with pytest.raises(UserError, match="is no UMT5 encoder"):
        Umt5Encoder(tmp_path / "less.pth", folder / TOKENIZER, T5["dim"], ROWS)
    config = json.loads((folder / "text_encoder/config.json").read_text())
    assert config["d_kv"] == 5  # what the shapes tell is what the file says


def test_the_published_encoder_has_so_many_parameters():
    sizes = {"vocab_size": 256384, "d_model": 4096, "d_kv": 64, "d_ff": 10240, "num_heads": 64, "num_layers": 24}
    with outline():
        stack = transformers.UMT5EncoderModel(transformers.UMT5Config(**sizes)).encoder
    assert umt5.PUBLISHED[4096] == sum(p.numel() for p in stack.parameters())

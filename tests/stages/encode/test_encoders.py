"""The small encoders: shapes, which words are read, and that nothing depends on the process."""

import pytest
import torch

from conf.schema import TextConfig
from stages.encode.text import MISSING, TextEncoder
from stages.models.pocket.actions import one_hot
from stages.models.pocket.audio import AudioEncoder
from stages.models.pocket.sizes import AudioConfig


def test_audio_tokens_belong_to_their_video_frames():
    config = AudioConfig(dim=8, bands=6, rows_per_frame=2)
    encoder = AudioEncoder(config)
    features = torch.randn(2, 12, config.features)
    tokens = encoder(features)
    assert tokens.shape == (2, 3, 4, 8)
    features[1, 6] += 1
    changed = (encoder(features) != tokens).any(-1)
    assert changed.nonzero().tolist() == [[1, 1, 2]]


def test_audio_tokens_of_one_frame_are_told_apart():
    encoder = AudioEncoder(AudioConfig(dim=8))
    tokens = encoder(torch.zeros(1, 4, encoder.config.features))[0, 0]
    assert len({tuple(row.tolist()) for row in tokens}) == 4


@pytest.mark.parametrize("shape", [(1, 6, 128), (1, 8, 127)])
def test_audio_refuses_what_does_not_fit(shape):
    with pytest.raises(ValueError, match="features are"):
        AudioEncoder(AudioConfig())(torch.zeros(shape))


def test_text_reads_known_words_whatever_their_dress():
    encoder = TextEncoder(TextConfig(words=["Happy", "teal", "red"]), text_dim=4, text_tokens=8)
    assert encoder.ids("A HAPPY, red-haired person; (Teal!)") == ([0, 1], ["a", "red-haired", "person"])
    assert torch.equal(encoder("teal happy")[0], encoder.table.weight[[1, 0]])


def test_text_is_cut_and_never_empty():
    encoder = TextEncoder(TextConfig(words=["a", "b"]), text_dim=4, text_tokens=3)
    assert encoder("a b a b a").shape == (1, 3, 4)
    for prompt in ("", "none of these"):
        assert torch.equal(encoder(prompt), torch.zeros(1, 1, 4))


def test_hashed_words_are_stable():
    encoder = TextEncoder(TextConfig(buckets=64), text_dim=4, text_tokens=8)
    assert encoder.ids("a night maze, A NIGHT maze") == ([10, 23, 13, 10, 23, 13], [])


def test_rows_of_a_batch_are_those_of_its_prompts():
    encoder = TextEncoder(TextConfig(words=["a", "b"]), text_dim=4, text_tokens=3)
    rows = encoder.rows(torch.tensor([[1, 0], [0, MISSING]]))
    assert torch.equal(rows[:1], encoder("b a")) and torch.equal(rows[1:, :1], encoder("a"))
    assert not rows[1, 1].any()


def test_actions_lie_side_by_side():
    coded = one_hot([0, 1, 2, 2, 1, 1, 1, 0], classes=3)
    assert coded.shape == (1, 2, 12)
    assert coded[0, 0].tolist() == [1, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 1]
    with pytest.raises(ValueError, match="whole number"):
        one_hot([0, 1, 2], classes=3)

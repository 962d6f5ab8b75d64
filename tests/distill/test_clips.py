"""The library of clips: stored once, read the same for ever, with prompts and references that fit together."""

import numpy as np
import torch
from tiny import ENCODER, config_of, library_of

from distill.clips import Library, draw
from distill.data.avatar import reference, scene
from stages.codec.small.network import SmallEncoder
from stages.encode.text import MISSING


def test_batches_are_functions_of_the_step(tmp_path):
    config = config_of("avatar", tmp_path)
    library = library_of(config)
    first, again, later = library.batch(3, 4, 6), library.batch(3, 4, 6), library.batch(4, 4, 6)
    for name in ("latents", "words", "features", "reference"):
        assert torch.equal(getattr(first, name), getattr(again, name))
    assert not torch.equal(first.latents, later.latents)
    assert first.latents.shape == (4, 4, 6, 4, 4) and first.features.shape == (4, 24, 128)


def test_a_library_is_filled_piece_by_piece(tmp_path):
    config = config_of("world", tmp_path)
    config.clips.count = 20
    whole = library_of(config)
    other = config_of("world", tmp_path / "other")
    other.clips.count = 20
    partial = Library(other.model, other.clips, whole.encoder)
    next(partial.fill())
    resumed = Library(other.model, other.clips, whole.encoder)
    assert len(resumed) == 8
    assert list(resumed.fill())[-1] == 20
    for name in ("latents", "actions"):
        assert np.array_equal(resumed.arrays[name], whole.arrays[name])
    assert resumed.prompts == whole.prompts
    batch = resumed.batch(0, 2, 6)
    assert batch.actions.shape == (2, 6, 20) and batch.actions.sum() == 2 * 6 * 4


def test_another_encoder_means_another_library(tmp_path):
    config = config_of("world", tmp_path)
    library = library_of(config)
    torch.manual_seed(1)
    assert Library(config.model, config.clips, SmallEncoder(ENCODER)).folder != library.folder


def test_the_first_reference_looks_like_the_clip():
    drawn = draw("avatar", range(1), 4, 32)
    own = scene(0)
    assert np.array_equal(drawn.references[0, 0], reference(own, 32))
    assert len({picture.tobytes() for picture in drawn.references[0]}) == 4
    held_out = draw("avatar", range(1), 4, 32, held_out=True)
    assert not np.array_equal(held_out.references, drawn.references)


def test_what_the_prompt_leaves_out_the_reference_shows(tmp_path):
    library = library_of(config_of("avatar", tmp_path))
    library.prompts[0] = "a happy person on a teal background"
    happy, teal = library.text.numbers["happy"], library.text.numbers["teal"]
    seen = set()
    for salt in range(200):
        words, look = library._words(0, salt)
        other_feeling, other_place = bool(look & 1), bool(look & 2)
        assert happy in words or not other_feeling
        assert teal in words or not other_place
        seen.add((happy in words, teal in words, look))
    assert len(seen) == 9


def test_dropout_takes_what_it_is_told(tmp_path):
    batch = library_of(config_of("avatar", tmp_path)).batch(0, 3, 6)
    first, none = torch.tensor([True, False, False]), torch.zeros(3, dtype=torch.bool)
    no_text = batch.dropped(first, none, none)
    assert (no_text.words[0] == MISSING).all() and torch.equal(no_text.words[1:], batch.words[1:])
    assert torch.equal(no_text.reference[0], batch.lookalike[0])
    no_sound = batch.dropped(none, first, none)
    assert no_sound.hears.tolist() == [False, True, True]
    walk = library_of(config_of("world", tmp_path)).batch(0, 3, 6)
    blind = walk.dropped(none, first, none).actions
    assert not blind[0].any() and torch.equal(blind[1:], walk.actions[1:]) and walk.actions[0].any()
    nobody = batch.dropped(none, none, first).reference
    assert torch.equal(nobody[0], batch.nobody[0]) and torch.equal(nobody[1:], batch.reference[1:])

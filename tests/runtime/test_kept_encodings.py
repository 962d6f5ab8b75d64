"""What streams of a worker share of what they encode."""

import pytest
import torch

from runtime.encoders import RESTS, STILLS, Encoders, first_pictures
from tests.helpers import config_of


@pytest.fixture
def encoders(monkeypatch):
    """Of a small model; `encoded` counts what its codec was given."""
    found = Encoders(config_of("model=nano").model, torch.device("cpu"))
    found.encoded, encode = 0, found._still

    def counted(image, latents):
        found.encoded += 1
        return encode(image, latents)

    monkeypatch.setattr(found, "_still", counted)
    return found


def picture(value: float) -> torch.Tensor:
    return torch.full((3, 32, 32), value)


def test_a_picture_that_many_streams_begin_with_is_encoded_once(encoders):
    first = encoders.still(picture(0.5))
    again = encoders.still(picture(0.5))
    assert encoders.encoded == 1 and torch.equal(first, again)
    assert torch.equal(first, encoders.still(picture(0.5), keep=False))


def test_another_picture_or_more_of_it_is_another(encoders):
    first = encoders.still(picture(0.5))
    assert not torch.equal(first, encoders.still(picture(-0.5)))
    assert encoders.still(picture(0.5), 2).shape[2] == 2
    assert encoders.encoded == 3


def test_what_a_visitor_sent_is_not_kept(encoders):
    for _ in range(2):
        encoders.still(picture(0.5), keep=False)
    assert encoders.encoded == 2
    encoders.still(picture(0.5))
    assert encoders.encoded == 3


def test_only_the_last_pictures_are_kept(encoders):
    for number in range(STILLS + 1):
        encoders.still(picture(number / 10))
    encoders.still(picture(0.1))
    assert encoders.encoded == STILLS + 1
    encoders.still(picture(0.0))
    assert encoders.encoded == STILLS + 2


@pytest.mark.parametrize(
    ("model", "reach"), [(("model=nano",), 4), (("model=wan21_t2v_1_3b", "model.codec.width=8"), 30)]
)
def test_grey_behind_a_picture_comes_to_rest(model, reach):
    """What is held for ever is what the encoder would give for ever, bit for bit, and no less."""
    encoders = Encoders(config_of(*model).model, torch.device("cpu"))
    image = torch.rand(3, 16, 24, generator=torch.Generator().manual_seed(0)) * 2 - 1
    scene = encoders.scene(image)
    assert scene.shape == (1, 16, reach, 2, 3) and reach < RESTS
    state, found = encoders.start(), []
    for latent in range(reach + 3):
        pictures = torch.zeros(3, 4, 16, 24)
        if latent == 0:
            pictures = image[:, None].repeat(1, first_pictures(encoders.model), 1, 1)
        found.append(encoders.video(pictures, state))
    assert torch.equal(torch.cat(found, 2), scene[:, :, [min(i, reach - 1) for i in range(reach + 3)]])
    assert not torch.equal(scene[:, :, 1], scene[:, :, -1])
    assert encoders.scene(image) is scene and encoders.scene(image, keep=False) is not scene

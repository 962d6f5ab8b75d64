"""What stages beside cells are said to take is what their own objects take, byte for byte."""

import pytest
import torch

from parallel.builders import build
from runtime.decoding import Decoding
from runtime.encoders import STILLS, Encoders, Picture, pictures_of, still_latents
from runtime.loading import load_parts, post_of
from runtime.stage_bytes import stage_bytes
from runtime.workload import describe
from stages.build import build_decoder
from stages.meter import Meter
from stages.post import to_pictures
from tests.helpers import config_of

SIZE = ("stream.height=16", "stream.width=32", "model.dtype=bfloat16")
"""In bfloat16 nothing that comes back to the host is the encoder's own tensor."""
SMALL = ("model.codec.width=8", *SIZE)
PRIMED = (*SMALL, "stream.height=64", "stream.width=64")


class Metered:
    """An encoder whose calls are counted, with what they are given and what they leave.

    Args:
        encoder: as it is.
    """

    def __init__(self, encoder):
        self.encoder, self.meter = encoder, Meter()
        self.start, self.parameters = encoder.start, encoder.parameters

    def __call__(self, pictures, state):
        self.meter.hold([pictures])
        with self.meter:
            return self.encoder(pictures, state)


def encoders_of(config):
    encoders = Encoders(config.model, torch.device("cpu"))
    encoders._loaded["codec"] = metered = Metered(encoders.codec)
    return encoders, metered.meter


def picture_of(config, seed=0):
    size = Picture.of(config.model, config.stream)
    return torch.rand(3, size.height, size.width, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def test_a_world_encodes_its_picture_and_the_grey_behind_it():
    config = config_of("model=matrix_game_2", *SMALL)
    encoders, meter = encoders_of(config)
    found = encoders.scene(picture_of(config))
    assert found.shape[2] > 4
    taken = stage_bytes(config).encode
    assert (taken.each, taken.once) == (0, meter.peak)


def test_a_reference_is_encoded_as_often_as_frames_are_held():
    config = config_of("model=live_avatar_14b", *PRIMED)
    encoders, meter = encoders_of(config)
    made = encoders.still(picture_of(config), still_latents(config.model))
    assert made.shape[2] > 1
    assert stage_bytes(config).encode == (0, STILLS * made.nbytes + meter.peak)


def test_latents_of_some_pictures_are_kept():
    config = config_of("model=pocket_avatar", *SIZE)
    encoders, meter = encoders_of(config)
    for seed in range(STILLS + 2):
        encoders.still(picture_of(config, seed))
    assert stage_bytes(config).encode == (0, meter.peak)
    kept = encoders._kept["still"].values()
    assert len(kept) == STILLS and meter.held == sum(latents.nbytes for latents in kept)


@pytest.mark.parametrize("model", ["nano_video", "stream_diffusion_v2_1_3b"])
def test_every_stream_has_an_encoder_state_of_its_own_video(model):
    config = config_of(f"model={model}", *(SMALL if model != "nano_video" else SIZE))
    encoders, meter = encoders_of(config)
    size, state = Picture.of(config.model, config.stream), encoders.start()
    for chunk in range(5):
        encoders.video(torch.zeros(3, pictures_of(config.model, chunk), size.height, size.width), state)
    taken = stage_bytes(config).encode
    assert (taken.each, taken.once) == (meter.peak, 0)
    # What admission counts is what stays from chunk to chunk.
    assert encoders.state_bytes(size) == meter.held == state.nbytes > 0


def test_who_has_room_for_a_stream_has_it_for_its_video():
    config = config_of("model=nano_video", "device=cpu")
    made = build(config.plan, describe(config))
    parts = load_parts(made, 0, config)
    state = parts.encoders.state_bytes(Picture.of(config.model, config.stream))
    assert parts.encoder_bytes == state > 0
    assert parts.stream_bytes == parts.bank_bytes + parts.decoder_bytes + state + sum(
        one.states_bytes for one in parts.denoisers.values()
    )  # fmt: skip
    config = config_of("model=nano", "device=cpu")
    assert load_parts(build(config.plan, describe(config)), 0, config).encoder_bytes == 0


@pytest.mark.parametrize(
    "overrides",
    [
        ("model=matrix_game_2", *SMALL),
        ("model=live_avatar_14b", *PRIMED),
        ("model=pocket_world", "post=upscale", "stream.height=16", "stream.width=32"),
        ("model=matrix_game_2", "model.codec.kind=taehv", *SIZE),
    ],
    ids=["wan", "primed", "upscaled", "taehv"],
)
def test_decode_post_and_output(overrides):
    config = config_of(*overrides)
    model, size = config.model, Picture.of(config.model, config.stream)
    decoder, meter = build_decoder(model, torch.device("cpu")), Meter()
    decoding, dtype = Decoding.of(decoder, model), next(decoder.parameters()).dtype
    channels = model.network.in_channels
    with torch.inference_mode():
        with meter:
            if decoding.primes:
                decoding.prime({decoding.primer: torch.zeros(1, channels, decoding.primes, *size.latent)})
            for chunk in range(5):
                frames = decoding(torch.zeros(1, channels, len(model.frames(chunk)), *size.latent, dtype=dtype))
        taken = stage_bytes(config)
        assert taken.decode.each == decoding.state.nbytes
        assert taken.decode.once == meter.peak - decoding.state.nbytes
        post = post_of(config)
        if post:
            meter = Meter()
            meter.hold([frames])
            with meter:
                frames = post(frames)
            assert taken.post.once == meter.peak
        else:
            assert taken.post == (0, 0)
        meter = Meter()
        meter.hold([frames])
        with meter:
            to_pictures(frames)
        assert taken.output.each == meter.peak


def test_a_meter_counts_what_is_there_and_what_views_share_once():
    meter, given = Meter(), torch.zeros(100)
    with torch.inference_mode(), meter:
        made = given.clone()
        part = made[:10].view(2, 5).add_(1)
        more = torch.cat([made, made])
        assert meter.held == 400 + 800
        del made
        assert meter.held == 1200  # a view holds it
        del part
        assert meter.held == 800
        given.mul_(2)
        assert meter.held == 800
    del more
    assert (meter.held, meter.peak) == (0, 1200)

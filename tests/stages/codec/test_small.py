"""The pocket codec: geometry, chunk-by-chunk equality, independence of streams, constant state."""

import pytest
import torch
from safetensors.torch import save_file

from conf.errors import UserError
from stages.codec.small.codec import describe, load_half
from stages.codec.small.network import SmallConfig, SmallDecoder, SmallEncoder

TINY = SmallConfig(
    channels=4, encoder=(16, 16, 8), decoder=(16, 16, 8), encoder_blocks=(2, 2, 1), decoder_blocks=(2, 2, 1)
)
LATENTS, CHUNK = 9, 3


def awake(module: torch.nn.Module) -> torch.nn.Module:
    """Blocks start as the identity; with random second convolutions their memory shows."""
    generator = torch.Generator().manual_seed(1)
    for name, parameter in module.named_parameters():
        if "second" in name:
            parameter.data.normal_(0, 0.1, generator=generator)
    return module.eval().requires_grad_(False)


@pytest.fixture
def decoder() -> SmallDecoder:
    torch.manual_seed(0)
    return awake(SmallDecoder(TINY))


@pytest.fixture
def encoder() -> SmallEncoder:
    torch.manual_seed(0)
    return awake(SmallEncoder(TINY))


def latents(seed: int, batch: int = 1) -> torch.Tensor:
    return torch.randn(batch, 4, LATENTS, 4, 6, generator=torch.Generator().manual_seed(seed))


def test_every_latent_is_four_frames(encoder, decoder):
    frames = decoder(latents(0), decoder.start())
    assert frames.shape == (1, 3, 4 * LATENTS, 32, 48)
    assert encoder(frames, encoder.start()).shape == (1, 4, LATENTS, 4, 6)
    assert decoder.frames(3, first=True) == decoder.frames(3, first=False) == 12


@pytest.mark.parametrize("chunk", [1, 3])
def test_decoding_by_chunks_is_decoding_the_whole(decoder, chunk):
    z, state = latents(0, batch=2), decoder.start()
    whole = decoder(z, decoder.start())
    parts = torch.cat([decoder(part, state) for part in z.split(chunk, dim=2)], dim=2)
    assert torch.allclose(parts, whole, atol=1e-6, rtol=0)
    assert state.steps == LATENTS


def test_encoding_by_chunks_is_encoding_the_whole(encoder):
    video, state = torch.rand(1, 3, 4 * LATENTS, 32, 48) * 2 - 1, encoder.start()
    whole = encoder(video, encoder.start())
    parts = torch.cat([encoder(part, state) for part in video.split(4 * CHUNK, dim=2)], dim=2)
    assert torch.allclose(parts, whole, atol=1e-6, rtol=0)


def test_same_chunks_same_bits_and_streams_do_not_mix(decoder):
    alone = {}
    for seed in (0, 1):
        state = decoder.start()
        alone[seed] = [decoder(part, state) for part in latents(seed).split(CHUNK, dim=2)]
    states = {seed: decoder.start() for seed in (0, 1)}
    for i in range(LATENTS // CHUNK):
        for seed, state in states.items():
            part = latents(seed)[:, :, CHUNK * i : CHUNK * (i + 1)]
            assert torch.equal(decoder(part, state), alone[seed][i])


def test_it_remembers_and_only_the_past(decoder):
    z = latents(0)
    changed = z.clone()
    changed[:, :, 4] += 1
    before, after = decoder(z, decoder.start()), decoder(changed, decoder.start())
    assert torch.equal(before[:, :, :16], after[:, :, :16])
    assert not torch.equal(before[:, :, 20:24], after[:, :, 20:24])


def test_state_does_not_grow(decoder):
    state = decoder.start()
    sizes = []
    for _ in range(4):
        decoder(latents(0)[:, :, :CHUNK], state)
        sizes.append(state.nbytes)
        # A cached view would hold a whole activation, whatever its own size.
        assert all(t.untyped_storage().nbytes() == t.nbytes for t in state.cache)
    assert len(set(sizes)) == 1


def test_outliers_stay_in_range(decoder):
    frames = decoder(1e4 * latents(0), decoder.start())
    assert frames.abs().max() <= 1


def test_refuses_what_does_not_divide(encoder):
    with pytest.raises(ValueError, match="4x8x8"):
        encoder(torch.zeros(1, 3, 6, 32, 32), encoder.start())


def test_weight_file_and_statistics(tmp_path, encoder, decoder):
    tensors = {f"encoder.{k}": v.half() for k, v in encoder.state_dict().items()}
    tensors |= {f"decoder.{k}": v.half() for k, v in decoder.state_dict().items()}
    tensors |= {"latents.avatar.mean": torch.full((4,), 0.5), "latents.avatar.std": torch.full((4,), 2.0)}
    path = tmp_path / "codec.safetensors"
    save_file({k: v.contiguous() for k, v in tensors.items()}, str(path), metadata={"config": describe(TINY)})
    video = torch.rand(1, 3, 8, 32, 32) * 2 - 1
    plain, normal = load_half(path, "encoder"), load_half(path, "encoder", data="avatar")
    a, b = plain(video, plain.start()), normal(video, normal.start())
    assert torch.allclose((a - 0.5) / 2, b, atol=1e-6)
    # Both normalise alike, so the pictures are the same.
    c, d = load_half(path, "decoder"), load_half(path, "decoder", data="avatar")
    assert torch.allclose(c(a, c.start()), d(b, d.start()), atol=1e-5)


def test_files_that_are_no_codec_are_named(tmp_path, encoder, decoder):
    halves = {"encoder": encoder, "decoder": decoder}
    tensors = {f"{half}.{k}": v.contiguous() for half, module in halves.items() for k, v in module.state_dict().items()}
    path, said = tmp_path / "codec.safetensors", {"config": describe(TINY)}

    def refused(match, tensors=tensors, metadata=said, data=None):
        save_file(tensors, path, metadata)
        with pytest.raises(UserError, match=match) as error:
            load_half(path, "decoder", data)
        assert "\n" not in str(error.value)

    refused("its metadata does not say its sizes", metadata=None)
    refused("its metadata does not say its sizes", metadata={"config": '{"chanels": 4}'})
    refused("its metadata does not say its sizes", metadata={"config": "[]"})
    refused(r"lacks 1 of \d+ keys: decoder\.mean", {k: v for k, v in tensors.items() if k != "decoder.mean"})
    refused("must have shape", tensors | {"decoder.mean": torch.ones(5)})
    refused(r"decoder\.mean holds values that are not finite", tensors | {"decoder.mean": torch.full((4,), torch.inf)})
    refused(r"model\.codec\.statistics=avatar: .* has none", data="avatar")
    refused("is a LoRA", {"a.lora_A.weight": torch.ones(2, 2)})
    path.write_bytes(path.read_bytes()[:20])
    with pytest.raises(UserError, match=r"model\.codec\.checkpoint=.*cut short"):
        load_half(path, "decoder")

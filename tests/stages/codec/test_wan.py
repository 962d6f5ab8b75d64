"""The Wan2.1 VAE against diffusers' AutoencoderKLWan, and what streaming promises on top of it."""

import pytest
import torch

from conf.errors import UserError
from stages.codec.wan.keys import original_key, original_keys
from stages.codec.wan.network import MEAN, STD, WanDecoder, WanEncoder

diffusers = pytest.importorskip("diffusers")

TOLERANCE = 2e-5  # max abs in float32; outputs have a standard deviation of about 0.4
CHUNK = 3  # latents
MANY = 60
CHUNKS = 8
CLIP = CHUNK * CHUNKS


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def oracle(base: int, seed: int = 0):
    """A diffusers VAE with random weights, gammas and biases included."""
    torch.manual_seed(seed)
    vae = diffusers.AutoencoderKLWan(base_dim=base).eval().requires_grad_(False)
    for name, p in vae.named_parameters():
        if name.endswith("gamma"):
            p.add_(0.3 * torch.randn_like(p))
        elif name.endswith("bias"):
            p.copy_(0.1 * torch.randn_like(p))
    return vae


def ours(half: type, vae):
    """One half with the oracle's weights, loaded as a worker does: strictly, and nothing else."""
    module = half(vae.config.base_dim)
    state = original_keys(vae.state_dict())
    module.load_state_dict({k: v for k, v in state.items() if k.startswith(half.prefixes)})
    return module


def statistics(vae):
    """Mean and standard deviation as diffusers publishes them; its latents are not normalised."""
    return (torch.tensor(v).view(-1, 1, 1, 1) for v in (vae.config.latents_mean, vae.config.latents_std))


@torch.no_grad()
def oracle_decode(vae, latents):
    mean, std = statistics(vae)
    return vae.decode(latents * std + mean).sample


@torch.no_grad()
def oracle_encode(vae, frames):
    mean, std = statistics(vae)
    return (vae.encode(frames).latent_dist.mode() - mean) / std


def stream(half, x, sizes, state=None):
    """`x` in calls of `sizes` (latents or frames), as the list of what came out."""
    state = state or half.start()
    return [half(part, state) for part in x.split(list(sizes), dim=2)]


def noise(*shape, seed=1):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def video(*shape, seed=2):
    return noise(*shape, seed=seed).mul(0.5).clamp(-1, 1)


@pytest.fixture(scope="module")
def vae():
    return oracle(base=8)


@pytest.fixture(scope="module")
def decoder(vae):
    return ours(WanDecoder, vae)


@pytest.fixture(scope="module")
def encoder(vae):
    return ours(WanEncoder, vae)


@pytest.fixture(scope="module")
def latents():
    return noise(1, 16, CLIP, 4, 4)


@pytest.fixture(scope="module")
def frames():
    return video(1, 3, 1 + 4 * (CLIP - 1), 32, 32)


def test_decoding_chunk_by_chunk_equals_diffusers_on_the_whole_clip(vae, decoder, latents):
    parts = stream(decoder, latents, [CHUNK] * CHUNKS)
    for chunks in range(1, CHUNKS + 1):
        expected = oracle_decode(vae, latents[:, :, : CHUNK * chunks])
        assert (expected.abs() < 1).float().mean() > 0.9  # clamping hides little
        torch.testing.assert_close(torch.cat(parts[:chunks], dim=2), expected, rtol=0, atol=TOLERANCE)


def test_encoding_chunk_by_chunk_equals_diffusers_on_the_whole_clip(vae, encoder, frames):
    sizes = [1 + 4 * (CHUNK - 1)] + [4 * CHUNK] * (CHUNKS - 1)
    parts = stream(encoder, frames, sizes)
    for chunks in range(1, CHUNKS + 1):
        expected = oracle_encode(vae, frames[:, :, : sum(sizes[:chunks])])
        torch.testing.assert_close(torch.cat(parts[:chunks], dim=2), expected, rtol=0, atol=TOLERANCE)


def test_a_wider_network_on_a_batch_of_oblong_frames_equals_diffusers():
    vae = oracle(base=16, seed=5)
    latents, frames = noise(2, 16, 3, 6, 8), video(2, 3, 9, 64, 48)
    out = torch.cat(stream(ours(WanDecoder, vae), latents, [2, 1]), dim=2)
    torch.testing.assert_close(out, oracle_decode(vae, latents), rtol=0, atol=TOLERANCE)
    out = torch.cat(stream(ours(WanEncoder, vae), frames, [5, 4]), dim=2)
    torch.testing.assert_close(out, oracle_encode(vae, frames), rtol=0, atol=TOLERANCE)


def test_any_cut_into_calls_gives_the_same_result(decoder, encoder, latents, frames):
    cuts = [9], [1] * 9, [2, 7], [4, 1, 4]  # in latents
    whole, *others = (torch.cat(stream(decoder, latents[:, :, :9], cut), dim=2) for cut in cuts)
    assert all(torch.equal(other, whole) for other in others)
    cuts = [[4 * cut[0] - 3, *(4 * n for n in cut[1:])] for cut in cuts]
    whole, *others = (torch.cat(stream(encoder, frames[:, :, :33], cut), dim=2) for cut in cuts)
    assert all(torch.equal(other, whole) for other in others)


def test_a_primed_stream_continues_the_whole_clip(decoder, latents):
    whole = decoder(latents[:, :, :13], decoder.start())
    state = decoder.start()
    decoder(latents[:, :, :7], state)  # priming, dropped
    out = torch.cat(stream(decoder, latents[:, :, 7:13], [3, 3], state), dim=2)
    assert out.shape[2] == 4 * 6
    assert torch.equal(out, whole[:, :, -4 * 6 :])


def test_frame_counts(decoder, encoder, latents, frames):
    assert [decoder.frames(n, first=True) for n in (0, 1, 2, 7)] == [0, 1, 5, 25]
    assert [decoder.frames(n, first=False) for n in (0, 1, 3)] == [0, 4, 12]
    state = decoder.start()
    assert [decoder(latents[:, :, :n], state).shape[2] for n in (1, 2, 3)] == [1, 8, 12]
    assert state.steps == 6
    state = encoder.start()
    assert [encoder(frames[:, :, :n], state).shape[2] for n in (1, 4, 12)] == [1, 1, 3]
    assert state.steps == 5
    for half in (encoder, decoder):
        assert (half.channels, half.temporal_stride, half.spatial_stride) == (16, 4, 8)


def test_state_is_constant_over_many_chunks():
    torch.manual_seed(0)
    decoder, encoder = WanDecoder(base=4), WanEncoder(base=4)
    decoding, encoding = decoder.start(), encoder.start()
    sizes = set()
    for chunk in range(MANY):
        latents = noise(1, 16, CHUNK, 1, 1, seed=chunk)
        frames = decoder(latents, decoding)
        encoded = encoder(frames, encoding)
        assert frames.isfinite().all() and frames.abs().max() <= 1 and encoded.isfinite().all()
        sizes.add((decoding.nbytes, encoding.nbytes))
    assert len(sizes) == 1
    assert decoding.steps == encoding.steps == MANY * CHUNK
    for state, slots in ((decoding, 32), (encoding, 24)):
        assert len(state.cache) == slots
        for past in state.cache:
            assert past.shape[2] <= 2 and not past.requires_grad
            assert past.untyped_storage().nbytes() == past.nbytes  # not a window on something larger


def test_state_is_two_frames_of_each_convolution_input(decoder, latents):
    state = decoder.start()
    decoder(latents[:, :, :1], state)
    first = state.nbytes
    decoder(latents[:, :, 1:5], state)
    # Per level: pixels of one frame and the input channels of its causal convolutions, in units of base.
    coarsest = [16 / 8] + [4] * 4 + [4] * 6 + [4]  # conv1, middle, level 0, time_conv
    second = [2] + [4] * 5 + [4]
    third, finest = [2] * 6, [1] * 6 + [1]
    values = sum(4**i * 16 * 8 * sum(level) for i, level in enumerate((coarsest, second, third, finest)))
    assert state.nbytes == first == 2 * values * 4


def test_two_interleaved_streams_do_not_touch_each_other(decoder, encoder):
    for half, shape, sizes in ((decoder, (1, 16, 7, 4, 4), [3, 3, 1]), (encoder, (1, 3, 25, 32, 32), [9, 12, 4])):
        a, b = video(*shape, seed=7), video(*shape, seed=8)
        alone = stream(half, a, sizes), stream(half, b, sizes)
        states = half.start(), half.start()
        for i, parts in enumerate(zip(a.split(sizes, dim=2), b.split(sizes, dim=2), strict=True)):
            for part, state, expected in zip(parts, states, alone, strict=True):
                assert torch.equal(half(part, state), expected[i])


def test_bfloat16_stays_close_to_float32(vae, latents, frames):
    for half, x, sizes in ((WanDecoder, latents[:, :, :6], [3, 3]), (WanEncoder, frames[:, :, :21], [9, 12])):
        exact, module = ours(half, vae), ours(half, vae).to(torch.bfloat16)
        out = torch.cat(stream(module, x, sizes), dim=2)
        expected = torch.cat(stream(exact, x, sizes), dim=2)
        assert out.dtype == torch.bfloat16
        assert (out - expected).abs().mean() < 0.04 * expected.std()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_cuda_equals_cpu(decoder, encoder, vae, latents, frames):
    for half, x, sizes in ((decoder, latents[:, :, :6], [3, 3]), (encoder, frames[:, :, :21], [9, 12])):
        module = ours(type(half), vae).cuda()
        expected = torch.cat(stream(half, x, sizes), dim=2)
        with torch.backends.cudnn.flags(allow_tf32=False):
            out = torch.cat(stream(module, x.cuda(), sizes), dim=2)
        torch.testing.assert_close(out.cpu(), expected, rtol=0, atol=1e-4)
        out = torch.cat(stream(module.to(torch.bfloat16), x.cuda(), sizes), dim=2)
        assert (out.cpu() - expected).abs().mean() < 0.04 * expected.std()


def test_keys_and_shapes_of_the_published_size_match_diffusers_one_to_one():
    with torch.device("meta"):
        vae, halves = diffusers.AutoencoderKLWan(), (WanEncoder(), WanDecoder())
    translated = original_keys(vae.state_dict())
    assert len(translated) == len(vae.state_dict()) == 194
    own = {}
    for half in halves:
        keys = half.state_dict()
        assert all(k.startswith(half.prefixes) for k in keys)
        own |= keys
    assert {k: v.shape for k, v in translated.items()} == {k: v.shape for k, v in own.items()}
    # Names as in Wan2.1_VAE.pth.
    for key, shape in {
        "conv1.weight": (32, 32, 1, 1, 1),
        "conv2.weight": (16, 16, 1, 1, 1),
        "decoder.conv1.weight": (384, 16, 3, 3, 3),
        "decoder.middle.1.norm.gamma": (384, 1, 1),
        "decoder.upsamples.3.time_conv.weight": (768, 384, 3, 1, 1),
        "decoder.upsamples.4.shortcut.weight": (384, 192, 1, 1, 1),
        "decoder.upsamples.11.resample.1.weight": (96, 192, 3, 3),
        "decoder.upsamples.14.residual.6.weight": (96, 96, 3, 3, 3),
        "decoder.head.2.weight": (3, 96, 3, 3, 3),
        "encoder.downsamples.5.time_conv.weight": (192, 192, 3, 1, 1),
        "encoder.head.0.gamma": (384, 1, 1, 1),
    }.items():
        assert own[key].shape == shape, key


def test_normalisation_is_the_published_one(vae):
    assert list(vae.config.latents_mean) == list(MEAN)
    assert list(vae.config.latents_std) == list(STD)


def test_weights_built_on_meta_and_assigned_decode_alike(vae, decoder, latents):
    with torch.device("meta"):
        module = WanDecoder(base=8)
    state = original_keys(vae.state_dict())
    module.load_state_dict({k: v for k, v in state.items() if k.startswith(module.prefixes)}, assign=True)
    assert module.decoder.conv1.weight.is_contiguous(memory_format=torch.channels_last_3d)
    clip = latents[:, :, :3]
    assert torch.equal(module(clip, module.start()), decoder(clip, decoder.start()))


@pytest.mark.parametrize(
    "key",
    [
        "decoder.up_blocks.0.upsampler.resample.1.weight",  # Wan2.2
        "decoder.upsamples.0.residual.0.gamma",  # original already
        "encoder.conv_in.weight_scale",
        "blocks.0.attn1.to_q.weight",
    ],
)
def test_unknown_keys_are_refused(key):
    with pytest.raises(UserError, match=key):
        original_key(key)


@pytest.mark.parametrize("count", [0, 2, 4, 8])
def test_a_first_call_that_is_not_1_plus_4k_frames_is_refused(encoder, count):
    with pytest.raises(UserError, match=rf"frames={count}: the first call .* 1 \+ 4 k frames; give \d+ or \d+"):
        encoder(torch.zeros(1, 3, count, 32, 32), encoder.start())


@pytest.mark.parametrize("count", [0, 1, 5, 7])
def test_a_later_call_that_is_not_4k_frames_is_refused(encoder, count):
    state = encoder.start()
    encoder(torch.zeros(1, 3, 1, 32, 32), state)
    with pytest.raises(UserError, match=rf"frames={count}: the later calls .* 4 k frames; give \d+ or \d+"):
        encoder(torch.zeros(1, 3, count, 32, 32), state)
    assert state.steps == 1


def test_shapes_that_cannot_be_are_refused(encoder, decoder):
    with pytest.raises(UserError, match=r"30x32: .* multiples of 8; .* 24x32"):
        encoder(torch.zeros(1, 3, 1, 30, 32), encoder.start())
    for shape in ((1, 16, 0, 4, 4), (1, 48, 1, 4, 4)):
        with pytest.raises(UserError, match="latents="):
            decoder(torch.zeros(shape), decoder.start())

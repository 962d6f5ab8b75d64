"""Live Avatar's network: published names and sizes, its schedule, and the forward of the paper's system."""

import pytest
import torch

from conf.schema import CodecConfig, ModelConfig, Wav2VecConfig
from stages.build import encoders_in_file
from stages.denoise.bank import Bank
from stages.denoise.denoiser import Denoiser
from stages.denoise.layout import Layout
from stages.denoise.rope import Rope
from stages.denoise.sampler import Sampler
from stages.models.live_avatar.buckets import packed_tokens
from stages.models.live_avatar.frame_pack import packed_table
from stages.models.live_avatar.network import Network
from stages.models.live_avatar.sizes import AudioConfig, Sizes
from stages.weights import initialise
from tests.checkpoints import s2v_config, s2v_shapes
from tests.helpers import config_of
from tests.stages.denoise.straight_s2v import Straight

ROWS = COLUMNS = 4
LAYERS = [0, 2]
SIZES = {"dim": 48, "ffn_dim": 80, "heads": 2, "layers": 3, "text_dim": 16, "text_tokens": 6, "freq_dim": 32}


def model_of(**changes) -> ModelConfig:
    audio = AudioConfig(layers=LAYERS, adain=True, wav2vec=Wav2VecConfig(layers=3, dim=10))
    return ModelConfig(
        network=Sizes(**{**SIZES, **changes}, audio=audio), reference=True, positions="sink_shift",
        codec=CodecConfig(kind="wan", prime=7), recalibrate_chunk=4,
    )  # fmt: skip


def build(model: ModelConfig, layers: range | None = None) -> Denoiser:
    network = Network(model.network, layers).eval()
    initialise(network, seed=5)
    return Denoiser(model, network, ROWS, COLUMNS)


def normal(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def latents(seed: int, frames: int) -> torch.Tensor:
    return normal(seed, 1, 16, frames, 2 * ROWS, 2 * COLUMNS)


TEXT = normal(9, 1, 4, 16)


def hearing(model: ModelConfig) -> tuple[torch.nn.Module, str]:
    """The sound's encoder, and where its weights lie."""
    found = encoders_in_file(model)["audio"]
    return found.make(), found.prefix


def given_of(audio: torch.Tensor, pose: torch.Tensor | None) -> dict[str, torch.Tensor]:
    return {"audio": audio} | ({} if pose is None else {"pose": pose})


def made(model: ModelConfig) -> dict[str, tuple]:
    with torch.device("meta"):
        network, (encoder, prefix) = Network(model.network), hearing(model)
    found = network.state_dict() | {prefix + name: t for name, t in encoder.state_dict().items()}
    return {name: tuple(t.shape) for name, t in found.items()}


def test_names_and_shapes_are_the_published_ones():
    found = made(config_of("model=live_avatar_14b").model)
    assert found == s2v_shapes(s2v_config() | {"text_dim": 4096})
    assert len(found) == 1260
    assert sum(torch.Size(shape).numel() for shape in found.values()) == pytest.approx(16.296e9, rel=1e-4)
    small = model_of()
    small.network.audio.wav2vec.layers = 25
    sizes = {"dim": 48, "ffn_dim": 80, "num_layers": 3, "freq_dim": 32, "text_dim": 16, "audio_dim": 10}
    assert made(small) == s2v_shapes(s2v_config(**sizes, audio_inject_layers=LAYERS))


def test_a_range_holds_its_own_part_only():
    """The frame packer, the pose encoder and type embeddings go with the first layer, injectors with theirs."""
    network = model_of().network
    first, last = (set(Network(network, r).state_dict()) for r in (range(1), range(1, 3)))
    assert first | last == set(Network(network).state_dict())
    shared = {name.split(".")[0] for name in first & last}
    assert shared == {"text_embedding", "time_embedding", "time_projection"}
    assert {n.split(".")[0] for n in first - last} == {
        "patch_embedding", "cond_encoder", "trainable_cond_mask", "frame_packer", "blocks", "audio_injector",
    }  # fmt: skip
    assert {".".join(n.split(".")[:3]) for n in last if "audio" in n} == {
        "audio_injector.injector.1", "audio_injector.injector_adain_layers.1",
    }  # fmt: skip


def test_schedule_is_live_avatars():
    model = config_of("model=live_avatar_14b").model
    assert Sampler.of(model).sigmas == pytest.approx([1.0, 0.857692, 0.602151, 0.008929, 0.0], abs=5e-7)
    assert (model.ring_frames, model.levels, model.recalibrate_chunk) == (12, 4, 4)
    assert packed_tokens(1056) == 1056 + 264 + 264
    assert Layout.of(model, 1056).size == 2640 + 12 * 1056


def test_motion_tokens_stand_still():
    """Each at its own place in the whole picture, before frame 0."""
    rope = Rope(24, 8, 12)
    table = packed_table(rope)
    assert len(table) == packed_tokens(8 * 12)
    assert torch.equal(table[: 8 * 12], rope.table([-1]))
    # The last of the 4x tokens: the bottom right corner of the newest quarter of the oldest 16 frames.
    assert torch.equal(table[-1:], rope.points([-4], [7], [11]))
    assert torch.equal(rope.points([-3], range(8), range(12)), rope.table([-3]))


@torch.no_grad()
def test_streaming_equals_the_straight_forward():
    """10 chunks through the ring of 4, steps in their own banks, recalibration at 4, sound and (in some) a pose."""
    model = model_of()
    denoiser, (encoder, prefix) = build(model), hearing(model)
    initialise(encoder, seed=5, prefix=prefix)
    weights = dict(denoiser.network.state_dict())
    weights |= {prefix + name: t for name, t in encoder.state_dict().items()}
    sampler, steps = denoiser.sampler, range(4)
    straight = [Straight(weights, SIZES["heads"], SIZES["layers"], LAYERS) for _ in steps]
    text = straight[0].text(TEXT[0].double(), SIZES["text_tokens"])
    motion, anchor = latents(1, 19), latents(2, 1)
    banks = denoiser.open()
    denoiser.set_states(banks, {"text": TEXT})
    worst = 0.0
    for i in range(10):
        if i in (0, 4):
            denoiser.prefill(banks, {"reference": anchor, "motion": motion})
            for one in straight:
                one.prefill(anchor.double(), motion.double(), text, ROWS, COLUMNS)
        features = normal(100 + i, 1, 3, 10, 12)
        pose = latents(200 + i, 3) if i % 3 == 2 else None
        given, x = given_of(encoder.tokens(features), pose), latents(300 + i, 3)
        for step in steps:
            distance = 4 + (7 * i + 5 * step) % 27
            v = denoiser.step(banks, step, i, x, given, distance)
            exact = (x.double(), sampler.timestep(step), text, features[0].double(), distance)
            expected = straight[step].chunk(i, *exact, None if pose is None else pose.double())
            worst = max(worst, float((v - expected).abs().max() / expected.abs().max()))
            x = sampler.update(step, x, v)
        if i == 0:
            anchor = x[:, :, :1].clone()
    assert worst <= 1e-5


@torch.no_grad()
def test_block_ranges_equal_the_whole_and_a_bank_knows_its_size():
    model = model_of()
    whole, parts = build(model), [build(model, range(0, 2)), build(model, range(2, 3))]
    anchor = {"reference": latents(2, 1), "motion": latents(1, 19)}
    banks = whole.open(), [part.open() for part in parts]
    for denoiser, bank in ((whole, banks[0]), *zip(parts, banks[1], strict=True)):
        denoiser.set_states(bank, {"text": TEXT})
    whole.prefill(banks[0], anchor)
    hidden = anchor
    for part, bank in zip(parts, banks[1], strict=True):
        hidden = part.prefill(bank, hidden)
    given = {"audio": normal(3, 1, 3, 6, 48)}
    for i in range(3):
        x = latents(300 + i, 3)
        expected = whole.step(banks[0], 1, i, x, given, 9)
        for part, bank in zip(parts, banks[1], strict=True):
            x = part.step(bank, 1, i, x, given, 9)
        assert torch.equal(x, expected)
    known = Bank.bytes_needed(whole.layout, 3, 2, 24, torch.float32)
    assert banks[0].banks[0].nbytes == known
    moved = whole.open()
    whole.set_states(moved, {"text": TEXT})
    for level, bank in banks[0].banks.items():
        moved.banks[level].restore(bank.export(), 3)
    x = latents(400, 3)
    assert torch.equal(whole.step(moved, 1, 3, x, given, 11), whole.step(banks[0], 1, 3, x, given, 11))


@torch.no_grad()
def test_no_pose_is_a_pose_of_zeros_and_a_short_past_is_padded():
    denoiser = build(model_of())
    given = normal(3, 1, 3, 6, 48)

    def velocity(motion: torch.Tensor, pose: torch.Tensor | None) -> torch.Tensor:
        banks = denoiser.open([0])
        denoiser.set_states(banks, {"text": TEXT})
        denoiser.prefill(banks, {"reference": latents(2, 1), "motion": motion})
        return denoiser.step(banks, 0, 0, latents(4, 3), given_of(given, pose), 9)

    motion = latents(1, 19)
    plain = velocity(motion, None)
    assert torch.equal(velocity(motion, torch.zeros(1, 16, 3, 2 * ROWS, 2 * COLUMNS)), plain)
    assert not torch.equal(velocity(motion, latents(7, 3)), plain)
    short = torch.cat([torch.zeros_like(motion[:, :, :12]), motion[:, :, 12:]], 2)
    assert torch.equal(velocity(motion[:, :, 12:], None), velocity(short, None))
    # A longer past counts to its newest 19 frames.
    assert torch.equal(velocity(torch.cat([latents(8, 5), motion], 2), None), plain)


@torch.no_grad()
def test_sound_is_local_to_its_chunk_and_causal():
    """Latent frame m hears video frames 4 m - 5 to 4 m + 3."""
    encoder, prefix = hearing(model_of())
    initialise(encoder, 5, prefix)
    features = normal(1, 1, 3, 10, 12)
    plain = encoder.tokens(features)
    assert plain.shape == (1, 3, 6, 48)
    for frame in range(12):
        features[..., frame] += 1
        moved = (encoder.tokens(features) - plain).abs().amax((0, 2, 3)) > 1e-6
        features[..., frame] -= 1
        # The first frame also stands for all that was before the chunk.
        assert moved.tolist() == [max(4 * m - 5, 0) <= frame <= 4 * m + 3 for m in range(3)]

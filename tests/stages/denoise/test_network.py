"""The network equals diffusers' WanTransformer3DModel, whole or cut into ranges, and loads its names."""

import pytest
import torch

from stages.denoise.attention import backend
from stages.denoise.passes import ClipPass, whole_clip
from stages.denoise.rope import Rope
from stages.dit.keys import original_name
from stages.dit.layers import Inside
from stages.dit.network import Drive
from stages.models.wan.network import Network
from stages.models.wan.sizes import Sizes

SHAPES = [
    # dim, heads, layers, patch, channels, (f, h, w), text_dim, ffn
    (64, 4, 2, (1, 2, 2), 16, (3, 8, 8), 32, 128),
    (96, 3, 3, (1, 2, 2), 16, (5, 6, 10), 48, 224),
    (128, 1, 1, (1, 2, 2), 48, (2, 4, 6), 24, 256),
    (48, 2, 2, (1, 1, 1), 4, (4, 3, 5), 16, 96),
    (60, 2, 2, (2, 2, 2), 8, (4, 4, 4), 16, 80),
]


def reference(shape):
    dim, heads, layers, patch, channels, _, text_dim, ffn = shape
    torch.manual_seed(dim)
    from diffusers import WanTransformer3DModel  # seconds to import

    model = WanTransformer3DModel(
        patch_size=patch,
        num_attention_heads=heads,
        attention_head_dim=dim // heads,
        in_channels=channels,
        out_channels=channels,
        text_dim=text_dim,
        freq_dim=256,
        ffn_dim=ffn,
        num_layers=layers,
        rope_max_seq_len=64,
    ).eval()
    with torch.no_grad():
        for name, p in model.named_parameters():
            # Everything random, also what is normally initialised to zeros or ones.
            p.copy_(torch.randn_like(p) * (0.3 if p.ndim < 2 or "table" in name else p[0].numel() ** -0.5))
    return model


def ours(shape, model, layers=None):
    dim, heads, depth, patch, channels, _, text_dim, ffn = shape
    config = Sizes(
        dim=dim, ffn_dim=ffn, heads=heads, layers=depth, patch=list(patch), in_channels=channels,
        out_channels=channels, text_dim=text_dim, text_tokens=12,
    )  # fmt: skip
    network = Network(config, layers).eval()
    state = {original_name(k): v for k, v in model.state_dict().items()}
    network.load_state_dict({k: state[k] for k in network.state_dict()})
    if layers is None:
        assert set(state) == set(network.state_dict())
    return network


def inputs(shape, per_frame):
    _, _, _, patch, channels, (f, h, w), text_dim, _ = shape
    g = torch.Generator().manual_seed(1)
    x = torch.randn(1, channels, f, h, w, generator=g)
    text = torch.randn(1, 7, text_dim, generator=g)
    grid = (f // patch[0], h // patch[1], w // patch[2])
    timesteps = torch.linspace(990, 40, grid[0])[None] if per_frame else torch.full((1, 1), 837.5)
    return x, text, grid, timesteps


def drive(network, text, timesteps):
    return Drive(network.time_terms(network.time_embeddings(timesteps)), network.text_states(text))


@pytest.mark.parametrize("per_frame", [False, True])
@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: f"dim{s[0]}")
@torch.no_grad()
def test_equals_diffusers(shape, per_frame):
    model = reference(shape)
    network = ours(shape, model)
    x, text, grid, timesteps = inputs(shape, per_frame)
    padded = torch.nn.functional.pad(text, (0, 0, 0, 12 - text.shape[1]))
    tokens = timesteps.repeat_interleave(grid[1] * grid[2], 1) if per_frame else timesteps[0]
    expected = model(x, tokens, padded, return_dict=False)[0]
    rope = Rope(network.config.head_dim, grid[1], grid[2])
    found = network(x, drive(network, text, timesteps), whole_clip(rope, grid[0], network))
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()


@torch.no_grad()
def test_ranges_chain_to_the_whole():
    shape = SHAPES[1]
    model = reference(shape)
    whole = ours(shape, model)
    x, text, grid, timesteps = inputs(shape, True)
    rope = Rope(whole.config.head_dim, grid[1], grid[2])
    expected = whole(x, drive(whole, text, timesteps), whole_clip(rope, grid[0], whole))
    hidden = x
    held = []
    for layers in (range(0, 1), range(1, 2), range(2, 3)):
        part = ours(shape, model, layers)
        held.append({k for k in part.state_dict() if k.startswith(("blocks", "patch", "head"))})
        hidden = part(hidden, drive(part, text, timesteps), whole_clip(rope, grid[0], part), x.shape)
    assert torch.equal(hidden, expected)
    assert not held[0] & held[1] and not held[1] & held[2]
    assert not any(k.startswith(("patch", "head")) for k in held[1])


def test_attention_back_ends_say_what_they_need():
    with pytest.raises(Exception, match=r"xformers: needs a device of kind cuda, not cpu; use one of sdpa"):
        backend("xformers", "cpu", torch.float32)
    with pytest.raises(Exception, match=r"did you mean sdpa"):
        backend("spda", "cpu", torch.float32)


def test_clip_pass_is_what_whole_clip_builds():
    network = Network(Sizes())
    assert isinstance(whole_clip(Rope(16, 2, 2), 1, network), ClipPass)


@pytest.mark.parametrize("per_frame", [False, True])
def test_training_runs_the_forward_of_inference(per_frame):
    """With gradients nothing is fused or overwritten: same velocity, and every parameter learns, fused or not."""
    shape = SHAPES[1]
    network = ours(shape, reference(shape))
    x, text, grid, timesteps = inputs(shape, per_frame)
    attend = whole_clip(Rope(network.config.head_dim, grid[1], grid[2]), grid[0], network)

    def gradients():
        network.zero_grad()
        velocity = network(x, drive(network, text, timesteps), attend)
        velocity.square().mean().backward()
        return velocity.detach(), {name: p.grad.clone() for name, p in network.named_parameters()}

    trained, before = gradients()
    network.fuse()
    with torch.no_grad():
        served = network(x, drive(network, text, timesteps), attend)
    assert (served - trained).abs().max() <= 1e-5 * trained.abs().max()
    assert all(g.abs().max() > 0 for name, g in before.items() if not name.endswith(".k.bias"))
    for name, gradient in gradients()[1].items():
        assert torch.allclose(gradient, before[name], rtol=1e-4, atol=1e-7), name
    # A step of the optimiser is served at once, also by the fused product.
    with torch.no_grad():
        for p in network.parameters():
            p.mul_(0.9)
        served = network(x, drive(network, text, timesteps), attend)
        network_of_now = ours(shape, reference(shape))
        network_of_now.load_state_dict(network.state_dict())
        expected = network_of_now(x, drive(network_of_now, text, timesteps), attend)
    assert (served - expected).abs().max() <= 1e-5 * expected.abs().max()


class Between(Network):
    """With something behind its attentions that leaves the residual as it is."""

    where = ()

    def inside(self, layer, given, attend):
        return Inside(**dict.fromkeys(self.where, lambda x: x))


@pytest.mark.parametrize("where", [(), ("after_self",), ("after_text",), ("after_self", "after_text")])
@torch.no_grad()
def test_a_layer_that_is_entered_is_the_layer(where, monkeypatch):
    """Regions in two halves compute what whole ones do, bit for bit; the residual between them is float32."""
    shape = SHAPES[1]
    plain = ours(shape, reference(shape)).to(torch.bfloat16).fuse()
    entered = Between(plain.config).to(torch.bfloat16)
    entered.load_state_dict(plain.state_dict())
    x, text, grid, timesteps = inputs(shape, True)
    attend = whole_clip(Rope(plain.config.head_dim, grid[1], grid[2]), grid[0], plain)
    monkeypatch.setattr(Between, "where", where)
    found, expected = (n(x.bfloat16(), drive(n, text, timesteps), attend) for n in (entered.fuse(), plain))
    assert torch.equal(found, expected)
    seen = []
    kept = Inside(**{name: lambda x: seen.append(x.dtype) or x for name in where})
    monkeypatch.setattr(Between, "inside", lambda *of: kept)
    entered(x.bfloat16(), drive(entered, text, timesteps), attend)
    assert seen == [torch.float32] * len(where) * plain.config.layers

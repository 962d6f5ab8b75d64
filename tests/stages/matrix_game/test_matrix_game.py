"""Matrix-Game 2's forward is the one that is written straight down, and actions change what they may."""

import numpy as np
import pytest
import torch

from conf.schema import ModelConfig
from stages import compiled
from stages.denoise.denoiser import Denoiser
from stages.denoise.draws import Draws
from stages.denoise.graphs import Graphs
from stages.dit import fp8
from stages.inputs import inputs_of
from stages.models.matrix_game_2.network import Network
from stages.models.matrix_game_2.sizes import Actions, Sizes
from stages.weights import initialise
from tests.stages.denoise.tape import Replays
from tests.stages.denoise.test_share import shared
from tests.stages.matrix_game.straight_game import Game, stream

ROWS, COLUMNS, CHUNKS, C, CHANNELS = 2, 2, 10, 3, 4
SIZES = {
    "dim": 48, "ffn_dim": 80, "freq_dim": 32, "heads": 4, "layers": 3, "in_channels": CHANNELS,
    "out_channels": CHANNELS, "image_dim": 20, "image_tokens": 5,
}  # fmt: skip
ACTIONS = {"layers": [0, 1], "embedded": 12, "heads": 2, "width": 32, "turned": [4, 6, 6]}
VARIANTS = {
    "universal": ({}, {"window_frames": 6}),
    "drive": ({"keys": ["forward", "back"], "keyboard": 2}, {"window_frames": 4}),
    "run": (
        {"keys": ["none", *"abcdef"], "one": True, "keyboard": 7, "axes": [], "mouse": 0},
        {"window_frames": 6, "steps": 4, "timesteps": [1000, 750, 500, 250]},
    ),
}


def model_of(variant: str = "universal", **changes) -> ModelConfig:
    actions, settings = VARIANTS[variant]
    rules = {"context": "clean", "sampler": "renoise", "positions": "abs", "shift": 5.0}
    rules |= {"steps": 3, "timesteps": [1000, 666, 333]} | settings | changes
    return ModelConfig(network=Sizes(**SIZES, actions=Actions(**ACTIONS | actions)), **rules)


def build(model: ModelConfig, layers: range | None = None) -> Denoiser:
    network = Network(model.network, layers).eval()
    initialise(network, seed=5)
    return Denoiser(model, network, ROWS, COLUMNS)


def normal(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def noise(chunk: int, step: int) -> torch.Tensor:
    return Draws(3, "game").noise(chunk, step, (1, CHANNELS, C, 2 * ROWS, 2 * COLUMNS))


PICTURE, SEEN = normal(7, 1, CHANNELS, 5, 2 * ROWS, 2 * COLUMNS), normal(9, 1, 5, 20)


class Pressed:
    """What is pressed at every video frame of a stream, as the runtime hands it to the network."""

    def __init__(self, model: ModelConfig, seed: int = 0, frames: int = 4 * C * (CHUNKS + 1)):
        draws, a = np.random.default_rng(seed), model.network.actions
        if a.one:
            self.rows = draws.integers(0, a.keyboard, frames)
        else:
            keys, axes = draws.integers(0, 2, (frames, a.keyboard)), draws.normal(0, 0.3, (frames, a.mouse))
            self.rows = np.concatenate([keys, axes], 1).astype(float)
        self.inputs = {one.name: one for one in inputs_of(model)}

    def of(self, frames: list[int]) -> dict[str, torch.Tensor]:
        taken = self.rows[frames]
        return {one.name: one.rows(taken) for one in self.inputs.values() if one.controls}

    def given(self, chunk: int, before: bool = True) -> dict[str, torch.Tensor]:
        """Of a chunk, with what it reaches back to; frames before the stream are its first one."""
        own = range(C * chunk, C * (chunk + 1))
        picture = PICTURE[:, :, [min(f, PICTURE.shape[2] - 1) for f in own]]
        mask = self.inputs["mask"].entries(own).expand(-1, -1, -1, *picture.shape[-2:])
        first = 4 * own.start - 3
        found = self.of([max(0, t) for t in range(first, first + 4 * C)])
        earlier = self.of([max(0, t) for t in range(first - 9, first)])
        for name, rows in found.items():
            found[name] = self.inputs[name].within(rows, None if chunk == 0 and before else earlier[name])
        return {"condition": picture, "mask": mask} | found


class Run:
    """A stream, chunk by chunk, through denoisers that hold its layers one after the other."""

    def __init__(self, *denoisers: Denoiser, pressed: Pressed | None = None):
        self.parts = [(one, one.open()) for one in denoisers]
        self.sampler, self.pressed = denoisers[0].sampler, pressed or Pressed(denoisers[0].model)
        self.noise = noise
        for one, banks in self.parts:
            one.set_states(banks, {"image_rows": SEEN})

    def passed(self, chunk: int, x: torch.Tensor, step: int = -1) -> torch.Tensor:
        for one, banks in self.parts:
            given = self.pressed.given(chunk)
            x = one.commit(banks, chunk, x, given) if step < 0 else one.step(banks, step, chunk, x, given)
        return x

    def chunk(self, i: int) -> torch.Tensor:
        x = self.noise(i, 0)
        for step in range(self.sampler.steps):
            v = self.passed(i, x, step)
            x = self.sampler.update(step, x, v, self.noise(i, step + 1))
        self.passed(i, x)
        return x

    def chunks(self, count: int = 5) -> list[torch.Tensor]:
        return [self.chunk(i) for i in range(count)]


def close(found: torch.Tensor, expected: torch.Tensor) -> bool:
    return bool((found - expected).abs().max() <= 1e-5 * expected.abs().max())


@pytest.mark.parametrize("variant", VARIANTS)
@torch.no_grad()
def test_streaming_equals_the_straight_forward(variant):
    """10 chunks in which all that is pressed changes with every frame, and a window of no whole chunks."""
    model = model_of(variant)
    denoiser = build(model)
    run, a = Run(denoiser), model.network.actions
    rows = torch.as_tensor(run.pressed.rows)
    keys = torch.nn.functional.one_hot(rows, a.keyboard) if a.one else rows[:, : a.keyboard]
    net = Game(
        denoiser.network.state_dict(), 4, 3, ROWS, COLUMNS, SEEN[0], model.window_frames, a.heads, a.turned[0], keys,
        rows[:, a.keyboard :] if a.mouse else None,
    )  # fmt: skip
    levels = [5 * (k / 1000) / (1 + 4 * (k / 1000)) for k in model.timesteps]
    straight = stream(net, levels, noise, PICTURE, CHUNKS)
    assert all(close(a, b) for a, b in zip(run.chunks(CHUNKS), straight, strict=True))


@pytest.mark.parametrize("variant", VARIANTS)
@torch.no_grad()
def test_ranges_of_layers_and_what_is_made_once_change_no_bit(variant):
    model = model_of(variant)
    whole, again = Run(build(model)), Run(build(model))
    expected = whole.chunks()
    again.parts[0][0]._once = lambda *of: {}  # so that every pass makes for itself what it needs
    parts = Run(*(build(model, some) for some in (range(1), range(1, 2), range(2, 3))))
    for found in (again.chunks(), parts.chunks()):
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    banks = whole.parts[0][1]
    assert banks.once[0].room.numel() == 3 * 2 * C * 32


@torch.no_grad()
def test_a_chunk_is_changed_by_the_frames_that_it_reads_and_no_later_one():
    """The chunk of latents s to s + 2 reads to video frame 4 s + 7. Each row is one that a later chunk begins with."""
    model = model_of()
    plain = Run(build(model)).chunks(4)
    for chunk in (0, 1, 2):
        last = 4 * (C * chunk + 2) - 1
        for frame, first in ((last, chunk), (last + 1, chunk + 1)):
            other = Run(build(model))
            other.pressed.rows = other.pressed.rows.copy()
            other.pressed.rows[frame] += 0.5
            same = [torch.equal(a, b) for a, b in zip(other.chunks(4), plain, strict=True)]
            assert same == [i < first for i in range(4)], frame


@torch.no_grad()
def test_before_the_stream_its_first_row_held():
    """What is held from the first frame on may as well have been held before; nothing held before is another stream."""
    model, rest = model_of(), np.zeros(6)
    run = Run(build(model))
    run.pressed.rows[:] = run.pressed.rows[0] + 0.5
    plain = run.chunks(3)
    for lead, same in ((run.pressed.rows[0], True), (rest, False)):
        other = Run(build(model), pressed=Pressed(model))
        other.pressed.rows[:] = run.pressed.rows[0]
        given = other.pressed.given
        before = {one.name: one.rows(np.tile(lead, (12, 1))) for one in other.pressed.inputs.values() if one.controls}

        def led(chunk: int, before=before, given=given):
            found = given(chunk)
            return found if chunk else found | {n: torch.cat([t, found[n][:, 12:]], 1) for n, t in before.items()}

        other.pressed.given = led
        assert torch.equal(other.chunk(0), plain[0]) == same


@torch.no_grad()
def test_a_mouse_is_read_by_each_place_alone():
    """Without what lets places see each other, a place's latents change that place alone, in later chunks too."""

    def run(change: float) -> list[torch.Tensor]:
        denoiser = build(model_of())
        for layer in denoiser.network.blocks.values():
            for part in (layer.self_attn.o, layer.cross_attn.o, layer.ffn[2]):
                part.weight.zero_(), part.bias.zero_()
        denoiser.network.fuse()

        def noised(chunk: int, step: int) -> torch.Tensor:
            x = noise(chunk, step)
            x[..., 2:, :2] += change * (chunk == 0)  # the second row's first place, where the stream begins
            return x

        found = Run(denoiser)
        found.noise = noised
        return found.chunks(3)

    place = torch.zeros(2 * ROWS, 2 * COLUMNS, dtype=torch.bool)
    place[2:, :2] = True
    for changed in ((a - b).abs().amax((0, 1, 2)) > 0 for a, b in zip(run(0.0), run(0.5), strict=True)):
        assert torch.equal(changed, place)


@pytest.mark.parametrize(("variant", "size"), [("universal", 2), ("drive", 4), ("run", 2)])
def test_a_shared_stream_equals_one_alone(variant, size):
    """Each member has the mouse's history of its own places, and all of the keyboard's."""
    model = model_of(variant)

    def stream(share=None) -> tuple[list, dict[str, int]]:
        denoiser = build(model)
        denoiser.share = share or denoiser.share
        run = Run(denoiser)
        found = [run.passed(i, noise(i, max(step, 0)), step) for i in range(4) for step in (*range(3), -1)]
        bank = run.parts[0][1].banks[0]
        return found, {name: one.nbytes for name, one in bank.adapters.items()}

    alone, whole = stream()
    (found, part), *others = shared(size, stream)
    assert all(close(a, b) for a, b in zip(found, alone, strict=True))
    assert all(x is None for xs, _ in others for x in xs)
    assert part == {name: n // (size if name == "mouse" else 1) for name, n in whole.items()}
    latents = model.window_frames
    entries = {"keyboard": 1, "mouse": ROWS * COLUMNS}
    assert whole == {name: 2 * latents * entries[name] * 2 * 32 * 4 for name in whole}


@torch.no_grad()
def test_compiled_regions_are_few_and_change_nothing():
    from torch._dynamo.utils import counters

    torch._dynamo.reset()
    counters.clear()
    compiled.compiled.cache_clear()
    expected, ours = Run(build(model_of())).chunks(2), build(model_of())
    compiled.compile_network(ours.network, backend="aot_eager")
    assert all(close(a, b) for a, b in zip(Run(ours).chunks(2), expected, strict=True))
    # Of a layer with a part for actions five, of one without three, the first of which they share; a product that is
    # added is the same behind both attentions.
    assert counters["stats"]["unique_graphs"] == 8 and not counters["graph_break"]
    torch._dynamo.reset()


@torch.no_grad()
def test_eight_bit_products_are_close():
    """Products of a mouse's part are among them, where their widths are sixteens."""
    exact, ours = build(model_of()), build(model_of())
    fp8.quantise(ours.network, "per_row")
    assert isinstance(ours.network.module(0).t_qkv, fp8.ScaledLinear)
    (a,), (b,) = Run(exact).chunks(1), Run(ours).chunks(1)
    assert 0 < (a - b).abs().mean() < 0.1 * a.abs().mean()


def test_steps_are_the_published_ones():
    """Levels of a table in float32, looked up; timesteps are not rounded any further."""
    table = torch.linspace(1, 0, 1001)
    table = 5 * table / (1 + 4 * table)
    for variant in ("universal", "run"):
        model = model_of(variant)
        expected = [(float(1000 * table[1000 - k]), float(table[1000 - k])) for k in model.timesteps]
        found = build(model).schedule.steps
        assert [(step.timestep, step.sigma) for step in found] == expected
        assert all(step.renoised == step.sigma for step in found)
    assert expected[1:3] == [(937.5, 0.9375), (833.3333129882812, 0.8333333134651184)]


@pytest.mark.parametrize("variant", ["universal", "drive"])
def test_recorded_passes_are_the_same(variant):
    """What a graph finds again: keys that were made for the chunk, and histories whose slots turn with the window's."""
    plain, ours = build(model_of(variant)), build(model_of(variant))
    ours.runner = Graphs(Replays())
    expected = Run(plain).chunks(CHUNKS)
    assert all(torch.equal(a, b) for a, b in zip(Run(ours).chunks(CHUNKS), expected, strict=True))
    assert ours.runner.recorded == (plain.sampler.steps + 1) * {"universal": 2, "drive": 4}[variant]

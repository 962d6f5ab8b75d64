"""LingBot-World's forward is the one that is written straight down, and nothing of a camera is made twice."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from benchmarks.counting import count
from conf.schema import ModelConfig
from runtime.rule_costs import Counting
from stages.denoise.denoiser import Denoiser
from stages.denoise.draws import Draws
from stages.denoise.graphs import Graphs
from stages.inputs import Views, inputs_of
from stages.models.lingbot.moves import CONTROLS, moved
from stages.models.lingbot.network import Network
from stages.models.lingbot.sizes import Sizes
from stages.weights import initialise
from tests.stages.denoise.tape import Replays
from tests.stages.denoise.test_share import shared
from tests.stages.lingbot.straight_world import SIZE, Stream, World

ROWS, COLUMNS, CHUNKS, C = 2, 4, 10, 3
SIZES = {"dim": 48, "ffn_dim": 80, "heads": 4, "layers": 3, "in_channels": 4, "out_channels": 4, "text_dim": 16}
KEPT = ("terms", "state", "nothing")
LENS = np.array([470.0, 500.0, 410.0, 233.0])


def model_of(control: str = "cam", **changes) -> ModelConfig:
    sizes = {name: changes.pop(name) for name in ("camera_kept",) if name in changes}
    settings = {"window_frames": 60, "positions": "abs", "steps": 4, "timesteps": [1000.0, 821.0, 642.0, 321.0]}
    settings |= {"context": "clean", "sampler": "renoise", "shift": 10.0, "translation_scale": 0.2}
    return ModelConfig(network=Sizes(**SIZES, control=control, **sizes), **settings | changes)


def build(model: ModelConfig, layers: range | None = None) -> Denoiser:
    network = Network(model.network, layers).eval()
    initialise(network, seed=5)
    return Denoiser(model, network, ROWS, COLUMNS)


def normal(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def noise(chunk: int, step: int) -> torch.Tensor:
    return Draws(3, "world").noise(chunk, step, (1, 4, C, 2 * ROWS, 2 * COLUMNS))


TEXT, OTHER = normal(9, 1, 5, 16), normal(10, 1, 3, 16)
PICTURE = normal(7, 1, 4, 5, 2 * ROWS, 2 * COLUMNS)
"""Latents of a picture and of what follows it; the last of them holds for ever."""


class Drive:
    """What a world is driven by: keys of every video frame, and the poses that they give."""

    def __init__(self, model: ModelConfig, seed: int = 0, frames: int = 4 * C * CHUNKS):
        draws = np.random.default_rng(seed)
        # A key is held for some frames, and several may be.
        pressed = draws.random((frames // 6 + 1, len(CONTROLS.keys))).repeat(6, 0)[:frames] > 0.6
        self.rows = [tuple(row) for row in pressed.astype(float).tolist()]
        self.poses = np.stack(self._poses())
        self.inputs = {one.name: one for one in inputs_of(model)}

    def _poses(self) -> list[np.ndarray]:
        found = [np.eye(4)]
        for row in self.rows[:-1]:
            found.append(moved(found[-1], row))
        return found

    def camera(self, chunk: int) -> torch.Tensor:
        at = [max(0, frame) for frame in range(4 * C * chunk - 4, 4 * C * (chunk + 1) - 3)]
        lens = np.tile(LENS / (*SIZE, *SIZE), (len(at), 1))
        return self.inputs["camera"].rows(Views(self.poses[at], lens, [self.rows[f] for f in at[1:]]))

    def given(self, chunk: int) -> dict[str, torch.Tensor]:
        own = range(C * chunk, C * (chunk + 1))
        picture = PICTURE[:, :, [min(f, PICTURE.shape[2] - 1) for f in own]]
        mask = self.inputs["mask"].entries(own).expand(-1, -1, -1, *picture.shape[-2:])
        return {"condition": picture, "mask": mask, "camera": self.camera(chunk)}


class Run:
    """A stream, chunk by chunk, through denoisers that hold its layers one after the other."""

    def __init__(self, *denoisers: Denoiser, drive: Drive | None = None, again: bool = False):
        self.parts = [(one, one.open()) for one in denoisers]
        self.sampler, self.again = denoisers[0].sampler, again
        self.drive = drive or Drive(denoisers[0].model)
        self.say(TEXT)

    def say(self, text: torch.Tensor) -> None:
        for one, banks in self.parts:
            one.set_states(banks, {"text": text})

    def passed(self, chunk: int, x: torch.Tensor, step: int = -1) -> torch.Tensor:
        for one, banks in self.parts:
            if self.again:
                banks.once[0].clear()
            given = self.drive.given(chunk)
            x = one.commit(banks, chunk, x, given) if step < 0 else one.step(banks, step, chunk, x, given)
        return x

    def chunk(self, i: int) -> torch.Tensor:
        x = noise(i, 0)
        for step in range(self.sampler.steps):
            v = self.passed(i, x, step)
            x = self.sampler.update(step, x, v, noise(i, step + 1))
        self.passed(i, x)
        return x

    def chunks(self, count: int = CHUNKS) -> list[torch.Tensor]:
        return [self.chunk(i) for i in range(count)]


@pytest.mark.parametrize(
    ("control", "window", "sink"), [("cam", 60, 0), ("act", 60, 0), ("cam", 12, 3), ("act", 15, 6)]
)
@torch.no_grad()
def test_streaming_equals_the_straight_forward(control, window, sink):
    """10 chunks in which keys change all the time, with and without a window."""
    model = model_of(control, window_frames=window, sink_frames=sink)
    denoiser = build(model)
    run = Run(denoiser)
    rows = torch.cat([TEXT[0], torch.zeros(model.network.text_tokens - 5, 16)])
    net = World(denoiser.network.state_dict(), 4, 3, ROWS, COLUMNS, rows)
    mask = torch.zeros(1, 4, 5, 2 * ROWS, 2 * COLUMNS)
    mask[:, :, 0] = 1
    keys = np.array(run.drive.rows)[:, :4] if control == "act" else None
    straight = Stream(
        net, [tuple(step) for step in denoiser.schedule.steps], noise, run.drive.poses, LENS, keys,
        torch.cat([mask, PICTURE], 1), window, sink, 0.2,
    )  # fmt: skip
    for found, expected in zip(run.chunks(), straight.run(CHUNKS), strict=True):
        assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()


@pytest.mark.parametrize("control", ["cam", "act"])
@torch.no_grad()
def test_what_is_made_once_is_what_every_pass_would_make(control):
    """Whatever is kept between passes, in the whole network or a part of it, the latents are the same bits."""
    model = model_of(control, window_frames=12, sink_frames=3)
    expected = Run(build(model)).chunks(6)
    ranges = range(0, 2), range(2, 3)
    for kept in KEPT:
        model = model_of(control, window_frames=12, sink_frames=3, camera_kept=kept)
        runs = Run(build(model)), Run(build(model), again=True), Run(*(build(model, some) for some in ranges))
        for found in (run.chunks(6) for run in runs):
            assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
        (denoiser, banks), *_ = runs[0].parts
        room = banks.once[0].room.nbytes
        assert room == 3 * {"terms": 2, "state": 1, "nothing": 0}[kept] * C * ROWS * COLUMNS * 48 * 4
        assert denoiser.stream_bytes == banks.banks[0].nbytes + room


@pytest.mark.parametrize("kept", KEPT)
@torch.no_grad()
def test_later_passes_of_a_chunk_have_no_product_of_a_camera(kept):
    denoiser = build(model_of(camera_kept=kept))
    counted: Counter[str] = Counter()

    def count(name: str):
        return lambda *_: counted.update([name])

    for name, module in denoiser.network.named_modules():
        if isinstance(module, nn.Linear) and ("cam_" in name or "c2ws" in name or "wancamctrl" in name):
            kind = "terms" if name.endswith(("scale_layer", "shift_layer")) else "state"
            module.register_forward_hook(count(kind if "blocks" in name else "all"))
    run, x = Run(denoiser), noise(0, 0)
    passes = []
    for chunk in range(2):
        for step in (*range(4), -1):
            counted.clear()
            run.passed(chunk, x, step)
            passes.append(dict(counted))
    every = {"all": 3, "state": 3 * 2, "terms": 3 * 2}
    later = {"terms": {}, "state": {"terms": 3 * 2}, "nothing": every}[kept]
    assert passes == [every, *[later] * 4] * 2


@pytest.mark.parametrize("kept", KEPT)
@torch.no_grad()
def test_operations_are_those_that_plans_count(kept):
    """In a pass and, on top, in a chunk's first; what tokens enter and leave by is no part of a layer."""
    denoiser = build(model_of("act", camera_kept=kept))
    run, sizes, new, d = Run(denoiser), denoiser.model.network, C * ROWS * COLUMNS, 48
    first, later = (count(lambda step=step: run.passed(0, noise(0, 0), step)).linear for step in range(2))
    attention = 3 * 4 * new * d * (new + sizes.text_tokens)
    ends = 2 * new * d * 4 * (sum(sizes.beside.values()) + 4 + 4)
    state = 2 * new * (2 * d * d + d * sizes.ray_values)
    every = 0 if kept == "nothing" else state
    assert later == sum(sizes.layer_flops(new, new)) - attention + ends + state - every
    assert first - later == sum(sizes.once_flops(new)) + every
    cost = Counting(denoiser.model, ROWS * COLUMNS, 4).chunk()
    assert cost.chunk.flops == 4 * cost.step.whole.flops + cost.commit.whole.flops + sum(sizes.once_flops(new))


@torch.no_grad()
def test_a_pose_changes_what_is_made_from_its_latent_frame_on():
    """Latent frame L reads the poses of video frames 4 L - 4 and 4 L, and of others none; and so does its chunk."""
    run = Run(build(model_of()))
    plain = run.chunks(4)
    for frame, first in ((25, None), (24, 2), (28, 2), (32, 2), (36, 3)):
        other = Run(build(model_of()))
        other.drive.poses = other.drive.poses.copy()
        other.drive.poses[frame, 0, 3] += 0.5
        same = [torch.equal(a, b) for a, b in zip(other.chunks(4), plain, strict=True)]
        assert same == [first is None or i < first for i in range(4)], frame


@torch.no_grad()
def test_a_key_is_told_with_its_own_latent_frame():
    """Of what is pressed latent frame L is told that of video frame 4 L; of other frames it is told what they move."""
    plain = Run(build(model_of("act"))).chunks(3)
    for frame, first in ((23, None), (25, None), (24, 2), (20, 1)):
        other = Run(build(model_of("act")))
        other.drive.rows[frame] = tuple(1 - key for key in other.drive.rows[frame])
        same = [torch.equal(a, b) for a, b in zip(other.chunks(3), plain, strict=True)]
        assert same == [first is None or i < first for i in range(3)], frame


@torch.no_grad()
def test_a_prompt_leaves_the_camera_alone():
    """What is made of a camera is none of a prompt's, and stays where it is; latents change from the chunk on."""
    run, other = Run(build(model_of())), Run(build(model_of()))
    plain = run.chunks(4)
    found = [other.chunk(i) for i in range(2)]
    once = other.parts[0][1].once[0]
    address = once.room.data_ptr()
    other.say(OTHER)
    found += [other.chunk(i) for i in range(2, 4)]
    assert [torch.equal(a, b) for a, b in zip(found, plain, strict=True)] == [True, True, False, False]
    assert once.room.data_ptr() == address and torch.equal(once.room, run.parts[0][1].once[0].room)


@torch.no_grad()
def test_a_prompt_that_runs_a_window_again_does_so_with_its_cameras():
    """Several chunks in one pass have nothing that was made for each of them, and make the same."""
    model = model_of(window_frames=12, sink_frames=3, prompt_switch="recache")
    found = {}
    for kept in KEPT:
        run = Run(build(replace(model, network=replace(model.network, camera_kept=kept))))
        past = run.chunks(5)
        (denoiser, banks), chunks = run.parts[0], denoiser_recached(run)
        given = [run.drive.given(i) for i in chunks]
        joined = {name: torch.cat([g[name] for g in given], 1 if name == "camera" else 2) for name in given[0]}
        denoiser.recache(banks, 5, torch.cat([past[i] for i in chunks], 2), joined)
        found[kept] = run.chunk(5)
    assert all(torch.equal(found["terms"], other) for other in found.values())


def denoiser_recached(run: Run) -> range:
    return run.parts[0][0].schedule.recached(5)


@pytest.mark.parametrize("kept", KEPT)
@torch.no_grad()
def test_recorded_passes_find_a_chunks_camera_where_that_of_the_chunk_before_was(kept):
    recorder, model = Replays(), model_of(window_frames=12, sink_frames=3, camera_kept=kept)
    denoiser = build(model)
    denoiser.runner = Graphs(recorder, must=True)
    found, expected = Run(denoiser).chunks(), Run(build(model)).chunks()
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    assert recorder.replayed > recorder.recorded > 0


@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize("kept", ["terms", "nothing"])
def test_a_shared_stream_equals_one_alone(size, kept):
    """Each member has the cameras of its own tokens."""
    model = model_of("act", window_frames=12, sink_frames=3, camera_kept=kept)

    def stream(share=None) -> tuple[list, int]:
        denoiser = build(model)
        denoiser.share = share or denoiser.share
        run = Run(denoiser)
        found = []
        for i in range(5):
            for step in (*range(4), -1):
                found.append(run.passed(i, noise(i, max(step, 0)), step))
        return found, denoiser.stream_bytes

    alone, whole = stream()
    (found, part), *others = shared(size, stream)
    assert part * size == whole and all(x is None for xs, _ in others for x in xs)
    assert all((a - b).abs().max() <= 1e-5 * a.abs().max() for a, b in zip(alone, found, strict=True))

"""A new prompt that makes the bank anew: the same under every plan, and what a straight recomputation gives."""

from itertools import product

import pytest
import torch
from safetensors.torch import load_file

from conf.schema import ModelConfig
from stages.build import build_network
from stages.denoise.denoiser import Denoiser
from stages.denoise.finished import Finished
from stages.denoise.rope import rotate
from stages.denoise.sampler import zero_timestep
from stages.dit.network import Drive
from stages.inputs import inputs_of, with_chunk
from tests.helpers import config_of, sampled
from tests.patience import PATIENT_S
from tests.runtime.test_pipeline import Running

SIZES = ("model.context=clean", "model.prompt_switch=recache", "model.sampler=renoise")
MODELS = {
    "longlive": ("model.reference=false", "model.positions=abs", "model.sink_frames=3"),
    "no sink": ("model.reference=false", "model.positions=abs", "model.window_frames=6"),
    "all at once": ("model.sink_frames=3", "model.window_frames=9", "model.recalibrate_chunk=5"),
}
EVENTS = "stream.events=[{chunk: 1, prompt: early}, {chunk: 5, prompt: later}, {chunk: 6, prompt: third}]"
BASE = ("stream.chunks=8", "stream.prompt=hello", EVENTS, *SIZES)
PLANS = {
    "timestep": ("plan=timestep",),
    "timestep on 3": ("plan=timestep", "plan.workers=3"),
    "layers": ("plan=layers", "plan.layers=[3,2,1]"),
    "grid": ("plan=grid",),
    "grid uneven": ("plan=grid", "plan.steps=[3,1]", "plan.layers=[1,5]"),
}


@pytest.fixture(scope="module")
def oracle():
    return {}


@pytest.mark.parametrize(
    ("plan", "model"),
    sampled(product(PLANS, MODELS), {*product(("timestep", "grid uneven"), MODELS), *product(PLANS, ["all at once"])}),
)
def test_exact(nano, oracle, plan, model):
    if model not in oracle:
        oracle[model] = nano(*BASE, *MODELS[model])
    assert nano(*BASE, *MODELS[model], *PLANS[plan]) == oracle[model]


def latents_of(job, *overrides: str) -> list[torch.Tensor]:
    path = job.folder.parent / "latents.safetensors"
    job("model=nano", "sink.video=null", f"sink.latents={path}", *overrides)
    return [latents.clone() for _, latents in sorted(load_file(path).items())]


def test_it_takes_effect_with_the_prompt_and_is_more_than_the_text(job):
    base = ("stream.chunks=6", *SIZES, *MODELS["longlive"])
    event, plain = "stream.events=[{chunk: 4, prompt: new}]", "model.prompt_switch=text_only"
    without, anew, text = (latents_of(job, *base, *o) for o in ((), (event,), (event, plain)))
    assert [torch.equal(a, b) for a, b in zip(without, anew, strict=True)] == [True] * 4 + [False] * 2
    assert [torch.equal(a, b) for a, b in zip(text, anew, strict=True)] == [True] * 4 + [False] * 2


def test_processes_that_share_passes_give_the_same_within_rounding(job):
    base = ("stream.chunks=6", "stream.events=[{chunk: 2, prompt: a}, {chunk: 5, prompt: b}]", *SIZES)
    alone = latents_of(job, *base, *MODELS["longlive"])
    shared = latents_of(job, *base, *MODELS["longlive"], "plan=layers", "plan.workers=3", "plan.sequence_parallel=2")
    assert max(float((a - b).abs().max()) for a, b in zip(alone, shared, strict=True)) <= 1e-4


@pytest.mark.parametrize(("saved", "resumed"), [("sequential", "grid"), ("grid", "layers"), ("timestep", "sequential")])
def test_what_is_run_again_is_part_of_a_state(job, oracle, tmp_path, saved, resumed):
    """A prompt begins at the very chunk that a stream goes on with, and one behind it."""
    base = ("model=nano", "sink.video=null", *BASE, *MODELS["all at once"])
    plans = {"sequential": (), **PLANS}
    if "state" not in oracle:
        oracle["state"] = job(*base)["latents_sha256"]
    job(*base, *plans[saved], "stream.chunks=6", "stream.save_every_chunks=5")
    where = (job.folder / "state" / "chunk.000005").rename(tmp_path / "kept")
    assert job(*base, *plans[resumed], f"resume={where}")["latents_sha256"] == oracle["state"]


def test_a_model_that_a_prompt_alone_drives_runs_again_in_every_block(job, tmp_path):
    """What a later block keeps of a chunk is then nothing at all; the chunk can be run again all the same."""
    alone = ("model.network.audio=null", "model.network.actions=[]", "model.reference=false")
    base = ("model=nano", "sink.video=null", *BASE, *alone)
    expected = job(*base)["latents_sha256"]
    job(*base, "plan=layers", "stream.chunks=6", "stream.save_every_chunks=4")
    where = (job.folder / "state" / "chunk.000004").rename(tmp_path / "kept")
    assert job(*base, "plan=layers", f"resume={where}")["latents_sha256"] == expected


@pytest.mark.parametrize("plan", ["layers", "grid"])
def test_streams_that_are_cancelled_while_prompts_change_disturb_nobody(nano, tmp_path, plan):
    size = [*SIZES, *MODELS["longlive"]]
    alone = nano(*size, "stream.id=a", "stream.chunks=6", EVENTS)
    with Running(tmp_path, *size, EVENTS, *PLANS[plan]) as running:
        endless = [running.open(f"x{i}", None) for i in range(3)]
        stays = running.open("a", 6)
        for chunks in range(2, 5):
            for stream in endless:
                running.until(stream, chunks)
                running.pipeline.prompt(stream, f"prompt {chunks}")
        for stream in endless:
            running.pipeline.cancel(stream)
        for stream in endless:
            running.pipeline.wait(stream, PATIENT_S)
        assert running.hash(stays) == alone
        assert running.hash(running.open("a", 6)) == alone


# -- a straight recomputation --------------------------------------------------------------------------------------

ROWS, COLUMNS = 2, 3


class Straight:
    """Self-attention of one forward over frames that see each other, and keys given beside them; keeps its own."""

    def __init__(self, table: torch.Tensor, beside: dict[int, tuple[torch.Tensor, torch.Tensor]]):
        self.table, self.beside = table, beside
        self.kept: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def __call__(self, layer, q, k, v):
        k = rotate(k, self.table)
        self.kept[layer] = k, v
        if layer in self.beside:
            k, v = (torch.cat([old, new], 1) for old, new in zip(self.beside[layer], (k, v), strict=True))
        scores = torch.einsum("bqhd,bkhd->bhqk", rotate(q, self.table).double(), k.double()) * q.shape[-1] ** -0.5
        return torch.einsum("bhqk,bkhd->bqhd", scores.softmax(-1), v.double()).to(v)


@pytest.mark.parametrize("chunk", [1, 3, 4, 6], ids=lambda n: f"{n} chunks")
@pytest.mark.parametrize("sink", [0, 3])
def test_a_bank_is_what_one_fresh_forward_over_its_frames_gives(sink, chunk):
    """Clean latents once more, all at once, with the new text; the attention sink's too while all are in the window."""
    model: ModelConfig = config_of(
        "model=nano", *SIZES, "model.reference=false", "model.positions=abs", "model.network.audio=null",
        f"model.sink_frames={sink}", "model.window_frames=12",
    ).model  # fmt: skip
    network = build_network(model, torch.device("cpu"))
    denoiser = Denoiser(model, network, ROWS, COLUMNS)
    g = torch.Generator().manual_seed(chunk)

    def normal(*shape):
        return torch.randn(*shape, generator=g)

    old, new = normal(1, 5, 32), normal(1, 3, 32)
    clean = [normal(1, 16, 3, 2 * ROWS, 2 * COLUMNS) for _ in range(chunk)]
    given = [{"actions": normal(1, 3, 20)} for _ in range(chunk)]
    banks, finished = denoiser.open(), Finished(model.recache_chunks, with_chunk(inputs_of(model)))
    denoiser.set_states(banks, {"text": old})
    for i, (x, c) in enumerate(zip(clean, given, strict=True)):
        denoiser.step(banks, 0, i, normal(*x.shape), c)
        denoiser.commit(banks, i, x, c)
        finished.add(i, x, c)
    assert len(finished.chunks) == min(chunk, 4)
    bank, n, layout = banks.banks[0], ROWS * COLUMNS, denoiser.layout
    before = {i: (bank.keys[i][:, : sink * n].clone(), bank.values[i][:, : sink * n].clone()) for i in bank.keys}

    denoiser.set_states(banks, {"text": new})
    denoiser.recache(banks, chunk, *finished.joined(denoiser.schedule.recached(chunk)))

    dropped = chunk > 4
    frames = range(3 * chunk - (12 - sink), 3 * chunk) if dropped else range(3 * chunk)
    assert denoiser.schedule.recached(chunk) == range(frames.start // 3, chunk)
    straight = Straight(denoiser.rope.table(frames), before if dropped and sink else {})
    with torch.no_grad():
        actions = torch.cat([c["actions"] for c in given], 1)[:, frames.start :]
        terms = network.time_terms(network.time_embeddings(zero_timestep()), actions)
        x = torch.cat(clean, 2)[:, :, frames.start :]
        network(x, Drive(terms, network.text_states(new)), straight)
    for layer, kept in straight.kept.items():
        for buffer, fresh in zip((bank.keys[layer], bank.values[layer]), kept, strict=True):
            for place, frame in enumerate(frames):
                found = buffer[:, layout.span(layout.slot(frame), 1)]
                assert (found - fresh[:, place * n : (place + 1) * n]).abs().max() <= 1e-5
        if dropped:
            assert torch.equal(bank.keys[layer][:, : sink * n], before[layer][0])
            assert torch.equal(bank.values[layer][:, : sink * n], before[layer][1])
        elif sink and layer:
            assert not torch.equal(bank.keys[layer][:, : sink * n], before[layer][0])


@pytest.mark.parametrize(
    ("name", "window", "sink", "switch"),
    [("self_forcing", 21, 0, "text_only"), ("longlive", 12, 3, "recache"), ("krea", 6, 0, "text_only")],
)
def test_published_settings(name, window, sink, switch):
    model = config_of(f"experiment={name}").model
    assert (model.window_frames, model.sink_frames, model.prompt_switch) == (window, sink, switch)
    assert (model.chunk_frames, model.timesteps, model.shift) == (3, [1000, 750, 500, 250], 5.0)
    assert (model.context, model.sampler, model.positions) == ("clean", "renoise", "abs")
    assert model.network.layers == (40 if name == "krea" else 30)
    overridden = config_of(f"experiment={name}", "model.window_frames=18").model
    assert overridden.window_frames == 18

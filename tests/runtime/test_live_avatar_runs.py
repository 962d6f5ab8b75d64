"""`live_avatar_14b` at a small width: plans are exact and workers hold their own, sound and pictures fit."""

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from benchmarks.live_avatar import SMALL
from parallel.builders import build
from runtime.conditioning import Conditioning
from runtime.encoders import Encoders
from runtime.outputs import Outputs
from runtime.workload import describe
from stages.build import build_decoder, build_input_encoder, build_network, build_wav2vec
from stages.inputs import inputs_of, made_of
from tests.checkpoints import s2v_config, write_folder
from tests.helpers import config_of, thorough, write_wav

BASE = (*SMALL, "stream.chunks=7", "stream.prompt=hello", "stream.events=[{chunk: 5, prompt: other}]")
PLANS = {
    "timestep on 5": ("plan=timestep", "plan.workers=5"),
    "timestep on 4": ("plan=timestep", "plan.workers=4"),
    "timestep on 3": ("plan=timestep", "plan.workers=3"),
    "timestep on 2": ("plan=timestep", "plan.workers=2"),
    "timestep on 1": ("plan=timestep", "plan.workers=1"),
    "layers": ("plan=layers", "plan.layers=[1,3,2]"),
    "grid": ("plan=grid", "plan.grid=[2,2]"),
}


@pytest.fixture(scope="module")
def speech(tmp_path_factory):
    t = np.arange(4 * 16000) / 16000
    sound = 0.3 * np.sin(2 * np.pi * 200 * t) * (1 + np.sin(2 * np.pi * 2 * t)) / 2
    return write_wav(tmp_path_factory.mktemp("sound") / "speech.wav", sound)


@pytest.fixture(scope="module")
def oracle():
    return {}


@pytest.mark.parametrize("plan", [*map(thorough, list(PLANS)[1:5]), *list(PLANS)[:1], *list(PLANS)[5:]])
def test_every_plan_is_exact_and_holds_its_own(job, oracle, speech, plan):
    base = (*BASE, f"source.audio={speech}", "sink.video=null")
    if not oracle:
        oracle["sha"] = job(*base)["latents_sha256"]
    report = job(*base, *PLANS[plan])
    assert report["latents_sha256"] == oracle["sha"]
    config = config_of(*base, *PLANS[plan], "output_dir=x")
    owed = build(config.plan, describe(config))
    assert list(report["weight_bytes"].values()) == [owed.weight_bytes(m.worker, m.rank) for m in owed.members]


def test_shared_passes_are_the_oracles_within_rounding(job, tmp_path, speech):
    """Motion tokens are no whole frames, and yet divide."""
    found = []
    for name, plan in (("one", ()), ("two", ("plan=timestep", "plan.steps=[2,2]", "plan.sequence_parallel=2"))):
        file = tmp_path / f"{name}.safetensors"
        report = job(*BASE, f"source.audio={speech}", "sink.video=null", f"sink.latents={file}", *plan)
        found.append((load_file(file), report))
    (one, alone), (two, shared) = found
    assert all((one[key] - two[key]).abs().max() <= 1e-5 for key in one) and len(two) == 7
    assert len(shared["bank_bytes"]) == 4
    assert sum(shared["bank_bytes"].values()) == sum(alone["bank_bytes"].values())


def test_recalibration_holds_from_its_chunk_on(job, tmp_path):
    files = [tmp_path / f"{name}.safetensors" for name in ("with", "without")]
    job(*BASE, "sink.video=null", f"sink.latents={files[0]}")
    job(*BASE, "sink.video=null", f"sink.latents={files[1]}", "model.recalibrate_chunk=null")
    one, other = map(load_file, files)
    assert [torch.equal(one[key], other[key]) for key in sorted(one)] == [True] * 4 + [False] * 3


def test_the_decoder_has_seen_the_still_picture(job, tmp_path, monkeypatch):
    """Every chunk is 12 frames, the first too; what the priming made is not shown. Alone or on a worker of its own."""
    shown, write = [], Outputs.pictures

    def pictures(self, frames, sound):
        shown.append(torch.as_tensor(frames))
        assert len(sound) == 12 * 16000 // 25
        write(self, frames, sound)

    monkeypatch.setattr(Outputs, "pictures", pictures)
    overrides, file = (*SMALL, "stream.chunks=2"), tmp_path / "latents.safetensors"
    report = job(*overrides, f"sink.latents={file}")
    assert report["frames"] == 24
    assert job(*overrides, "plan=timestep", "plan.workers=5")["frames"] == 24
    alone, placed = torch.cat(shown[:2]), torch.cat(shown[2:])
    assert torch.equal(alone, placed)

    config = config_of(*SMALL)
    decoder, latents = build_decoder(config.model, torch.device("cpu")), load_file(file)
    motion = conditioning_of(config).sink()["motion"]
    frames = decoder(torch.cat([motion[:, :, :7], *(latents[k] for k in sorted(latents))], 2), decoder.start())
    assert frames.shape[2] == 25 + 24
    expected = ((frames[0, :, 25:] + 1) * 127.5).permute(1, 2, 3, 0)
    assert (alone.float() - expected).abs().max() <= 0.51


def hearing(model) -> torch.nn.Module:
    return build_input_encoder(model, made_of(inputs_of(model), "audio"))


def conditioning_of(config) -> Conditioning:
    return Conditioning(config.model, config.stream, config.source, Encoders(config.model, torch.device("cpu")))


def test_given_tensors_replace_what_would_be_drawn_heard_and_encoded(job, tmp_path, speech, monkeypatch):
    """All that a run used, given as tensors, reproduces it without an encoder; each tensor alone matters."""
    base = (*SMALL, "stream.chunks=6", "sink.video=null")
    expected = job(*base, "stream.prompt=hello", f"source.audio={speech}")["latents_sha256"]
    conditioning = conditioning_of(config_of(*base, "stream.prompt=hello", f"source.audio={speech}"))
    given = {
        "context": conditioning.states(0)["text"],
        "reference_latent": conditioning.sink()["reference"],
        "motion_latents": conditioning.sink()["motion"],
        "sink_distance": torch.tensor([[conditioning.distance(i, s) for s in range(4)] for i in range(6)]),
    }
    for i in range(6):
        given[f"noise.{i:06d}.step.0"] = conditioning.noise(i, 0)
        states = torch.from_numpy(conditioning.sound.frames(12))
        given[f"audio_features.{i:06d}"] = states.permute(1, 2, 0)[None]
    assert given["audio_features.000003"].shape == (1, 3, 16, 12) and given["motion_latents"].shape[2] == 19
    path = tmp_path / "given.safetensors"

    def sha(**changed: torch.Tensor) -> str:
        save_file({k: v.contiguous().clone() for k, v in (given | changed).items()}, path)
        return job(*base, f"source.tensors={path}", "stream.seed=77")["latents_sha256"]

    for name in ("build_encoder", "build_text_encoder"):
        monkeypatch.setattr(f"runtime.encoders.{name}", None)
    monkeypatch.setattr("stages.build.encoders.build_wav2vec", None)
    assert sha() == expected
    for key in ("context", "reference_latent", "motion_latents", "noise.000004.step.0", "audio_features.000003"):
        assert sha(**{key: given[key] + 0.5}) != expected
    assert sha(sink_distance=given["sink_distance"].clamp(max=29) + 1) != expected
    pose = {"pose_latents.000002": torch.ones(1, 16, 3, 8, 8)}
    assert sha(**pose) != expected
    # A pose reaches the first block alone, wherever it is.
    assert sha(**pose) == job(*base, f"source.tensors={path}", "stream.seed=77", "plan=grid")["latents_sha256"]


def test_a_saved_stream_goes_on_before_its_recalibration(job, tmp_path, speech):
    """Under another plan, with the sound heard so far, the decoder's state, and motion frames for the recalibration."""
    base = (*SMALL, "model.recalibrate_chunk=3", f"source.audio={speech}", f"sink.video={tmp_path / 'a.mp4'}")
    expected = job(*base, "stream.chunks=5")
    job(*base, "plan=timestep", "stream.chunks=3", "stream.save_every_chunks=2", f"output_dir={tmp_path / 'saved'}")
    again = (*base, "plan=grid", "stream.chunks=5", f"resume={tmp_path / 'saved'}", f"sink.video={tmp_path / 'b.mp4'}")
    report = job(*again)
    assert report["latents_sha256"] == expected["latents_sha256"]
    assert report["state"]["resumed_at"] == 2


def test_a_published_folder_loads_wherever_a_plan_puts_its_parts(job, tmp_path, speech):
    """The random weights under their published names, in shards, with sizes, VAE and wav2vec2 in their places."""
    config = config_of(*SMALL)
    network, encoder = build_network(config.model, torch.device("cpu")), hearing(config.model)
    weights = network.state_dict()
    weights |= {f"casual_audio_encoder.{name}": tensor for name, tensor in encoder.state_dict().items()}
    sizes = {"dim": 48, "ffn_dim": 96, "num_heads": 4, "num_layers": 6, "freq_dim": 32, "text_dim": 16, "text_len": 8}
    said = s2v_config(**sizes, audio_inject_layers=[0, 2, 5], audio_dim=16)
    folder = write_folder(tmp_path / "model", said, {k: v.contiguous() for k, v in weights.items()}, shards=3, vae=2)
    build_wav2vec(config.model, config.model.network.audio.wav2vec).model.save_pretrained(
        folder / "wav2vec2-large-xlsr-53-english"
    )
    save_file({"context": torch.ones(1, 3, 16)}, tmp_path / "text.safetensors")
    base = ("stream.chunks=5", "sink.video=null", f"source.tensors={tmp_path / 'text.safetensors'}")
    base = (*base, f"source.audio={speech}", f"model.codec.checkpoint={folder / 'Wan2.1_VAE.pth'}")
    expected = job(*SMALL, *base)["latents_sha256"]
    # All other sizes are the folder's to say.
    told = ("model=live_avatar_14b", "model.dtype=float32", "model.network.audio.wav2vec.layers=3", *SMALL[-2:])
    assert job(*told, *base[:-1], f"model.checkpoint={folder}", "plan=grid")["latents_sha256"] == expected


def test_what_does_not_fit_is_refused_in_one_line(job, tmp_path):
    assert "must be a multiple of 64; use 64 or 128" in job.fails(*SMALL, "stream.width=80")
    whole = "model.network.audio.wav2vec.whole_file=true"
    assert "live sound has no end to wait for" in job.fails(*SMALL, "source.audio=-", whole)
    assert "motion tokens stand beside a reference" in job.fails(
        *SMALL, "model.reference=false", "model.recalibrate_chunk=null"
    )
    path = tmp_path / "given.safetensors"
    save_file({"pose_latents.000000": torch.ones(1, 16, 3, 4, 4)}, path)
    line = job.fails("model=nano", f"source.tensors={path}")
    assert "pose_latents.000000: is not a name that model=nano takes" in line

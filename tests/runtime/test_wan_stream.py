"""A Wan text-to-video stream from a published folder, against diffusers' transformer over the whole clip.

Nothing of the re-computation is streamed: for every step of every chunk one forward of `WanTransformer3DModel` covers
all frames so far, finished ones clean at t = 0 and the chunk's own at its noise level, under the mask that says which
frames a chunk may read. Keys that a bank would keep are made again each time.
"""

import av
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from stages.dit.keys import original_name
from stages.encode.umt5 import Umt5Encoder, parameter_count
from tests.checkpoints import SMALL, T5, random_tensors, t2v_config, t2v_shapes, write_folder, write_text_encoder

C, ROWS, COLUMNS, CHUNKS = 3, 2, 3, 6
SIGMAS = [5 * s / (1 + 4 * s) for s in (1.0, 0.75, 0.5, 0.25)]
CONFIG = t2v_config(**SMALL)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("wan"), CONFIG, random_tensors(t2v_shapes(CONFIG)), shards=2, vae=4)


@pytest.fixture(scope="module")
def given():
    g = torch.Generator().manual_seed(4)
    tensors = {"context": torch.randn(1, 5, 24, generator=g)}
    for chunk in range(CHUNKS):
        for step in range(4):
            shape = (1, 16, C, 2 * ROWS, 2 * COLUMNS)
            tensors[f"noise.{chunk:06d}.step.{step}"] = torch.randn(shape, generator=g)
    return tensors


class Masked:
    """diffusers' attention, with a mask where tokens attend to each other."""

    mask = None

    def __init__(self, attention):
        self.attention = attention

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None, rotary_emb=None):
        mask = self.mask if encoder_hidden_states is None else None
        return self.attention(attn, hidden_states, encoder_hidden_states, mask, rotary_emb)


def readable(window: int, sink: int, chunks: int) -> torch.Tensor:
    """[frames, frames]: a chunk reads the first `sink` frames and the last `window - sink`, its own included."""
    allowed = torch.zeros(chunks * C, chunks * C, dtype=torch.bool)
    for first in range(0, chunks * C, C):
        end = first + C
        allowed[first:end, : min(sink, end)] = True
        allowed[first:end, max(0, end - (window - sink)) : end] = True
    return allowed


@torch.no_grad()
def recomputed(given, window: int, sink: int) -> list[torch.Tensor]:
    """Final latents of every chunk."""
    from diffusers import WanTransformer3DModel  # seconds to import, for every process of the suite
    from diffusers.models.transformers.transformer_wan import WanAttnProcessor

    tensors = random_tensors(t2v_shapes(CONFIG))
    model = WanTransformer3DModel(
        num_attention_heads=4, attention_head_dim=12, ffn_dim=80, num_layers=4, freq_dim=32, text_dim=24,
        rope_max_seq_len=32,
    ).eval()  # fmt: skip
    model.load_state_dict({k: tensors[original_name(k)] for k in model.state_dict()})
    masked = Masked(WanAttnProcessor())
    model.set_attn_processor(masked)
    text = torch.nn.functional.pad(given["context"], (0, 0, 0, 8 - 5))
    clean: list[torch.Tensor] = []
    for chunk in range(CHUNKS):
        allowed = readable(window, sink, chunk + 1)
        masked.mask = allowed.repeat_interleave(ROWS * COLUMNS, 0).repeat_interleave(ROWS * COLUMNS, 1)[None, None]
        x = given[f"noise.{chunk:06d}.step.0"]
        for step, sigma in enumerate(SIGMAS):
            times = torch.tensor([0.0] * (chunk * C) + [1000 * sigma] * C).repeat_interleave(ROWS * COLUMNS)
            v = model(torch.cat([*clean, x], 2), times[None], text, return_dict=False)[0][:, :, -C:]
            x = (x.double() - sigma * v.double()).float()
            if step + 1 < len(SIGMAS):
                later = SIGMAS[step + 1]
                x = (1 - later) * x + later * given[f"noise.{chunk:06d}.step.{step + 1}"]
        clean.append(x)
    return clean


def overrides(folder, tensors, window: int, sink: int, *more: str):
    return [
        "model=wan21_t2v_1_3b", f"model.checkpoint={folder}", "model.dtype=float32", f"stream.height={16 * ROWS}",
        f"stream.width={16 * COLUMNS}", f"stream.chunks={CHUNKS}", f"source.tensors={tensors}",
        f"model.window_frames={window}", f"model.sink_frames={sink}", *more,
    ]  # fmt: skip


@pytest.mark.parametrize(("window", "sink"), [(21, 0), (6, 0), (9, 3)], ids=["all", "window", "longlive"])
def test_a_stream_is_the_whole_clip_recomputed(window, sink, folder, given, job, tmp_path):
    save_file(given, tmp_path / "given.safetensors")
    latents = tmp_path / "latents.safetensors"
    job(*overrides(folder, tmp_path / "given.safetensors", window, sink, "sink.video=null", f"sink.latents={latents}"))
    expected = recomputed(given, window, sink)
    with safe_open(latents, framework="pt") as found:
        for chunk, clean in enumerate(expected):
            difference = (found.get_tensor(f"chunk.{chunk:06d}") - clean).abs().max()
            assert difference <= 1e-4, (chunk, float(difference))
    spread = torch.cat(expected).std()
    assert 0.3 < spread < 30


def test_plans_read_the_same_folder(folder, given, job, tmp_path):
    """Layers on two workers, frames decoded by the folder's VAE on a third: the same latents."""
    save_file(given, tmp_path / "given.safetensors")
    given_at = tmp_path / "given.safetensors"
    alone = job(*overrides(folder, given_at, 9, 3, "sink.video=null"))
    spread = job(*overrides(folder, given_at, 9, 3, "plan=layers", "plan.workers=3", "stream.chunks=6"))
    assert spread["latents_sha256"] == alone["latents_sha256"]
    assert (job.folder / "video.mp4").stat().st_size > 0


def test_a_prompt_needs_something_that_reads_it(folder, job):
    line = job.fails("model=wan21_t2v_1_3b", f"model.checkpoint={folder}", "stream.chunks=1", "stream.prompt=a cat")
    assert "stream.prompt=a cat: model=wan21_t2v_1_3b has no text encoder here" in line


@pytest.fixture(scope="module")
def complete(tmp_path_factory):
    """A folder with all that a text-to-video stream needs: network, VAE, text encoder and tokenizer."""
    tensors = random_tensors(t2v_shapes(CONFIG))
    folder = write_folder(tmp_path_factory.mktemp("complete"), CONFIG, tensors, vae=4)
    write_text_encoder(folder)
    return folder


def test_a_folder_streams_a_prompt_to_a_video(complete, job, tmp_path):
    """Its own text encoder reads prompts, on the encode worker alone, and what it says is what tensors would say."""
    size = [f"stream.height={16 * ROWS}", f"stream.width={16 * COLUMNS}", "model.dtype=float32"]
    base = ["model=wan21_t2v_1_3b", f"model.checkpoint={complete}", *size, "stream.chunks=3"]
    spoken = [*base, "stream.prompt=a cat walks in the snow", "stream.events=[{chunk: 1, prompt: a red house}]"]
    report = job(*spoken)
    with av.open(str(job.folder / "video.mp4")) as video:
        stream = video.streams.video[0]
        assert (stream.width, stream.height, sum(1 for _ in video.decode(stream))) == (16 * COLUMNS, 16 * ROWS, 33)
    sha = report["latents_sha256"]
    encoder = Umt5Encoder(complete / "models_t5_umt5-xxl-enc-bf16.pth", complete / "google/umt5-xxl", 24, 8)
    said = {"context": encoder("a cat walks in the snow"), "context.000001": encoder("a red house")}
    save_file(said, tmp_path / "said.safetensors")
    given = [*base, "sink.video=null", f"source.tensors={tmp_path / 'said.safetensors'}"]
    assert job(*given)["latents_sha256"] == sha
    assert job(*base, "sink.video=null", "stream.prompt=a cat walks in the snow")["latents_sha256"] != sha
    spread = job(*spoken, "sink.video=null", "plan=layers", "plan.workers=3")
    assert spread["latents_sha256"] == sha
    longlive = ["experiment=longlive", *spoken, "sink.video=null"]
    anew = job(*longlive)["latents_sha256"]
    assert anew not in (sha, job(*longlive, "model.prompt_switch=text_only")["latents_sha256"])
    assert job(*longlive, "plan=grid")["latents_sha256"] == anew
    rows = parameter_count(complete / "models_t5_umt5-xxl-enc-bf16.pth") * 4
    others = job(*given, "plan=layers", "plan.workers=3")["weight_bytes"]
    assert sorted(b - others[w] for w, b in spread["weight_bytes"].items()) == [0, 0, rows]


def test_a_text_encoder_of_another_model_is_refused(complete, job, tmp_path):
    write_text_encoder(tmp_path / "other", T5 | {"dim": 20})
    line = job.fails("model=wan21_t2v_1_3b", f"model.checkpoint={complete}", f"model.text.checkpoint={tmp_path}/other")
    assert "models_t5_umt5-xxl-enc-bf16.pth: gives rows of width 20, the network takes 24" in line

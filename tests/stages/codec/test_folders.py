"""A codec is one folder: what it declares is all that the rest knows, and it may lie elsewhere."""

import importlib
import subprocess
import sys

import pytest
import torch

from conf import published
from conf.codecs import declared
from conf.errors import UserError
from conf.families import CODECS, known
from conf.schema import CodecConfig, ModelConfig
from stages.build import build_decoder, build_encoder, decoder_of, encoder_of, video_frames
from tests.checkpoints import SMALL, random_tensors, t2v_config, t2v_shapes, write_folder

CPU = torch.device("cpu")
DECLARED = """
from conf.codecs import Declared

CODEC = Declared(names=("flat.pt",), encoder="small", first_frames=2)
"""
CODEC = """
import torch
from torch import nn


class Flat(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(width))


def make(codec, half):
    return Flat(codec.width)


def build(model, codec, half, device, dtype):
    return make(codec, half)
"""


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """The name of a codec in a package outside Everframe, whose encoder is the pocket models'."""
    folder = tmp_path / "flat_codec"
    folder.mkdir()
    for name, text in (("__init__", ""), ("declared", DECLARED), ("codec", CODEC)):
        (folder / f"{name}.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    importlib.invalidate_caches()
    yield folder.name
    for name in [n for n in sys.modules if n.partition(".")[0] == folder.name]:
        del sys.modules[name]


def test_a_codec_elsewhere(elsewhere):
    codec = CodecConfig(elsewhere, width=5)
    assert [video_frames(codec, 3, first) for first in (True, False)] == [10, 12]
    assert video_frames(CodecConfig(elsewhere, prime=7), 3, first=True) == 12
    model = ModelConfig(codec=codec, dtype="bfloat16")
    decoder = build_decoder(model, CPU)
    assert decoder.scale.dtype == torch.bfloat16 and len(decoder_of(codec).scale) == 5
    assert not decoder.training and not decoder.scale.requires_grad
    assert type(build_encoder(model, CPU)).__name__ == type(encoder_of(codec)).__name__ == "SmallEncoder"


@pytest.mark.parametrize("kind", ["smal", "json.decoder", "", "no.such"])
def test_a_codec_that_is_none_is_refused(kind):
    with pytest.raises(UserError, match=r"model\.codec\.kind="):
        CodecConfig(kind)


def test_a_package_that_is_no_codec_is_refused():
    with pytest.raises(UserError, match=r"model\.codec\.kind=json: has no declared\.py"):
        CodecConfig("json")


def test_a_published_folder_fills_what_a_codec_reads(tmp_path):
    """The VAE there is the codec's own file, or that of the codec whose latents it decodes; other codecs want none."""
    config = t2v_config(**SMALL)
    write_folder(tmp_path, config, random_tensors(t2v_shapes(config)), vae=4)
    vae = str(tmp_path / "Wan2.1_VAE.pth")
    assert str(published.part(tmp_path, "vae")) == vae

    def filled(kind: str) -> tuple[str | None, str | None]:
        codec = ModelConfig(checkpoint=str(tmp_path), codec=CodecConfig(kind)).codec
        return codec.checkpoint, codec.vae

    assert filled("wan") == (vae, None)
    assert filled("taehv") == (None, vae)
    assert filled("small") == (None, None)
    beside, own = (
        encoder_of(CodecConfig(kind, **{name: vae})) for kind, name in (("taehv", "vae"), ("wan", "checkpoint"))
    )
    assert [p.shape for p in beside.parameters()] == [p.shape for p in own.parameters()]


def test_what_codecs_declare_needs_no_torch():
    assert all(declared(kind).first_frames in (1, 4) for kind in known(CODECS))
    code = "import sys; import conf.schema; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"

"""What settings on `auto` choose, and what is said of it."""

import importlib.util
import shutil

import pytest
import torch

from conf.errors import UserError
from devices import kinds
from runtime.fast import said
from stages.denoise.attention import _sdpa, backend, fastest, usable
from tests.devices.fake_cuda import Card
from tests.helpers import config_of

CARD = torch.device("cuda:0")


class Recording(Card):
    def recorder(self):
        return lambda work: work


class Older(Card):
    def capability(self):
        return 8, 0


class Amd(Card):
    def capability(self):
        return None

    def arch(self):
        return "gfx942"


@pytest.fixture(autouse=True)
def card(monkeypatch):
    """card(KIND, *PACKAGES): a card, and what is installed and built with."""

    def make(kind, *there):
        monkeypatch.setitem(kinds.KINDS, "cuda", kind)
        monkeypatch.setattr(kinds, "_MADE", {})
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: name in ("torch", *there) or None)
        monkeypatch.setattr(shutil, "which", lambda name: "/bin/gcc" if name == "gcc" and "gcc" in there else None)
        backend.cache_clear()

    yield make
    backend.cache_clear()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("kind", [Card, Older])
@pytest.mark.parametrize("there", [(), ("flash_attn_interface",)])
def test_the_fastest_attention_is_one_that_can_run(card, dtype, kind, there):
    card(kind, *there)
    flash = bool(there) and kind is Card and dtype == torch.bfloat16
    assert fastest(CARD, dtype, 128) == ("flash3" if flash else "sdpa")
    assert fastest(CARD, dtype, 20) == "sdpa"


def test_what_is_nvidias_is_not_for_amds(card):
    card(Amd, "flash_attn_interface", "xformers")
    assert fastest(CARD, torch.bfloat16, 128) == "sdpa"
    there = set(usable(CARD, torch.bfloat16, 128))  # training registers one of its own
    assert there >= {"sdpa", "sdpa_flash", "sdpa_efficient", "xformers"} and not there & {"sdpa_cudnn", "flash3"}
    with pytest.raises(UserError, match="is for NVIDIA's GPUs, not gfx942; use one of sdpa, "):
        backend("sdpa_cudnn", CARD, torch.bfloat16, 128)


def test_the_processor_has_torchs_own():
    assert backend("auto", "cpu", torch.float32, 16) is _sdpa
    assert said(config_of("model=nano"), torch.device("cpu")) == []


def test_each_choice_is_a_line_with_its_off_switch(card):
    card(Recording, "triton", "gcc", "flash_attn_interface")
    lines = said(config_of("model=nano", "model.dtype=bfloat16"), CARD)
    assert lines == [
        "model.attention=auto takes flash3 (name another of them to have that)",
        "device.compile=auto compiles stages (false: it does not)",
        "device.graphs=auto records passes as CUDA graphs while workers load (never: it does not)",
    ]


def test_what_lacks_is_named(card):
    card(Recording, "gcc")
    assert "device.compile=auto compiles nothing: it needs the package triton on CUDA" in said(
        config_of("model=nano"), CARD
    )


def test_nothing_is_said_of_what_was_set(card):
    card(Recording)
    config = config_of("model=nano", "model.attention=sdpa", "device.compile=false", "device.graphs=never")
    assert said(config, CARD) == []


@pytest.mark.parametrize("word", ["true", "false", "auto", "True"])
def test_compile_takes_words_and_truth_values(word):
    assert config_of("model=nano", f"device.compile={word}").device.compile == word.lower()

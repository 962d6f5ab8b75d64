"""Files that are no weights, cut or quantised: one line that says what they are, whatever their names end in."""

import argparse
import pickle
import zipfile

import pytest
import torch
from safetensors.torch import save_file

from conf.errors import UserError
from stages.weight_file import WeightFile

LONGEST = 300
"""Characters of a line, its path aside."""


def said_of(path) -> str:
    """The line that a file is refused by, without its path."""
    with pytest.raises(UserError) as error:
        WeightFile(path)
    line = str(error.value).removeprefix(f"model.checkpoint={path}: ")
    assert line != str(error.value) and "\n" not in line and len(line) <= LONGEST
    assert "weights_only" not in line and "give .safetensors" not in line
    return line


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5676070424\n"
BYTES = {
    "pointer": (POINTER, "is a git-lfs pointer"),
    "gguf": (b"GGUF" + bytes(64), "is GGUF, quantised for llama.cpp"),
    "html": (b"\n<!DOCTYPE html><html><body>404</body></html>", "is a web page"),
    "json": (b'{"error": "Repository not found"}', "is JSON, not weights"),
    "pickle": (pickle.dumps({"a": [1]}), "is a pickle of Python objects"),
    "gzip": (b"\x1f\x8b\x08\x00" + bytes(20), "is a compressed archive"),
    "empty": (b"", "is empty"),
    "short": (b"\x01\x02\x03", "it begins with 01 02 03"),
    "noise": (bytes(range(200, 256)) * 20, "it begins with c8 c9 ca cb cc cd ce cf"),
    "header": ((200).to_bytes(8, "little") + b"{", "is cut short: it holds 9 of at least 208 bytes"),
    "words": ((9).to_bytes(8, "little") + b"{nothing}", "is damaged"),
    "zip": (b"PK\x03\x04" + bytes(200), "is cut short or damaged"),
}


@pytest.mark.parametrize("kind", BYTES)
def test_what_is_no_weights_is_named_by_its_bytes(kind, tmp_path):
    content, said = BYTES[kind]
    for suffix in ("safetensors", "pt", "gguf"):
        path = tmp_path / f"given.{suffix}"
        path.write_bytes(content)
        assert said in said_of(path)


@pytest.mark.parametrize("suffix", ["safetensors", "pt", "bin"])
@pytest.mark.parametrize("form", ["safetensors", "torch"])
def test_weights_are_read_whatever_they_are_called(form, suffix, tmp_path):
    tensors, path = {"a": torch.arange(6.0).view(2, 3)}, tmp_path / f"x.{suffix}"
    save_file(tensors, path) if form == "safetensors" else torch.save(tensors, path)
    assert torch.equal(WeightFile(path).read("a"), tensors["a"])


def test_cut_downloads_say_how_much_is_there(tmp_path):
    save_file({"a": torch.ones(1000)}, path := tmp_path / "x.safetensors")
    whole = path.read_bytes()
    path.write_bytes(whole[:3000])
    assert f"x.safetensors is cut short: it holds 3000 of {len(whole)} bytes; download it again" in said_of(path)
    torch.save({"a": torch.ones(1000)}, path := tmp_path / "x.pt")
    path.write_bytes(path.read_bytes()[:3000])
    assert "x.pt is cut short or damaged: its 3000 bytes have no end" in said_of(path)


def test_a_header_that_lies_is_damage(tmp_path):
    save_file({"a": torch.ones(4), "b": torch.ones(4)}, path := tmp_path / "x.safetensors")
    path.write_bytes(path.read_bytes().replace(b"[16,32]", b"[8,24] "))
    assert "x.safetensors is damaged (SafetensorError)" in said_of(path)


def test_archives_that_torch_did_not_write(tmp_path):
    with zipfile.ZipFile(path := tmp_path / "x.pt", "w") as file:
        file.writestr("readme.txt", "hello")
    assert "x.pt is a zip archive of other things (readme.txt)" in said_of(path)
    with zipfile.ZipFile(path, "w") as file:
        for name in ("x/data.pkl", "x/constants.pkl", "x/code/module.py"):
            file.writestr(name, "")
    assert "x.pt is a TorchScript program" in said_of(path)


def test_code_is_named_and_never_run(tmp_path):
    torch.save({"model": {}, "args": argparse.Namespace(a=1)}, path := tmp_path / "x.pt")
    assert "x.pt holds Python objects beside tensors (argparse.Namespace), and code is never run" in said_of(path)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (
            {"net": {"a": torch.ones(2)}, "opt": {"state": {}}, "epoch": 3},
            "x.pt holds no tensors by name but net (1 tensors), opt (dict of 1), epoch (int); save content['net'] of",
        ),
        ([torch.ones(2)], "x.pt holds no tensors by name but list of 1; "),
        ({"model": {}}, "x.pt holds no tensors by name but dict of 0; "),
        (torch.ones(2), "x.pt holds no tensors by name but Tensor; "),
    ],
    ids=["unknown wrapper", "list", "nothing", "tensor"],
)
def test_what_else_a_pt_holds_is_said(content, said, tmp_path):
    torch.save(content, tmp_path / "x.pt")
    assert said in said_of(tmp_path / "x.pt")


def test_files_without_tensors(tmp_path):
    save_file({}, path := tmp_path / "x.safetensors")
    assert "holds no tensors" in said_of(path)


F8, U8 = torch.float8_e4m3fn, torch.uint8
QUANTISED = {
    "scaled fp8: scaled_fp8": {"scaled_fp8": (F8, 2), "blocks.0.ffn.0.weight": (F8, 4)},
    "scaled fp8: blocks.0.ffn.0.scale_weight": {"blocks.0.ffn.0.scale_weight": (torch.float32, 1)},
    "scaled fp8: blocks.0.ffn.0.weight_scale": {"blocks.0.ffn.0.weight_scale": (torch.float32, 1)},
    "NVFP4, 4-bit: a.weight_scale_2": {"a.weight_scale": (F8, 4), "a.weight_scale_2": (torch.float32, 1)},
    "by ComfyUI: a.comfy_quant": {"a.comfy_quant": (U8, 4), "a.weight_scale": (torch.float32, 1)},
    "by bitsandbytes, 4-bit: a.weight.absmax": {"a.weight.absmax": (torch.float32, 4), "a.weight": (U8, 4)},
    "by bitsandbytes, 8-bit: a.SCB": {"a.SCB": (torch.float32, 4), "a.weight": (torch.int8, 4)},
    "by GPTQ or AWQ: a.qweight": {"a.qweight": (torch.int32, 4)},
    "by torchao: a._weight_qdata": {"a._weight_qdata": (torch.int8, 4)},
    "to 8-bit integers: a.weight": {"a.weight": (torch.int8, 4)},
}


@pytest.mark.parametrize("said", QUANTISED)
def test_quantised_files_are_named(said, tmp_path):
    tensors = {key: torch.zeros(n, dtype=dtype) for key, (dtype, n) in QUANTISED[said].items()}
    save_file(tensors | {"b.weight": torch.ones(2)}, path := tmp_path / "x.safetensors")
    assert f"is quantised {said}; give the weights it was made from" in said_of(path)


def test_a_type_that_is_not_read_is_named(tmp_path):
    save_file({"a": torch.ones(4)}, path := tmp_path / "x.safetensors")
    path.write_bytes(path.read_bytes().replace(b'"F32"', b'"F4" '))
    assert "x.safetensors holds a as F4, which is not read here" in said_of(path)

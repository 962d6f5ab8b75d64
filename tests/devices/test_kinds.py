"""A GPU that torch cannot use is told, with the remedy."""

import re
from pathlib import Path

import pytest
import torch

import devices
from conf.errors import UserError
from devices import choose, idle_gpu, kinds

SIGNS = ("dev/nvidia0", "dev/nvidia3", "proc/driver/nvidia/version")


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """machine(SIGN): a file system with that sign of a GPU; torch sees none."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)

    def make(sign):
        for folder in ("dev", "bin"):
            (tmp_path / folder).mkdir()
        path = tmp_path / sign
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        path.chmod(0o755)
        return {"root": tmp_path, "environ": {"PATH": str(tmp_path / "bin")}}

    return make


@pytest.mark.parametrize("sign", [*SIGNS, "bin/nvidia-smi"])
def test_a_gpu_beside_a_torch_without_cuda(machine, tmp_path, sign):
    rule, remedy = idle_gpu(**machine(sign), cuda=None)
    assert rule == f"there is a GPU ({tmp_path / sign}), and torch {torch.__version__} was built without CUDA"
    assert (
        remedy == "install one with CUDA (in a checkout: make install TORCH=cu130 TORCH_INDEX=URL), or use device=cpu"
    )


def test_a_gpu_beside_a_torch_of_another_driver(machine):
    rule, remedy = idle_gpu(**machine("dev/nvidia0"), cuda="13.0")
    assert "torch for CUDA 13.0 cannot use it" in rule and "driver" in remedy


@pytest.mark.parametrize("sign", ["dev/nvidiactl", "dev/null", "bin/python"])
def test_no_gpu(machine, sign):
    assert idle_gpu(**machine(sign), cuda=None) is None


@pytest.mark.parametrize("visible", ["", "-1"])
def test_a_gpu_that_is_hidden_on_purpose(machine, visible):
    given = machine("dev/nvidia0")
    assert idle_gpu(given["root"], given["environ"] | {"CUDA_VISIBLE_DEVICES": visible}, None) is None
    assert idle_gpu(given["root"], given["environ"] | {"CUDA_VISIBLE_DEVICES": "0"}, None)


def test_a_gpu_that_torch_uses(machine, monkeypatch):
    given = machine("dev/nvidia0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert idle_gpu(**given, cuda="13.0") is None


def test_cuda_is_refused_with_the_remedy(machine, monkeypatch):
    found = idle_gpu(**machine("dev/nvidia0"), cuda=None)
    monkeypatch.setattr(kinds, "idle_gpu", lambda: found)
    with pytest.raises(UserError, match=r"device=cuda: there is a GPU .*; install one with CUDA"):
        choose("cuda")
    assert choose("auto") == choose("cpu") == torch.device("cpu")


def test_the_modules_of_devices_are_asked_here_alone():
    """Whatever else asked `torch.cuda` would not run on a device of another kind, nor on the one that tests have."""
    root = Path(devices.__file__).parent.parent
    rooms = ("conf", "everframe", "launch", "parallel", "runtime", "stages", "distill")
    asking = [
        f"{path.relative_to(root)}: {line.strip()}"
        for room in rooms
        for path in (root / room).rglob("*.py")
        for line in path.read_text().splitlines()
        if re.search(r"\btorch\.(cuda|xpu|mps|accelerator)\b|\bis_cuda\b", line)
    ]
    assert not asking, "\n".join(asking)

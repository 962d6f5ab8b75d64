"""Weights on their way to a device that works by itself: the host reads on, but not too far ahead."""

import torch
from safetensors.torch import save_file

import devices
from stages import weight_file, weights
from stages.weight_file import WeightFile


class Slow:
    """A device whose work is done only when it is waited for. Its memory is the host's."""

    def __init__(self):
        self.uploads, self.done, self.most = 0, 0, 0

    def upload(self, tensor):
        assert tensor.device.type == "cpu"
        self.uploads += 1
        self.most = max(self.most, self.uploads - self.done)
        return tensor.clone()

    def mark(self):
        slow, number = self, self.uploads

        class Mark:
            def wait(self):
                slow.done = max(slow.done, number)

        return Mark()


def saved(tmp_path, monkeypatch):
    """A module, and a file of other values for it, in pieces of 64 bytes."""
    monkeypatch.setattr(weight_file, "PIECE", 64)
    module = torch.nn.Sequential(torch.nn.Linear(8, 24), torch.nn.Linear(24, 4))
    values = {name: torch.randn(t.shape, generator=torch.Generator().manual_seed(7)) for name, t in
              module.state_dict().items()}  # fmt: skip
    save_file(values, tmp_path / "w.safetensors")
    return module, values, WeightFile(tmp_path / "w.safetensors")


def test_pieces_are_uploaded_ahead_of_their_use_and_only_so_far(tmp_path, monkeypatch):
    slow, (module, values, file) = Slow(), saved(tmp_path, monkeypatch)
    monkeypatch.setattr(devices, "of", lambda device: slow)
    weights.load(module, file)
    assert all(torch.equal(t, values[name]) for name, t in module.state_dict().items())
    # One is copied to while as many as may be ahead are on their way, and the host waited for no other.
    assert slow.uploads > 10 and slow.most == weights.AHEAD + 1
    assert slow.done == slow.uploads - weights.AHEAD


def test_what_changes_values_finds_them_on_the_device(tmp_path, monkeypatch):
    slow, (module, values, file) = Slow(), saved(tmp_path, monkeypatch)
    monkeypatch.setattr(devices, "of", lambda device: slow)
    found = []

    def change(name, rows, given):
        found.append(slow.uploads)
        return given * 2

    weights.load(module, file, change=change)
    assert found == list(range(1, slow.uploads + 1))
    assert all(torch.equal(t, 2 * values[name]) for name, t in module.state_dict().items())


def test_the_host_takes_values_from_the_file_in_place(tmp_path, monkeypatch):
    module, values, file = saved(tmp_path, monkeypatch)
    places, read = [], file.read
    monkeypatch.setattr(file, "read", lambda *a: places.append(read(*a)) or places[-1])
    seen = []
    weights.load(module, file, change=lambda name, rows, given: seen.append(given) or given)
    assert all(given is place for given, place in zip(seen, places, strict=True))
    assert all(torch.equal(t, values[name]) for name, t in module.state_dict().items())

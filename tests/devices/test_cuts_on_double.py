"""Cuts of banks on a device that is late: copies beside the passes, and an edge where a pass writes what is copied."""

import threading

import pytest
import torch
import torch.distributed as dist

import devices
from runtime.banks import copy_early, cut_bank
from runtime.board import Board
from runtime.cut_log import Read
from runtime.saving import Mark, Saver
from stages.denoise.bank import Bank
from stages.denoise.layout import Layout
from stages.denoise.share import ALL
from tests.double import KIND

LAYOUT = Layout(tokens=2, reference=0, sink=1, ring=4)


@pytest.fixture
def card(twin):
    return devices.of(f"{KIND}:0")


@pytest.fixture
def bank(card) -> Bank:
    card.queue(passes=True).use()
    return Bank(LAYOUT, range(2), 1, 4, torch.float32, card.torch)


def write(bank: Bank, frames: range, value: float) -> None:
    """What a pass does to the slots of some frames."""
    for layer in bank.keys:
        for frame in frames:
            span = bank.layout.span(bank.layout.slot(frame), 1)
            bank.keys[layer][:, span] = torch.full((1, 2, 1, 4), value, device=bank.device.torch)
            bank.values[layer][:, span] = torch.full((1, 2, 1, 4), -value, device=bank.device.torch)


@pytest.fixture
def saver(card, tmp_path):
    """One whose thread has not started, so that no host wait of it hides an edge that lacks."""
    return Saver(Board(dist.HashStore(), 0, 1), card, str(tmp_path))


def cut(saver: Saver, bank: Bank, chunk: int) -> None:
    cut_bank(saver, 0, chunk, "bank.0.0.0.0", 0, bank, ALL, {}, Mark())


def held(saver: Saver, chunk: int) -> dict[str, torch.Tensor]:
    """What the cut says, once the saver has run on a thread of its own."""
    found = {}

    def finish() -> None:
        saver._queue.use()
        while not saver._jobs.empty():
            saver._jobs.get()()
        found.update(Read(saver.folder(0), chunk, "bank.0.0.0.0").tensors())

    thread = threading.Thread(target=finish)
    thread.start()
    thread.join()
    return found


def test_passes_go_on_beside_a_copy_and_nobody_waits(twin, card, bank, saver):
    bank.touch(set(map(bank.layout.slot, range(1, 3))))
    write(bank, range(1, 3), 1.0)
    waits = len(twin.waits)
    cut(saver, bank, 1)
    bank.touch(set(map(bank.layout.slot, range(3, 5))))
    write(bank, range(3, 5), 2.0)  # other slots: at once
    assert bank.copying.keys() == {1, 2}
    bank.touch(set(map(bank.layout.slot, range(5, 7))))
    write(bank, range(5, 7), 3.0)  # the same slots: behind the copy
    assert not bank.copying and len(twin.waits) == waits
    assert twin.found() == []
    first = held(saver, 1)
    assert {t.flatten()[0].item() for name, t in first.items() if name.startswith("keys")} == {1.0}
    cut(saver, bank, 2)
    second = held(saver, 2)
    assert sorted(second) == sorted(f"{k}/{i}/{s}" for k in ("keys", "values") for i in (0, 1) for s in (1, 2, 3, 4))
    assert {name: second[name].flatten()[0].item() for name in ("keys/0/1", "keys/1/3")} == {
        "keys/0/1": 3.0,
        "keys/1/3": 2.0,
    }


def test_a_pass_that_does_not_wait_for_a_copy_is_found(twin, card, bank, saver):
    bank.touch(set(map(bank.layout.slot, range(1, 3))))
    write(bank, range(1, 3), 1.0)
    cut(saver, bank, 1)
    bank.copying.clear()  # as if nobody had noted it
    write(bank, range(5, 7), 3.0)
    faults = twin.found()
    assert faults and all("copy reads" in fault and "no edge" in fault for fault in faults)
    card.synchronize()


def test_a_copy_that_does_not_wait_for_the_passes_before_it_is_found(twin, card, bank, saver, monkeypatch):
    monkeypatch.setattr(type(card), "follow", lambda self, mark, *used: None)
    bank.touch(set(map(bank.layout.slot, range(1, 2))))
    write(bank, range(1, 2), 1.0)
    cut(saver, bank, 1)
    faults = twin.found()
    assert faults and all("copy reads" in fault and "no edge" in fault for fault in faults)
    card.synchronize()


class Next:
    """Says that the chunk behind writes one slot."""

    def __init__(self, slot: int):
        self.slot = slot

    def behind(self, bank: Bank, chunk: int) -> dict[str, set[int]]:
        return {"": {self.slot}}

    def order(self, bank: Bank, chunk: int) -> dict[tuple[str, int], int]:
        return {("", self.slot): 0}


def test_a_pass_follows_the_copies_of_its_own_slots_alone(twin, card, bank, saver, monkeypatch):
    bank.touch({1, 2, 3})
    write(bank, range(1, 4), 1.0)
    cut_bank(saver, 0, 1, "bank.0.0.0.0", 0, bank, ALL, {}, Mark(), Next(3))
    marks, followed = dict(bank.copying), []
    monkeypatch.setattr(type(card), "follow", lambda self, mark, *used: followed.append(mark))
    assert len({id(mark) for mark in marks.values()}) == 3
    bank.touch({3})
    assert followed == [marks[3]] and bank.copying.keys() == {1, 2}
    assert marks[3].event._at < marks[1].event._at < marks[2].event._at


def test_what_is_copied_early_is_in_the_next_cut_and_no_pass_waits_for_it(twin, card, bank, saver):
    bank.touch({1, 2})
    write(bank, range(1, 3), 1.0)
    waits = len(twin.waits)
    copy_early(saver, 0, "bank.0.0.0.0", bank, 1, Next(1))
    bank.touch({3})
    write(bank, range(3, 4), 2.0)
    assert bank.dirty == {2, 3} and bank.copying.keys() == {1}
    cut(saver, bank, 1)
    bank.touch({1})
    write(bank, range(5, 6), 3.0)  # behind the early copy
    assert len(twin.waits) == waits and twin.found() == []
    found = held(saver, 1)
    assert {name: found[name].flatten()[0].item() for name in sorted(found) if name.startswith("keys/0")} == {
        "keys/0/1": 1.0,
        "keys/0/2": 1.0,
        "keys/0/3": 2.0,
    }

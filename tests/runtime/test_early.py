"""Copies of cuts beside the loop: what is being copied is not overwritten, what is written again soonest comes first,
and what the chunk behind a cut would wait for is copied before it."""

from __future__ import annotations

import errno
import os
import random
import threading
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

import devices
from benchmarks.emulated import BASE
from devices.processor import Processor
from runtime import cuts
from runtime.banks import cut_bank, load_bank
from runtime.block import Block
from runtime.board import Board
from runtime.cut_log import Brought, Log, Read
from runtime.early import Expected, Rewrites
from runtime.saving import Mark, Saver, bank_part
from stages.denoise.bank import Bank
from stages.denoise.history import history_of
from stages.denoise.layout import Layout
from stages.denoise.schedule import schedule_of
from stages.denoise.share import ALL
from stages.emulated import EmulatedDenoiser, EmulatedDevice
from tests.helpers import config_of
from tests.patience import PATIENT_S

PART = bank_part(0, 0, 0)
CONFIG = config_of(
    *BASE, "model.steps=2", "model.network.layers=2", "device.emulated.bank_bytes=10000", "device.emulated.step_s=0"
)
TURN = CONFIG.model.window_frames // CONFIG.model.chunk_frames


class Writes(EmulatedDenoiser):
    """Its passes leave something of their own in the slots that they write."""

    def _writing(self, stream, chunk: int) -> None:
        super()._writing(stream, chunk)
        for bank in stream.banks.values():
            for slot in history_of(self.model, bank.layout).commit(chunk).slots(bank.layout):
                for layer in bank.keys:
                    for buffer in (bank.keys, bank.values):
                        buffer[layer][:, bank.layout.span(slot, 1)] = (7 * chunk + layer) % 251


@pytest.fixture
def saver(tmp_path):
    """One whose jobs are done when they are asked for; its copies are made by its queue's thread."""
    saver = Saver(Board(dist.HashStore(), 0, 1), devices.of("cpu"), str(tmp_path / "memory"))
    yield saver
    saver._queue.close()
    for log in saver._logs.values():
        log.close()
    if saver._held is not None:
        saver._held.close()


def done(saver: Saver) -> None:
    while not saver._jobs.empty():
        saver._jobs.get()()


@pytest.fixture
def block(saver) -> Block:
    denoiser = Writes(EmulatedDevice(CONFIG.device.emulated, 0), CONFIG.model, range(2), 2, 2)
    made = Block(denoiser, (0,))
    made.use(saver)
    made.open(0)
    return made


def bank_of(block: Block) -> Bank:
    return block.streams[0].banks[0].bank


def step(block: Block, chunk: int) -> None:
    block.step(0, chunk, 0, 0, torch.zeros(1), {}, 0)


def cut(block: Block, chunk: int, whole: int = -1) -> None:
    block.cut(0, 0, chunk, 0, 0, Mark(whole).note)


def told(saver: Saver, chunk: int) -> dict:
    return saver.board.told(f"saved/0/0/{chunk}/{PART}")


def found(saver: Saver, chunk: int) -> dict[str, torch.Tensor]:
    return Read(saver.folder(0), chunk, PART).tensors()


@pytest.fixture
def stored(monkeypatch) -> list[set[int]]:
    """Slots that logs were brought, store by store."""
    found, real = [], Log.store

    def store(self, brought: Brought, tensors) -> None:
        if tensors:
            found.append({int(name.rpartition("/")[2]) for name in tensors})
        real(self, brought, tensors)

    monkeypatch.setattr(Log, "store", store)
    return found


def slots_of(block: Block, *chunks: int) -> list[set[int]]:
    """Slots that each of some chunks writes."""
    layout = bank_of(block).layout
    return [set(map(layout.slot, CONFIG.model.frames(chunk))) for chunk in chunks]


# -- what is being copied is not overwritten --------------------------------------------------------------------------


def in_thread(work) -> threading.Thread:
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    return thread


def test_a_pass_waits_for_the_copy_of_the_slot_that_it_writes(saver, block, monkeypatch):
    """The copy is held until the pass waits for it, or has gone on without waiting."""
    held, came, follow = threading.Event(), threading.Event(), Processor.follow

    def noted(self, mark, *used) -> None:
        came.set()
        follow(self, mark, *used)

    for chunk in range(TURN):
        step(block, chunk)
    saver._queue.give(lambda: held.wait(PATIENT_S))
    cut(block, TURN)
    monkeypatch.setattr(Processor, "follow", noted)
    thread = in_thread(lambda: (step(block, TURN), came.set()))
    assert came.wait(PATIENT_S)
    held.set()
    thread.join(PATIENT_S)
    done(saver)
    slot = bank_of(block).layout.slot(0)
    assert set(found(saver, TURN)[f"keys/1/{slot}"].flatten().tolist()) == {1}
    assert set(bank_of(block).keys[1][:, bank_of(block).layout.span(slot, 1)].flatten().tolist()) == {7 * TURN + 1}


def test_a_pass_waits_for_its_own_slots_alone_and_those_come_first(saver, block, monkeypatch):
    """All other copies are held until it is over."""
    gate, real = threading.Semaphore(0), Log.store

    def store(self, brought: Brought, tensors) -> None:
        assert not tensors or gate.acquire(timeout=PATIENT_S)
        real(self, brought, tensors)

    for chunk in range(TURN + 1):  # so that the slot which is first in the bank is not the next to be written
        step(block, chunk)
    monkeypatch.setattr(Log, "store", store)
    cut(block, TURN + 1)
    gate.release()
    thread = in_thread(lambda: step(block, TURN + 1))
    thread.join(PATIENT_S)
    waits = thread.is_alive()
    for _ in range(bank_of(block).layout.frames):
        gate.release()
    assert not waits
    done(saver)
    assert told(saver, TURN + 1) == {"files": {}}
    values = found(saver, TURN + 1)
    for frame in range(3, 3 * (TURN + 1)):
        slot, chunk = bank_of(block).layout.slot(frame), frame // 3
        assert set(values[f"values/0/{slot}"].flatten().tolist()) == {7 * chunk}


# -- before the cut ---------------------------------------------------------------------------------------------------


def test_what_the_chunk_behind_a_cut_writes_is_there_before_it_and_is_not_copied_twice(saver, block, stored):
    for chunk in range(2 * TURN):
        if chunk == TURN:
            cut(block, chunk)
            done(saver)
            assert stored == slots_of(block, *range(TURN))
            stored.clear()
        step(block, chunk)
        saver._queue.give(lambda: None).wait()
        assert chunk < TURN or stored == (slots_of(block, TURN) if chunk == 2 * TURN - 1 else [])
    before = {name: tensor.clone() for name, tensor in bank_of(block).export().items()}
    cut(block, 2 * TURN)
    done(saver)
    assert stored == slots_of(block, *range(TURN, 2 * TURN))
    check(saver, 2 * TURN, before)


@pytest.mark.parametrize("every", [1, TURN - 1])
def test_nothing_is_copied_early_where_cuts_come_before_the_ring_has_turned(saver, block, stored, every):
    for chunk in range(6 * TURN):
        if chunk and chunk % every == 0:
            cut(block, chunk)
            done(saver)
        stored.clear()
        step(block, chunk)
        saver._queue.give(lambda: None).wait()
        assert not stored


def test_where_cuts_are_rare_only_the_chunk_before_one_has_anything_copied(saver, block, stored):
    every, early = 3 * TURN - 1, []
    for chunk in range(4 * every):
        if chunk and chunk % every == 0:
            cut(block, chunk)
            done(saver)
        stored.clear()
        step(block, chunk)
        saver._queue.give(lambda: None).wait()
        early += [chunk] if stored else []
    assert early == [2 * every - 1, 3 * every - 1, 4 * every - 1]


def test_a_cut_that_is_late_is_not_waited_for_for_ever():
    expected = Expected()
    assert not any(expected.begins(chunk) for chunk in range(4))
    expected.made(4)
    assert [chunk for chunk in range(4, 40) if expected.begins(chunk)] == [7, 8, 9, 10, 11]
    assert not expected.begins(39)


def test_only_the_first_pass_of_a_chunk_has_anything_copied():
    expected = Expected(8)
    expected.made(9)
    assert [expected.begins(chunk) for chunk in (9, 9, 10, 9, 11)] == [True, False, True, False, False]


def test_chunks_that_are_committed_write_what_their_commits_write():
    config = config_of("model=nano", "model.context=clean", "model.reference=false", "model.positions=abs")
    rewrites = Rewrites(config.model, schedule_of(config.model))
    layout = Layout.of(config.model, 1)
    bank = Bank(layout, [0], 1, 1, torch.uint8, torch.device("cpu"))
    order = rewrites.order(bank, 5)
    assert set(order) == {("", slot) for slot in range(layout.anchored, layout.frames)}
    assert [order["", layout.slot(frame)] for frame in (15, 18, 21)] == [0, 1, 2]


# -- errors -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def full(monkeypatch):
    """full(True): the folder has no room."""
    state, real = [False], os.posix_fallocate

    def reserve(*args) -> None:
        if state[0]:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(*args)

    monkeypatch.setattr(os, "posix_fallocate", reserve)
    return lambda now: state.__setitem__(0, now)


def check(saver: Saver, chunk: int, before: dict[str, torch.Tensor]) -> None:
    """A cut has what a bank was, as it is when it is filled again."""
    made = cuts.complete(saver.folder(0), chunk, [PART], {"frames": 0, "video": None})
    bank = Writes(EmulatedDevice(CONFIG.device.emulated, 0), CONFIG.model, range(2), 2, 2).open([0]).banks[0]
    for held in (bank.keys, bank.values):
        for tensor in held.values():
            tensor.fill_(1)  # as it was before anything was written
    load_bank(made, 0, bank, ALL)
    written = {int(name.rpartition("/")[2]) for name in made.parts[0].pieces}
    for name, tensor in bank.export().items():
        for slot in written if name.startswith(("keys", "values")) else ():
            span = bank.layout.span(slot, 1)
            assert torch.equal(tensor[:, span], before[name][:, span]), (chunk, name, slot)


def test_an_early_copy_without_room_costs_its_cut_and_the_next_is_whole(saver, block, full, tmp_path):
    for chunk in range(2 * TURN):
        if chunk == TURN:
            cut(block, chunk)
            done(saver)
            cuts.complete(saver.folder(0), TURN, [PART], {"frames": 0, "video": None})
        full(chunk == 2 * TURN - 1)
        step(block, chunk)
        saver._queue.give(lambda: None).wait()
    full(False)
    cut(block, 2 * TURN, TURN)
    done(saver)
    assert "No space left" in told(saver, 2 * TURN)["failure"]
    assert cuts.newest(saver.folder(0)) == TURN
    before = {name: tensor.clone() for name, tensor in bank_of(block).export().items()}
    cut(block, 2 * TURN + 1, TURN)
    done(saver)
    check(saver, 2 * TURN + 1, before)


@pytest.mark.parametrize("seed", range(12))
def test_cuts_are_exact_however_late_they_are_written(saver, block, full, seed):
    """At irregular distances, with a log that lags behind by up to two cuts, and a folder that is full at times."""
    rng, lagging, whole, made = random.Random(seed), [], -1, 0
    for chunk in range(60):
        if chunk and rng.random() < 0.3:
            content = {name: tensor.clone() for name, tensor in bank_of(block).export().items()}
            cut(block, chunk, whole)
            lagging.append((chunk, content))
        while len(lagging) > rng.choice((0, 1, 2)):
            saver._jobs.get()()
            written, content = lagging.pop(0)
            if "failure" not in told(saver, written):
                check(saver, written, content)
                whole, made = written, made + 1
        full(rng.random() < 0.1)
        step(block, chunk)
        if rng.random() < 0.2:
            bank = bank_of(block)
            again = {bank.layout.slot(frame) for frame in (3 * chunk, max(0, 3 * chunk - 7))}
            bank.touch(again)  # as a prompt's change does
            for slot in again:
                bank.keys[0][:, bank.layout.span(slot, 1)] += 1
    assert made > 4


def test_a_log_that_is_closed_takes_nothing_more(tmp_path):
    log = Log(lambda: tmp_path, "x")
    log.close()
    brought = log.bring(["a"])
    log.store(brought, {"a": torch.ones(3)})
    assert "not written any more" in str(brought.failure) and not list(Path(tmp_path).iterdir())


def test_what_cannot_be_copied_costs_its_cut(tmp_path):
    log = Log(lambda: tmp_path, "x")
    brought = log.bring(["a", "b"])
    log.store(brought, {"a": torch.ones(3), "b": torch.ones(3, device="meta")})
    with pytest.raises(Exception, match="meta"):
        log.write(1, {}, ["a", "b"], None, -1, log.brought())
    assert log.missing(["a", "b"], []) == {"a", "b"}
    log.write(2, {"a": torch.ones(3), "b": torch.zeros(3)}, ["a", "b"], None, -1)
    assert Read(tmp_path, 2, "x").tensors()["b"].tolist() == [0.0] * 3
    log.close()


def test_a_saver_that_has_ended_copies_nothing(saver, block):
    step(block, 0)
    saver._give_up()
    cut(block, 1)
    assert not bank_of(block).copying
    step(block, TURN)


def test_room_of_early_pieces_is_used_again(saver, block):
    """Over 300 chunks, with a cut that comes a chunk late every time, so that pieces are copied in vain."""
    sizes, at, whole = [], 0, -1
    for chunk in range(300):
        if chunk - at == TURN + (len(sizes) % 2):
            cut(block, chunk, whole)
            done(saver)
            whole, at = chunk, chunk
            sizes.append(saver.log(0, PART).nbytes)
        step(block, chunk)
    assert sizes[-1] == sizes[6]


# -- a processor's queue ----------------------------------------------------------------------------------------------


def test_a_queue_of_a_processor_does_in_order_what_it_is_given_and_outlives_errors():
    queue, came = devices.of("cpu").queue(), []
    marks = [queue.give(lambda n=n: came.append(n)) for n in range(50)]
    failed = queue.give(lambda: came.index("nothing"))
    last = queue.give(lambda: came.append("last"))
    devices.of("cpu").follow(last)
    assert came == [*range(50), "last"] and all(mark.reached() for mark in (*marks, failed, last))
    failed.wait()
    queue.close()
    queue.close()


def test_cut_bank_copies_in_any_order_where_nothing_is_known_of_what_comes(saver, block):
    step(block, 0)
    cut_bank(saver, 0, 1, PART, 0, bank_of(block), ALL, {"x": torch.ones(2)}, Mark())
    done(saver)
    assert set(found(saver, 1)) >= {"finished/x", "keys/0/0"}

"""Cuts in memory: any plan goes on from any other's, only what changed is copied, and folders come and go with runs."""

import errno
import os
import random
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

import devices
from benchmarks.unchanged import MODELS as WHOLE
from runtime import cuts, pipeline
from runtime.banks import cut_bank, load_bank
from runtime.board import Board
from runtime.conditioning import Conditioning
from runtime.cut_log import Log, Read, room_of
from runtime.head import Sampler
from runtime.saving import Mark, Saver
from runtime.state import Keep, snapshot
from stages.denoise.bank import ABSENT, PLACED, Bank
from stages.denoise.layout import LATENT, PLACE, TOKEN, Layout
from stages.denoise.share import ALL, Share
from tests.helpers import sampled
from tests.runtime.test_resume import BASE, MODELS, PLANS, Runs

# -- any plan from any other --------------------------------------------------------------------------------------

AT = 5
RECACHE = (
    "model.context=clean", "model.prompt_switch=recache", "model.sampler=renoise", "model.sink_frames=3",
    "model.reference=false", "model.positions=abs",
)  # fmt: skip
MODELS = {**MODELS, "recache": RECACHE, "adapters": WHOLE["small Live Avatar"]}
SHARED = {
    "timestep": ("plan=timestep", "plan.workers=3", "plan.sequence_parallel=2"),
    "layers": ("plan=layers", "plan.layers=[2,4]", "plan.sequence_parallel=2"),
}
WAYS = {
    ("recalibrated there", "timestep", "grid"), ("recalibrated later", "grid", "sequential"),
    ("first chunk as sink", "layers", "timestep"), ("clean", "timestep", "layers"), ("recache", "grid", "layers"),
    ("adapters", "timestep", "sequential"),
}  # fmt: skip
ALL_WAYS = [(m, a, b) for m in MODELS for a in PLANS if a != "sequential" for b in PLANS if a != b]


@pytest.fixture
def runs(tmp_path, capsys):
    return Runs(tmp_path, capsys)


@pytest.fixture
def memory(tmp_path, monkeypatch):
    """The folder of all runs of a test; streams that have ended leave their cuts there."""
    with cuts.Hold(tmp_path / "everframe-test") as held:
        monkeypatch.setattr(cuts, "name", lambda root: str(held.path))
        monkeypatch.setattr(Saver, "remove", lambda self, stream: None)
        yield held.path


def goes_on(monkeypatch, memory: Path) -> None:
    """Every stream that is opened from now on goes on from its cut in memory."""
    known = pipeline.keep_of

    def keep_of(*args) -> Keep:
        keep = known(*args)
        frames = snapshot(str(memory / "stream.0"), AT).content["frames"]
        return replace(keep, cut=str(memory / "stream.0"), first=AT, frames=frames)

    monkeypatch.setattr(pipeline, "keep_of", keep_of)


def check(
    runs: Runs, memory: Path, monkeypatch, model: tuple[str, ...], before: tuple, after: tuple, shared=()
) -> None:
    base = ("sink.video=null", *BASE, *model, "stream.save_on_stop=true")
    whole = runs("whole", *base, *shared)
    due = Sampler.cut_due
    # The one before chunk 5 is the third, and the last: of older ones nothing is left.
    monkeypatch.setattr(Sampler, "cut_due", lambda self, chunk: chunk in (1, 3, AT))
    runs("before", *base, "stream.chunks=6", *before)
    assert [path.name for path in (memory / "stream.0").iterdir() if path.is_dir()] == [f"{AT:06d}"]
    assert not (runs.folder / "before" / "state").exists()
    monkeypatch.setattr(Sampler, "cut_due", due)
    goes_on(monkeypatch, memory)
    sample, made = Conditioning.chunk, set()
    monkeypatch.setattr(Conditioning, "chunk", lambda self, chunk: (made.add(chunk), sample(self, chunk))[1])
    report = runs("after", *base, *after)
    assert report["latents_sha256"] == whole["latents_sha256"]
    assert report["frames"] == whole["frames"] and made >= {AT, AT + 1, AT + 2} and min(made) == AT


@pytest.mark.parametrize(("model", "before", "after"), sampled(ALL_WAYS, WAYS))
def test_a_cut_of_one_plan_is_gone_on_from_by_another(runs, memory, monkeypatch, model, before, after):
    check(runs, memory, monkeypatch, MODELS[model], PLANS[before], PLANS[after])


@pytest.mark.parametrize("model", ["recalibrated later", "adapters"])
def test_processes_that_share_passes_cut_their_own_heads(runs, memory, monkeypatch, model):
    check(runs, memory, monkeypatch, MODELS[model], SHARED["timestep"], SHARED["layers"], SHARED["timestep"])


# -- only what has changed ----------------------------------------------------------------------------------------

LAYOUT = Layout(tokens=4, reference=1, sink=3, ring=9, fixed=2)
PART = "bank.0.0.0.0"


def filled(seed: int = 0) -> Bank:
    """A bank with two adapters' beside it."""
    kind = {"dtype": torch.bfloat16, "device": torch.device("cpu")}
    own = {
        each: Bank(replace(LAYOUT, tokens=n, reference=0, fixed=0), [1], 2, 6, each=each, **kind)
        for each, n in ((PLACE, 4), (LATENT, 1))
    }
    return Bank(LAYOUT, range(2), 4, 8, each=TOKEN, adapters=own, **kind)


def write(bank: Bank, frames: range, values: torch.Generator) -> None:
    """What a pass leaves of generated frames."""
    for own in bank:
        own.touch(set(map(own.layout.slot, frames)))
        for layer in own.keys:
            for slot in map(own.layout.slot, frames):
                put(own, layer, slot, own.layout.span(slot, 1), values)


def prefill(bank: Bank, values: torch.Generator) -> None:
    bank.touch(bank.sink_slots(LAYOUT.reference))
    for layer in bank.keys:
        put(bank, layer, LAYOUT.anchored, slice(0, LAYOUT.fixed), values)
        put(bank, layer, 0, LAYOUT.span(0, 1), values)


def put(bank: Bank, layer: int, slot: int, span: slice, values: torch.Generator) -> None:
    n = bank.layout.tokens
    for buffer in (bank.keys, bank.values):
        buffer[layer][:, span] = torch.randn(buffer[layer][:, span].shape, generator=values).to(torch.bfloat16)
    if slot < bank.layout.anchored:
        bank.raw[layer][:, slot * n : (slot + 1) * n] = bank.keys[layer][:, span]


@pytest.fixture
def saver(tmp_path):
    """One whose jobs are done when they are asked for."""
    torch.set_num_threads(1)  # as runs do
    saver = Saver(Board(dist.HashStore(), 0, 1), devices.of("cpu"), str(tmp_path / "memory"))
    yield saver
    with saver._logs_lock:
        for log in saver._logs.values():
            log.close()
    if saver._held is not None:
        saver._held.close()
    assert not list((tmp_path / "memory").glob("*"))


def done(saver: Saver) -> None:
    while not saver._jobs.empty():
        saver._jobs.get()()


def cut(saver: Saver, bank: Bank, chunk: int, whole: int = -1, part: str = PART, share: Share = ALL, again=()) -> None:
    cut_bank(saver, 0, chunk, part, 0, bank, share, dict(again), Mark(whole))
    done(saver)


def told(saver: Saver, chunk: int, part: str = PART) -> dict:
    return saver.board.told(f"saved/0/0/{chunk}/{part}")


def whole_cut(saver: Saver, chunk: int, parts=(PART,)) -> cuts.Cut:
    made = cuts.complete(saver.folder(0), chunk, parts, {"frames": 0, "video": None})
    cuts.supersede(made)
    return made


def same(bank: Bank, found: Bank) -> None:
    """All that is read of a bank; keys of the attention sink's frames are made from the raw ones."""
    for a, b in zip(bank, found, strict=True):
        assert all(position is None for position in b.placed)
        for i in a.keys:
            assert torch.equal(a.values[i], b.values[i]) and torch.equal(a.raw[i], b.raw[i])
            keys = a.keys[i].clone()
            keys[:, a.layout.span(0, a.layout.anchored)] = 0
            assert torch.equal(keys, b.keys[i])


@pytest.mark.parametrize("seed", range(8))
def test_a_cut_of_what_has_changed_is_a_copy_of_all(saver, seed):
    """Whatever passes come between two cuts: prefills, steps, commits, recaches; and the newest whole one moves on."""
    rng, values, bank, whole = random.Random(seed), torch.Generator().manual_seed(seed), filled(), -1
    copied = []
    for chunk in range(1, 25):
        write(bank, range(3 * chunk - 3, 3 * chunk), values)
        if rng.random() < 0.2:
            prefill(bank, values)
        if rng.random() < 0.2:
            write(bank, range(max(3, 3 * chunk - 9), 3 * chunk), values)
        if rng.random() < 0.6:
            before = saver.log(0, PART).nbytes
            cut(saver, bank, chunk, whole)
            copied.append(saver.log(0, PART).nbytes - before)
            found = filled()
            load_bank(whole_cut(saver, chunk), 0, found, ALL)
            same(bank, found)
            whole = chunk if rng.random() < 0.5 else whole


def test_heads_of_several_are_joined_and_parted_again(saver):
    """What two processes cut is one bank's, and a third takes its own part of it."""

    class Half(Share):
        parts = 2

        def __init__(self, rank: int):
            self.rank = rank

        def part(self, x, each, frames):
            if each == LATENT or (each == PLACE and not frames):
                return x
            dim, sizes = (1, (frames, 2, -1)) if each == PLACE else (2, (2, -1))
            parts = x.unflatten(dim, sizes)
            return parts[:, :, self.rank].flatten(1, 2) if each == PLACE else parts[:, :, self.rank]

    kind = {"dtype": torch.bfloat16, "device": torch.device("cpu")}

    def half() -> Bank:
        own = {
            PLACE: Bank(replace(LAYOUT, tokens=2, reference=0, fixed=0), [1], 2, 6, each=PLACE, **kind),
            LATENT: Bank(replace(LAYOUT, tokens=1, reference=0, fixed=0), [1], 2, 6, each=LATENT, **kind),
        }
        return Bank(LAYOUT, range(2), 2, 8, each=TOKEN, adapters=own, **kind)

    values, bank = torch.Generator().manual_seed(1), filled()
    prefill(bank, values)
    write(bank, range(15), values)
    cut(saver, bank, 5)
    one = whole_cut(saver, 5)
    names = [f"bank.0.0.0.{rank}" for rank in (2, 3)]
    for rank, name in enumerate(names):
        member = half()
        load_bank(one, 0, member, Half(rank))
        cut(saver, member, 6, part=name, share=Half(rank))
    found = filled()
    load_bank(whole_cut(saver, 6, names), 0, found, ALL)
    same(bank, found)


def test_what_is_run_again_is_written_once_and_goes_when_it_is_not_wanted(saver):
    bank = filled()
    latents = {i: torch.full((1, 2, 3), float(i)).permute(2, 0, 1) for i in range(6)}
    for chunk in range(2, 6):
        kept = {f"{i:06d}.x": latents[i] for i in range(chunk - 2, chunk)}
        cut(saver, bank, chunk, chunk - 1, again=kept)
        found, _ = whole_cut(saver, chunk).read("finished")
        assert list(found) == list(kept) and all(torch.equal(found[k], kept[k]) for k in kept)
        assert all(found[k].stride() == kept[k].stride() for k in kept)
    assert saver.log(0, PART).nbytes <= 2 * 4096


# -- the log ------------------------------------------------------------------------------------------------------


def test_a_log_holds_a_ring_and_what_two_intervals_wrote(saver):
    """Over 200 chunks, of which two cuts are under way at a time."""
    values, bank = torch.Generator().manual_seed(0), filled()
    prefill(bank, values)
    ring = bank.nbytes
    slot = ring // (LAYOUT.frames * 2)
    for chunk in range(1, 200):
        write(bank, range(3 * chunk - 3, 3 * chunk), values)
        cut(saver, bank, chunk, chunk - 2)
        assert told(saver, chunk) == {"files": {}}
    log = saver.log(0, PART)
    assert log.nbytes <= ring + 2 * 3 * 4 * slot + 8 * 4096
    assert len(log._cuts) == 3


@pytest.mark.parametrize("size", [1, 64, 100, 4097, 70_000, 1 << 20, (1 << 20) + 1])
def test_room_is_little_more_than_what_is_in_it(size):
    assert size <= room_of(size) <= (size + 4095 if size >= 1 << 20 else 64 + size * 5 // 4)


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


def test_a_cut_without_room_costs_itself_and_the_next_has_what_it_lacked(saver, full):
    values, bank = torch.Generator().manual_seed(0), filled()
    prefill(bank, values)
    write(bank, range(9), values)
    cut(saver, bank, 3)
    whole_cut(saver, 3)
    kept, folder = Read(saver.folder(0), 3, PART), saver.folder(0)
    before = kept.tensors()
    full(True)
    write(bank, range(9, 12), values)
    cut(saver, bank, 4, 3)
    assert "No space left" in told(saver, 4)["failure"]
    assert cuts.newest(folder) == 3
    assert all(torch.equal(a, b) for a, b in zip(before.values(), kept.tensors().values(), strict=True))
    full(False)
    write(bank, range(12, 15), values)
    cut(saver, bank, 5, 3)
    found = filled()
    load_bank(whole_cut(saver, 5), 0, found, ALL)
    same(bank, found)


def test_a_cut_that_was_chosen_before_another_failed_fails_too(saver, full):
    """It brings only what has changed since, and what the other was to bring is not there."""
    log = Log(lambda: saver.folder(0), "x")
    one, two = torch.ones(3), torch.full((3,), 2.0)
    assert log.missing(["a", "b"], []) == {"a", "b"}
    assert log.missing(["a", "b"], ["b"]) == {"b"}
    full(True)
    with pytest.raises(OSError, match="No space"):
        log.write(1, {"a": one, "b": one}, ["a", "b"], None, -1)
    full(False)
    with pytest.raises(OSError, match="given up"):
        log.write(2, {"b": two}, ["a", "b"], None, -1)
    assert log.missing(["a", "b"], []) == {"a", "b"}
    log.write(3, {"a": one, "b": two}, ["a", "b"], None, -1)
    found = Read(saver.folder(0), 3, "x").tensors()
    assert torch.equal(found["a"], one) and torch.equal(found["b"], two)
    log.close()


def test_a_folder_that_is_full_for_a_while_costs_its_cuts_and_nothing_else(runs, monkeypatch, caplog):
    real, calls = cuts.complete, []
    whole = runs("whole", "sink.video=null", *BASE)

    def complete(stream_: Path, chunk: int, *rest) -> cuts.Cut:
        calls.append(chunk)
        return real(stream_, chunk, *rest)

    fallocate = os.posix_fallocate

    def reserve(*args) -> None:
        if calls == [2]:  # between the first cut and the third
            calls.append(0)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        fallocate(*args)

    monkeypatch.setattr(cuts, "complete", complete)
    monkeypatch.setattr(os, "posix_fallocate", reserve)
    report = runs("run", "sink.video=null", *BASE, "plan=timestep", "stream.save_every_chunks=2")
    assert report["latents_sha256"] == whole["latents_sha256"] and report["state"]["saved"] == 8
    assert len([r for r in caplog.records if "was not saved" in r.getMessage()]) == calls.count(0) == 1
    after = runs("after", "sink.video=null", *BASE, "stream.chunks=9", f"resume={runs.folder / 'run'}")
    assert after["state"]["resumed_at"] == 8


# -- folders of runs ----------------------------------------------------------------------------------------------

HOLDS = "import sys; from runtime import cuts; h = cuts.hold(sys.argv[1]); print('held', flush=True); sys.stdin.read()"


def holder(path: Path) -> subprocess.Popen:
    """Another process of a run."""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    process = subprocess.Popen([sys.executable, "-c", HOLDS, str(path)], **pipes)
    assert process.stdout.readline() == "held\n"
    return process


def test_what_killed_runs_have_left_goes_when_the_next_starts(tmp_path):
    left, lives = tmp_path / "everframe-left", tmp_path / "everframe-lives"
    killed, alive = holder(left), holder(lives)
    (left / "stream.0").mkdir()
    killed.kill()
    killed.wait()
    assert left.exists()
    (tmp_path / "mine").mkdir()
    with cuts.folder(str(tmp_path)) as made:
        assert made.stat().st_mode & 0o777 == 0o700
        assert {p.name for p in tmp_path.iterdir()} == {made.name, "everframe-lives", "mine"}
    alive.communicate("")
    cuts.sweep(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["mine"]


def test_a_folder_outlives_all_but_the_last(tmp_path):
    path = tmp_path / "everframe-one"
    with cuts.hold(path) as first:
        other = holder(path)
        with cuts.hold(path) as second:
            assert second.host == first.host
        other.kill()
        other.wait()
        cuts.sweep(tmp_path)
        assert path.exists()
    assert not path.exists()


def test_of_many_who_come_and_go_at_once_none_is_without_a_folder_and_nothing_is_left(tmp_path):
    path, failed = tmp_path / "everframe-many", []

    def come_and_go(number: int) -> None:
        for turn in range(20):
            with cuts.hold(path):
                try:
                    (path / f"{number}.{turn}").touch()
                except OSError as error:
                    failed.append(error)

    threads = [threading.Thread(target=come_and_go, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed and not list(tmp_path.iterdir())


@pytest.mark.parametrize("launcher", ["launcher.threads=true", "launcher.threads=false"])
def test_a_run_leaves_nothing_in_memory(runs, launcher):
    memory = runs.folder / "memory"
    memory.mkdir()
    run = ("sink.video=null", *BASE, "plan=grid", "plan.steps=[2,2]", "stream.save_every_chunks=2")
    report = runs("run", *run, f"launcher.cuts={memory}", launcher)
    assert report["state"]["saved"] == 8 and not list(memory.iterdir())


def test_parts_of_another_host_come_by_the_folder_of_the_state(saver, tmp_path):
    """What lies in another host's memory is written where the state is made, and is not part of it then."""
    values, bank, state = torch.Generator().manual_seed(0), filled(), tmp_path / "state"
    state.mkdir()
    write(bank, range(9), values)
    saver.board.tell("cuts/host", "another")
    saver.folder(0)
    cut_bank(saver, 0, 3, PART, 0, bank, ALL, {}, Mark(-1, str(state)))
    done(saver)
    there = tmp_path / "there" / "stream.0"
    (there / "000003").mkdir(parents=True)
    made = cuts.complete(there, 3, [PART], {"frames": 0, "video": None}, state)
    found = filled()
    load_bank(made, 0, found, ALL)
    same(bank, found)
    assert made.read("bank.level0.layer00")[0][PLACED].tolist() == [ABSENT] * LAYOUT.anchored


def test_cuts_that_cannot_be_made_do_not_stop_the_stream(runs, caplog):
    (runs.folder / "file").write_text("no folder")
    run = ("sink.video=null", *BASE, "stream.chunks=6", "stream.save_every_chunks=5")
    for plan in ("plan=sequential", "plan=timestep"):
        caplog.clear()
        report = runs.ends(2, plan, *run, plan, f"launcher.cuts={runs.folder / 'file'}")
        assert report["chunks"] == 6 and report["state"]["saved"] is None
        assert len([r for r in caplog.records if "was not saved" in r.getMessage()]) == 1


@pytest.mark.parametrize("lock", [None, "somebody's own", ""])
def test_folders_of_others_are_left_alone_whatever_their_name(tmp_path, lock):
    """They may have the name that runs' folders have, and even a file of the lock's name."""
    own = tmp_path / "everframe-project"
    own.mkdir()
    (own / "thesis.txt").write_text("x")
    if lock is not None:
        (own / cuts.LOCK).write_text(lock)
    os.utime(own, (0, 0))
    cuts.sweep(tmp_path)
    assert (own / "thesis.txt").read_text() == "x"

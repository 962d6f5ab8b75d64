"""States that several workers write: whole, or not there at all."""

import threading

import pytest
import torch.distributed as dist

import devices
from runtime.board import Board
from runtime.cuts import Cut
from runtime.saving import Saver, Whole
from runtime.state import Keep


def written(keep: Keep, chunk: int, name: str):
    """A part that writes a file of its own."""

    def write() -> dict[str, str]:
        keep.part(chunk).joinpath(name).write_text(name)
        return {name: "hash of " + name}

    return write


def savers(count: int) -> list[Saver]:
    store = dist.HashStore()
    found = [Saver(Board(store, index, count), devices.of("cpu")) for index in range(count)]
    for saver in found:
        saver.start()
    return found


def test_a_state_is_whole_when_every_part_and_the_video_are_there(tmp_path):
    keep, (here, there), done = Keep(str(tmp_path), {}), savers(2), []
    keep.begin(4)
    whole = Whole(0, 4, keep, {"a", "b"}, {"c": "known"}, {"frames": 12}, done.append)
    here.complete(whole)
    there.part(0, 4, "b", written(keep, 4, "b"))
    here.part(0, 4, "a", written(keep, 4, "a"))
    there.close()
    assert not done and not (tmp_path / "chunk.000004").exists()
    whole.ready.set()
    here.close()
    assert done == [True]
    content = (tmp_path / "chunk.000004" / "state.json").read_text()
    assert all(f'"{name}": "' in content for name in ("a", "b", "c"))
    assert here.board.keys() == 0


def test_an_older_cut_stays_until_others_know_of_the_newer_one(tmp_path):
    """Whoever makes cuts whole may be killed between any two lines; others go on from the cut that they know of."""
    (saver,), stream, there = savers(1), tmp_path / "stream.0", []
    tell = saver.board.tell

    def killed(key: str, told) -> None:
        if key == "whole/0":
            there.append([made for made in ("000004", "000009") if (stream / made / "whole.json").exists()])
            if told["chunk"] == 14:
                raise OSError("killed here")
        tell(key, told)

    saver.board.tell = killed
    for chunk in (4, 9, 14):
        whole = Whole(0, chunk, Keep(str(tmp_path), {}), set(), {}, {"frames": 0, "video": None}, bool, cut=stream)
        (stream / f"{chunk:06d}").mkdir(parents=True)
        whole.ready.set()
        saver.complete(whole)
    saver.close()
    assert there == [["000004"], ["000004", "000009"], ["000009"]]
    assert saver.board.told("whole/0")["chunk"] == 9 and Cut(stream, 9).content["chunk"] == 9


def test_a_disk_that_refuses_one_part_leaves_nothing_behind(tmp_path):
    keep, (saver,), done = Keep(str(tmp_path), {}), savers(1), []
    keep.begin(4)

    def refuse():
        raise OSError("no space left")

    saver.part(0, 4, "a", written(keep, 4, "a"))
    saver.part(0, 4, "b", refuse)
    whole = Whole(0, 4, keep, {"a", "b"}, {}, {}, done.append)
    whole.ready.set()
    saver.complete(whole)
    saver.close()
    assert done == [False]
    assert not list(tmp_path.iterdir())
    assert saver.board.keys() == 0


def test_a_run_that_fails_gives_up_what_cannot_become_whole(tmp_path):
    """Nobody waits for parts of a worker that is gone, and who asks later is told at once."""
    keep, (saver,), done = Keep(str(tmp_path), {}), savers(1), []
    keep.begin(4)
    saver.complete(Whole(0, 4, keep, {"of a lost worker"}, {}, {}, done.append))
    saver.close(wait=False)
    saver.complete(Whole(0, 8, keep, {"of a lost worker"}, {}, {}, done.append))
    assert done == [False, False]
    assert not list(tmp_path.iterdir())


def test_what_others_left_beside_the_states_stays(tmp_path):
    """Names that are not a stream's own are neither read as numbers nor removed."""
    keep, (saver,), done = Keep(str(tmp_path), {}), savers(1), []
    ours = ("chunk.000002", "chunk.000003.part", "chunk.000004.old")
    foreign = ("chunk.x.part", "chunk.part", "chunk.5.part", "chunk.000001.backup")
    for name in (*ours, *foreign, "chunk.000008.part"):
        (tmp_path / name).mkdir()
    keep.begin(4)
    whole = Whole(0, 4, keep, set(), {}, {}, done.append)
    whole.ready.set()
    saver.complete(whole)
    saver.close()
    assert done == [True]
    assert {path.name for path in tmp_path.iterdir()} == {"chunk.000004", "chunk.000008.part", *foreign}


@pytest.mark.parametrize("failing", ["complete", "_finish"])
def test_whatever_goes_wrong_with_a_state_nobody_waits_for_it(tmp_path, monkeypatch, caplog, failing):
    """One that cannot be completed costs itself; a fault of the saver's own, every state from then on."""

    def broken(self, *_):
        raise ValueError("invalid literal")

    monkeypatch.setattr(Keep if failing == "complete" else Saver, failing, broken)
    monkeypatch.setattr(threading, "excepthook", lambda _: None)
    keep, (saver,), done = Keep(str(tmp_path), {}), savers(1), []
    for chunk in (4, 8):
        keep.begin(chunk)
        whole = Whole(0, chunk, keep, {"a"}, {}, {}, done.append)
        whole.ready.set()
        saver.complete(whole)
        saver.part(0, chunk, "a", written(keep, chunk, "a"))
    saver.close()
    assert done == [False, False]
    assert not list(tmp_path.iterdir())
    if failing == "complete":
        assert [r.getMessage() for r in caplog.records] == [
            f"the state in {tmp_path} was not saved: invalid literal"
        ] * 2


def test_states_of_a_stream_come_in_order(tmp_path):
    """The older one is not made whole behind the newer one, which it would remove."""
    keep, (saver,), done = Keep(str(tmp_path), {}), savers(1), []
    made = threading.Event()
    for chunk in (4, 8):
        keep.begin(chunk)
        whole = Whole(0, chunk, keep, {"a"}, {}, {}, lambda good, chunk=chunk: (done.append(chunk), made.set()))
        whole.ready.set()
        saver.complete(whole)
    saver.part(0, 8, "a", written(keep, 8, "a"))
    saver.part(0, 4, "a", written(keep, 4, "a"))
    saver.close()
    assert done == [4, 8]
    assert [path.name for path in tmp_path.iterdir()] == ["chunk.000008"]

"""An output folder that hosts do not share is found by all of them at once, and a shared one is left as it was."""

import threading

import pytest
from torch.distributed import HashStore

from conf.errors import UserError
from runtime import folder
from runtime.board import Board
from runtime.folder import require_shared, strangers
from tests.patience import PATIENT_S


@pytest.fixture
def meet(monkeypatch):
    """meet(homes, folders, writer) -> what each member, a thread, was told of strangers or raised."""
    mine = threading.local()
    monkeypatch.setattr(folder, "home", lambda namespace: mine.home)
    monkeypatch.setattr(folder, "LOOK_S", 0.0)

    def run(homes, folders, writer=0, ask=strangers) -> list:
        store, found = HashStore(), [None] * len(homes)

        def attend(index: int) -> None:
            mine.home = homes[index]
            board = Board(store, index, len(homes))
            try:
                found[index] = ask(board, folders[index], range(len(homes)), index == writer, PATIENT_S)
            except UserError as error:
                found[index] = error

        threads = [threading.Thread(target=attend, args=(index,)) for index in range(len(homes))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return found

    return run


def test_a_shared_folder_is_left_as_it_was(meet, tmp_path):
    assert meet("aab", [tmp_path] * 3, writer=1) == [{}] * 3
    assert not list(tmp_path.iterdir())


def test_on_one_host_nothing_is_written(meet, tmp_path):
    assert meet("aa", [tmp_path / "none"] * 2) == [{}] * 2


def test_who_does_not_see_the_folder_is_named_to_all(meet, tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    found = meet("abb", [tmp_path / "a", tmp_path / "b", tmp_path / "c"])
    assert [list(strangers) for strangers in found] == [[1, 2]] * 3
    assert "what worker 0 has written there" in found[0][1]
    assert not [*(tmp_path / "a").iterdir(), *(tmp_path / "b").iterdir()]


def test_a_folder_that_its_maker_cannot_write_is_named_too(meet, tmp_path):
    found = meet("ab", [tmp_path / "none"] * 2)
    assert [list(strangers) for strangers in found] == [[0]] * 2
    assert "cannot write there" in found[0][0]


def test_a_run_is_refused_in_one_line_on_every_host(meet, tmp_path):
    (tmp_path / "b").mkdir()
    found = meet("ab", [tmp_path, tmp_path / "b"], ask=require_shared)
    assert [error.value for error in found] == [f"output_dir={tmp_path}", f"output_dir={tmp_path}/b"]
    assert all(error.rule.startswith("worker 1 does not see on ") for error in found)
    assert meet("ab", [tmp_path] * 2, ask=require_shared) == [None, None]

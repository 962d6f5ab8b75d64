"""A process's own address is the one it reaches the store from, whatever its host calls itself, and a loopback address
is never told to another host.
"""

import ctypes
import os
import threading

import pytest
from torch.distributed import HashStore, PrefixStore, TCPStore

from conf.errors import UserError
from parallel import address
from parallel.address import home, is_loopback, misplaced, own_address, refuse_loopback, told_address
from tests.patience import PATIENT_S
from tests.processes import PROCESSES


def a_store() -> TCPStore:
    return TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)


def test_it_is_the_way_to_the_store():
    assert own_address(PrefixStore("a", PrefixStore("b", a_store()))) == "127.0.0.1"


def test_without_a_network_there_is_none():
    assert own_address(PrefixStore("a", HashStore())) is None


@pytest.mark.parametrize(
    ("text", "loopback"),
    [("127.0.0.1", True), ("127.0.1.1", True), ("::1", True), ("10.0.0.7", False), ("fe80::1%eth0", False)],
)
def test_what_a_loopback_address_is(text, loopback):
    assert is_loopback(text) is loopback


def test_loopback_is_misplaced_among_several_hosts_only():
    first, second = ("a", "127.0.1.1"), ("b", "10.0.0.2")
    assert misplaced([first, first]) == []
    assert misplaced([second, first, ("b", None)]) == [1]
    assert misplaced([second, ("a", "10.0.0.1")]) == []


def test_an_interface_that_was_named_is_believed(monkeypatch):
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "eth7,eth8")
    assert told_address(a_store()) is None
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    assert told_address(a_store()) == "127.0.0.1"


def meet(homes: list[str], monkeypatch) -> list[UserError | None]:
    """Processes of these hosts meet, as threads."""
    store, found = HashStore(), [None] * len(homes)
    mine = threading.local()
    monkeypatch.setattr(address, "home", lambda namespace: mine.home)
    monkeypatch.setattr(address, "own_address", lambda store: "10.0.0.2" if mine.home == "other" else "127.0.1.1")

    def attend(index: int) -> None:
        mine.home = homes[index]
        try:
            refuse_loopback(store, index, len(homes))
        except UserError as error:
            found[index] = error

    threads = [threading.Thread(target=attend, args=(index,)) for index in range(len(homes))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


def test_all_processes_refuse_alike(monkeypatch):
    lines = {str(error) for error in meet(["first", "first", "other"], monkeypatch)}
    assert len(lines) == 1
    assert lines.pop().startswith("address 127.0.1.1 of ")


def test_one_host_may_use_loopback(monkeypatch):
    assert meet(["first", "first"], monkeypatch) == [None, None]


NEW_NETWORK = 0x40000000  # CLONE_NEWNET


def _homes(pipe) -> None:
    """Homes of a process before and after it has left its network."""
    before = home("net"), home("mnt")
    pipe.send([before, ctypes.CDLL(None).unshare(NEW_NETWORK), (home("net"), home("mnt"))])


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="needs root")
def test_a_network_of_its_own_is_a_home_of_its_own():
    ours, theirs = PROCESSES.Pipe()
    process = PROCESSES.Process(target=_homes, args=(theirs,), daemon=True)
    process.start()
    assert ours.poll(PATIENT_S)
    before, failed, after = ours.recv()
    process.join(PATIENT_S)
    if failed:
        pytest.skip("may not make a network here")
    assert before == (home("net"), home("mnt"))
    assert after[0] != before[0]
    assert after[1] == before[1]

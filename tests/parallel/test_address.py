"""A process's own address is the one it reaches the store from, whatever its host calls itself."""

from torch.distributed import HashStore, PrefixStore, TCPStore

from parallel.address import own_address


def test_it_is_the_way_to_the_store():
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    assert own_address(PrefixStore("a", PrefixStore("b", store))) == "127.0.0.1"


def test_without_a_network_there_is_none():
    assert own_address(PrefixStore("a", HashStore())) is None

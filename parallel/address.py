"""The address at which the other workers reach this process: the one it reaches their common store from.

A host's own idea of its name will not do: where a host resolves its name to a loopback address (Debian's 127.0.1.1),
others who were told it would connect with themselves.
"""

from __future__ import annotations

import os
import socket
from functools import lru_cache

import torch.distributed as dist


def gloo_device(store: dist.Store) -> dist.ProcessGroupGloo.Device:
    """Where gloo listens: on the interface that GLOO_SOCKET_IFNAME names, else at this process's own address."""
    if interface := os.environ.get("GLOO_SOCKET_IFNAME"):
        return _device(interface=interface.split(",")[0])
    address = own_address(store)
    return _device(hostname=address) if address else _device()


@lru_cache
def _device(**where: str) -> dist.ProcessGroupGloo.Device:
    """One for all channels of a process: each has a thread that wakes every 10 ms, whether or not anything comes."""
    return dist.ProcessGroupGloo.create_device(**where) if where else dist.ProcessGroupGloo.create_default_device()


def own_address(store: dist.Store) -> str | None:
    """This process's address on the way to a store's host; None where no network lies between, or none is found."""
    while isinstance(store, dist.PrefixStore):
        store = store.underlying_store
    if not isinstance(store, dist.TCPStore):
        return None
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(store.host, store.port, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            # Of a datagram socket this asks the routing table, and sends nothing.
            probe.connect(address)
            return probe.getsockname()[0]
    except OSError:
        return None

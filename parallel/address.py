"""The address at which the other workers reach this process: the one it reaches their common store from.

A host's own idea of its name will not do: where a host resolves its name to a loopback address (Debian's 127.0.1.1),
others who were told it would connect with themselves. The way to the store is such an address, too, where the store's
own host knows itself by that name; among several hosts that is refused.
"""

from __future__ import annotations

import ipaddress
import json
import os
import platform
import socket
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import torch.distributed as dist

from conf.errors import UserError

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


def home(namespace: str) -> str:
    """What processes have in common that share a namespace of one machine, and no others.

    Args:
        namespace: `net`: they reach each other over loopback; `mnt`: they see the same files.
    """
    try:
        return f"{BOOT_ID.read_text().strip()} {Path('/proc/self/ns', namespace).readlink()}"
    except OSError:  # no Linux
        return platform.node()


def gloo_device(store: dist.Store) -> dist.ProcessGroupGloo.Device:
    """Where gloo listens: on the interface that GLOO_SOCKET_IFNAME names, else at this process's own address."""
    if interface := os.environ.get("GLOO_SOCKET_IFNAME"):
        return _device(interface=interface.split(",")[0])
    address = own_address(store)
    return _device(hostname=address) if address else _device()


def told_address(store: dist.Store) -> str | None:
    """The address that gloo tells others; None if it is known only to gloo."""
    if interface := os.environ.get("GLOO_SOCKET_IFNAME"):
        return "127.0.0.1" if interface.split(",")[0] == "lo" else None
    if address := own_address(store):
        return address
    try:
        return socket.gethostbyname(socket.gethostname())
    except OSError:
        return None


def misplaced(told: Sequence[tuple[str, str | None]]) -> list[int]:
    """Indices of processes that tell others a loopback address, though the run is on several hosts.

    Args:
        told: `home("net")` and `told_address` of every process.
    """
    several = len({where for where, _ in told}) > 1
    return [i for i, (_, address) in enumerate(told) if several and address and is_loopback(address)]


def is_loopback(address: str) -> bool:
    """Whether an address means the host that uses it."""
    return ipaddress.ip_address(address.split("%")[0]).is_loopback


def refuse_loopback(store: dist.Store, index: int, count: int) -> None:
    """Find out before anything is loaded whether the processes of a run can reach each other's addresses. Each calls
    it, waits for the others as long as the store does, and comes to the same end.

    Args:
        store: shared by all of them.
        index, count: of this process, and how many there are.

    Raises:
        UserError: a process would tell others on other hosts a loopback address.
    """
    store.set(f"address/{index}", json.dumps([home("net"), told_address(store), platform.node()]))
    told = [json.loads(store.get(f"address/{other}")) for other in range(count)]
    if wrong := misplaced([(where, address) for where, address, _ in told]):
        _, address, host = told[wrong[0]]
        raise UserError(
            f"address {address} of {host}",
            "the run is on several hosts, and the others would connect with themselves there",
            f"give {host}'s address on the network that all share: torchrun --local-addr=ADDRESS and MASTER_ADDR, "
            "ray start --node-ip-address=ADDRESS, or GLOO_SOCKET_IFNAME=INTERFACE",
        )


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

"""Hosts on one machine: network namespaces on a bridge, each with an address and a name of its own. Needs root."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

NETNS = Path("/etc/netns")


class Host(NamedTuple):
    """A namespace.

    Attributes:
        name: of the namespace, and what the host calls itself.
        address: on the network that all share.
        outside: the end of its cable that is outside.
    """

    name: str
    address: str
    outside: str

    def command(self, *command: str) -> list[str]:
        """A command line that runs `command` there; the process ends as its caller sees it end."""
        inside = ["unshare", "--uts", "sh", "-c", f'hostname {self.name} && exec "$@"', "sh", *command]
        return ["ip", "netns", "exec", self.name, *inside]

    def plug(self, state: str) -> None:
        """Put its cable in (`up`) or pull it (`down`)."""
        _ip("link", "set", self.outside, state)

    def knows(self, name: str, address: str) -> None:
        """Resolve a name to another address there, for whatever starts from now on."""
        file = NETNS / self.name / "hosts"
        others = [line for line in file.read_text().splitlines() if name not in line.split()]
        file.write_text("\n".join([*others, f"{address} {name}", ""]))

    def block(self, first: int, last: int) -> None:
        """Let no connection out to these ports of others."""
        for family in ("-4", "-6"):
            rule = ("ipproto", "tcp", "dport", f"{first}-{last}", "blackhole")
            _ip(family, "-n", self.name, "rule", "add", "priority", "1", *rule)


def possible() -> bool:
    """Whether this process may make hosts, and has what it takes."""
    if os.geteuid() or not (shutil.which("ip") and shutil.which("unshare")):
        return False
    name = f"ef{os.getpid()}t"
    if subprocess.run(["ip", "netns", "add", name], capture_output=True).returncode:
        return False
    _ip("netns", "del", name)
    return True


@contextmanager
def hosts(count: int) -> Iterator[list[Host]]:
    """Some hosts, while the context is open; whatever runs there must have ended before."""
    base = f"ef{os.getpid()}"
    network = f"10.{os.getpid() % 200 + 20}.7"
    bridge = f"{base}br"
    found = [Host(f"{base}h{i}", f"{network}.{i + 1}", f"{base}o{i}") for i in range(count)]
    try:
        _ip("link", "add", bridge, "type", "bridge")
        _ip("link", "set", bridge, "up")
        for host in found:
            inside = f"{host.outside}i"
            _ip("netns", "add", host.name)
            _ip("link", "add", host.outside, "type", "veth", "peer", "name", inside)
            _ip("link", "set", inside, "netns", host.name)
            _ip("link", "set", host.outside, "master", bridge, "up")
            _ip("-n", host.name, "address", "add", f"{host.address}/24", "dev", inside)
            _ip("-n", host.name, "link", "set", inside, "up")
            _ip("-n", host.name, "link", "set", "lo", "up")
            # `ip netns exec` puts these over /etc: names are known, and nobody waits for a name server.
            (NETNS / host.name).mkdir(parents=True)
            names = "".join(f"{other.address} {other.name}\n" for other in found)
            (NETNS / host.name / "hosts").write_text(f"127.0.0.1 localhost\n{names}")
            (NETNS / host.name / "resolv.conf").write_text("nameserver 127.0.0.1\n")
        yield found
    finally:
        for host in found:
            subprocess.run(["ip", "netns", "del", host.name], capture_output=True)
            subprocess.run(["ip", "link", "del", host.outside], capture_output=True)
            shutil.rmtree(NETNS / host.name, ignore_errors=True)
        subprocess.run(["ip", "link", "del", bridge], capture_output=True)


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)

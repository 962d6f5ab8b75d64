"""By what name a server is asked for, and of what name a page is: the headers Host and Origin, and the settings."""

from __future__ import annotations

import ipaddress
import re
from typing import NamedTuple

PORTS = {"http": 80, "https": 443}
PLAIN = {"ws": "http", "wss": "https"}


class Place(NamedTuple):
    """Where a request was sent to, or a page came from: `Host`, `Origin` or an entry of the settings."""

    scheme: str
    host: str
    port: int


def place(text: str, scheme: str) -> Place | None:
    """`HOST` or `HOST:PORT` of http, https, ws or wss; None: it is neither."""
    scheme = PLAIN.get(scheme, scheme)
    found = re.fullmatch(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(?::([0-9]{1,5}))?", text)
    if not found:
        return None
    return Place(scheme, host(found[1]), int(found[2]) if found[2] else PORTS[scheme])


def origin(text: str) -> Place | None:
    """`SCHEME://HOST[:PORT]` (RFC 6454); None: it is none, such as `null`."""
    scheme, _, rest = text.partition("://")
    return place(rest, scheme) if scheme in ("http", "https") else None


def host(text: str) -> str:
    """A name in lower case, an address as Python writes it."""
    bare = text.strip("[]").rstrip(".").lower()
    try:
        address = ipaddress.ip_address(bare)
    except ValueError:
        return bare
    return str(getattr(address, "ipv4_mapped", None) or address)


def entry(text: str) -> tuple[str, int | None]:
    """An entry of `serve.names`: the name, and the port if it says one."""
    text = text.strip()
    if text.count(":") > 1 and not text.startswith("["):  # IPv6, without brackets
        return host(text), None
    name, colon, port = text.rpartition(":")
    return (host(name), int(port)) if colon and port.isdigit() else (host(text), None)


def behind(found: Place, asked: Place) -> bool:
    """Whether a page is of the name that was asked for, be it that a proxy has ended its TLS on the way."""
    usual = set(PORTS.values())
    return found.host == asked.host and (found.port == asked.port or {found.port, asked.port} <= usual)


def loopback(address: str) -> bool:
    """Whether an address is of this machine only."""
    try:
        return ipaddress.ip_address(host(address)).is_loopback
    except ValueError:
        return False

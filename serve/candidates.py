"""Where a viewer's media may go: an offer names addresses, and the server sends datagrams to those that it believes.

So nothing is believed that would make it knock at doors of its own house (RFC 8445 section 19, RFC 8826 section 4.2.1).
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator
from typing import NamedTuple

from aiortc import RTCIceCandidate

from conf.schema.serve import ServeConfig

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

METADATA = frozenset(
    ipaddress.ip_address(address)
    for address in ("169.254.169.254", "fd00:ec2::254", "100.100.100.200", "168.63.129.16", "192.0.0.192")
)
"""Where clouds tell a machine its secrets."""
TRANSLATED = ipaddress.ip_network("64:ff9b::/96")
"""IPv6 addresses whose last four bytes are an IPv4 address (RFC 6052)."""
MOST = 20
"""Candidates of one offer."""
TYPES = ("host", "srflx", "relay")
LOW_PORTS, WEB_PORTS = 1024, (80, 443)
"""Below the first are services, which nobody receives media at; the others are for relays behind strict walls."""
MOST_PRIORITY = 2**31 - 1
_NAME = re.compile(r"[A-Za-z0-9-]{1,63}\.local")


class Reach(NamedTuple):
    """Which addresses are believed.

    Attributes:
        private: those that are not reached from everywhere, such as 192.168.1.2, and names of the local network.
        loopback: this machine's own.
    """

    private: bool
    loopback: bool

    @classmethod
    def of(cls, serve: ServeConfig) -> Reach:
        """What `serve.private_peers` and `serve.host` say."""
        private = _within(serve) if serve.private_peers == "auto" else serve.private_peers == "true"
        return cls(private, serve.local and private)

    def allows(self, host: str) -> bool:
        """Whether media may go to an address, or to what a name `x.local` turns out to be."""
        if is_name(host):
            return self.private
        try:
            address = ipaddress.ip_address(host)
        except ValueError:
            return False
        if getattr(address, "scope_id", None) is not None:
            return False
        return all(self._allows(inner) for inner in _meant(address))

    def _allows(self, address: Address) -> bool:
        if address in METADATA or address.is_multicast or address.is_unspecified or address.is_link_local:
            return False
        if address.is_loopback:
            return self.loopback
        if address.version == 4 and (address.is_reserved or int(address) >> 24 == 0):
            return False  # 240.0.0.0/4 with the broadcast address, and "this network"
        return self.private or address.is_global

    def candidate(self, line: str) -> RTCIceCandidate | None:
        """What an SDP line `a=candidate:...` names (RFC 8839 section 5.1); None: it is not believed, or of no use.

        Of use are UDP and the one component that RTP and RTCP share.
        """
        parts = line.removeprefix("a=candidate:").split()
        if len(parts) < 8 or parts[6] != "typ":
            return None
        foundation, component, transport, priority, host, port, _, kind = parts[:8]
        if component != "1" or transport.lower() != "udp" or kind not in TYPES or not self.allows(host):
            return None
        if not _number(priority, 1, MOST_PRIORITY) or not _number(port, 1, 65535):
            return None
        if int(port) < LOW_PORTS and int(port) not in WEB_PORTS:
            return None
        return RTCIceCandidate(1, foundation[:32], host, int(port), int(priority), "udp", kind)


def is_name(host: str) -> bool:
    """Whether it is a name that is asked for by multicast, as browsers hide their addresses behind (RFC 6762)."""
    return _NAME.fullmatch(host) is not None


def _within(serve: ServeConfig) -> bool:
    """Whether the server stands at a loopback or private address."""
    if serve.local:
        return True
    try:
        address = ipaddress.ip_address(serve.host)
    except ValueError:
        return False
    return address.is_private and not address.is_unspecified


def _meant(address: Address) -> Iterator[Address]:
    """The address, and any IPv4 address that is written in it: routers take them out again."""
    yield address
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is not None:
            yield address.ipv4_mapped
        if address.sixtofour is not None:
            yield address.sixtofour
        if address.teredo is not None:
            yield from address.teredo
        if address in TRANSLATED or (int(address) >> 32 == 0 and not address.is_loopback):
            yield ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)


def _number(text: str, least: int, most: int) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= 10 and least <= int(text) <= most

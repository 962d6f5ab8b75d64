"""Whether a STUN or TURN server answers: one binding request (RFC 8489), or a connection where it is reached by TCP."""

from __future__ import annotations

import ipaddress
import re
import secrets
import socket
import struct
import time
from typing import NamedTuple

from conf.errors import UserError
from conf.typed import shown

MAGIC = 0x2112A442
REQUEST, SUCCESS, MAPPED, XOR_MAPPED = 0x0001, 0x0101, 0x0001, 0x0020
"""Types of messages and of attributes (RFC 8489, 18.2 and 18.3)."""
HEADER = struct.Struct("!HHI12s")
PORTS = {"stun": 3478, "turn": 3478, "stuns": 5349, "turns": 5349}
"""By scheme, where none is said (RFC 7064, RFC 7065)."""
ANSWER_S, FIRST_S = 2.0, 0.5
"""Longest wait for an answer, and when it is asked again: each wait is twice as long as the one before."""


class Server(NamedTuple):
    """Where a server is: its scheme, host, port, and whether it is reached by TCP."""

    scheme: str
    host: str
    port: int
    tcp: bool


def server_of(url: str) -> Server:
    """What an address such as `turn:turn.example.org:3478?transport=tcp` says (RFC 7064, RFC 7065).

    Raises:
        UserError: it is no such address.
    """
    found = re.fullmatch(
        r"(stuns?|turns?):(\[[0-9a-fA-F:]+\]|[^:\[\]/?@]+)(?::(\d{1,5}))?(?:\?transport=(udp|tcp))?", url
    )
    if found is None or (found[3] and not 0 < int(found[3]) < 1 << 16):
        raise UserError(f"serve.ice_servers: {shown(url)}", "is no address", "use stun:HOST:PORT or turn:HOST:PORT")
    scheme, host, port, transport = found.groups()
    return Server(scheme, host.strip("[]"), int(port or PORTS[scheme]), transport == "tcp" or scheme.endswith("s"))


def answer(server: Server, timeout_s: float = ANSWER_S) -> str:
    """What a server answered, in words.

    Raises:
        OSError: nothing, in time.
    """
    if server.tcp:
        socket.create_connection((server.host, server.port), timeout_s).close()
        return "takes connections"
    where = socket.getaddrinfo(server.host, server.port, type=socket.SOCK_DGRAM)[0]
    with socket.socket(where[0], socket.SOCK_DGRAM) as asking:
        asking.connect(where[4])
        number, end, wait = secrets.token_bytes(12), time.monotonic() + timeout_s, FIRST_S
        while (left := end - time.monotonic()) > 0:
            asking.send(HEADER.pack(REQUEST, 0, MAGIC, number))
            asking.settimeout(min(left, wait))
            wait *= 2
            try:
                while (seen := mapped(asking.recv(2048), number)) is None:
                    pass  # another's answer
            except TimeoutError:
                continue
            return f"answers, and sees this machine as {seen}"
    raise TimeoutError(f"no answer within {timeout_s:g} s")


def mapped(packet: bytes, number: bytes) -> str | None:
    """The address that a binding response tells whoever asked; None: it is none, or of another request.

    Args:
        number: the transaction's, 12 bytes.
    """
    if len(packet) < HEADER.size:
        return None
    kind, length, magic, of = HEADER.unpack_from(packet)
    if (kind, magic, of) != (SUCCESS, MAGIC, number) or len(packet) < HEADER.size + length:
        return None
    at, end, found = HEADER.size, HEADER.size + length, {}
    while at + 4 <= end:
        what, size = struct.unpack_from("!HH", packet, at)
        found.setdefault(what, packet[at + 4 : at + 4 + size])
        at += 4 + -(-size // 4) * 4
    for what, mask in ((XOR_MAPPED, packet[4 : HEADER.size]), (MAPPED, bytes(16))):
        value = found.get(what, b"")
        if len(value) in (8, 20) and value[1] == {8: 1, 20: 2}[len(value)]:
            return str(ipaddress.ip_address(bytes(a ^ b for a, b in zip(value[4:], mask, strict=False))))
    return "an address that it does not tell"

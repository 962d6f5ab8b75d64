"""What one caller may take: bodies of so many bytes in so many seconds, requests a minute, connections."""

from __future__ import annotations

import asyncio
import errno
import ipaddress
import json
import time
from collections import Counter, OrderedDict
from collections.abc import Callable
from typing import Any, TypeVar

from starlette.requests import Request

from conf.errors import UserError
from conf.schema.serve import ServeConfig
from conf.typed import typed
from serve.problems import Problem

T = TypeVar("T")

HEAD_BYTES, JSON_BYTES, SDP_BYTES, UPLOAD_BYTES = 64 << 10, 64 << 10, 64 << 10, 8 << 20
OFFER_BYTES = 2 * SDP_BYTES
"""Of a JSON body that carries SDP: each of its line ends takes twice its bytes."""
BODY_S = 10.0
"""Longest time from a request's head to the end of its body."""
ADDRESSES = 4096
"""Addresses of which is remembered how much they asked for; those that asked longest ago are forgotten first."""
CONNECTIONS, EACH = 1024, 64
"""Open connections in all, and of one address."""
SCARCE = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}
"""Of taking a connection: for the moment no more can be had, whoever comes."""
IPV6_SITE = 64
"""Bits of an IPv6 address that belong to a site; the others are its own to choose."""


def site(address: str) -> str:
    """What counts as one caller: an IPv4 address, or the first 64 bits of an IPv6 address; other text as it is."""
    try:
        parsed = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if parsed.version == 4:
        return str(parsed)
    if parsed.ipv4_mapped:
        return str(parsed.ipv4_mapped)
    return str(ipaddress.ip_network((parsed, IPV6_SITE), strict=False))


def proxied(peer: str, serve: ServeConfig) -> bool:
    """Whether a peer is taken for a proxy of ours: it is on this machine, and `serve.names` says how we are reached."""
    try:
        address = ipaddress.ip_address(peer)
    except ValueError:
        return False
    return bool(serve.names) and (getattr(address, "ipv4_mapped", None) or address).is_loopback


def caller(peer: str, forwarded: str | None, serve: ServeConfig) -> str:
    """The address of whoever asks: the peer's own, or what a proxy says of it.

    Args:
        peer: address of the other end of the connection.
        forwarded: the header X-Forwarded-For; only its last address is of the proxy's own knowledge, and only a proxy
            is believed at all (`proxied`): anybody can send the header.
    """
    if forwarded and proxied(peer, serve):
        last = forwarded.rpartition(",")[2].strip()
        try:
            return str(ipaddress.ip_address(last))
        except ValueError:
            return peer
    return peer


class Limit:
    """So many a second, and some at once.

    Args:
        per_second: that come through in the long run.
        burst: at once, after a while in which none came.
        clock: seconds, monotonic.

    Attributes:
        over: how many were too many, since the last one that was not.
    """

    def __init__(self, per_second: float, burst: float, clock: Callable[[], float] = time.monotonic):
        self._per_second, self._burst, self._clock = per_second, burst, clock
        self._left, self._at = float(burst), clock()
        self.over = 0

    def wait_s(self) -> float:
        """One more: 0 where it comes through, otherwise the seconds until one does."""
        now = self._clock()
        self._left = min(self._burst, self._left + (now - self._at) * self._per_second)
        self._at = now
        if self._left < 1:
            self.over += 1
            return (1 - self._left) / self._per_second
        self._left -= 1
        self.over = 0
        return 0.0

    def check(self) -> None:
        """One more message.

        Raises:
            Problem: `too_many`.
        """
        if wait_s := self.wait_s():
            detail = f"over {self._per_second:g} messages a second; this one was not heard: send fewer"
            raise Problem("too_many", detail, max(1.0, wait_s))


class Buckets:
    """So many requests a minute of each caller and kind; a full minute's worth may come at once.

    Args:
        per_minute: requests.
        most: callers that are remembered.
        clock: seconds, monotonic.
    """

    def __init__(self, per_minute: float, most: int = ADDRESSES, clock: Callable[[], float] = time.monotonic):
        self._per_minute, self._most, self._clock = per_minute, most, clock
        self._limits: OrderedDict[tuple[str, str], Limit] = OrderedDict()

    def __len__(self) -> int:
        return len(self._limits)

    def take(self, kind: str, address: str) -> None:
        """One request more.

        Raises:
            Problem: `too_many`, and when the next one is let through.
        """
        key = kind, site(address)
        limit = self._limits.pop(key, None) or Limit(self._per_minute / 60, self._per_minute, self._clock)
        self._limits[key] = limit
        if len(self._limits) > self._most:
            self._limits.popitem(last=False)
        if wait_s := limit.wait_s():
            detail = f"more than {self._per_minute:g} a minute of this kind from one address; come back a little later"
            raise Problem("too_many", detail, wait_s)


class Crowd:
    """Who is connected: a connection is counted from the moment it is taken, before it has said anything.

    Args:
        most: connections in all.
        each: of one address.
        exempt: addresses that stand for many callers, such as a proxy's.
    """

    def __init__(self, most: int = CONNECTIONS, each: int = EACH, exempt: Callable[[str], bool] = lambda _: False):
        self._most, self._each, self._exempt = most, each, exempt
        self._there: Counter[str] = Counter()

    def __len__(self) -> int:
        return self._there.total()

    @property
    def full(self) -> bool:
        """Whether there is no room for anybody."""
        return self._there.total() >= self._most

    def enter(self, address: str) -> Callable[[], None] | None:
        """What is to be called when the connection ends, any number of times; None: there is no room for it."""
        key = site(address)
        if self.full or (self._there[key] >= self._each and not self._exempt(address)):
            return None
        self._there[key] += 1
        gone = False

        def leave() -> None:
            nonlocal gone
            if not gone:
                gone = True
                self._there[key] -= 1
                if not self._there[key]:
                    del self._there[key]

        return leave


async def body(request: Request, most: int, within_s: float = BODY_S) -> bytes:
    """A request's body.

    Args:
        most: bytes; what is announced to be longer is not read at all.
        within_s: longest time for all of it.

    Raises:
        Problem: `too_large`, or `timeout`.
        ClientDisconnect: the caller has gone.
    """
    said = request.headers.get("content-length", "")
    if said.isdigit() and int(said[:20]) > most:
        raise _too_large(most)
    found = bytearray()
    try:
        async with asyncio.timeout(within_s):
            async for part in request.stream():
                found += part
                if len(found) > most:
                    raise _too_large(most)
    except TimeoutError:
        raise Problem("timeout", f"the body was not there within {within_s:g} s; send it at once") from None
    return bytes(found)


def _too_large(most: int) -> Problem:
    return Problem("too_large", f"the body has more than {most} bytes; send less, and pictures by POST /v1/uploads")


async def record(request: Request, kind: type[T], most: int = JSON_BYTES) -> T:
    """A JSON body as a dataclass.

    Raises:
        Problem: `unsupported_media`, `bad_request` (no JSON object), `unprocessable` (unknown key, wrong type, or a
            rule of `kind` is broken), or those of `body`.
        ClientDisconnect: the caller has gone.
    """
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise Problem("unsupported_media", "the body is to be JSON; send Content-Type: application/json")
    return _typed(kind, _parsed(await body(request, most)))


def _parsed(data: bytes) -> dict[str, Any]:
    """A JSON object (RFC 8259), each key once, of text that is text.

    Raises:
        Problem: `bad_request`.
    """
    try:
        found = json.loads(data.decode(), object_pairs_hook=_once, parse_constant=_constant)
        json.dumps(found, ensure_ascii=False).encode()  # half of a surrogate pair is no text
    except (ValueError, RecursionError):
        raise Problem("bad_request", "the body is no JSON (RFC 8259, UTF-8, each key once); send an object") from None
    if not isinstance(found, dict):
        raise Problem("bad_request", "the body is JSON, but no object; send {...}")
    return found


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a key twice")
    return found


def _constant(word: str) -> float:
    raise ValueError(f"{word} is not of JSON")


def _typed(kind: type[T], value: dict[str, Any]) -> T:
    try:
        return typed(kind, value, "body")
    except UserError as error:
        raise Problem("unprocessable", str(error)) from None

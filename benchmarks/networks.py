"""Networks that are worse than this machine's: two namespaces with a slow, lossy or thin line between them, or with one
forwarded TCP port. Needs root.

A line is two tun devices, one in each namespace, and a thread that carries packets from one to the other. Delay, loss
and rate hold for all packets, UDP and TCP, in each direction for itself. Seeded, so that it loses the same ones again.
"""

from __future__ import annotations

import asyncio
import ctypes
import fcntl
import heapq
import os
import random
import select
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

TUNSETIFF, IFF_TUN, IFF_NO_PI = 0x400454CA, 0x0001, 0x1000
CLONE_NEWNET = 0x40000000
NAMESPACES = Path("/run/netns")
PACKET = 2048
"""Bytes: more than a device's MTU."""
AT_ONCE = 64
LONGEST_WAIT_S = 0.2


@dataclass(frozen=True)
class Quality:
    """Of a line, each way.

    Attributes:
        delay_s, jitter_s: how long a packet takes, and by how much more or less it may be; packets stay in order.
        loss: share of packets.
        bits_per_second: None: no limit.
        queue_s: what may wait before the limit; what would wait longer is dropped.
    """

    delay_s: float = 0.0
    jitter_s: float = 0.0
    loss: float = 0.0
    bits_per_second: float | None = None
    queue_s: float = 0.2


class Way:
    """One direction of a line: when each packet comes out of it.

    Attributes:
        carried, lost: packets.
    """

    def __init__(self, quality: Quality, seed: int):
        self._quality, self._random = quality, random.Random(seed)
        self._free = self._last = 0.0
        self.carried = self.lost = 0

    def due(self, now: float, size: int) -> float | None:
        """When a packet of `size` bytes that goes in now comes out; None: it does not."""
        quality = self._quality
        leaves = now
        if quality.bits_per_second is not None:
            begins = max(self._free, now)
            if begins - now > quality.queue_s:
                self.lost += 1
                return None
            leaves = self._free = begins + size * 8 / quality.bits_per_second
        if self._random.random() < quality.loss:
            self.lost += 1
            return None
        self.carried += 1
        varied = quality.delay_s + self._random.uniform(-quality.jitter_s, quality.jitter_s)
        self._last = max(self._last, leaves + varied)
        return self._last


@dataclass(frozen=True)
class Ends:
    """Two namespaces, the addresses that they have for each other, and what their line did."""

    here: str
    there: str
    address: str
    peer: str
    ways: tuple[Way, Way]


@contextmanager
def line(quality: Quality, seed: int = 1) -> Iterator[Ends]:
    """Two namespaces with a line between them while the context is open; what runs there must have ended before."""
    base, network = f"ef{os.getpid()}", f"10.{os.getpid() % 200 + 20}.9"
    names, addresses = (f"{base}a", f"{base}b"), (f"{network}.1", f"{network}.2")
    ways = Way(quality, seed), Way(quality, seed + 1)
    over = threading.Event()
    with _namespace(names[0]), _namespace(names[1]):
        devices = [_tun(name, address) for name, address in zip(names, addresses, strict=True)]
        carrier = threading.Thread(target=_carry, args=(devices, ways, over), name="line", daemon=True)
        carrier.start()
        try:
            yield Ends(*names, *addresses, ways)
        finally:
            over.set()
            carrier.join()
            for device in devices:
                os.close(device)


@contextmanager
def port(forwarded: int) -> Iterator[str]:
    """A namespace from which one TCP port of this machine can be reached, as localhost's own; UDP leads nowhere.

    It has an address and a route, so a browser finds a way to offer, and nothing ever comes back on it.
    """
    name = f"ef{os.getpid()}p"
    with _namespace(name):
        nowhere = _tun(name, "10.255.7.1")
        _ip("-n", name, "route", "add", "default", "dev", f"{name}t")
        loop, ready = asyncio.new_event_loop(), threading.Event()
        listener = _listener(name, forwarded)
        thread = threading.Thread(target=_forward, args=(loop, listener, forwarded, ready), name="port", daemon=True)
        thread.start()
        ready.wait()
        try:
            yield name
        finally:
            loop.call_soon_threadsafe(loop.stop)
            thread.join()
            listener.close()
            os.close(nowhere)


@contextmanager
def _namespace(name: str) -> Iterator[None]:
    _ip("netns", "add", name)
    try:
        _ip("-n", name, "link", "set", "lo", "up")
        yield
    finally:
        _ip("netns", "del", name)


def _tun(namespace: str, address: str) -> int:
    """A device in a namespace; its packets are read from and written to the descriptor that is returned."""
    device, name = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK), f"{namespace}t"
    fcntl.ioctl(device, TUNSETIFF, struct.pack("16sH22x", name.encode(), IFF_TUN | IFF_NO_PI))
    _ip("link", "set", name, "netns", namespace)
    _ip("-n", namespace, "address", "add", f"{address}/24", "dev", name)
    _ip("-n", namespace, "link", "set", name, "up")
    return device


def _carry(devices: list[int], ways: tuple[Way, Way], over: threading.Event) -> None:
    """Take packets out of each device, and put them into the other when they are due."""
    waiting: list[tuple[float, int, int, bytes]] = []
    number = 0
    while not over.is_set():
        now = time.monotonic()
        while waiting and waiting[0][0] <= now:
            _, _, to, packet = heapq.heappop(waiting)
            with suppress(OSError):  # a device that is going down
                os.write(devices[to], packet)
        wait = min(LONGEST_WAIT_S, waiting[0][0] - now) if waiting else LONGEST_WAIT_S
        for device in select.select(devices, [], [], max(0.0, wait))[0]:
            side = devices.index(device)
            for _ in range(AT_ONCE):
                try:
                    packet = os.read(device, PACKET)
                except BlockingIOError:
                    break
                due = ways[side].due(time.monotonic(), len(packet))
                if due is not None:
                    number += 1
                    heapq.heappush(waiting, (due, number, 1 - side, packet))


def _listener(namespace: str, port: int) -> socket.socket:
    """A socket that listens at localhost of a namespace. A thread enters it, for a process would not come back."""
    made: list[socket.socket] = []

    def make() -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        with (NAMESPACES / namespace).open() as entry:
            if libc.setns(entry.fileno(), CLONE_NEWNET):
                raise OSError(ctypes.get_errno(), f"namespace {namespace} cannot be entered")
        made.append(socket.create_server(("127.0.0.1", port)))

    thread = threading.Thread(target=make)
    thread.start()
    thread.join()
    if not made:
        raise OSError(f"port {port} cannot be had in namespace {namespace}")
    return made[0]


def _forward(loop: asyncio.AbstractEventLoop, listener: socket.socket, port: int, ready: threading.Event) -> None:
    """Carry the bytes of each connection to this machine's port, and back, until the loop is stopped."""

    async def copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while data := await reader.read(1 << 16):
                writer.write(data)
                await writer.drain()
        writer.close()

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        other_reader, other_writer = await asyncio.open_connection("127.0.0.1", port)
        await asyncio.gather(copy(reader, other_writer), copy(other_reader, writer))

    asyncio.set_event_loop(loop)
    loop.run_until_complete(asyncio.start_server(connected, sock=listener))
    loop.call_soon(ready.set)
    loop.run_forever()
    for task in asyncio.all_tasks(loop):
        task.cancel()
    loop.run_until_complete(loop.shutdown_asyncgens())
    loop.close()


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)

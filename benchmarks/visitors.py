"""People at a server: who behaves, who does not, and who comes over WebRTC."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import struct
import threading
import time
import urllib.request
from contextlib import suppress
from typing import Any

import numpy as np
from websockets.exceptions import WebSocketException
from websockets.sync.client import connect as connect_socket

from serve import client
from serve.client import Refused

TALK_S = 2.0
"""Between two things that a person who behaves does."""
PLACE_S = 10.0
"""Longest wait for a place."""
SMALL_BUFFER = 4096
"""Bytes that one who takes nothing lets the system take for it."""


class Person(threading.Thread):
    """Someone who opens a session, watches, says something every now and then, and stops it in the end.

    Args:
        url: of the server.
        seed: of the session.
        seconds: to stay, once it is settled.
        settled: set when all who are to be there are; before, nothing is counted. None: at once.
        wanted: with the session.

    Attributes:
        id: of the session; empty: it was refused.
        chunks, late: that came, and those of them that were late.
        latencies: seconds from an event to its picture.
        done: the server's last word.
        refused: why not, or why no more.
    """

    def __init__(self, url: str, seed: int, seconds: float, settled: threading.Event | None = None, **wanted: Any):
        super().__init__(daemon=True)
        self.settled = settled
        self.url, self.seed, self.seconds, self.wanted = url, seed, seconds, wanted
        self.id, self.chunks, self.late = "", 0, 0
        self.latencies: list[float] = []
        self.done: dict[str, Any] | None = None
        self.refused: Refused | None = None
        self.opened = threading.Event()

    def run(self) -> None:
        """Open, watch, stop."""
        try:
            with client.connect(self.url, seed=self.seed, **self.wanted) as session:
                self.id = session.id
                self.opened.set()
                self._watch(session)
                self.done = session.done
        except Refused as refused:
            self.refused = refused
        self.opened.set()

    def _watch(self, session: client.Session) -> None:
        random = np.random.default_rng(self.seed)
        talks, end = time.monotonic() + TALK_S, None
        for part in session:
            now = time.monotonic()
            if end is None and (self.settled is None or self.settled.is_set()):
                end = now + self.seconds
            if part.first and end is not None:
                self._count(part.chunk)
            if now > talks:
                talks += self.talk(session, random)
            if end is not None and now > end:
                session.stop()
                break
        for _ in session:
            pass  # what is under way is still played

    def _count(self, chunk: client.Chunk) -> None:
        self.chunks += 1
        self.late += chunk.late_s > 1e-3
        if chunk.latency_s is not None:
            self.latencies.append(chunk.latency_s)

    def talk(self, session: client.Session, random: np.random.Generator) -> float:
        """Say something; returns seconds until the next time."""
        if session.offer["words"] and random.random() < 0.5:
            session.prompt(" ".join(random.choice(session.offer["words"], 3)))
        if session.offer["actions"]:
            session.act(str(random.choice(session.offer["actions"])))
        if session.offer["hears"]:
            session.speak(random.uniform(-0.3, 0.3, 8000).astype(np.float32), 16_000)
        return TALK_S


class Interrupter(Person):
    """Speaks, and is interrupted, every second."""

    def talk(self, session: client.Session, random: np.random.Generator) -> float:
        """Say something and take it back."""
        super().talk(session, random)
        session.interrupt()
        return 1.0


def opened(url: str, small: bool = False, **wanted: Any) -> tuple[Any, dict[str, Any], socket.socket]:
    """A bare connection whose session has begun, what the server said of it, and its socket.

    Raises:
        OSError, WebSocketException: it was not let in.
    """
    host, port = url.rpartition("/")[2].split(":")
    bare = socket.socket()
    if small:
        bare.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SMALL_BUFFER)
    bare.connect((host, int(port)))
    address = f"{url.replace('http', 'ws')}{client.PATH}"
    connection = connect_socket(
        address, sock=bare, subprotocols=[client.PROTOCOL], compression=None, max_size=None, proxy=None,
        max_queue=2 if small else 1024, close_timeout=1,
    ).__enter__()  # fmt: skip
    connection.send(json.dumps({"type": "session.start", **wanted}))
    while (said := json.loads(connection.recv(20)))["type"] != "session.started":
        if said["type"] == "error":
            connection.close()
            raise OSError(said["message"])
    return connection, said, bare


def stop(connection: Any) -> None:
    """End the session of a bare connection that is read, and leave."""
    with suppress(OSError, WebSocketException):
        connection.send('{"type": "session.stop"}')
        while True:
            connection.recv(5)


class Nuisance(threading.Thread):
    """One who does not behave, over and over, until told to stop."""

    def __init__(self, url: str):
        super().__init__(daemon=True)
        self.url, self.over, self.times = url, threading.Event(), 0

    def run(self) -> None:
        """Be one."""
        while not self.over.is_set():
            with suppress(OSError, WebSocketException, ValueError):
                self.once()
                self.times += 1
            self.over.wait(0.2)

    def once(self) -> None:
        """One time."""
        raise NotImplementedError


class Stuck(Nuisance):
    """Opens a session and reads nothing."""

    def once(self) -> None:
        """Until the server lets go, or it is over."""
        connection, _, bare = opened(self.url, small=True)
        self.over.wait()
        cut(bare)
        with suppress(OSError, WebSocketException):
            connection.close()


class Vanishing(Nuisance):
    """Opens a session and is gone two seconds later, its connection cut."""

    def once(self) -> None:
        """One session, which its lease has to end."""
        connection, _, bare = opened(self.url)
        self.over.wait(2.0)
        cut(bare)
        with suppress(OSError, WebSocketException):
            connection.close()


class Garbage(Nuisance):
    """Opens a session and sends what is no message, or not now, or not HTTP at all."""

    def __init__(self, url: str):
        super().__init__(url)
        self._random = np.random.default_rng(0)

    def once(self) -> None:
        """A session, and all kinds of it; each time the connection ends the session is joined again."""
        connection, started, _ = opened(self.url)
        known = {"session": started["id"], "secret": started["secret"]}
        for said in self._kinds():
            if self.over.is_set():
                break
            try:
                connection.send(said)
                connection.recv(1)
            except (OSError, WebSocketException):
                connection, _, _ = opened(self.url, **known)
            self._knock()
            self.over.wait(0.1)
        stop(connection)

    def _kinds(self) -> list[str | bytes]:
        event = {"type": "session.interaction", "event_id": "x"}
        kinds: list[str | bytes] = [
            "", "{", "[" * 50_000, "null", '{"type": 7}', '{"type": "session.start"}', "\ud7ff" * 1000,
            self._random.bytes(100), self._random.bytes(1 << 19), "x" * (1 << 19),
            json.dumps({"type": "session.audio", "sample_rate": -1, "channels": 9, "bytes": 1 << 40}),
        ]  # fmt: skip
        events = [None, [], {"type": "prompt", "prompt": "x" * 10_000}, {"type": "image"}, {"type": "action"}]
        kinds += [json.dumps(event | {"event": one}) for one in events]
        good = json.dumps(event | {"event": {"type": "interrupt"}})
        return kinds + [good] * 100  # too many at once

    def _knock(self) -> None:
        """Bytes at the port that are no HTTP."""
        host, port = self.url.rpartition("/")[2].split(":")
        with socket.create_connection((host, int(port)), 5) as bare:
            bare.sendall(self._random.bytes(2000))


def cut(bare: socket.socket) -> None:
    """End a connection without a word: the other end gets a reset (SO_LINGER of 0 seconds)."""
    with suppress(OSError):
        bare.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        os.close(bare.detach())


def placed(url: str, **wanted: Any) -> dict[str, Any]:
    """A session over HTTP; one that ends has its place until its last chunk was played, so a place is waited for.

    Raises:
        Refused: there is none for PLACE_S.
    """
    end = time.monotonic() + PLACE_S
    while True:
        try:
            return client.create(url, **wanted)
        except Refused as refused:
            if refused.code != "full" or time.monotonic() > end:
                raise
        time.sleep(0.2)


async def call(url: str, seconds: float, **wanted: Any) -> dict[str, int]:
    """One session over WebRTC: open, connect, receive for so many seconds, close, and end it.

    Returns:
        Packets that came, of `video` and `audio`.

    Raises:
        Refused: there is no place.
    """
    from aiortc import RTCBundlePolicy, RTCConfiguration, RTCPeerConnection, RTCSessionDescription
    from aiortc.contrib.media import MediaBlackhole

    made = await asyncio.to_thread(placed, url, **wanted)
    peer = RTCPeerConnection(RTCConfiguration([], bundlePolicy=RTCBundlePolicy.MAX_BUNDLE))
    hole, found, opens = MediaBlackhole(), {"video": 0, "audio": 0}, asyncio.Event()
    try:
        peer.on("track", hole.addTrack)
        for kind in found:
            peer.addTransceiver(kind, "recvonly")
        control = peer.createDataChannel("control")
        control.on("open", opens.set)
        await peer.setLocalDescription(await peer.createOffer())
        said = {"sdp": peer.localDescription.sdp, "type": "offer"}
        answer = await asyncio.to_thread(_post, url + made["offer"], made["secret"], said)
        await peer.setRemoteDescription(RTCSessionDescription(answer["sdp"], answer["type"]))
        await hole.start()
        async with asyncio.timeout(20):
            await opens.wait()
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            control.send('{"type": "session.ping"}')
            await asyncio.sleep(min(1.0, seconds))
        for report in (await peer.getStats()).values():
            if report.type == "inbound-rtp":
                found[report.kind] = report.packetsReceived
    finally:
        await hole.stop()
        await peer.close()
        with suppress(Refused):  # it has ended
            await asyncio.to_thread(client.delete, url, made["id"], made["secret"])
    return found


def _post(address: str, secret: str, body: dict[str, Any]) -> dict[str, Any]:
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {secret}"}
    request = urllib.request.Request(address, json.dumps(body).encode(), headers)
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with direct.open(request, timeout=30) as answer:
        return json.load(answer)

"""A server as a user starts it, people at it who behave and who do not, and what its processes hold meanwhile."""

from __future__ import annotations

import asyncio
import json
import os
import re
import resource
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from websockets.exceptions import WebSocketException
from websockets.sync.client import connect as connect_socket

from benchmarks.launched import ROOT
from serve import client
from serve.client import Refused

COUNTS = "EVERFRAME_COUNTS"
"""The environment variable that names the file into which a server writes what it counts, when told to (SIGUSR2)."""
START_S, END_S = 90.0, 60.0
TALK_S = 2.0
"""Between two things that a person who behaves does."""
WARM = 4
"""First chunks of a session, which are not looked at: its player has no rhythm yet."""
PLACE_S = 10.0
"""Longest wait for a place."""
SMALL_BUFFER = 4096
"""Bytes that one who takes nothing lets the system take for it."""


class Holds(NamedTuple):
    """What a process holds.

    Attributes:
        mib: memory of its own, RssAnon.
        files, sockets: descriptors, sockets among them.
        threads: of the system.
    """

    mib: float
    files: int
    sockets: int
    threads: int


def holds(pid: int) -> Holds:
    """Of a process that is there."""
    status = Path(f"/proc/{pid}/status").read_text()
    kib, threads = (int(re.search(rf"^{name}:\s+(\d+)", status, re.MULTILINE)[1]) for name in ("RssAnon", "Threads"))
    links = []
    for one in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(OSError):  # closed just now
            links.append(str(one.readlink()))
    return Holds(kib / 1024, len(links), sum(link.startswith("socket:") for link in links), threads)


def children(pid: int) -> list[int]:
    """All processes below a process."""
    try:
        found = [int(one) for one in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
        others = [task for task in Path(f"/proc/{pid}/task").iterdir() if task.name != str(pid)]
        found += [int(one) for task in others for one in (task / "children").read_text().split()]
    except OSError:  # gone
        return []
    return [below for one in found for below in (one, *children(one))]


class Server:
    """`everframe serve` in processes of its own; a context.

    Args:
        folder: of its outputs and recorded inputs.
        overrides: of the configuration, `serve.port=0` and where sessions record what they sampled beside.

    Attributes:
        url: where people find it.
        capacity: sessions at once, by model, as it said at its start.
        pid: of the gateway.
    """

    def __init__(self, folder: Path, *overrides: str):
        self.folder, self.capacity, self.url = folder, {}, ""
        self._counts = folder / "counts.json"
        settings = ["serve.port=0", f"output_dir={folder / 'out'}", f"sink.inputs={folder / 'inputs.jsonl'}"]
        folder.mkdir(parents=True, exist_ok=True)
        self._log = (folder / "log").open("w")
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.serving", *settings, *overrides],
            cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1", COUNTS: str(self._counts)}, text=True,
            stdout=subprocess.PIPE, stderr=self._log,
        )  # fmt: skip
        self.pid = self._process.pid

    def __enter__(self) -> Server:
        timer = threading.Timer(START_S, self._process.kill)
        timer.start()
        for line in self._process.stdout:
            if found := re.fullmatch(r"(\S+): (\d+) sessions at once", line.strip()):
                self.capacity[found[1]] = int(found[2])
            if line.startswith("open "):
                self.url = line.split()[1]
                break
        timer.cancel()
        if not self.url:
            self._process.kill()
            self._process.wait()
            self._log.close()
            raise SystemExit(f"the server did not start:\n{(self.folder / 'log').read_text()[-3000:]}")
        return self

    def __exit__(self, *_: object) -> None:
        self._process.send_signal(signal.SIGINT)
        try:
            self._process.wait(END_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()
        self._log.close()

    @property
    def workers(self) -> list[int]:
        """Processes of the model's workers."""
        return children(self.pid)

    def metrics(self) -> dict[str, float]:
        """All that it tells Prometheus, by name and labels."""
        direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with direct.open(f"{self.url}/metrics", timeout=10) as answer:
            lines = answer.read().decode().splitlines()
        return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in lines if not line.startswith("#")}

    def sessions(self) -> int:
        """That run or wait, by its metrics."""
        names = ("everframe_sessions_running", "everframe_sessions_waiting")
        return int(sum(value for name, value in self.metrics().items() if name.startswith(names)))

    def emptied(self, within_s: float) -> bool:
        """Whether all sessions end within a time."""
        end = time.monotonic() + within_s
        while self.sessions() and time.monotonic() < end:
            time.sleep(0.25)
        return not self.sessions()

    def counts(self) -> dict[str, int]:
        """`tasks` of the gateway's loop, and its `threads` of Python."""
        self._counts.unlink(missing_ok=True)
        os.kill(self.pid, signal.SIGUSR2)
        end = time.monotonic() + 10
        while time.monotonic() < end:
            with suppress(OSError, ValueError):
                return json.loads(self._counts.read_text())
            time.sleep(0.05)
        raise SystemExit("the gateway's loop does not answer")

    def reports(self) -> dict[str, dict[str, Any]]:
        """Of streams that have ended, by name."""
        lines = (self.folder / "out" / "streams.jsonl").read_text().splitlines()
        return {report["stream"]: report for report in map(json.loads, lines)}


class Person(threading.Thread):
    """Someone who opens a session, watches, says something every now and then, and stops it in the end.

    Args:
        url: of the server.
        seed: of the session.
        seconds: to stay.
        wanted: with the session.

    Attributes:
        id: of the session; empty: it was refused.
        chunks, late: after the first WARM, and those of them that were late.
        latencies: seconds from an event to its picture.
        done: the server's last word.
        refused: why not, or why no more.
    """

    def __init__(self, url: str, seed: int, seconds: float, **wanted: Any):
        super().__init__(daemon=True)
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
        end, talks, count = time.monotonic() + self.seconds, time.monotonic() + TALK_S, 0
        stopped = False
        for part in session:
            if part.first:
                count += 1
                self._count(part.chunk, count)
            now = time.monotonic()
            if now > talks and not stopped:
                talks += self.talk(session, random)
            if now > end and not stopped:
                session.stop()
                stopped = True

    def _count(self, chunk: client.Chunk, count: int) -> None:
        if chunk.latency_s is not None:
            self.latencies.append(chunk.latency_s)
        if count > WARM:
            self.chunks += 1
            self.late += chunk.late_s > 1e-3

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
        _cut(bare)
        with suppress(OSError, WebSocketException):
            connection.close()


class Vanishing(Nuisance):
    """Opens a session and is gone two seconds later, its connection cut."""

    def once(self) -> None:
        """One session, which its lease has to end."""
        connection, _, bare = opened(self.url)
        self.over.wait(2.0)
        _cut(bare)
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


def _cut(bare: socket.socket) -> None:
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


def replayed(server: Server, id: str, seed: int, chunks: int, *overrides: str) -> str:
    """The hash of a run of the main job that is driven by what a session has recorded.

    Args:
        server: it has ended.
        id, seed: of the session.
        chunks: that it made.
        overrides: of its model.
    """
    with tempfile.TemporaryDirectory() as folder:
        given = [
            *overrides, f"output_dir={folder}/out", f"source.inputs={server.folder / f'inputs.{id}.jsonl'}",
            f"stream.id={id}", f"stream.seed={seed}", f"stream.chunks={chunks}", "sink.video=null",
        ]  # fmt: skip
        done = subprocess.run(
            [sys.executable, "-m", "launch.stream", *given], cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"},
            capture_output=True, text=True, timeout=300,
        )  # fmt: skip
        if done.returncode:
            raise SystemExit(f"the replay of {id} failed:\n{done.stderr[-3000:]}")
        return json.loads((Path(folder) / "out" / "report.json").read_text())["latents_sha256"]


def own_cpu_s() -> float:
    """Seconds of processors that this process, the people at the server, has taken."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def _count(*_: object) -> None:
    """Write down what the loop has; a signal's handler, which runs in its thread."""
    with suppress(RuntimeError):  # the loop has not begun
        found = {"tasks": len(asyncio.all_tasks()), "threads": threading.active_count()}
        path = Path(os.environ[COUNTS])
        path.with_suffix(".new").write_text(json.dumps(found))
        path.with_suffix(".new").rename(path)


if __name__ == "__main__":
    from launch import serve

    signal.signal(signal.SIGUSR2, _count)
    sys.exit(serve.main())

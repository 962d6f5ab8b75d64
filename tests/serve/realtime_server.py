"""A server on a free port of this machine whose sessions do as a test says: real HTTP, real packets, no pipeline."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Sequence
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.responses import JSONResponse
from starlette.routing import Route, WebSocketRoute

from serve.asked import checked
from serve.camera import check
from serve.connections import Socket
from serve.media import Shown
from serve.problems import Problem
from serve.realtime import realtime
from serve.tight import tighten
from tests.patience import PATIENT_S
from tests.serve.realtime_packets import CHUNK, FPS, HEIGHT, WIDTH, both

OFFER = {
    "id": "maze",
    "object": "model",
    "fps": FPS,
    "chunk_s": CHUNK / FPS,
    "width": WIDTH,
    "height": HEIGHT,
    "hears": True,
    "sees": True,
    "actions": ["none", "forward"],
    "prompts": True,
}


class Tight(Socket):
    """The server's own WebSockets, tightened."""

    def connection_made(self, transport) -> None:
        super().connection_made(transport)
        tighten(transport)


class FakeSession:
    """Remembers what it was told; plays `packets` to whom is attached, and ends if it is to."""

    def __init__(self, number: int = 1, packets: tuple = (), ends: str | None = None, offer: dict[str, Any] = OFFER):
        self.id, self.secret = f"session-{number}", f"secret-{number}"
        self.served = SimpleNamespace(offer=offer)
        self.state, self.reason, self.expires_at = "running", None, 1e9
        self.waiting: tuple[int, float] | None = None
        self.packets, self.ends = packets, ends
        self.viewers: list[Any] = []
        self.told: list[tuple] = []
        self.came, self.left, self.changed = threading.Event(), threading.Event(), threading.Event()
        self.speech_held_s = 0.0
        self.chunks = self.frames = 0

    def attach(self, viewer) -> None:
        if self.state == "ended":
            raise Problem("ended", f"the session has ended ({self.reason}); open another one")
        self.viewers.append(viewer)
        self.came.set()
        self.play(self.packets)
        if self.ends:
            self.stop(self.ends)

    def detach(self, viewer) -> None:
        if viewer in self.viewers:
            self.viewers.remove(viewer)
            self.left.set()

    def play(self, packets, events: tuple[str, ...] = ()) -> None:
        chunk = None
        for packet in packets:
            begins = packet.kind == "video" and packet.chunk != chunk
            self.chunks, self.frames = self.chunks + begins, self.frames + CHUNK * begins
            for viewer in list(self.viewers):
                if begins:
                    viewer.shown(Shown(packet.chunk, CHUNK, packet.chunk * CHUNK, packet.pts, events, 0.1, 0.0))
                viewer.packet(packet)
            chunk = packet.chunk if packet.kind == "video" else chunk

    def event(self, id: str, event: dict) -> None:
        self._note("event", id, checked(id, event, self.served.offer))

    def sound(self, pcm: bytes, at: int, by: Any) -> None:
        self._note("sound", pcm, at)

    def frame(self, jpeg: bytes, at: float, by: Any) -> None:
        check(jpeg)
        self._note("frame", jpeg, at)

    def speech(self, pcm: bytes) -> float:
        self.speech_held_s += len(pcm) / 32000
        if self.speech_held_s > 60:
            raise Problem("audio_full", "60 s of speech wait already: send more when some of it was spoken")
        self._note("speech", pcm)
        return self.speech_held_s

    def key_frame(self, cause: str) -> None:
        self._note("key_frame", cause)

    def follow(self, viewer, bits_per_second, every: int = 1) -> None:
        self._note("follow", bits_per_second, every)

    def stop(self, reason: str) -> None:
        self.state, self.reason = "ended", reason
        for viewer in list(self.viewers):
            viewer.close(reason)

    def figures(self) -> dict[str, Any]:
        return {"state": self.state, "chunks": self.chunks, "frames": self.frames}

    def _note(self, *what) -> None:
        self.told.append(what)
        self.changed.set()

    def of(self, kind: str) -> list[tuple]:
        """What was told of one kind."""
        return [rest for first, *rest in self.told if first == kind]


class FakeGateway:
    """Opens what `next` makes, or refuses with what it raises."""

    def __init__(self):
        self.sessions: dict[str, FakeSession] = {}
        self.next = lambda wanted: FakeSession(1, both(1.2), "stopped")
        self.wanted: list[dict] = []

    def session(self, id: str) -> FakeSession | None:
        return self.sessions.get(id)

    async def create(self, wanted: dict, caller: str) -> FakeSession:
        self.wanted.append(wanted)
        made = self.next(wanted)
        self.sessions[made.id] = made
        return made


class Site:
    """The server, for a test in another thread.

    Attributes:
        url: of HTTP.
        gateway: that it asks.
        headers: of the last request over HTTP.
    """

    def __init__(self, url: str, loop: asyncio.AbstractEventLoop):
        self.url, self.loop = url, loop
        self.gateway, self.headers = FakeGateway(), {}

    @property
    def address(self) -> str:
        return self.url.replace("http", "ws") + "/v1/realtime/video"

    def call(self, what, *given):
        """Do something in the server's loop, and wait for what comes of it."""

        async def done():
            return what(*given)

        return asyncio.run_coroutine_threadsafe(done(), self.loop).result(PATIENT_S)


@contextmanager
def serving(more: Sequence[Route] = ()):
    """A `Site`, until the context is left; `more`: routes beside its own."""
    listener = socket.create_server(("127.0.0.1", 0))
    ready = threading.Event()
    found: dict[str, Any] = {}

    async def over_socket(websocket):
        found["site"].headers = dict(websocket.headers)
        await realtime(websocket, found["site"].gateway)

    async def opened(request):
        found["site"].headers = dict(request.headers)
        try:
            made = await found["site"].gateway.create(await request.json(), "here")
        except Problem as problem:
            return JSONResponse(problem.body, problem.status)
        return JSONResponse({"id": made.id, "secret": made.secret}, 201)

    async def ended(request):
        found["site"].headers = dict(request.headers)
        found["site"].gateway.sessions.pop(request.path_params["id"]).stop("stopped")
        return JSONResponse({"state": "ended"})

    routes = [
        *more,
        WebSocketRoute("/v1/realtime/video", over_socket),
        Route("/v1/sessions", opened, methods=["POST"]),
        Route("/v1/sessions/{id}", ended, methods=["DELETE"]),
    ]
    form = {"ws": Tight, "ws_per_message_deflate": False, "ws_max_size": (1 << 20) + 64, "lifespan": "off"}
    server = uvicorn.Server(uvicorn.Config(Starlette(routes=routes), log_level="warning", **form))

    async def run():
        found["site"] = Site(f"http://127.0.0.1:{listener.getsockname()[1]}", asyncio.get_running_loop())
        ready.set()
        await server.serve(sockets=[listener])

    thread = threading.Thread(target=asyncio.run, args=(run(),))
    thread.start()
    ready.wait(PATIENT_S)
    try:
        yield found["site"]
    finally:
        server.should_exit = True
        thread.join(PATIENT_S)
        listener.close()

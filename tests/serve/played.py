"""A gateway that is played, behind the real port, and a client that sends what it is told to."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
import types
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, NamedTuple

from starlette.responses import PlainTextResponse
from starlette.routing import Route
from starlette.websockets import WebSocketDisconnect

from conf.schema.serve import ServeConfig
from serve import app, server
from serve.guard import OWN
from serve.limits import Crowd
from serve.uploads import Uploads

JSON = {"Content-Type": "application/json"}


class Session:
    """Of `Gateway`."""

    def __init__(self, number: int, state: str, waiting: tuple[int, float] | None):
        self.id, self.secret = f"session-{number}", f"secret-{number}"
        self.state, self.waiting, self.expires_at = state, waiting, 1000.0
        self.served = types.SimpleNamespace(offer={"id": "one"})
        self.stopped: list[str] = []

    def figures(self) -> dict[str, Any]:
        return {"chunks": 3, "state": self.state}

    def stop(self, reason: str) -> None:
        self.stopped.append(reason)
        self.state = "ended"

    abandon = stop


class Gateway:
    """The face that `serve.app` asks.

    Attributes:
        problem: what `create` raises.
        wanted: of the last session.
    """

    def __init__(self, folder: Path, **settings: Any):
        self.serve = ServeConfig(**({"posts_per_minute": 1000} | settings))
        self.uploads = Uploads()
        self._sessions: dict[str, Session] = {}
        self.unready: list[str] = []
        self.problem: Exception | None = None
        self.wanted: dict[str, Any] | None = None
        self.callers: list[str] = []
        self.next_state, self.next_waiting = "starting", None
        self.draining = asyncio.Event()
        self.protocols: list[Any] = []
        self.own: list[str | None] = []
        self.plans: list[tuple[dict[str, Any], str | None]] = []

    def offers(self) -> list[dict[str, Any]]:
        return [{"id": "one", "object": "model", "fps": 25}]

    def reasons(self) -> list[str]:
        return self.unready

    def metrics(self) -> tuple[bytes, str]:
        return b"figures 1\n", "text/plain; version=1.0.0"

    def session(self, id: str) -> Session | None:
        return self._sessions.get(id)

    def owned(self, secret: str) -> str | None:
        return next((one.id for one in self.sessions if one.secret == secret), None)

    @property
    def sessions(self) -> list[Session]:
        return list(self._sessions.values())

    def made(self) -> Session:
        session = Session(len(self._sessions), self.next_state, self.next_waiting)
        self._sessions[session.id] = session
        return session

    async def create(self, wanted: dict[str, Any], caller: str) -> Session:
        self.callers.append(caller)
        if self.problem:
            raise self.problem
        self.wanted = wanted
        return self.made()

    async def change(self, plan: dict[str, Any], model: str | None) -> tuple[str, int]:
        if self.problem:
            raise self.problem
        self.plans.append((plan, model))
        return model or "one", len(self.plans)


async def _realtime(websocket: Any, gateway: Gateway) -> None:
    """Says back what it hears."""
    gateway.protocols.append(list(websocket.scope["subprotocols"]))
    gateway.own.append(websocket.scope.get(OWN))
    gateway.callers.append(websocket.client.host)
    if gateway.problem:
        raise gateway.problem
    await websocket.accept()
    with contextlib.suppress(WebSocketDisconnect):
        while True:
            await websocket.send_text(await websocket.receive_text())


async def _answer(session: Session, sdp: str, serve: ServeConfig) -> tuple[str, str]:
    return f"{sdp}!", "answer"


def _pages() -> list[Route]:
    async def page(request: Any) -> PlainTextResponse:
        return PlainTextResponse("a page", headers={"cache-control": "max-age=60"})

    return [Route("/", page), Route("/page/{file}", page)]


def application(gateway: Gateway) -> Any:
    """The real one, in which pages, sockets and peers are played, too."""
    faces = {
        "serve.pages": {"routes": _pages},
        "serve.realtime": {"realtime": _realtime},
        "serve.webrtc": {"answer": _answer},
    }
    before = {name: sys.modules.get(name) for name in faces}
    for name, face in faces.items():
        sys.modules[name] = types.ModuleType(name)
        vars(sys.modules[name]).update(face)
    try:
        return app.application(gateway)
    finally:
        for name, module in before.items():
            sys.modules.pop(name)
            if module is not None:
                sys.modules[name] = module


@contextlib.asynccontextmanager
async def opened(gateway: Gateway, context: Any = None, crowd: Crowd | None = None) -> AsyncIterator[int]:
    """The number of a port on loopback at which the gateway answers."""
    gateway.serve.port = 0
    listener = server.bound(gateway.serve)
    port = server.Port(application(gateway), listener, context, Crowd() if crowd is None else crowd)
    tasks = [asyncio.create_task(port.accept()), asyncio.create_task(port.watch())]
    try:
        yield listener.getsockname()[1]
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await port.close()
        for task in tasks:
            assert task.cancelled(), task


class Answer(NamedTuple):
    """What came back."""

    status: int
    headers: dict[str, str]
    text: str

    @property
    def body(self) -> Any:
        return json.loads(self.text)


async def ask(
    port: int, method: str, path: str, headers: dict[str, Any] | None = None, body: Any = None, version: str = "1.1"
) -> Answer:
    """One request on a connection of its own; headers win over those that are sent otherwise."""
    data = body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
    sent = {"Host": f"127.0.0.1:{port}", "Connection": "close"} | ({"Content-Length": len(data)} if data else {})
    sent |= headers or {}
    lines = [f"{method} {path} HTTP/{version}", *(f"{k}: {v}" for k, v in sent.items() if v is not None), "", ""]
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write("\r\n".join(lines).encode("latin-1") + data)
    with contextlib.suppress(ConnectionError):
        got = await reader.read()
    writer.close()
    head, _, text = got.partition(b"\r\n\r\n")
    first, *rest = head.decode("latin-1").split("\r\n")
    found = dict(line.split(": ", 1) for line in rest)
    return Answer(int(first.split()[1]), {k.lower(): v for k, v in found.items()}, text.decode())


def asked(gateway: Gateway, *request: Any, **more: Any) -> Answer:
    """One request to a port that is opened for it."""

    async def once() -> Answer:
        async with opened(gateway) as port:
            return await ask(port, *request, **more)

    return asyncio.run(once())

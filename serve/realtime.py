"""The WebSocket `/v1/realtime/video`: one connection that opens a session or joins one, sees, hears, and talks to it.

    client  session.start, then session.interaction, session.audio + PCM16, session.frame + JPEG, session.ping,
            session.stop
    server  session.queued*, session.started, video.start, fMP4 (init first), video.chunk_metadata before each chunk,
            session.figures once a second, session.notice, session.pong, session.done; error

What is no message of the protocol ends the connection; what the session refuses is answered, and it goes on.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import time
from typing import TYPE_CHECKING

from starlette.websockets import WebSocket, WebSocketDisconnect

from serve.camera import BURST, PER_SECOND
from serve.channels import Control
from serve.guard import OWN
from serve.heard import Sound
from serve.incoming import Audio, Frame, Start, message
from serve.limits import Limit
from serve.outbox import Outbox
from serve.problems import Problem
from serve.refusals import refused
from serve.socket import CODES, POLICY, Socket

if TYPE_CHECKING:
    from serve.gateway import Gateway
    from serve.session import Session

log = logging.getLogger(__name__)

PROTOCOL = "everframe.v1"
"""The subprotocol; clients may leave it out."""
FIRST_S = 10.0
"""Longest wait for the first message."""
PATIENCE_S = 10.0
"""How long one who takes nothing is kept."""
SOUND_PER_SECOND, SOUND_BURST = 100.0, 200.0
"""Messages of sound that are heard: in pieces of 20 ms it is 50."""
FLOOD = 100
"""Messages over their limit, after each other, that end the connection."""


async def realtime(websocket: WebSocket, gateway: Gateway) -> None:
    """Serve one connection, to its end."""
    await websocket.accept(subprotocol=PROTOCOL if PROTOCOL in websocket.scope.get("subprotocols", ()) else None)
    try:
        start = await _first(websocket)
        session = await _session(start, websocket, gateway)
        viewer = Socket(session, start.media)
        session.attach(viewer)
    except WebSocketDisconnect:
        return
    except Problem as problem:
        await _refuse(websocket, problem)
        return
    except Exception:
        log.exception("a session could not be opened")
        await _refuse(websocket, Problem("failed", "the session could not be opened; try again"))
        return
    await _watch(websocket, session, viewer)


async def _first(websocket: WebSocket) -> Start:
    """The first message, which says what this is about."""
    try:
        async with asyncio.timeout(FIRST_S):
            said = await _received(websocket)
    except TimeoutError:
        raise Problem("timeout", f"session.start was not there within {FIRST_S:.0f} s: send it first") from None
    found = message(said)
    if not isinstance(found, Start):
        raise Problem("bad_request", "the first message is session.start: send it first")
    return found


async def _session(start: Start, websocket: WebSocket, gateway: Gateway) -> Session:
    """The session that is named, or a new one."""
    own = websocket.scope.get(OWN)
    if own is not None and start.session != own:
        raise Problem(
            "unauthorized", "the secret that was said lets join its own session alone: say the server's token"
        )
    if start.session is None:
        caller = websocket.client.host if websocket.client else ""
        return await gateway.create(start.given, caller)
    session = gateway.session(start.session)
    if session is None:
        raise Problem("not_found", "there is no such session, or it ended a while ago: open another")
    if not secrets.compare_digest(session.secret.encode(), start.secret.encode()):
        raise Problem("unauthorized", "the secret is not that session's: give the one it was opened with")
    if session.state == "ended":
        raise Problem("ended", f"the session has ended ({session.reason}): open another")
    return session


async def _watch(websocket: WebSocket, session: Session, viewer: Socket) -> None:
    """Send and receive until either side ends it; the session itself goes on without this viewer."""
    sender = asyncio.create_task(_send(websocket, viewer.outbox))
    others = [
        asyncio.create_task(_tell(viewer)),
        asyncio.create_task(Conversation(websocket, session, viewer).run()),
    ]
    try:
        done, _ = await asyncio.wait({sender, *others}, return_when=asyncio.FIRST_COMPLETED)
        for task in done - {sender}:
            with contextlib.suppress(WebSocketDisconnect):
                _end(viewer, task)
                await sender
    finally:
        session.detach(viewer)
        for task in (sender, *others):
            task.cancel()
        ended = await asyncio.gather(sender, *others, return_exceptions=True)
        expected = (WebSocketDisconnect, TimeoutError, asyncio.CancelledError, Problem)
        for error in ended:
            if isinstance(error, Exception) and not isinstance(error, expected):
                log.error("%s failed", viewer.id, exc_info=error)


def _end(viewer: Socket, task: asyncio.Task) -> None:
    """Tell a client why its connection ends.

    Raises:
        WebSocketDisconnect: it has gone already.
    """
    try:
        task.result()
    except Problem as problem:
        viewer.fail(problem)
    except WebSocketDisconnect:
        raise
    except Exception:  # told in the log when all tasks have ended
        viewer.fail(Problem("failed", "the server made a mistake; join again"))


async def _tell(viewer: Socket) -> None:
    while True:
        await asyncio.sleep(viewer.tell())


async def _send(websocket: WebSocket, outbox: Outbox) -> None:
    """Send what there is, in order.

    Raises:
        TimeoutError: nothing has been taken for PATIENCE_S.
        WebSocketDisconnect: the client has gone.
    """
    while True:
        item = await outbox.take()
        async with asyncio.timeout(PATIENCE_S):
            if item.data is None:
                await websocket.close(item.code)
                return
            if isinstance(item.data, str):
                await websocket.send_text(item.data)
            else:
                await websocket.send_bytes(item.data)


async def _received(websocket: WebSocket) -> str | bytes:
    got = await websocket.receive()
    if got["type"] == "websocket.disconnect":
        raise WebSocketDisconnect(got.get("code", 1005))
    text = got.get("text")
    return got["bytes"] if text is None else text


async def _refuse(websocket: WebSocket, problem: Problem) -> None:
    refused.add(problem.type)
    with contextlib.suppress(WebSocketDisconnect, TimeoutError):
        async with asyncio.timeout(PATIENCE_S):
            await websocket.send_json(problem.message)
            await websocket.close(CODES.get(problem.type, POLICY))


class Conversation:
    """What a client says once its session is there.

    Args:
        websocket: that it comes over.
        session: that it is for.
        viewer: that answers.
    """

    def __init__(self, websocket: WebSocket, session: Session, viewer: Socket):
        self._websocket, self._viewer = websocket, viewer
        self._control, self._sound = Control(session, viewer.notice, time.monotonic), Sound(session, viewer)
        self._session = session
        self._sounds, self._frames = Limit(SOUND_PER_SECOND, SOUND_BURST), Limit(PER_SECOND, BURST)

    async def run(self) -> None:
        """Listen.

        Raises:
            Problem: what was said is not the protocol.
            WebSocketDisconnect: the client has gone.
        """
        while True:
            said = await _received(self._websocket)
            if isinstance(said, bytes):
                how = "a binary message is announced by session.audio or session.frame: send that first"
                raise Problem("bad_request", how)
            found = message(said)
            if isinstance(found, Start):
                raise Problem("bad_request", "this connection has its session: open another connection for another")
            if isinstance(found, Audio):
                await self._hear(found, await self._announced("session.audio", found.bytes))
            elif isinstance(found, Frame):
                self._see(found, await self._announced("session.frame", found.bytes))
            else:
                self._control.do(found)
            if max(limit.over for limit in (self._control.limit, self._sounds, self._frames)) > FLOOD:
                raise Problem("too_many", "over the limit of messages a second, again and again: send fewer")

    async def _hear(self, audio: Audio, data: bytes) -> None:
        try:
            self._sounds.check()
            await self._sound.take(audio, data)
        except Problem as problem:
            self._viewer.notice(problem.message)

    def _see(self, frame: Frame, data: bytes) -> None:
        try:
            self._frames.check()
            self._session.frame(data, frame.at, self._viewer)
        except Problem as problem:
            self._viewer.notice(problem.message)

    async def _announced(self, by: str, size: int) -> bytes:
        """The binary message that was announced."""
        data = await _received(self._websocket)
        if not isinstance(data, bytes) or len(data) != size:
            got = f"{len(data)} bytes" if isinstance(data, bytes) else "text"
            raise Problem("bad_request", f"{by} announced {size} bytes, but {got} came")
        return data

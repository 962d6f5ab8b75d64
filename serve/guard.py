"""Who may ask at all: one layer around every request and every WebSocket, which refuses what it does not know.

In this order: the path is one that could be ours, the name that was asked for is ours (a page elsewhere can have its
own name resolve to this machine: DNS rebinding), the page that asks is ours or listed (CORS does not hold for
WebSockets, so this is asked of all), and the token is right. Only what is listed in `OPEN` needs no token; who knows a
session's secret needs none for that session.
"""

from __future__ import annotations

import logging
import math
import re
import secrets
import socket
from collections.abc import Callable, Iterable

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from starlette.websockets import WebSocketDisconnect
from uvicorn.protocols.utils import ClientDisconnected

from conf.schema.serve import ServeConfig
from serve.limits import HEAD_BYTES, Buckets, caller
from serve.names import Place, behind, entry, host, loopback, origin, place
from serve.problems import Problem
from serve.refusals import refused

LOG = logging.getLogger(__name__)

OPEN = re.compile(r"/|/healthz|/health|/readyz|/page/[^/]+")
"""Paths that may be read without a token: probes, and files of the page, which hold no secrets."""
SHARED = ("/v1/models", "/v1/ice-servers")
"""Paths that a session's secret lets read, beside those of the session."""
PATH = re.compile(r"(/[A-Za-z0-9_~-][A-Za-z0-9._~-]*)+|/")
"""What a path of ours is made of: nothing encoded, no part empty or beginning with a dot."""
LONGEST = 512
"""Characters of a path."""
PROTOCOL, TOKEN_PROTOCOL, SESSION_PROTOCOL = "everframe.v1", "everframe.token.", "everframe.session."
"""Subprotocols of a WebSocket: the one that is spoken, and, before the token or a session's secret, how a browser can
say it."""
OWN = "everframe.session"
"""In the scope of a WebSocket: the session for which alone it was let in; it is not there where the token was said."""
METHODS, HEADERS, EXPOSED = (
    "GET, POST, DELETE",
    "authorization, content-type, x-session-secret",
    "Location, Retry-After",
)
"""What pages of listed origins may use, send and read."""
PREFLIGHT_S = 600
DRESS = {
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "permissions-policy": "microphone=(self), camera=(self), geolocation=(), payment=(), usb=()",
    "cross-origin-resource-policy": "same-origin",
    "content-security-policy": "default-src 'none'; frame-ancestors 'none'",
    "cache-control": "no-store",
}
"""Headers of every answer that does not set them itself, as files of the page do."""


def refusal(problem: Problem) -> Response:
    """A problem as an answer over HTTP (RFC 9457), or in place of a WebSocket's."""
    refused.add(problem.type)
    headers = {"content-type": "application/problem+json"}
    if problem.retry_after_s is not None:
        headers["retry-after"] = str(max(math.ceil(problem.retry_after_s), 1))
    if problem.type == "unauthorized":
        headers["www-authenticate"] = "Bearer"
    if problem.type in ("timeout", "too_large"):  # the rest of the body is not waited for
        headers["connection"] = "close"
    return JSONResponse(problem.body, problem.status, headers)


def bearer(headers: Headers) -> str | None:
    """What stands behind `Authorization: Bearer` (RFC 6750)."""
    scheme, _, said = headers.get("authorization", "").partition(" ")
    return said.strip() or None if scheme.lower() == "bearer" else None


def same(said: str | None, known: str) -> bool:
    """Whether a secret is right, in a time that tells nothing of it."""
    return said is not None and secrets.compare_digest(said.encode(), known.encode())


class Guard:
    """The layer itself (ASGI).

    Args:
        app: what is guarded.
        serve: the settings.
        buckets: how much each caller asked for; a WebSocket counts as a request of kind `socket`.
        owned: the id of the session whose secret this is; None: of no session.
    """

    def __init__(
        self, app: ASGIApp, serve: ServeConfig, buckets: Buckets, owned: Callable[[str], str | None] = lambda _: None
    ):
        self._app, self._serve, self._buckets, self._owned = app, serve, buckets, owned
        self._own = {host(serve.host), host(socket.gethostname())}
        self._names = {entry(name) for name in serve.names}
        self._origins = {origin(text.strip().rstrip("/").lower()) for text in serve.origins} - {None}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        dressed = _Dressed(send)
        try:
            answer = self._check(scope, dressed)
            await (answer or self._app)(scope, receive, dressed)
        except Problem as problem:
            await dressed.refuse(problem, scope, receive)
        except (ClientDisconnect, ClientDisconnected, WebSocketDisconnect):
            return
        except Exception:
            LOG.exception("a request failed")
            await dressed.refuse(Problem("failed", "this is our fault, and it was written down"), scope, receive)

    def _check(self, scope: Scope, dressed: _Dressed) -> Response | None:
        """Whatever is answered here; None: the application is to be asked.

        Raises:
            Problem: it is refused.
        """
        if scope["type"] == "http" and (version := scope.get("http_version", "1.1"))[:2] != "1.":
            answer = refusal(Problem("bad_request", f"HTTP/{version} is not spoken; use HTTP/1.1"))
            answer.headers["connection"] = "close"  # what follows is no request
            return answer
        headers = Headers(scope=scope)
        peer, port = scope.get("client") or ("", 0)
        # Whoever comes later takes this for the other end, be there a proxy or not.
        scope["client"] = (caller(peer, headers.get("x-forwarded-for"), self._serve), port)
        if sum(len(name) + len(value) for name, value in scope["headers"]) > HEAD_BYTES:
            raise Problem("too_large", f"the headers have more than {HEAD_BYTES} bytes; send fewer")
        if not _path(scope):
            raise Problem("not_found", "there is nothing of this name here")
        asked = self._asked(scope, headers)
        self._check_origin(headers, asked, dressed)
        if scope["type"] == "http" and scope["method"] == "OPTIONS" and dressed.origin:
            return _preflight(headers)
        self._check_token(scope, headers)
        if scope["type"] == "websocket":
            self._buckets.take("socket", scope["client"][0])
            # What it was let in with is nobody's business any more.
            said = (TOKEN_PROTOCOL, SESSION_PROTOCOL)
            scope["subprotocols"] = [name for name in scope["subprotocols"] if not name.startswith(said)]
            dressed.protocol = PROTOCOL if PROTOCOL in scope["subprotocols"] else None
        return None

    def _asked(self, scope: Scope, headers: Headers) -> Place:
        """The name and port that were asked for, which are ours.

        Raises:
            Problem: `forbidden`, they are not.
        """
        said = headers.getlist("host")
        asked = place(said[0], scope["scheme"]) if len(said) == 1 else None
        here, port = scope.get("server") or ("", None)
        own = self._own | {host(here)} | ({"localhost"} if loopback(here) else set())
        if asked and ((asked.host in own and asked.port == port) or self._named(asked)):
            return asked
        raise Problem("forbidden", "the server is not known by this name; add it to serve.names if it should be")

    def _named(self, asked: Place) -> bool:
        return bool({(asked.host, None), (asked.host, asked.port)} & self._names)

    def _check_origin(self, headers: Headers, asked: Place, dressed: _Dressed) -> None:
        """Refuse pages of other sites; `dressed.origin` is set for one that is listed.

        Raises:
            Problem: `forbidden`.
        """
        said = headers.getlist("origin")
        if not said:
            return
        found = origin(said[0]) if len(said) == 1 else None
        if found and found in self._origins:
            dressed.origin = said[0]
        elif not found or not (found == asked or (self._named(asked) and behind(found, asked))):
            raise Problem("forbidden", "pages of this origin may not ask; add it to serve.origins if they should")

    def _check_token(self, scope: Scope, headers: Headers) -> None:
        """Raises Problem: `unauthorized`."""
        if self._serve.token is None or (
            scope["type"] == "http" and scope["method"] in ("GET", "HEAD") and OPEN.fullmatch(scope["path"])
        ):
            return
        tokens, secret = [bearer(headers)], headers.get("x-session-secret")
        if scope["type"] == "websocket":
            names = scope["subprotocols"]
            tokens += [name[len(TOKEN_PROTOCOL) :] for name in names if name.startswith(TOKEN_PROTOCOL)]
            secret = next((name[len(SESSION_PROTOCOL) :] for name in names if name.startswith(SESSION_PROTOCOL)), None)
        if any(same(token, self._serve.token) for token in tokens):
            return
        if not secret or not self._is_own(scope, self._owned(secret)):
            raise Problem("unauthorized", "the token is missing or wrong; send Authorization: Bearer TOKEN")

    def _is_own(self, scope: Scope, session: str | None) -> bool:
        """Whether a request is for what is a session's own."""
        if session is None:
            return False
        if scope["type"] == "websocket":
            scope[OWN] = session
            return True
        own, path = f"/v1/sessions/{session}", scope["path"]
        return path == own or path.startswith(f"{own}/") or (path in SHARED and scope["method"] in ("GET", "HEAD"))


class _Dressed:
    """Sends an answer with the headers that all have, and knows how far it is.

    Attributes:
        origin: of a page elsewhere that may read the answer.
        protocol: that a WebSocket speaks if the application does not say.
    """

    def __init__(self, send: Send):
        self._send, self._begun, self._accepted, self._closed = send, False, False, False
        self.origin: str | None = None
        self.protocol: str | None = None

    async def __call__(self, message: Message) -> None:
        kind = message["type"]
        if kind in ("http.response.start", "websocket.http.response.start"):
            self._begun = True
            headers = MutableHeaders(raw=list(message.get("headers", ())))
            for name, value in self._all():
                headers.setdefault(name, value)
            if self.origin:
                headers.add_vary_header("Origin")
            message = {**message, "headers": headers.raw}
        elif kind == "websocket.accept":
            self._begun = self._accepted = True
            if message.get("subprotocol") is None:
                message = {**message, "subprotocol": self.protocol}
        elif kind == "websocket.close":
            self._begun = self._closed = True
        await self._send(message)

    def _all(self) -> Iterable[tuple[str, str]]:
        yield from DRESS.items()
        if self.origin:
            yield "access-control-allow-origin", self.origin
            yield "access-control-expose-headers", EXPOSED

    async def refuse(self, problem: Problem, scope: Scope, receive: Receive) -> None:
        """Answer with a problem, if it is not too late; a WebSocket that was accepted is closed (RFC 6455, 7.4.1)."""
        if not self._begun:
            await refusal(problem)(scope, receive, self)
        elif self._accepted and not self._closed:
            code = 1011 if problem.type == "failed" else 1008
            await self({"type": "websocket.close", "code": code, "reason": problem.type})


def _path(scope: Scope) -> bool:
    """Whether a path could be one of ours, as it was sent and as it was read."""
    path = scope["path"]
    raw = scope.get("raw_path")
    return len(path) <= LONGEST and bool(PATH.fullmatch(path)) and (raw is None or raw == path.encode())


def _preflight(headers: Headers) -> Response:
    """What a browser asks before a page elsewhere may."""
    said = {
        "access-control-allow-methods": METHODS,
        "access-control-allow-headers": HEADERS,
        "access-control-max-age": str(PREFLIGHT_S),
    }
    if headers.get("access-control-request-private-network") == "true":
        said["access-control-allow-private-network"] = "true"
    return Response(status_code=204, headers=said)

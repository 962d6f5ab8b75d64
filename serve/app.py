"""What is asked over HTTP, and who answers."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route, WebSocketRoute
from starlette.websockets import WebSocket

from conf.errors import UserError
from serve.guard import Guard, bearer, refusal, same
from serve.ice import ice_servers
from serve.limits import OFFER_BYTES, SDP_BYTES, UPLOAD_BYTES, Buckets, body, record
from serve.problems import TYPES, Problem
from serve.wanted import Wanted

PICTURES = ("image/png", "image/jpeg", "image/webp")
REALTIME = "/v1/realtime/video"
TRACE = 64
"""Characters of a header `traceparent` (W3C Trace Context) that is passed on."""

Answer = Callable[[Request], Awaitable[Response]]


@dataclass
class Change:
    """Body of POST /v1/admin/plan."""

    plan: dict[str, Any]
    """Settings of `plan` that are changed."""
    model: str | None = None
    """None: the only one that is served."""


@dataclass
class Offer:
    """Body of POST /v1/sessions/{id}/offer."""

    sdp: str
    type: str = "offer"

    def __post_init__(self):
        if self.type != "offer":
            raise UserError("body.type", "is always offer", "send an offer")
        if len(self.sdp.encode()) > SDP_BYTES:
            raise UserError("body.sdp", f"has more than {SDP_BYTES} bytes", "offer fewer candidates and codecs")


def application(gateway: Any) -> Starlette:
    """All that is served, behind its guard.

    Args:
        gateway: has `serve` (the settings), `offers()`, `await create(wanted, caller)`, `session(id)`, `owned(secret)`,
            `await change(plan, model)`, `reasons()`, `metrics()` and `uploads`.
    """
    # Media libraries take their time to load, and who only reads this module needs none.
    from serve.pages import routes as pages
    from serve.realtime import realtime
    from serve.webrtc import answer

    buckets = Buckets(gateway.serve.posts_per_minute)
    endpoints = _Endpoints(gateway, buckets, answer)

    async def socket(websocket: WebSocket) -> None:
        await realtime(websocket, gateway)

    routes: list[BaseRoute] = [
        *pages(),
        *(_get(path, endpoints.alive) for path in ("/healthz", "/health")),
        _get("/readyz", endpoints.ready),
        _get("/metrics", endpoints.metrics),
        _get("/v1/models", endpoints.models),
        _get("/v1/ice-servers", endpoints.ice),
        _post("/v1/uploads", endpoints.upload),
        _post("/v1/sessions", endpoints.open),
        Route("/v1/sessions/{id}", endpoints.session, methods=["GET", "DELETE"]),
        _post("/v1/sessions/{id}/offer", endpoints.offer),
        _post("/v1/admin/plan", endpoints.plan),
        WebSocketRoute(REALTIME, socket),
        Route(REALTIME, _no_socket),
    ]
    found = Starlette(
        routes=routes,
        middleware=[Middleware(Guard, serve=gateway.serve, buckets=buckets, owned=lambda said: gateway.owned(said))],
        exception_handlers={Problem: _problem, HTTPException: _exception},
    )
    found.router.redirect_slashes = False
    return found


def _get(path: str, endpoint: Answer) -> Route:
    return Route(path, endpoint, methods=["GET"])


def _post(path: str, endpoint: Answer) -> Route:
    return Route(path, endpoint, methods=["POST"])


async def _no_socket(_: Request) -> Response:
    answer = refusal(Problem("upgrade_required", f"{REALTIME} is a WebSocket (RFC 6455); open it as one"))
    answer.headers.update({"upgrade": "websocket", "connection": "upgrade"})
    return answer


async def _problem(request: Request | WebSocket, problem: Problem) -> Response:
    if request.scope["type"] == "websocket":  # which may have been accepted: the guard knows
        raise problem
    return refusal(problem)


async def _exception(request: Request, error: HTTPException) -> Response:
    """What the router says, as a problem."""
    known = {status: type for type, status in reversed(TYPES.items())}
    details = {404: "there is nothing of this name here", 405: f"{request.method} is not for this; see Allow"}
    answer = refusal(Problem(known.get(error.status_code, "bad_request"), details.get(error.status_code, "refused")))
    answer.headers.update(error.headers or {})
    return answer


class _Endpoints:
    def __init__(self, gateway: Any, buckets: Buckets, answer: Callable[..., Awaitable[tuple[str, str]]]):
        self._gateway, self._buckets, self._answer = gateway, buckets, answer

    async def alive(self, _: Request) -> Response:
        return JSONResponse({"status": "ok"})

    async def ready(self, _: Request) -> Response:
        if reasons := self._gateway.reasons():
            return JSONResponse({"status": "not_ready", "reasons": reasons}, 503)
        return JSONResponse({"status": "ready"})

    async def metrics(self, _: Request) -> Response:
        text, kind = self._gateway.metrics()
        return Response(text, headers={"content-type": kind})

    async def models(self, _: Request) -> Response:
        return JSONResponse({"object": "list", "data": self._gateway.offers()})

    async def ice(self, _: Request) -> Response:
        return JSONResponse({"iceServers": ice_servers(self._gateway.serve)})

    async def upload(self, request: Request) -> Response:
        caller = self._counted(request, "upload")
        if request.headers.get("content-type", "").partition(";")[0].strip().lower() not in PICTURES:
            raise Problem("unsupported_media", f"a picture is one of {', '.join(PICTURES)}; say which")
        upload = await self._gateway.uploads.add(await body(request, UPLOAD_BYTES), caller)
        return JSONResponse(upload.told, 201)

    async def open(self, request: Request) -> Response:
        caller = self._counted(request, "session")
        wanted = (await record(request, Wanted)).given
        if 0 < len(trace := request.headers.get("traceparent", "")) <= TRACE:
            wanted["traceparent"] = trace
        session = await self._gateway.create(wanted, caller)
        where = f"/v1/sessions/{session.id}"
        told = {
            "id": session.id, "secret": session.secret, "state": session.state, "model": session.served.offer["id"],
            "expires_at": session.expires_at, "offer": f"{where}/offer", "whip": None, "whep": None,
            "realtime": REALTIME,
        }  # fmt: skip
        if session.waiting:
            told["position"], told["wait_s"] = session.waiting
        return JSONResponse(told, 202 if session.state == "queued" else 201, {"location": where})

    async def session(self, request: Request) -> Response:
        session = self._session(request)
        if request.method == "DELETE":
            session.stop("stopped")
            return JSONResponse({"id": session.id, "state": session.state})
        return JSONResponse(session.figures())

    async def offer(self, request: Request) -> Response:
        self._counted(request, "offer")
        session = self._session(request)
        offered = await record(request, Offer, OFFER_BYTES)
        if session.state == "ended":
            raise Problem("ended", "the session has ended; open another by POST /v1/sessions")
        if session.state == "queued":
            raise Problem("not_ready", "the session waits for its place; offer again once it has one", 1)
        sdp, kind = await self._answer(session, offered.sdp, self._gateway.serve)
        return JSONResponse({"sdp": sdp, "type": kind})

    async def plan(self, request: Request) -> Response:
        serve = self._gateway.serve
        if serve.token is None:  # who may open sessions may not change workers
            raise Problem("forbidden", "serve.token is not set, so nobody is known to be an admin; set it")
        if not same(bearer(request.headers), serve.token):
            raise Problem("unauthorized", "the token is missing or wrong; send Authorization: Bearer TOKEN")
        asked = await record(request, Change)
        model, number = await self._gateway.change(asked.plan, asked.model)
        return JSONResponse({"model": model, "generation": number})

    def _counted(self, request: Request, kind: str) -> str:
        """The caller's address, one request later.

        Raises:
            Problem: `too_many`.
        """
        caller = request.client.host if request.client else ""
        self._buckets.take(kind, caller)
        return caller

    def _session(self, request: Request) -> Any:
        """The session that is asked for, by somebody who knows its secret.

        Raises:
            Problem: `not_found`, `unauthorized` (no secret), `forbidden` (another one).
        """
        session = self._gateway.session(request.path_params["id"])
        if session is None:
            raise Problem("not_found", "there is no such session, or not any more; open one by POST /v1/sessions")
        said = request.headers.get("x-session-secret")
        if said is None and self._gateway.serve.token is None:
            said = bearer(request.headers)
        if said is None:
            raise Problem("unauthorized", "the session's secret is missing; send it as X-Session-Secret")
        if not same(said, session.secret):
            raise Problem("forbidden", "this is not the session's secret")
        return session

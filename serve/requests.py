"""Requests of a program to a server: sessions opened and ended over HTTP, and what a refusal says."""

from __future__ import annotations

import json
import ssl
import urllib.error
import urllib.request
from typing import Any
from urllib.parse import urlsplit

ANSWER_S = 30.0
"""Longest wait for an answer."""


class Refused(Exception):  # noqa: N818  it says what happened
    """The server refused, or ended the connection for a reason of its own.

    Attributes:
        code: such as `full`, `unauthorized`, `bad_request`; `lost`: the connection broke.
        message: why, in words.
        retry_after_s: when to come again; None: it makes no difference.
    """

    def __init__(self, code: str, message: str, retry_after_s: float | None = None):
        super().__init__(f"{code}: {message}")
        self.code, self.message, self.retry_after_s = code, message, retry_after_s


def create(url: str, token: str | None = None, context: ssl.SSLContext | None = None, **wanted: Any) -> dict[str, Any]:
    """Open a session by `POST /v1/sessions`; returns its answer, with `id` and `secret`.

    Raises:
        Refused: the server has no place, or does not take what is wanted.
    """
    return _request("POST", f"{checked(url)}/v1/sessions", token, None, context, wanted)


def delete(
    url: str, id: str, secret: str, token: str | None = None, context: ssl.SSLContext | None = None
) -> dict[str, Any]:
    """End a session by `DELETE /v1/sessions/{id}`.

    Raises:
        Refused: there is none, or the secret is another's.
    """
    return _request("DELETE", f"{checked(url)}/v1/sessions/{id}", token, secret, context)


def checked(url: str) -> str:
    """A server's address, without a slash at its end.

    Raises:
        Refused: `bad_request`: it is none.
    """
    try:
        parts = urlsplit(url)
        known = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:  # of a port, or brackets
        known = False
    if not known:
        example = f"http://{url}" if url and "//" not in url else "http://127.0.0.1:8080"
        raise Refused("bad_request", f"url={url[:80]!r}: is http:// or https:// and a host; write {example[:80]}")
    return url.rstrip("/")


def authorization(token: str | None, secret: str | None) -> dict[str, str]:
    """Headers: the server's token, the session's secret."""
    found = {} if token is None else {"Authorization": f"Bearer {token}"}
    return found if secret is None else found | {"X-Session-Secret": secret}


def problem(body: bytes, status: int) -> Refused:
    """A refusal over HTTP (RFC 9457)."""
    try:
        found = json.loads(body)
        return Refused(found["type"], found["detail"], found.get("retry_after_s"))
    except (ValueError, TypeError, KeyError):
        return Refused("failed", f"the server answered {status}")


def _request(
    method: str,
    address: str,
    token: str | None,
    secret: str | None,
    context: ssl.SSLContext | None,
    body: dict[str, Any] | None = None,
) -> dict[str, Any]:
    headers = authorization(token, secret) | {"Content-Type": "application/json"}
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(address, data, headers, method=method)
    # As the WebSocket: straight to the server, whatever proxy the environment names.
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=context))
    try:
        with direct.open(request, timeout=ANSWER_S) as answer:
            return json.load(answer)
    except urllib.error.HTTPError as error:
        raise problem(error.read(), error.code) from None
    except (OSError, ValueError) as error:
        raise Refused("lost", f"nobody answers at {address} ({error})") from error

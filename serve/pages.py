"""The page for people: files that a browser takes as they are, under a policy that lets nothing else in."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import NamedTuple

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from serve.problems import Problem

FOLDER = Path(__file__).parent / "page"
FIRST = "index.html"
KINDS = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
"""Content types of what may lie in the folder; browsers run no module under another one."""
POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' blob:",
        "media-src 'self' blob:",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
    )
)
"""Content-Security-Policy: own files only, no script or style in a page, no text that becomes markup, no frame."""


class PageFile(NamedTuple):
    """A file of the page, held in memory: answering must not wait for a disk.

    Attributes:
        body: its bytes.
        kind: its content type.
        tag: strong entity tag, quotes included.
    """

    body: bytes
    kind: str
    tag: str


def files() -> dict[str, PageFile]:
    """All files of the page by name."""
    found = {}
    for path in sorted(FOLDER.iterdir()):
        if path.suffix in KINDS:
            body = path.read_bytes()
            found[path.name] = PageFile(body, KINDS[path.suffix], f'"{hashlib.sha256(body).hexdigest()[:20]}"')
    return found


def routes() -> list[Route]:
    """`GET /` and `GET /page/{file}`. The files hold no secrets, and need no token.

    The second raises Problem `not_found` for any name that is no file of the page; nothing of a path reaches the disk.
    """
    held = files()

    async def one(request: Request) -> Response:
        name = request.path_params.get("file", FIRST)
        if name not in held:
            raise Problem("not_found", f"{name[:60]!r} is no file of the page; GET / is the page")
        return _answer(request, held[name])

    return [Route("/", one, methods=["GET"]), Route("/page/{file}", one, methods=["GET"])]


def _answer(request: Request, file: PageFile) -> Response:
    # Modules import one another by bare names, so a browser asks each time whether its copy is still the right one
    # (RFC 9110, 13.1.2): a page of one release never runs with a module of another.
    headers = {"ETag": file.tag, "Cache-Control": "no-cache", "Content-Security-Policy": POLICY}
    known = [tag.strip().removeprefix("W/") for tag in request.headers.get("if-none-match", "").split(",")]
    if file.tag in known or "*" in known:
        return Response(status_code=304, headers=headers)
    return Response(file.body, headers=headers | {"Content-Type": file.kind})

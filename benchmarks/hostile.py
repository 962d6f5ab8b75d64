"""What strangers send to a server, made from a number: `python -m benchmarks.abuse` sends it.

A case is one connection and what goes over it. Most begin as something that would be right, and are cut, flipped,
doubled or filled with other values, so that they come further than noise would.
"""

from __future__ import annotations

import json
import random
import struct
from dataclasses import dataclass
from io import BytesIO
from typing import Any

from PIL import Image

PATHS = (
    "/", "/healthz", "/health", "/readyz", "/metrics", "/page/app.js", "/v1/models", "/v1/ice-servers", "/v1/uploads",
    "/v1/sessions", "/v1/sessions/{id}", "/v1/sessions/{id}/offer", "/v1/realtime/video", "/whip/{id}", "/v1/videos",
)  # fmt: skip
METHODS = ("GET", "POST", "DELETE", "PUT", "PATCH", "OPTIONS", "HEAD", "TRACE", "CONNECT", "BREW", "get", "G" * 300)
TRICKS = (
    "/../../../etc/passwd", "/page/../../serve/app.py", "/page/..%2f..%2fserve/app.py", "/page/%2e%2e/%2e%2e/x", "/%00",
    "/page/app.js%00.png", "//evil.example/", "/page//etc/passwd", "/page/.git", "/.env", "/page/%c0%ae%c0%ae/", "*",
    "http://evil.example/", "/v1/models;x", "/v1/models/", "/v1//models", "/page/" + "a" * 5000, "/%", "/%zz",
    "/\\..\\x",
    "/v1/sessions/..", "/v1/sessions/%2e%2e/offer", "/page/con", "/?" + "q" * 9000, "/page/{x}", "/page/CON%20", "?",
    "#",
)  # fmt: skip
HOSTS = ("evil.example", "127.0.0.1.evil.example", "localhost:1", "[::1]", "", "0", "a" * 3000, "127.0.0.1@evil")
ORIGINS = ("https://evil.example", "null", "http://localhost", "file://", "http://{host}.evil", "x" * 3000)
ODD = (
    None, True, False, 0, -1, 1 << 63, 1 << 64, -(1 << 70), 0.5, 1e308, "", "x", "\0", "\ud800", "é" * 3000,
    "../../etc/passwd",
    "file:///etc/passwd", "http://169.254.169.254/latest", [], {}, [[]], {"a": {"b": []}}, "x" * 70_000,
    "${oc.env:HOME}",
    "' or 1=1 --", "<script>alert(1)</script>", "{{7*7}}", "\u202e", ["x"] * 5000,
)  # fmt: skip
RAW = (
    b"[" * 60_000, b"{" * 60_000, b'{"a":' * 9000, b"1" * 6000, b"NaN", b"\xff\xfe", b"", b"null",
    b'{"seed": 1, "seed": 2}', b'{"prompt": "\\ud800"}', b"{}" * 9000, b"\x1f\x8b\x08" + b"\0" * 99,
    b'{"seconds": 1e999}', b"-", b'"' + b"x" * 60_000,
)  # fmt: skip
KINDS = (
    "path", "method", "token", "origin", "body", "oversized", "secret", "upload", "sdp", "http", "socket", "frames",
    "talk",
)  # fmt: skip


@dataclass(frozen=True)
class Target:
    """What an attacker knows, which is more than it should: a case uses some of it.

    Attributes:
        host: of the server, with the port.
        token: the server's.
        model: that has no room left.
        id, secret: of a session that goes on and is somebody else's, whose secret is known.
        ended_id, ended_secret: of one that has ended.
        sdp: an offer that would be right.
    """

    host: str
    token: str
    model: str
    id: str
    secret: str
    ended_id: str
    ended_secret: str
    sdp: str


@dataclass(frozen=True)
class Case:
    """One connection.

    Attributes:
        kind: of KINDS.
        parts: what is sent, one after the other, whatever is answered.
        socket: whether a WebSocket is asked for first, with its token.
        refused: whether anything but a refusal is a fault.
    """

    kind: str
    parts: tuple[bytes, ...]
    socket: bool = False
    refused: bool = False


def case(number: int, seed: int, target: Target) -> Case:
    """The case of a number; the same one each time."""
    chance = random.Random(f"{seed}/{number}")
    kind = KINDS[number % len(KINDS)]
    return globals()[f"_{kind}"](chance, target)


def head(
    target: Target, method: str, path: str, headers: dict[str, Any] | None = None, body: bytes = b"", token: bool = True
) -> bytes:
    """A request, as it goes over the connection; a header that is None is left out."""
    said: dict[str, Any] = {"Host": target.host, "Connection": "close"}
    said |= {"Authorization": f"Bearer {target.token}"} if token else {}
    said |= {"Content-Type": "application/json", "Content-Length": len(body)} if body else {}
    said |= headers or {}
    lines = [f"{method} {path} HTTP/1.1", *(f"{k}: {v}" for k, v in said.items() if v is not None), "", ""]
    return "\r\n".join(lines).encode("utf-8", "surrogatepass") + body


def handshake(target: Target, **headers: Any) -> bytes:
    """The beginning of a WebSocket (RFC 6455, 4.1)."""
    said = {
        "Upgrade": "websocket", "Connection": "Upgrade", "Sec-WebSocket-Version": 13,
        "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==", "Sec-WebSocket-Protocol": "everframe.v1",
    }  # fmt: skip
    return head(target, "GET", "/v1/realtime/video", said | headers)


def frame(opcode: int, data: bytes, fin: bool = True) -> bytes:
    """A frame of a client (RFC 6455, 5.2), under a mask of zeros."""
    size = len(data)
    if size < 126:
        length = bytes([0x80 | size])
    elif size < 1 << 16:
        length = b"\xfe" + struct.pack("!H", size)
    else:
        length = b"\xff" + struct.pack("!Q", size)
    return bytes([0x80 * fin | opcode]) + length + bytes(4) + data


def flipped(chance: random.Random, data: bytes, most: int = 6) -> bytes:
    """`data` with some bytes changed, taken out, put in or doubled."""
    made = bytearray(data)
    for _ in range(chance.randrange(1, most)):
        at = chance.randrange(len(made) or 1)
        match chance.randrange(4):
            case 0 if made:
                made[at] = chance.randrange(256)
            case 1:
                del made[at : at + chance.randrange(12)]
            case 2:
                made[at:at] = chance.randbytes(chance.randrange(12))
            case _:
                made[at:at] = made[at : at + chance.randrange(200)]
    return bytes(made)


def _dumped(value: Any) -> bytes:
    return json.dumps(value).encode()


def _known(chance: random.Random, target: Target) -> str:
    id = chance.choice((target.id, target.ended_id, "x", "../x", chance.randbytes(12).hex()))
    return chance.choice(PATHS).replace("{id}", id)


def _path(chance: random.Random, target: Target) -> Case:
    path = (
        chance.choice(TRICKS)
        if chance.random() < 0.6
        else flipped(chance, chance.choice(PATHS).encode()).decode("latin-1")
    )
    return Case("path", (head(target, chance.choice(METHODS[:3]), path),))


def _method(chance: random.Random, target: Target) -> Case:
    return Case("method", (head(target, chance.choice(METHODS), _known(chance, target)),))


def _token(chance: random.Random, target: Target) -> Case:
    wrong = (
        "",
        "Bearer",
        "Bearer x",
        f"Basic {target.token}",
        target.token,
        f"Bearer {target.token[:-1]}",
        "Bearer \xe9",
    )
    headers = {"Authorization": chance.choice((None, *wrong, f"Bearer {target.secret}", f"Bearer {target.token}x"))}
    path = chance.choice(PATHS[4:5] + PATHS[6:]).replace("{id}", target.id)
    return Case("token", (head(target, chance.choice(METHODS[:3]), path, headers, token=False),), refused=True)


def _origin(chance: random.Random, target: Target) -> Case:
    headers = {"Origin": chance.choice(ORIGINS).replace("{host}", target.host)}
    if chance.random() < 0.5:
        headers = {"Host": chance.choice(HOSTS)}
    if chance.random() < 0.3:
        return Case("origin", (handshake(target, **headers),), refused=True)
    return Case("origin", (head(target, chance.choice(METHODS[:6]), _known(chance, target), headers),), refused=True)


def _wanted(chance: random.Random, target: Target) -> dict[str, Any]:
    wanted: dict[str, Any] = {"model": target.model, "prompt": "a rainy day", "seed": 3, "seconds": 5.0}
    for _ in range(chance.randrange(1, 4)):
        key = chance.choice(
            ("model", "prompt", "seed", "seconds", "image", "queue", "promt", "__class__", "traceparent")
        )
        wanted[key] = chance.choice(ODD)
    return wanted | {"queue": False} if chance.random() < 0.9 else wanted


def _body(chance: random.Random, target: Target) -> Case:
    data = chance.choice(RAW) if chance.random() < 0.3 else _dumped(_wanted(chance, target))
    if chance.random() < 0.3:
        data = flipped(chance, data)
    path = chance.choice(("/v1/sessions", f"/v1/sessions/{target.id}/offer", "/v1/uploads"))
    kind = chance.choice(("application/json", "application/json; charset=utf-7", "text/plain", "", "image/png"))
    headers = {"Content-Type": kind, "X-Session-Secret": target.secret}
    return Case("body", (head(target, "POST", path, headers, data),))


def _oversized(chance: random.Random, target: Target) -> Case:
    path = chance.choice(("/v1/sessions", f"/v1/sessions/{target.id}/offer", "/v1/uploads"))
    headers = {"Content-Type": chance.choice(("application/json", "image/png")), "X-Session-Secret": target.secret}
    match chance.randrange(5):
        case 0:
            length = chance.choice((1 << 24, 1 << 40, "9" * 60, "-1", "1e3", "0x10"))
            return Case("oversized", (head(target, "POST", path, headers | {"Content-Length": length}),), refused=True)
        case 1:
            return Case("oversized", (head(target, "GET", "/healthz", {"X": "y" * 100_000}),), refused=True)
        case 2:
            many = {f"X-{i}": "y" for i in range(chance.randrange(200, 4000))}
            return Case("oversized", (head(target, "GET", "/v1/models", many),))
        case 3:
            chunks = b"".join(b"8000\r\n" + bytes(0x8000) + b"\r\n" for _ in range(4))
            chunked = headers | {"Transfer-Encoding": "chunked"}
            return Case("oversized", (head(target, "POST", path, chunked), chunks, chunks), refused=True)
        case _:
            return Case("oversized", (head(target, "POST", path, headers, bytes(9 << 20)),), refused=True)


def _secret(chance: random.Random, target: Target) -> Case:
    wrong = (
        "",
        "x",
        target.ended_secret,
        target.secret[:-1],
        target.secret.swapcase(),
        target.token,
        "\xe9",
        "x" * 9000,
    )
    method, more = chance.choice((("GET", ""), ("DELETE", ""), ("POST", "/offer")))
    body = _dumped({"sdp": target.sdp, "type": "offer"}) if more else b""
    path = f"/v1/sessions/{chance.choice((target.id, target.id, 'x'))}{more}"
    said = {"X-Session-Secret": chance.choice((None, *wrong))}
    return Case("secret", (head(target, method, path, said, body),), refused=True)


def _upload(chance: random.Random, target: Target) -> Case:
    file, form = BytesIO(), chance.choice(("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"))
    Image.new("RGB", (chance.randrange(1, 90), chance.randrange(1, 90)), (chance.randrange(256),) * 3).save(file, form)
    data = flipped(chance, file.getvalue()) or b"x"
    kind = chance.choice(("image/png", "image/jpeg", "image/webp", "image/svg+xml", "text/html"))
    return Case("upload", (head(target, "POST", "/v1/uploads", {"Content-Type": kind}, data),))


def _sdp(chance: random.Random, target: Target) -> Case:
    lines = target.sdp.split("\r\n")
    for _ in range(chance.randrange(1, 12)):
        at = chance.randrange(len(lines))
        match chance.randrange(5):
            case 0:
                del lines[at]
            case 1:
                lines.insert(at, chance.choice(lines))
            case 2:
                lines[at] = flipped(chance, lines[at].encode() or b"x").decode("latin-1")
            case 3:
                address = chance.choice(
                    ("127.0.0.1", "169.254.169.254", "224.0.0.1", "::1", "a.local", "1.2.3.4", "x" * 300)
                )
                lines.insert(at, f"a=candidate:1 1 udp 1 {address} 9 typ host")
            case _:
                lines[at:at] = lines[at : at + 40] * chance.randrange(1, 5)
        lines = lines or ["v=0"]
    sdp = (
        "\r\n".join(lines)
        if chance.random() < 0.9
        else chance.choice(("", "v=0", "\0", "x" * 65_000, "é" * 9000, target.sdp * 30))
    )
    body = _dumped(
        {"sdp": sdp, "type": chance.choice(("offer", "offer", "offer", "answer", "pranswer", "rollback", 3))}
    )
    said = {"X-Session-Secret": target.secret}
    return Case("sdp", (head(target, "POST", f"/v1/sessions/{target.id}/offer", said, body),))


def _http(chance: random.Random, target: Target) -> Case:
    good = (
        head(target, "GET", "/healthz", {"Connection": None}), head(target, "POST", "/v1/sessions", None,
        b'{"seed": "x"}'),
        handshake(target) + frame(1, b"{}"),
    )  # fmt: skip
    return Case("http", tuple(flipped(chance, chance.choice(good)) for _ in range(chance.randrange(1, 4))))


def _socket(chance: random.Random, target: Target) -> Case:
    odd = (
        "",
        "x",
        0,
        -1,
        14,
        "8, 13",
        "\xe9",
        "y" * 9000,
        None,
        "everframe.token.x",
        "everframe.v1, everframe.token.",
        ",,;",
    )
    name = chance.choice(
        ("Sec-WebSocket-Version", "Sec-WebSocket-Key", "Sec-WebSocket-Protocol", "Upgrade", "Connection")
    )
    return Case("socket", (handshake(target, **{name: chance.choice(odd)}), frame(1, b"{}")))


def _frames(chance: random.Random, target: Target) -> Case:
    bad = (
        frame(1, b"\xff\xfe"), frame(1, b"", False) + frame(0, b"", False) * 3000, b"\x82\xff" + b"\x7f" * 8 + bytes(4),
        b"\x81\x03abc", frame(3, b"x"), frame(0, b"x"), b"\xf1\x80" + bytes(4), frame(9, bytes(200)), frame(8, b"\0"),
        frame(9, b"x") * 5000, frame(10, b"x") * 5000, frame(2, bytes(2 << 20)), frame(2, bytes(900)),
        chance.randbytes(400),
        frame(8, struct.pack("!H", chance.randrange(5000))), frame(1, b"x" * 20_000), frame(1, b"{}") * 300, frame(1,
        b"[" * 16_000),
    )  # fmt: skip
    return Case("frames", tuple(chance.choice(bad) for _ in range(chance.randrange(1, 4))), socket=True)


def _talk(chance: random.Random, target: Target) -> Case:
    """Messages of the protocol, with what does not belong into them."""
    start = {"type": "session.start", **_wanted(chance, target), "queue": False}
    wrong = {
        "type": "session.start",
        "session": chance.choice((target.id, target.ended_id, "x")),
        "secret": chance.choice(ODD),
    }
    messages = [chance.choice((start, wrong, {"type": chance.choice(ODD)}, {}))]
    if chance.random() < 0.3:
        messages = [{"type": "session.start", "session": target.ended_id, "secret": target.ended_secret}]
    for _ in range(chance.randrange(5)):
        sound = {"type": "session.audio", "sample_rate": 16000, "channels": 1, "bytes": 320, "live": True}
        event = {"type": "session.interaction", "event_id": "e", "event": {"type": "action", "action": "forward"}}
        made = dict(chance.choice((sound, event, {"type": "session.ping", "t": 1}, {"type": "session.nothing"})))
        made[chance.choice(list(made))] = chance.choice(ODD)
        messages.append(made)
    parts = [frame(1, _dumped(message)) for message in messages]
    if chance.random() < 0.3:
        parts.append(frame(2, bytes(chance.randrange(5000))))
    return Case("talk", tuple(parts), socket=True)

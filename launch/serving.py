"""What serving needs of this machine: a port, a certificate, encoders, servers that help through firewalls, files."""

from __future__ import annotations

import errno
import resource
import socket
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import av
import numpy as np

from conf.errors import UserError
from conf.schema.serve import ServeConfig
from launch.checks import Finding
from launch.stun import answer, server_of

PACKAGES = ("starlette", "uvicorn", "websockets", "aiortc", "prometheus_client", "opentelemetry.sdk")
"""Of the extra `serve`."""
INSTALL = 'pip install "everframe[serve]"'
ENCODERS = {
    "libx264": "H.264 on a processor",
    "h264_nvenc": "H.264 on a GPU",
    "libvpx": "VP8",
    "libopus": "sound",
}
"""By their names in FFmpeg, what they make."""
NEEDED = ("libx264", "libvpx", "libopus")
SIDE = 256
"""Pixels of a picture that is encoded on trial: NVENC takes no small ones."""
FILES, FILES_OF_EACH, SESSIONS = 256, 16, 32
"""Descriptors of the gateway itself, of each session (its stages, its viewers and their sockets), and sessions that are
reckoned with where nothing says how many."""


def serving(serve: ServeConfig) -> list[Finding]:
    """All that needs no worker. Where nothing of `serve.` is set, what is wrong is told and is no mistake."""
    found = list(_found(serve))
    if serve != ServeConfig():
        return found
    return [f if f.ok else Finding(f.what, f"{f.value} ({f.remedy})", f"{f.rule}; for everframe serve") for f in found]


def _found(serve: ServeConfig) -> Iterator[Finding]:
    yield (installed := _installed())
    yield _port("serve.port", serve.host, serve.port)
    if serve.link_port:
        yield _port("serve.link_port", serve.link_host or serve.host, serve.link_port)
    yield _certificate(serve, installed.ok)
    yield from map(_encoder, ENCODERS)
    yield from _helpers(serve)
    yield _files(serve)


def _installed() -> Finding:
    missing = [name for name in PACKAGES if not _there(name)]
    rule = "what everframe serve is made of"
    if missing:
        return Finding("serving", f"not installed: {', '.join(missing)}", rule, INSTALL)
    try:
        webrtc = import_module("aiortc")
    except (ImportError, OSError) as error:  # a library that it links with may be missing
        return Finding("serving", f"aiortc: {str(error).splitlines()[0]}", rule, f"{INSTALL} anew")
    return Finding("serving", f"installed, aiortc {webrtc.__version__}", rule)


def _there(name: str) -> bool:
    try:
        return find_spec(name) is not None
    except ImportError:  # what it is a part of is not there
        return False


# -- ports ------------------------------------------------------------------------------------------------------------


def _port(setting: str, host: str, port: int) -> Finding:
    rule, value = "is free", f"{host}:{port}"
    if port == 0:
        return Finding(setting, "0: a free one is taken", rule)
    try:
        family, _, _, _, where = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        socket.create_server(where[:2], family=family).close()
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            return Finding(setting, f"{value}: {holder(port)} has it", rule, f"end that, or use {setting}=0")
        remedy = "use one from 1024" if error.errno == errno.EACCES else "name an address of this machine"
        return Finding(setting, f"{value}: {error.strerror or error}", rule, remedy)
    return Finding(setting, f"{value}: nobody has it", rule)


def holder(port: int) -> str:
    """Who listens at a port of this machine, in words, as far as may be seen."""
    sockets = set()
    for table in ("tcp", "tcp6"):
        with suppress(OSError):
            for line in Path("/proc/net", table).read_text().splitlines()[1:]:
                parts = line.split()
                if int(parts[1].rpartition(":")[2], 16) == port and parts[3] == "0A":  # listens
                    sockets.add(f"socket:[{parts[9]}]")
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # another user's, or gone
            if any(str(file.readlink()) in sockets for file in (process / "fd").iterdir()):
                return f"process {process.name} ({(process / 'comm').read_text().strip()})"
    return "another process"


# -- certificate and encoders -----------------------------------------------------------------------------------------


def _certificate(serve: ServeConfig, installed: bool) -> Finding:
    rule = "fits its key and is in force"
    if serve.tls == "off":
        return Finding("certificate", "serve.tls=off: plain HTTP", rule)
    if not installed:
        return Finding("certificate", f"serve.tls={serve.tls}: cannot be looked at", rule, INSTALL)
    try:
        with tempfile.TemporaryDirectory() as folder:
            # Nothing is left behind: one that is made here is made again, and kept, at the start.
            found = import_module("serve.tls").certificate(serve, Path(folder))
    except UserError as error:
        return Finding("certificate", f"{error.value}: {error.rule}", rule, error.remedy)
    if serve.tls == "auto":
        return Finding("certificate", "serve.tls=auto: one can be made", rule)
    return Finding("certificate", f"{serve.tls['cert']}: {found.fingerprint}", rule)


def _encoder(name: str) -> Finding:
    what, rule = f"encoder {name}", ENCODERS[name]
    try:
        _tried(name)
    except (av.FFmpegError, ValueError) as error:
        said = f"does not work here ({str(error).splitlines()[0]})"
        if name in NEEDED:
            return Finding(what, said, rule, "install PyAV as it is published (pip install av)")
        return Finding(what, said, f"{rule}; libx264 is used instead")
    return Finding(what, "works", rule)


def _tried(name: str) -> None:
    """Encode something.

    Raises:
        av.FFmpegError, ValueError: it cannot be.
    """
    context = av.CodecContext.create(name, "w")
    if context.type == "audio":
        context.sample_rate, context.layout, context.format = 48_000, "mono", "flt"
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 960), np.float32), "flt", "mono")
        frame.sample_rate = context.sample_rate
    else:
        context.width = context.height = SIDE
        context.pix_fmt, context.framerate = "yuv420p", 25
        frame = av.VideoFrame.from_ndarray(np.zeros((SIDE * 3 // 2, SIDE), np.uint8), "yuv420p")
    frame.pts = 0
    if not [*context.encode(frame), *context.encode(None)]:
        raise ValueError("it gives nothing")


# -- the network, and files -------------------------------------------------------------------------------------------


def _helpers(serve: ServeConfig) -> Iterator[Finding]:
    """STUN and TURN servers, all asked at once."""
    if not serve.ice_servers:
        value = "none: viewers of other networks are reached over the WebSocket alone"
        yield Finding("serve.ice_servers", value, "answer")
        return
    with ThreadPoolExecutor(len(serve.ice_servers)) as pool:
        yield from pool.map(_asked, serve.ice_servers)


def _asked(url: str) -> Finding:
    rule = "answers"
    try:
        return Finding("ICE server", f"{url} {answer(server_of(url))}", rule)
    except UserError as error:
        return Finding("ICE server", f"{error.value} {error.rule}", rule, error.remedy)
    except OSError as error:
        value = f"{url}: {error.strerror or error}"
        return Finding("ICE server", value, rule, "start it, open its port, or leave it out of serve.ice_servers")


def _files(serve: ServeConfig) -> Finding:
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    sessions = (serve.most or SESSIONS) * max(1, len(serve.models))
    needed = FILES + FILES_OF_EACH * sessions
    value = "without limit" if limit == resource.RLIM_INFINITY else str(limit)
    enough = limit == resource.RLIM_INFINITY or limit >= needed
    remedy = "" if enough else f"ulimit -n {needed} before it starts, or a smaller serve.max_sessions"
    return Finding("open files", value, f"{needed} or more for {sessions} sessions", remedy)

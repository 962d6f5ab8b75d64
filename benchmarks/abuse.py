"""A server among strangers: `python -m benchmarks.abuse [--cases 10000] [--seed 0]`.

One visitor walks through a world, first alone, then while others send what nobody should: paths with tricks, bodies of
the wrong kind and size, wrong origins, no token or another's secret, damaged pictures, SDP, HTTP and WebSockets, and
connections that say nothing or a byte a second. Bars: no answer says that it was our fault, no traceback, the gateway
grows by less than 5 %, everything is refused that must be, and the visitor's chunks are no later than before.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import re
import secrets
import signal
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from aiortc import RTCConfiguration, RTCPeerConnection

from benchmarks.hostile import Case, Target, case, handshake, head
from benchmarks.launched import ROOT
from benchmarks.record import bar, record
from serve import client

CASES, SEED = 10_000, 0
WORLD, AVATAR = "pocket_world", "pocket_avatar"
AT_ONCE, RATE, HELD = 4, 100.0, 12
"""Cases under way and in a second (more would measure the machine, which is theirs as well as the server's), and
connections beside them that never come to the point."""
WARM = 2000
"""Cases before memory is compared: by then everything has been loaded, and tables and the allocator have their size."""
EACH = 500
"""Cases between two looks at memory."""
ALONE_S, ANSWER_S, START_S = 20.0, 20.0, 180.0
GROWTH, LATER = 0.05, 0.01
"""Growth of the gateway, and share of chunks that may be late beyond the share before: machines have their moments."""


class Visitor(threading.Thread):
    """Somebody who uses a session as it is meant, and counts what comes late."""

    def __init__(self, session: client.Session):
        super().__init__(name="visitor", daemon=True)
        self.session, self.chunks, self.late, self.error = session, 0, 0, ""
        self.over = False

    def run(self) -> None:
        """Walk, and watch."""
        try:
            for part in self.session:
                if self.over:
                    return
                if part.first and part.chunk is not None:
                    self.chunks += 1
                    self.late += part.chunk.late_s > 0
                    if self.chunks % 4 == 0:
                        self.session.act("forward")
        except client.Refused as error:
            self.error = str(error)

    def since(self, before: tuple[int, int] = (0, 0)) -> tuple[int, int]:
        """(chunks, late ones) since a moment."""
        return self.chunks - before[0], self.late - before[1]


@contextlib.contextmanager
def server(folder: Path, token: str) -> Iterator[tuple[str, subprocess.Popen, Path]]:
    """A server of two models with room for one session each: its host, its process, its standard error."""
    out, err = folder / "out.txt", folder / "err.txt"
    settings = (
        f"serve.models=[{AVATAR},{WORLD}]", "serve.port=0", f"serve.token={token}", "serve.max_sessions=1",
        "serve.queue=2", "serve.posts_per_minute=1000000", "serve.sessions_per_caller=100", "serve.session_s=100000",
        "serve.idle_s=100000", f"output_dir={folder / 'run'}", "experiment=live",
    )  # fmt: skip
    with out.open("w") as said, err.open("w") as complained:
        process = subprocess.Popen(
            [sys.executable, "-m", "launch.serve", *settings],
            cwd=ROOT, stdout=said, stderr=complained, start_new_session=True,
        )  # fmt: skip
    try:
        end = time.monotonic() + START_S
        while not (found := re.search(r"open http://(\S+?)/#", out.read_text())):
            if process.poll() is not None or time.monotonic() > end:
                raise SystemExit(f"the server did not start:\n{err.read_text()[-3000:]}")
            time.sleep(0.1)
        yield found[1], process, err
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)


def resident(process: subprocess.Popen) -> int:
    """Bytes of memory that a process has."""
    text = Path(f"/proc/{process.pid}/status").read_text()
    return int(re.search(r"VmRSS:\s+(\d+)", text)[1]) << 10


async def offer() -> str:
    """SDP as a browser would send it."""
    peer = RTCPeerConnection(RTCConfiguration(iceServers=[]))
    peer.addTransceiver("video", direction="recvonly")
    peer.addTransceiver("audio", direction="sendrecv")
    peer.createDataChannel("control")
    await peer.setLocalDescription(await peer.createOffer())
    sdp = peer.localDescription.sdp
    await peer.close()
    return sdp


async def sent(made: Case, target: Target) -> bytes | None:
    """All that comes back; None: the connection was still open after ANSWER_S."""
    host, _, port = target.host.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        async with asyncio.timeout(ANSWER_S):
            answer = b""
            if made.socket:
                writer.write(handshake(target))
                answer = await reader.readuntil(b"\r\n\r\n")
            for part in made.parts:
                writer.write(part)
                await writer.drain()
            if writer.can_write_eof():
                writer.write_eof()
            return answer + await reader.read()
    except TimeoutError:
        return None
    except (OSError, asyncio.IncompleteReadError) as error:  # cut off, which is an answer as well
        return getattr(error, "partial", b"")
    finally:
        writer.transport.abort()


def fault(made: Case, answer: bytes | None) -> str | None:
    """What is wrong with an answer; None: nothing."""
    if answer is None:
        return "held for ever"
    statuses = [int(status) for status in re.findall(rb"HTTP/1\.1 (\d{3}) ", answer)]
    if any(status >= 500 and status != 503 for status in statuses) or b'"code": "failed"' in answer:
        return f"our fault: {statuses or answer[-200:]}"
    if made.socket and struct.pack("!BBH", 0x88, 2, 1011)[2:] in answer[-140:] and answer[-140:].count(b"\x88"):
        return "our fault: 1011"
    if made.refused and any(status < 300 for status in statuses):
        return f"let in: {statuses}"
    return None


def first_status(answer: bytes | None) -> str:
    """`4xx`, `2xx`, or `-` where the connection was only cut; a WebSocket that was opened is `1xx`."""
    return f"{chr(answer[9])}xx" if answer and answer.startswith(b"HTTP/1.1 ") else "-"


async def hold(target: Target, number: int) -> None:
    """Connections that never come to the point, one after the other: silent, in the middle, or a byte a second."""
    host, _, port = target.host.rpartition(":")
    whole = head(target, "POST", "/v1/sessions", {"Content-Length": 100})
    while True:
        with contextlib.suppress(ConnectionError):
            _, writer = await asyncio.open_connection(host, int(port))
            try:
                writer.write(whole[: (0, 30, len(whole))[number % 3]])
                for _ in range(15):
                    await asyncio.sleep(1)
                    if number % 2:
                        writer.write(b"x")
                    if writer.is_closing():
                        break
            finally:
                writer.transport.abort()


async def storm(numbers: range, seed: int, target: Target, told: Counter, faults: list[str]) -> None:
    """Send cases, some at a time."""
    waiting, began = iter(numbers), time.monotonic()

    async def one() -> None:
        for number in waiting:
            await asyncio.sleep(began + (number - numbers.start) / RATE - time.monotonic())
            made = case(number, seed, target)
            try:
                answer = await sent(made, target)
            except OSError as error:
                faults.append(f"{number} {made.kind}: nobody takes connections ({error})")
                await asyncio.sleep(1)
                continue
            told[f"{made.kind} {first_status(answer)}"] += 1
            if wrong := fault(made, answer):
                faults.append(f"{number} {made.kind}: {wrong}")
                print(f"  {faults[-1]}"[:300], flush=True)

    await asyncio.gather(*(one() for _ in range(AT_ONCE)))


async def attack(
    cases: int, seed: int, target: Target, process: subprocess.Popen
) -> tuple[Counter, list[str], list[int]]:
    """(cases by kind and answer, faults, memory of the gateway after each EACH of them)."""
    told: Counter = Counter()
    faults: list[str] = []
    holding = [asyncio.create_task(hold(target, number)) for number in range(HELD)]
    memory: list[int] = []
    for first in range(0, cases, EACH):
        await storm(range(first, min(first + EACH, cases)), seed, target, told, faults)
        memory.append(resident(process))
    for task in holding:
        task.cancel()
    await asyncio.gather(*holding, return_exceptions=True)
    return told, faults, memory


def measure(cases: int, seed: int, folder: Path) -> dict[str, Any]:
    """Bars of so many cases."""
    token = secrets.token_hex(16)
    with server(folder, token) as (host, process, err):
        url = f"http://{host}"
        before = client.create(url, token=token, model=AVATAR, seconds=5)
        client.delete(url, before["id"], before["secret"], token=token)
        with client.connect(url, token=token, model=WORLD) as session:
            visitor = Visitor(session)
            visitor.start()
            time.sleep(ALONE_S)
            alone = visitor.since()
            target = Target(
                host, token, WORLD, session.id, session.secret, before["id"], before["secret"], asyncio.run(offer())
            )
            began, first = time.monotonic(), (visitor.chunks, visitor.late)
            told, faults, memory = asyncio.run(attack(cases, seed, target, process))
            among, took = visitor.since(first), time.monotonic() - began
            visitor.over = True
            ready = asyncio.run(sent(Case("probe", (head(target, "GET", "/readyz"),)), target)) or b""
            visitor.join(10)
        complaints = err.read_text()
    kept = [word for word in (token, session.secret, before["secret"]) if word in complaints]
    lateness = [late / max(chunks, 1) for chunks, late in (alone, among)]
    warm = memory[min(WARM // EACH, len(memory) // 2)]
    growth = memory[-1] / warm - 1
    ours = [one for one in faults if "let in" not in one]
    let_in = [one for one in faults if "let in" in one]
    return {
        "cases": dict(sorted(told.items())),
        "seconds": round(took, 1),
        f"memory of the gateway after each {EACH}, MiB": [round(size / (1 << 20), 1) for size in memory],
        "answers that are our fault, or never come": bar(len(ours), "0", not ours),
        "let in who must not be": bar(len(let_in), "0", not let_in),
        "tracebacks": bar(complaints.count("Traceback"), "0", "Traceback" not in complaints),
        "secrets in the log": bar(len(kept), "0", not kept),
        "growth of the gateway": bar(f"{growth:.1%} of {warm >> 20} MiB", "under 5 %", growth < GROWTH),
        "late chunks of the visitor": bar(
            f"{lateness[1]:.1%} of {among[0]}, alone {lateness[0]:.1%} of {alone[0]}",
            "no more than alone, and 1 %",
            among[0] > 0 and not visitor.error and lateness[1] <= lateness[0] + LATER,
        ),
        "ready in the end": bar(b" 200 " in ready, "yes", b" 200 " in ready),
    }


def main() -> bool:
    """Measure, record, and say whether all bars are met."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=int, default=CASES)
    parser.add_argument("--seed", type=int, default=SEED)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="abuse-") as folder:
        measured = measure(asked.cases, asked.seed, Path(folder))
    record("abuse", "python -m benchmarks.abuse", vars(asked), measured)
    return all(value["passed"] for value in measured.values() if isinstance(value, dict) and "passed" in value)


if __name__ == "__main__":
    sys.exit(not main())

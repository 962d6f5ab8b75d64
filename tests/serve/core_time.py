"""A loop whose time passes at once when nobody has anything to do, and what a session stands between."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable, Coroutine
from typing import Any

from conf.errors import UserError
from conf.schema.serve import ServeConfig
from serve.media import Packet, Shown, Viewer
from serve.metrics import Metrics
from serve.session import Session
from serve.told import Told

OFFER = {
    "id": "maze", "object": "model", "fps": 16, "chunk_s": 0.75, "width": 32, "height": 32, "hears": True, "sees": True,
    "actions": ["none", "forward"], "prompts": True, "picture": True, "words": [], "presets": [],
}  # fmt: skip


class VirtualLoop(asyncio.SelectorEventLoop):
    """Sleeps and deadlines are over as soon as nothing else is left to do; threads and sockets are real."""

    def __init__(self):
        super().__init__()
        self._now, select = 1000.0, self._selector.select

        def jump(timeout=None):
            if timeout is None:
                return select(None)
            events = select(0)
            if not events and timeout > 0:
                self._now += timeout
            return events

        self._selector.select = jump

    def time(self) -> float:
        return self._now


def virtually(work: Callable[[], Coroutine]) -> Callable[[], None]:
    """A test that is a coroutine, in virtual time."""

    def test(**given: Any) -> None:
        with asyncio.Runner(loop_factory=VirtualLoop) as runner:
            runner.run(asyncio.wait_for(work(**given), 100_000))

    test.__name__, test.__doc__ = work.__name__, work.__doc__
    test.__signature__ = inspect.signature(work)
    return test


async def settle() -> None:
    """Let everything that is ready run."""
    for _ in range(20):
        await asyncio.sleep(0)


class Stage:
    """A connection as the gateway has it, whose other end is the test.

    Attributes:
        heard: what the gateway said, (kind, body, head).
    """

    def __init__(self):
        self.heard: list[tuple[str, bytes, dict]] = []
        self._said: asyncio.Queue = asyncio.Queue()
        self.closed = False

    def send(self, kind: str, body: bytes = b"", **head: Any) -> None:
        if not self.closed:
            self.heard.append((kind, body, head))

    async def receive(self):
        return None if self.closed else await self._said.get()

    def leave(self) -> None:
        """It says that this was all, as a stage does when its stream ends."""
        self._said.put_nowait(({"kind": "end", "bytes": 0}, b""))

    @property
    def behind(self) -> int:
        return 0

    def close(self) -> None:
        self.closed = True
        self._said.put_nowait(None)

    async def say(self, kind: str, body: bytes = b"", **head: Any) -> None:
        self._said.put_nowait(({"kind": kind, "bytes": len(body), **head}, body))
        await settle()

    def of(self, kind: str) -> list[dict]:
        return [head for one, _, head in self.heard if one == kind]


class Port:
    """A link to which stages connect when a test says so."""

    def __init__(self):
        self.expected: dict[str, Any] = {}
        self.often: set[str] = set()
        self.listening, self._tasks = True, []

    def expect(self, take, token=None, once=True) -> str:
        address = f"tcp://stage:1/{len(self._tasks)}-{len(self.expected)}-{id(take)}"
        self.expected[address] = take
        self.often |= set() if once else {address}
        return address

    def forget(self, address: str) -> None:
        self.expected.pop(address, None)

    async def connect(self, address: str) -> Stage:
        stage = Stage()
        take = self.expected[address] if address in self.often else self.expected.pop(address)
        self._tasks.append(asyncio.ensure_future(take(stage)))
        await settle()
        return stage

    async def close(self) -> None:
        self.listening = False
        for task in self._tasks:
            task.cancel()


class Model:
    """A model whose streams begin and end when a test says so.

    Attributes:
        opened: (name, changes) of every stream, by number.
        refuses: raised by the next `open`.
        hold: `open` waits for it.
    """

    def __init__(self, port: Port, name: str = "maze"):
        self.name, self.offer, self.lost = name, OFFER | {"id": name}, None
        self.on_ended: Callable[[int, dict], None] = lambda number, report: None
        self.on_frozen: Callable[[bool, str], None] = lambda frozen, why: None
        self.on_planned: Callable[..., None] = lambda speed, memory: None
        self.recovers, self.frozen = False, None
        self.changed: list[dict] = []
        self.opened: list[tuple[str, dict]] = []
        self.stopped: list[int] = []
        self.cancelled: list[int] = []
        self.refuses: Exception | None = None
        self.hold = asyncio.Event()
        self.hold.set()
        self.drains = True
        """Whether a stream that is stopped ends."""
        self._port = port

    async def open(self, name: str, changes: dict) -> int:
        await self.hold.wait()
        if self.refuses is not None:
            raised, self.refuses = self.refuses, None
            raise raised
        self.opened.append((name, changes))
        return len(self.opened) - 1

    async def stop(self, number: int) -> None:
        self.stopped.append(number)
        if self.drains:
            self.on_ended(number, {"stream": self.opened[number][0], "latents_sha256": "ab"})

    async def cancel(self, number: int) -> None:
        self.cancelled.append(number)
        self.on_ended(number, {"stream": self.opened[number][0]})

    async def change(self, plan: dict) -> int:
        if self.refuses is not None:
            raise self.refuses
        self.changed.append(plan)
        return len(self.changed)

    def health(self) -> list[dict]:
        return []

    async def close(self) -> None:
        """Nothing to end."""

    async def stages(self, number: int) -> tuple[Stage, Stage]:
        """Both stages of a stream, connected."""
        _, changes = self.opened[number]
        return (
            await self._port.connect(changes["source"]["session"]),
            await self._port.connect(changes["sink"]["session"]),
        )


class Eye(Viewer):
    """Remembers what it is shown."""

    def __init__(self, codec: str = "h264"):
        self.id, self.codec = "eye", codec
        self.packets: list[Packet] = []
        self.chunks: list[Shown] = []
        self.notices: list[dict] = []
        self.closed: str | None = None

    def packet(self, packet: Packet) -> None:
        self.packets.append(packet)

    def shown(self, shown: Shown) -> None:
        self.chunks.append(shown)

    def notice(self, message: dict) -> None:
        self.notices.append(message)

    def close(self, reason: str) -> None:
        self.closed = reason


class One:
    """A session and everything around it."""

    def __init__(self, recovers: bool = False, **settings: Any):
        self.loop = asyncio.get_running_loop()
        self.port, self.serve = Port(), ServeConfig(**settings)
        self.model = Model(self.port)
        self.model.recovers = recovers
        self.over: list[Session] = []
        self.lates: list[tuple[str, float]] = []
        self.metrics = Metrics(self.loop.time)
        told = Told("maze", self.metrics, lambda model, s: self.lates.append((model, s)))
        self.session = Session(self.model, self.serve, self.port, told, self.over.append, self.loop.time)
        self.model.on_ended = lambda number, report: self.session.ended(report)

    async def begin(self, **changes: Any) -> tuple[Stage, Stage]:
        await self.session.begin({"seed": 1, **changes})
        self.source, self.sink = await self.model.stages(0)
        return self.source, self.sink

    async def wait(self, seconds: float) -> None:
        """Let time pass, looking at the clocks as a gateway does."""
        end = self.loop.time() + seconds
        while self.loop.time() < end:
            await asyncio.sleep(0.25)
            self.session.tick(self.loop.time())
        await settle()

    async def show(self, chunk: int, events=(), slack_s: float = 0.1, held_s: float = 0.0, late_s: float = 0.0) -> None:
        """A chunk, sampled and shown."""
        await self.source.say("sampled", chunk=chunk, events=list(events), silence_s=0, held_s=held_s, late_s=late_s)
        head = {"chunk": chunk, "frames": 12, "first_frame": 12 * chunk, "pts": 67_500 * chunk}
        await self.sink.say("chunk", **head, slack_s=slack_s)


REFUSED = UserError("prompt=x", "is refused", "use another")

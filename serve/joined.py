"""A pipeline that runs elsewhere and has joined the gateway, with the face of one that the gateway runs itself.

The other end, and what is said, is `launch.remote`. All is in the gateway's loop.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable
from contextlib import suppress
from itertools import count
from typing import Any

from conf.errors import UserError
from conf.typed import shown
from runtime.admission import Full
from runtime.offer import PROTOCOL
from runtime.reasons import LONGEST_LINE as LONGEST_SAID
from serve.lines import Lines
from serve.link import Connection
from serve.resources import Memory
from serve.served import Generations

log = logging.getLogger(__name__)

BEAT_S, SILENT_S, ANSWER_S, CLOSE_S = 1.0, 10.0, 30.0, 10.0
"""Between signs of life; without one for so long the pipeline counts as gone; longest wait for an answer, and for the
end that was ordered."""
PLAN_S = 900.0
"""Longest wait for another plan: everything is loaded for it first."""
MOST_WAITING = 1 << 22
"""Bytes that the pipeline has not taken, at most."""


class Joined(Generations):
    """One pipeline; made by `Joins` when it has said what it is.

    It is a `serve.served.Served`.

    Args:
        hello: what it said.
        lines: what it says from then on.
        writer: to it.
        silent_s: after which it counts as gone.

    Attributes:
        name: of its model.
        offer: what that is, as plain values (`runtime.offer`).
        workers: that it has.
        most: streams that it opens at once.
        memory: what its workers' streams need, of all once it has loaded.
        on_ended: called with the number and the report of every stream that ends.
        on_lost: called once, with why, when it has gone; no stream of it goes on.
        recovers, frozen, on_frozen, on_planned: as `serve.served.Served` has them.
        closed: whether it opens no more streams.
        loaded: set once all its workers have loaded.
        lost: why it has gone; None: it has not.
    """

    def __init__(self, hello: dict[str, Any], lines: Lines, writer: asyncio.StreamWriter, silent_s: float = SILENT_S):
        super().__init__()
        self.hello, self.offer, self.name = hello, dict(hello["offer"]), str(hello["offer"]["id"])
        self.workers, self.most = hello["workers"], hello["streams"]
        self.memory: list[Memory] = []
        self.on_ended: Callable[[int, dict[str, Any]], None] = lambda number, report: None
        self.on_lost: Callable[[str], None] = lambda why: None
        self.recovers = bool(hello.get("recovers"))
        self.closed = False
        self.lost: str | None = None
        self.loaded = asyncio.Event()
        self._gone = asyncio.Event()
        self._lines, self._writer, self._silent_s = lines, writer, silent_s
        self._questions = count()
        self._asked: dict[int, tuple[asyncio.Future, str | None]] = {}
        """Answers that are owed, with the name of the stream that is to be opened."""
        self._names: dict[int, str] = {}
        """Of streams that are open, by number."""
        self._opening: set[int] = set()
        """Those of them whose number the caller of `open` is about to get."""
        self._early: dict[int, dict[str, Any]] = {}
        """Reports of streams that ended before their number was known here, or to who opened them."""
        self._health: list[dict[str, Any]] = []
        self._progress: dict[int, dict[str, Any]] = {}
        self._told_at = 0.0

    # -- the face -----------------------------------------------------------------------------------------------------

    async def open(self, name: str, changes: dict[str, Any]) -> int:
        """Open a stream that is what its configuration says, but for `changes`; returns its number.

        Raises:
            UserError: as `runtime.pipeline.Pipeline.open`; `runtime.admission.Full`: not now.
            RuntimeError: it has gone, opens no more, does not answer, or something else went wrong there.
        """
        try:
            number = (await self._ask({"open": name, **changes}, name))["stream"]
        except asyncio.CancelledError:
            if name in self._names.values():  # it was answered just now
                self._say({"cancel": name})
            raise
        self._opening.discard(number)
        if (report := self._early.pop(number, None)) is not None:
            # Behind what the caller does with the number at once.
            asyncio.get_running_loop().call_soon(self._end, number, report)
        return number

    async def stop(self, number: int) -> None:
        """Drain a stream; of one that has ended nothing is asked."""
        await self._order("stop", number)

    async def cancel(self, number: int) -> None:
        """End a stream at once; else as `stop`."""
        await self._order("cancel", number)

    async def change(self, plan: dict[str, Any]) -> int:
        """Have its streams go on under another plan; returns the number of its generation.

        Raises:
            UserError, RuntimeError: as `serve.served.Served.change`.
        """
        return (await self._ask({"plan": plan}, patience_s=PLAN_S))["generation"]

    async def close(self) -> None:
        """End every stream and the pipeline; returns when it has gone, or is given up."""
        for order in ({"close": True}, {"cancel": None}):
            self._say(order)
        with suppress(TimeoutError):
            await asyncio.wait_for(self._gone.wait(), CLOSE_S)
        self._writer.close()

    def health(self) -> list[dict[str, Any]]:
        """`runtime.running.Health` of every process, as it was told last, with the time since."""
        since = 0.0 if not self._health else asyncio.get_running_loop().time() - self._told_at
        gone = {"alive": False, "lost": self.lost} if self.lost else {}
        later = ({"at_s": one["at_s"] + since, "moved_s": one["moved_s"] + since} for one in self._health)
        return [one | more | gone for one, more in zip(self._health, later, strict=True)]

    def progress(self, number: int) -> dict[str, Any] | None:
        """Chunks, frames and rates of a stream, as told last; None: nothing has been told."""
        return self._progress.get(number)

    # -- talk ---------------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Listen until it has gone; then `on_lost` has been called."""
        beating = asyncio.ensure_future(self._beat())
        why = "the connection has ended"
        try:
            while (line := await asyncio.wait_for(self._lines.next(), self._silent_s)) is not None:
                self._take_in(line)
        except TimeoutError:
            why = f"nothing was heard of it for {self._silent_s:g} s"
        except OSError as error:
            why = error.strerror or why
        except (ValueError, KeyError, TypeError) as error:
            why = f"it says what is not understood ({type(error).__name__})"
        finally:
            beating.cancel()
            self._writer.close()
            self._lose(why)

    async def _beat(self) -> None:
        while True:
            self._say({"beat": True})
            await asyncio.sleep(BEAT_S)

    def _say(self, message: dict[str, Any]) -> None:
        if self._writer.transport.get_write_buffer_size() > MOST_WAITING:
            self._writer.transport.abort()
        self._writer.write(json.dumps(message, separators=(",", ":")).encode() + b"\n")

    async def _order(self, what: str, number: int) -> None:
        if (name := self._names.get(number)) is not None:
            with suppress(UserError, RuntimeError):  # it has ended just now
                await self._ask({what: name})

    async def _ask(
        self, order: dict[str, Any], name: str | None = None, patience_s: float = ANSWER_S
    ) -> dict[str, Any]:
        if self.lost or (name is not None and self.closed):
            raise RuntimeError(self.lost or "it opens no more streams")
        question, future = next(self._questions), asyncio.get_running_loop().create_future()
        self._asked[question] = future, name
        self._say(order | {"question": question})
        try:
            return await asyncio.wait_for(future, patience_s)
        except TimeoutError:
            raise RuntimeError(f"its pipeline has not answered for {patience_s:g} s") from None

    def _take_in(self, line: bytes) -> None:
        """Take in what it says.

        Raises:
            ValueError, KeyError, TypeError: that is nothing it may say.
        """
        told = json.loads(line)
        if "answer" in told:
            self._answered(told)
        elif "ended" in told:
            number, report = told["ended"]["stream"], told["ended"]["report"]
            if number in self._names and number not in self._opening:
                self._end(number, report)
            elif number in self._opening or any(name == told["ended"]["name"] for _, name in self._asked.values()):
                self._early[number] = report
        elif "health" in told:
            self._health, self._told_at = [dict(one) for one in told["health"]], asyncio.get_running_loop().time()
            self.memory = [Memory.of(room) for room in told.get("rooms", ())]
            if self._health and all(one["loaded"] for one in self._health):
                self.loaded.set()
        elif "progress" in told:
            self._progress = {int(number): at for number, at in told["progress"].items()}
        elif "generation" in told:
            self.turned(told["generation"])
        elif "closed" in told:
            self.closed = True
        elif "lost" in told:
            self._lose(str(told["lost"])[:LONGEST_SAID])

    def _answered(self, told: dict[str, Any]) -> None:
        future, name = self._asked.pop(told["answer"])
        if future.done():  # whoever asked has gone, and nobody would end what was opened
            if "stream" in told:
                self._early.pop(told["stream"], None)
                self._say({"cancel": name})
        elif error := told.get("error"):
            future.set_exception(_raised(error))
        else:
            if name is not None:
                self._names[told["stream"]] = name
                self._opening.add(told["stream"])
            future.set_result(told)

    def _end(self, number: int, report: dict[str, Any]) -> None:
        if self._names.pop(number, None) is None:
            return
        try:
            self.on_ended(number, report)
        except Exception:
            # What fails for one stream does not cut off the others.
            log.exception("a stream has ended, and who was to be told of it failed")

    def _lose(self, why: str) -> None:
        if self.lost is not None:
            return
        self.lost, self.closed = why, True
        for future, _ in self._asked.values():
            if not future.done():
                future.set_exception(RuntimeError(why))
        self._asked.clear()
        self._gone.set()
        self.on_lost(why)


def _raised(error: dict[str, Any]) -> Exception:
    """The exception that an answer tells of."""
    if error["user"] and len(error["parts"]) == 3:
        return (Full if error.get("full") else UserError)(*map(str, error["parts"]))
    return RuntimeError(str(error["line"]))


class Joins:
    """The pipelines that a gateway waits for.

    Args:
        most: how many.
        on_joined: called with each that has been let in, once it has loaded.
        silent_s: after which one counts as gone.

    Attributes:
        there: those that have joined and have not gone.
    """

    def __init__(
        self,
        most: int,
        on_joined: Callable[[Joined], None],
        silent_s: float = SILENT_S,
    ):
        self._most, self._on_joined, self._silent_s = most, on_joined, silent_s
        self.there: list[Joined] = []

    @property
    def missing(self) -> int:
        """How many have not joined, or have gone."""
        return self._most - len(self.there)

    async def take(self, connection: Connection) -> None:
        """See to a connection whose token was right, until it ends; who is not wanted is told why."""
        lines, writer = Lines(connection.reader), connection.writer
        try:
            line = await asyncio.wait_for(lines.next(), self._silent_s)
            joined = self._let_in(json.loads(line or b"null"), lines, writer)
        except (OSError, ValueError, TimeoutError):
            joined = "it says nothing that is understood"
        if isinstance(joined, str):
            log.warning("a pipeline is not let in: %s", joined)
            with suppress(OSError):
                writer.write(json.dumps({"refused": joined}).encode() + b"\n")
                await writer.drain()
                writer.write_eof()
            return
        writer.write(b'{"welcome":true}\n')
        loading = asyncio.ensure_future(self._loaded(joined))
        try:
            await joined.run()
        finally:
            loading.cancel()
            self.there.remove(joined)

    async def _loaded(self, joined: Joined) -> None:
        """Say that one is there, once streams can go on it: weights may take minutes."""
        await joined.loaded.wait()
        log.info("%s has joined: %s", joined.name, joined.hello.get("plan"))
        self._on_joined(joined)

    def _let_in(self, hello: Any, lines: Lines, writer: asyncio.StreamWriter) -> Joined | str:
        """The pipeline that says hello, or why it is not wanted."""
        told = hello.get("hello") if isinstance(hello, dict) else None
        if not isinstance(told, dict) or not isinstance(told.get("offer"), dict) or "id" not in told["offer"]:
            return "it says nothing that is understood"
        if told.get("protocol") != PROTOCOL:
            return f"it speaks protocol {shown(told.get('protocol'))}, and this gateway {PROTOCOL}; use one version"
        if not all(isinstance(number := told.get(name), int) and number > 0 for name in ("workers", "streams")):
            return "it does not say how many workers it has, and how many streams it opens"
        if any(one.offer["id"] == told["offer"]["id"] for one in self.there):
            return f"model={shown(told['offer']['id'])} has joined already"
        if not self.missing:
            return f"serve.join={self._most}: as many have joined already"
        joined = Joined(told, lines, writer, self._silent_s)
        self.there.append(joined)
        return joined


def command(model: str, plan: str, address: str) -> str:
    """The command line that starts a pipeline which joins, as a person types it.

    Args:
        address: `tcp://HOST:PORT/TOKEN`, or `@FILE` where that stands.
    """
    sinks = "sink.video=null sink.session=of-each-stream sink.trace=none"
    return f"everframe stream model={model} plan={plan} {sinks} control={address}"

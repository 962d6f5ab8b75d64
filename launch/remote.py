"""Orders of a gateway, over a connection that the run itself makes: `control=tcp://HOST:PORT/TOKEN`.

Lines of JSON both ways. The run's first says what it is, and is answered by `{"welcome": true}` or `{"refused": WHY}`:

    {"hello": {"protocol": 3, "offer": {...}, "plan": "...", "launcher": "...", "workers": 5, "streams": 64, ...}}

Then the gateway gives the orders of `launch.control`, and `{"close": true}`; each that has a `question` is answered:

    {"open": "a", "seed": 3, "question": 7}      {"answer": 7, "stream": 0}
    {"plan": {"workers": 3}, "question": 9}      {"answer": 9, "generation": 1}
    {"stop": "b", "question": 8}                 {"answer": 8, "error": {"line": "...", "user": true, "parts": [...]}}

An error that is `"full": true` is one of the moment. Unasked, the run tells `{"ended": {"stream": 0, "name": "a",
"report": {...}}}`, once a second `{"health": [...], "rooms": [...]}` (of its processes, and what each worker that has
loaded has for streams) and `{"progress": {"0": {...}}}`, `{"generation": {"frozen": true, "number": 1, "why": ...}}`
when all streams stand still since workers or plan change, the same with `"frozen": false` when they go on,
`{"closed": true}` when it opens nothing more, and at last `{"lost": WHY}`. The gateway says `{"beat": true}` once a
second. If it goes, streams are drained and the run ends in good order.
"""

from __future__ import annotations

import logging
import queue
import socket
import threading
import time
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from conf.errors import UserError
from conf.schema import Config
from conf.secret import unsaid
from launch.lines import BEAT_S, SILENT_S, Conversation
from launch.orders import Orders, parsed, refuse_rest
from launch.vitals import Vitals
from runtime.admission import Full, most_streams
from runtime.offer import PROTOCOL, offer_of
from runtime.pipeline import Pipeline
from runtime.reasons import Reason
from stages.link import connect

log = logging.getLogger(__name__)

AGAIN_S = 0.5
"""Between two tries to reach a gateway that may be starting."""


def called(pipeline: Pipeline, config: Config, address: str) -> Remote:
    """Reach the gateway at an address, and take its orders from then on.

    Raises:
        UserError: nobody answers there within `launcher.timeout_s`, or the run is not wanted.
    """
    remote = Remote(pipeline, config, reached(address, config.launcher.timeout_s), unsaid(address))
    remote.start()
    return remote


def reached(address: str, timeout_s: float) -> socket.socket:
    """A connection with whoever listens at an address, who may come late; the token has been said.

    Raises:
        UserError: nobody does within `timeout_s`.
    """
    end = time.monotonic() + timeout_s
    while True:
        try:
            return connect("control", address)
        except UserError as error:
            if time.monotonic() + AGAIN_S > end:
                rule = f"{error.rule}, within {timeout_s:g} s"
                raise UserError(f"control={unsaid(address)}", rule, "start everframe serve there first") from error
        time.sleep(AGAIN_S)


class Remote:
    """Gives a pipeline what a gateway orders, and tells the gateway what comes of it.

    Args:
        pipeline: who takes the orders.
        config: what streams are unless an order says otherwise.
        connection: with the gateway.
        said: the gateway's address, as it may be shown.
        silent_s: after which a gateway that says nothing is gone.
    """

    def __init__(
        self, pipeline: Pipeline, config: Config, connection: socket.socket, said: str, silent_s: float = SILENT_S
    ):
        self.pipeline, self.config, self._said, self._silent_s = pipeline, config, said, silent_s
        self._orders = Orders(pipeline, config, close=self._close)
        self._vitals = Vitals(pipeline.board, pipeline.plan, config.launcher.timeout_s)
        self._heard: queue.SimpleQueue[bytes | str] = queue.SimpleQueue()
        """Lines; a text is why there are no more."""
        self._over = threading.Event()
        self._line = Conversation(connection, self._heard.put, self._heard.put, silent_s)
        self._threads = [threading.Thread(target=work, daemon=True) for work in (self._obey, self._beat)]

    def start(self) -> None:
        """Say what this run is, and begin once that is welcome.

        Raises:
            UserError: it is not.
        """
        self._line.start()
        self._line.say({"hello": self._hello()})
        try:
            self._be_let_in()
        except UserError:
            self._line.close()
            raise
        self.pipeline.observers.append(self._ended)
        self.pipeline.changers.append(lambda told: self._line.say({"generation": told}))
        self.pipeline.closers.append(self._closed)
        for thread in self._threads:
            thread.start()

    def _hello(self) -> dict[str, Any]:
        plan = self.pipeline.plan
        try:
            number = version("everframe")
        except PackageNotFoundError:
            number = "checkout"
        return {
            "protocol": PROTOCOL,
            "offer": offer_of(self.config),
            "plan": f"{plan.name}, {plan.processes} worker{'s' * (plan.processes > 1)}",
            "launcher": self.config.launcher.name,
            "workers": plan.processes,
            "streams": most_streams(self.config),
            "version": number,
            # Under torchrun a restart goes on: it joins anew, with other sessions.
            "recovers": self.config.launcher.in_place,
        }

    def _be_let_in(self) -> None:
        value = f"control={self._said}"
        try:
            answer = self._heard.get(timeout=self._silent_s)
        except queue.Empty:
            raise UserError(value, "who listens there says nothing", "give the address of everframe serve") from None
        if isinstance(answer, str):
            rule, remedy = "who listens there does not let this run in", "take the address that everframe serve prints"
            raise UserError(value, rule, remedy)
        said = parsed(answer)
        if refused := said.get("refused"):
            raise UserError(value, f"the gateway refuses this run: {refused}", "see what it waits for")
        if "welcome" not in said:
            raise UserError(value, "who listens there is no gateway", "give the address of everframe serve")

    # -- what it orders -----------------------------------------------------------------------------------------------

    def _obey(self) -> None:
        while isinstance(line := self._heard.get(), bytes):
            if line.lstrip().startswith(b'{"plan"'):
                # It is answered once all is loaded, and what is said meanwhile does not wait for that.
                threading.Thread(target=self._take, args=(line,), name="plan", daemon=True).start()
            else:
                self._take(line)
        if self._over.is_set():
            return
        if not self.pipeline.closed:
            log.warning("control=%s: the gateway has gone (%s): streams are drained, the run ends", self._said, line)
        with suppress(Exception):  # the workers may have left just now
            # In this order no stream can be opened in between that nobody stops.
            self.pipeline.close()
            self.pipeline.stop()

    def _take(self, line: bytes) -> None:
        """Give an order, and answer it if that is asked for."""
        question = None
        try:
            order = parsed(line)
            question, plans = order.pop("question", None), "plan" in order
            if order.pop("beat", None) is not None and not order:
                return
            said = self._orders.give(order)
        except Exception as error:
            reason = Reason.of(error)
            if question is None:
                log.warning("an order of the gateway's is skipped: %s", reason.line)
            told = {"line": reason.line, "user": reason.user, "parts": reason.parts, "full": isinstance(error, Full)}
            found: dict[str, Any] = {"error": told}
        else:
            name = "status" if isinstance(said, dict) else "generation" if plans else "stream"
            found = {} if said is None else {name: said}
        if question is not None:
            self._line.say({"answer": question, **found})

    def _close(self, _: Any, rest: dict[str, Any]) -> None:
        refuse_rest(rest, "close")
        self.pipeline.close()

    # -- what it is told ----------------------------------------------------------------------------------------------

    def _ended(self, stream: int, report: dict[str, Any]) -> None:
        self._line.say({"ended": {"stream": stream, "name": report["stream"], "report": report}})

    def _beat(self) -> None:
        while not self._over.wait(BEAT_S):
            with suppress(RuntimeError):  # the board is gone, and the gateway will hear nothing more
                board, workers = self.pipeline.board, self.pipeline.plan.workers
                self._vitals.follow(self.pipeline.plan, self.pipeline.processes)
                rooms = [room for worker in range(workers) if (room := board.told(f"room/{worker}"))]
                self._line.say({"health": self._vitals(), "rooms": rooms})
                told = {order.stream: self.pipeline.progress(order.stream) for order in self.pipeline.streams}
                self._line.say({"progress": {stream: at for stream, at in told.items() if at}})

    def _closed(self) -> None:
        """The pipeline opens no more streams, or its workers have left, one way or another."""
        try:
            self.pipeline.until(lambda: False, 0.0)
        except Exception as error:
            self._over.set()
            self._line.say({"lost": Reason.of(error).line})
            # Whoever waits for the run may end this process now: no thread may be in the store, and all has to be said.
            if (beat := self._threads[1]) is not threading.current_thread():
                beat.join(BEAT_S)
            self._line.close()
        else:
            self._line.say({"closed": True})

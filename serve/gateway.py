"""The gateway: models that are served, sessions on them, and who may have one."""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from conf.errors import UserError
from conf.schema.serve import ServeConfig
from runtime.admission import Full
from serve import capacity, readiness
from serve.admission import Admission, Place, Waiting
from serve.guard import same
from serve.joined import Joined
from serve.link import Link
from serve.logs import hidden
from serve.metrics import Metrics, Watched
from serve.problems import Problem
from serve.resources import Memory, Needs
from serve.served import Served
from serve.session import Session
from serve.told import Told
from serve.tracing import Silent, Tracing
from serve.uploads import Uploads

log = logging.getLogger(__name__)

TICK_S = 0.25
"""Between two looks at the clocks of sessions."""
ENDED = 256
"""Sessions that have ended and are still told of."""


class Gateway:
    """Everything that is served on one port. All of it belongs to one loop.

    Args:
        serve: settings.
        link: where stages connect, open.
        served: models, by name; more may join.
        admission: who is let in.
        metrics: told of what happens.
        uploads: pictures that were sent.
        tracing: begins traces of sessions.
        clock: seconds, monotonic.

    Attributes:
        draining: whether the server ends: nobody is let in, and sessions end by and by.
        coming: models that will be served, and what is done with each so long, as `loading`.
        on_served: called with the name of each model that is served from then on.
    """

    def __init__(
        self,
        serve: ServeConfig,
        link: Link,
        served: dict[str, Served],
        admission: Admission,
        metrics: Metrics,
        uploads: Uploads,
        tracing: Tracing,
        clock: Callable[[], float] = time.monotonic,
    ):
        self.serve, self.link, self.served = serve, link, served
        self.admission, self.counted, self.uploads, self.clock = admission, metrics, uploads, clock
        self.tracing, self.draining = tracing, asyncio.Event()
        self._sessions: dict[str, Session] = {}
        self._ended: dict[str, Session] = {}
        self._places: dict[str, Place] = {}
        self._queued: dict[str, Waiting] = {}
        self.on_served: Callable[[str], None] = lambda name: None
        self.coming: dict[str, str] = {}
        self._changes: dict[str, dict[str, Any]] = {}
        """To the configuration, of sessions that wait."""
        self._pictures: dict[str, bytes] = {}
        """To begin with, likewise."""
        self._numbers: dict[tuple[str, int], Session] = {}
        self._early: dict[tuple[str, int], dict[str, Any]] = {}
        """Reports of streams that nobody has yet, or has any more: one may end before it is known whose it is."""
        self._work: set[asyncio.Task] = set()
        self._ticking = asyncio.ensure_future(self._tick())
        for model in served.values():
            self.add(model)

    def join(self, joined: Joined) -> None:
        """Serve a model whose pipeline has joined, once it is known how many sessions it keeps."""
        self._spawn(self._join(joined))

    async def _join(self, joined: Joined) -> None:
        with self.preparing([joined.name], "measuring"):
            try:
                found = await capacity.measured_afar(joined, self.admission.cores)
            except (UserError, RuntimeError) as error:
                log.error("%s has joined, and cannot be served: %s; it is told to leave", joined.name, error)
                await joined.close()
                return
            self.serves(joined, found)

    @contextmanager
    def preparing(self, names: Sequence[str], what: str) -> Iterator[None]:
        """While the context is open who asks is told what is done with models that will be served, as `loading`."""
        self.coming.update(dict.fromkeys(names, what))
        try:
            yield
        finally:
            for name in names:
                self.coming.pop(name, None)

    def serves(self, served: Served, needs: Needs) -> None:
        """Serve a model of which it is known what its sessions take."""
        self.admission.model(served.name, needs.rate, needs.shares, needs.memory, needs.most)
        self.add(served)
        self.on_served(served.name)

    def add(self, served: Served) -> None:
        """Serve a model, whose place in admission is known."""
        name = served.name
        self.served[name] = served
        self._early = {key: report for key, report in self._early.items() if key[0] != name}
        served.on_ended = lambda number, report: self._stream_ended(name, number, report)
        served.on_frozen = lambda frozen, why: self._frozen(served, frozen, why)
        served.on_planned = lambda speed, memory: self._planned(served, speed, memory)
        asked = self.admission
        self.counted.watch(
            name,
            Watched(
                lambda: asked.running(name),
                lambda: asked.waiting(name),
                lambda: self.capacity(name),
                lambda: [s.bits_per_second for s in self.sessions if s.served is served and s.bits_per_second],
            ),
        )

    # -- what is told -------------------------------------------------------------------------------------------------

    def offers(self) -> list[dict[str, Any]]:
        """Every model, with how many are there and how many may be."""
        asked = self.admission
        return [
            served.offer
            | {"capacity": self.capacity(n), "running": asked.running(n), "waiting": asked.waiting(n)}
            | ({"gone": True} if served.lost else {})
            for n, served in self.served.items()
        ]

    def capacity(self, name: str) -> int:
        """Sessions of a model that there may be at this moment; none where its pipeline is gone."""
        return 0 if self.served[name].lost else self.admission.capacity(name)

    @property
    def gone(self) -> str | None:
        """Why there is nothing to serve any more: every pipeline is gone, and no other may join; None: there is."""
        if self.serve.join or self.coming or not self.served or not all(one.lost for one in self.served.values()):
            return None
        return "; ".join(f"{name}: the pipeline is gone: {one.lost}" for name, one in self.served.items())

    def reasons(self) -> list[str]:
        """Why nobody should be sent here; empty: all is well."""
        found = readiness.reasons(list(self.served.values()), self.coming, self.admission, self.clock)
        return found if self.link.listening else [*found, "stages cannot connect"]

    def metrics(self) -> tuple[bytes, str]:
        """All that is counted, as Prometheus reads it, and the content type."""
        return self.counted.text()

    def session(self, id: str) -> Session | None:
        """A session that is there, or has ended lately."""
        return self._sessions.get(id) or self._ended.get(id)

    def owned(self, secret: str) -> str | None:
        """The id of the session whose secret this is, in a time that tells nothing of any; None: of none."""
        # Anybody may say a long one, and how long ours are is no secret.
        there = (one for one in (*self._sessions.values(), *self._ended.values()) if len(one.secret) == len(secret))
        return next((session.id for session in there if same(secret, session.secret)), None)

    @property
    def sessions(self) -> list[Session]:
        """All that have not ended."""
        return list(self._sessions.values())

    # -- coming and going ---------------------------------------------------------------------------------------------

    async def create(self, wanted: dict[str, Any], caller: str) -> Session:
        """Open a session, or have it wait for a place.

        Args:
            wanted: what `serve.wanted.Wanted` has given, and the `traceparent` of a request.
            caller: its address.

        Raises:
            Problem: it cannot be, or not now.
        """
        served, changes = self._understood(wanted)
        told = Told(served.name, self.counted, self.admission.late, lambda: self._trace(session, wanted))
        session = Session(served, self.serve, self.link, told, self._over, self.clock)
        if seconds := wanted.get("seconds"):
            session.limit(seconds)
        # Nothing is decoded for who is not let in. What is decoded meanwhile takes its place, or its turn, with it.
        seat = self._seat(session, wanted, caller)
        try:
            picture = await self.uploads.picture(image) if (image := wanted.get("image")) else b""
            if self.draining.is_set():
                raise Problem("draining", "the server is ending; open sessions elsewhere", self.serve.drain_s)
        except BaseException:
            seat.leave()
            raise
        hidden.add(session.secret)
        place = seat.place if isinstance(seat, Waiting) else seat
        if place is not None:
            await self._begin(session, place, changes, picture)
            return session
        session.state, session.place = "queued", lambda: (seat.position, seat.wait_s)
        self._sessions[session.id], self._queued[session.id] = session, seat
        self._changes[session.id], self._pictures[session.id] = changes, picture
        return session

    def _seat(self, session: Session, wanted: dict[str, Any], caller: str) -> Place | Waiting:
        """A session's place, or its turn."""
        name, seconds = session.served.name, wanted.get("seconds")
        if not wanted.get("queue"):
            return self.admission.enter(name, caller, seconds)
        return self.admission.queue(name, caller, seconds, lambda: self._moved(session))

    def _understood(self, wanted: dict[str, Any]) -> tuple[Served, dict[str, Any]]:
        """The model, and what is to be changed of its configuration."""
        if not self.served:
            said = ", ".join(readiness.awaited(self.coming)) or "no model is served yet"
            raise Problem("not_ready", f"{said}; come again", 5.0)
        there = (name for name, one in self.served.items() if not one.lost)
        name = wanted.get("model") or next(there, next(iter(self.served)))
        if name not in self.served:
            raise Problem("not_found", f"model={name[:40]!r}: is not served here; use {', '.join(self.served)}")
        served, changes = self.served[name], {"seed": secrets.randbits(32)}
        if served.lost:
            raise Problem("gone", f"model={name}: its pipeline is gone; have the server started anew")
        if (seed := wanted.get("seed")) is not None:
            changes["seed"] = seed
        if prompt := wanted.get("prompt"):
            if not served.offer["prompts"]:
                raise Problem("unprocessable", f"prompt: {name} takes none; leave it out")
            changes["prompt"] = prompt
        if wanted.get("image") and not served.offer["picture"]:
            raise Problem("unprocessable", f"image: {name} takes no picture; leave it out")
        if (intrinsics := wanted.get("intrinsics")) is not None:
            if not served.offer.get("poses"):
                raise Problem("unprocessable", f"intrinsics: {name} has no camera; leave them out")
            changes["source"] = {"intrinsics": intrinsics}
        if (seconds := wanted.get("seconds")) is not None and not 0 < seconds <= self.serve.session_s:
            rule = f"must be above 0 and at most {self.serve.session_s:g}"
            raise Problem("unprocessable", f"seconds={seconds:g}: {rule}; give another")
        return served, changes

    async def _begin(self, session: Session, place: Place, changes: dict[str, Any], picture: bytes) -> None:
        self._sessions[session.id], self._places[session.id] = session, place

        def postponed(seconds: float) -> None:
            place.ends += seconds

        session.postponed = postponed
        try:
            await session.begin(changes, picture)
        except Full as error:
            log.warning("%s has no room for a session that was let in: %s", session.served.name, error)
            raise self.admission.full(session.served.name) from error
        except UserError as error:
            raise Problem("unprocessable", str(error)) from error
        except RuntimeError as error:
            raise Problem("not_ready", f"{session.served.name} cannot open a session now; come again", 5.0) from error
        key = session.served.name, session.number
        if (report := self._early.pop(key, None)) is not None:
            session.ended(report)
            return
        self._numbers[key] = session
        log.info("session begins", extra={"session": session.id, "model": session.served.name})

    def _trace(self, session: Session, wanted: dict[str, Any]) -> Silent:
        return self.tracing.session(session.served.name, session.id, wanted.get("traceparent"))

    def _moved(self, session: Session) -> None:
        """One that waits has come further, or has a place."""
        waiting = self._queued.get(session.id)
        if waiting is not None and waiting.place is not None:
            del self._queued[session.id]
            self._spawn(self._begin_queued(session, waiting.place))

    async def _begin_queued(self, session: Session, place: Place) -> None:
        if session.state == "ended":  # just now
            place.leave()
            return
        with suppress(Problem):  # its viewers are told that it failed
            await self._begin(session, place, self._changes.pop(session.id), self._pictures.pop(session.id))

    def _stream_ended(self, model: str, number: int, report: dict[str, Any]) -> None:
        if session := self._numbers.pop((model, number), None):
            session.ended(report)
            return
        self._early[model, number] = report
        while len(self._early) > ENDED:
            del self._early[next(iter(self._early))]

    def _over(self, session: Session) -> None:
        """A session has ended."""
        self._sessions.pop(session.id, None)
        self._ended[session.id] = session
        while len(self._ended) > ENDED:
            hidden.remove(self._ended.pop(next(iter(self._ended))).secret)
        self._changes.pop(session.id, None)
        self._numbers.pop((session.served.name, session.number), None)
        self._pictures.pop(session.id, None)
        if waiting := self._queued.pop(session.id, None):
            waiting.leave()
        if place := self._places.pop(session.id, None):
            place.leave()

    # -- generations --------------------------------------------------------------------------------------------------

    async def change(self, plan: dict[str, Any], model: str | None = None) -> tuple[str, int]:
        """Have a model's streams go on under another plan; returns the model and the number of its generation.

        Args:
            plan: settings of `plan` that are changed.
            model: None: the only one.

        Raises:
            Problem: it cannot be, or not now.
        """
        if model is None and len(self.served) > 1:
            raise Problem("unprocessable", f"model: several are served; name one of {', '.join(self.served)}")
        served, _ = self._understood({} if model is None else {"model": model})
        try:
            return served.name, await served.change(plan)
        except UserError as error:
            raise Problem("unprocessable", str(error)) from error
        except RuntimeError as error:
            log.warning("%s cannot be given another plan: %s", served.name, error)
            raise Problem("not_ready", f"{served.name} cannot be given another plan now; come again", 5.0) from error

    def _frozen(self, served: Served, frozen: bool, why: str) -> None:
        """All streams of a model stand still, or go on: then sessions do with their next pictures."""
        if not frozen:
            return
        self.counted.generation(served.name)
        for session in self.sessions:
            if session.served is served:
                session.freeze(why)

    def _planned(self, served: Served, speed: float, memory: Sequence[Memory] | None) -> None:
        """A model has another plan. What it does not keep in time ends, the newest first: or all would be late."""
        self.admission.planned(served.name, speed, memory)
        there = [one for one in self.sessions if one.served is served and one.id in self._places and not one.reason]
        there.sort(key=lambda one: self._places[one.id].since)
        keeps = self.admission.keeps(served.name)
        for session in reversed(there[keeps:]):
            log.warning("%s keeps %d sessions now: one ends", served.name, keeps, extra={"session": session.id})
            session.stop("capacity")

    # -- time ---------------------------------------------------------------------------------------------------------

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(TICK_S)
            now = self.clock()
            try:
                self.admission.refresh()
                for session in self.sessions:
                    session.tick(now)
                for served in list(self.served.values()):
                    self._look(served)
                if self.gone:
                    self.begin_drain()
            except Exception:
                log.exception("a look at the clocks failed")

    def _look(self, served: Served) -> None:
        if not served.lost:
            for one in served.health():
                self.counted.stages(served.name, one["worker"], one.get("stages") or {})
            return
        for session in self.sessions:
            if session.served is served:
                session.abandon("failed")

    def _spawn(self, work: Any) -> None:
        task = asyncio.ensure_future(work)
        self._work.add(task)
        task.add_done_callback(self._work.discard)

    def begin_drain(self) -> None:
        """End in good order: nobody more is let in, sessions go on until `serve.drain_s` have passed."""
        if not self.draining.is_set():
            self.draining.set()
            self._spawn(self._drain())

    async def _drain(self) -> None:
        self.admission.draining = True
        end = self.clock() + self.serve.drain_s
        for session in self.sessions:
            if session.state == "queued":
                session.stop("drained")
            else:
                left = round(self.serve.drain_s, 1)
                session.notice("draining", f"the server ends in {left:g} s", seconds_left=left)
        while self.sessions and self.clock() < end:
            await asyncio.sleep(TICK_S)
        for session in self.sessions:
            session.stop("drained")
        await asyncio.gather(*(session.done.wait() for session in self.sessions))

    async def close(self) -> None:
        """Let go of everything; sessions that are there end at once."""
        self._ticking.cancel()
        for session in self.sessions:
            session.abandon("drained")
        await asyncio.gather(*(served.close() for served in self.served.values()), return_exceptions=True)
        await self.link.close()

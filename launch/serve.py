"""Serve: people and programs open sessions on running models, and talk to them, in a browser or over a WebSocket.

Each session is a stream of its own: who opens one says, types or presses, and sees and hears the answer. The address
to open is printed. Models run by any plan and launcher; those of a batch job may join from elsewhere (`serve.join`).
Ctrl-C tells everyone, and ends the server once all have left, or `serve.drain_s` later.
"""

from __future__ import annotations

import signal

if __name__ == "__main__" and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # imports take seconds: Ctrl-C ends them without a traceback

import asyncio
import importlib.util
import socket
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from rich.console import Console

from conf import disk
from conf.errors import UserError
from conf.schema import Config
from conf.schema.serve import ServeConfig, ServedConfig
from conf.schema.stream import SOURCES
from launch import cli, of_sessions, places, planning, running
from launch.cli import run, written
from launch.command import Command
from launch.console import lasting
from launch.control import open_stream
from launch.folder import claimed
from launch.progress import Ended, Waiting
from launch.signals import Stop, listening
from launch.stream import outcome
from parallel import capability
from parallel.builders import build
from runtime.admission import CONFIG
from runtime.board import PeerLost
from runtime.pipeline import Pipeline
from runtime.running import Running
from runtime.workload import describe
from stages.inputs import SOURCES as MADE_OF
from stages.inputs import inputs_of, made_of

if TYPE_CHECKING:
    from serve.gateway import Gateway
    from serve.server import Listening

COMMAND = Command("serve", __doc__, schema=ServedConfig, sweeps=False)
NEEDED = ("starlette", "uvicorn", "websockets", "aiortc", "prometheus_client", "opentelemetry")
"""What serving needs beside what streaming does."""
POLL_S = 0.1
SHORT = {
    "rate": "its plan does not keep one session in time with serve.headroom of it left; use more workers",
    "memory": "memory holds no session; use more workers",
    "cores": "this host's processors do not keep one in time; serve fewer models, or another plan",
}
"""Why a model takes no session, by what limits it."""


def refuse_without_extra() -> None:
    """Refuse to serve where what serving needs is not installed.

    Raises:
        UserError: names what is missing, and how to have it.
    """
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError("everframe serve", f"needs {', '.join(missing)}", "pip install 'everframe[serve]'")


def models(config: ServedConfig, given: Sequence[str]) -> list[ServedConfig]:
    """The configuration of every model that is served: as the command line says, each with its own `model`."""
    names = config.serve.models
    if not names:
        return [config]
    if len(set(names)) < len(names):
        raise UserError(f"serve.models={names}", "names a model twice", "name each once")
    rest = [argument for argument in given if not argument.startswith("model=")]
    found = [_of_use(cli.compose("serve", ServedConfig, [*rest, f"model={name}"])) for name in names]
    several = len({one.output_dir for one in found}) < len(found)
    return [replace(one, output_dir=f"{one.output_dir}/{one.model.name}") if several else one for one in found]


def _of_use(config: ServedConfig) -> ServedConfig:
    """One of several: what is said of all is left out where the model has no use for it."""
    declared = inputs_of(config.model)
    unused = {name: None for name in SOURCES if name in MADE_OF and made_of(declared, name) is None}
    unused |= {"intrinsics": None} if made_of(declared, "camera") is None else {}
    prompt = config.stream.prompt if made_of(declared, "prompt") else ""
    stream = replace(config.stream, prompt=prompt)
    return replace(config, source=replace(config.source, **unused), stream=stream)


def processes(config: ServedConfig) -> Config:
    """What the workers of a model are told: they are no threads of the gateway, which must never wait for a pass.

    Raises:
        UserError: the run cannot be held by a gateway.
    """
    capability.check(config.model.context)
    if config.launcher.name == "torchrun":
        rule = "has its own processes, which join a gateway"
        raise UserError("launcher=torchrun", rule, "use serve.join=1, and control=ADDRESS of everframe stream")
    of_sessions.check(config)
    launcher = config.launcher
    if launcher.name == "local" and launcher.threads == "auto":
        launcher = replace(launcher, threads="false")
    if launcher.recover == "auto" and launcher.threads != "true":
        launcher = replace(launcher, recover="exact")
    config = replace(planning.resolve(config.run), launcher=launcher)
    places.refuse_without_cards(config)
    return config


def start(config: Config, held: ExitStack) -> Running:
    """Start a model's workers; returns while they load."""
    ended = Ended(config, served=True)

    def first(pipeline: Pipeline) -> None:
        pipeline.observers.append(ended)

    def begin() -> None:
        folder = held.enter_context(claimed(config))
        disk.write_text(f"output_dir={folder}", folder / CONFIG, written(config))

    return held.enter_context(running.start(config, begin=begin, first=first, tell=of_sessions.logged))


def serve(config: ServedConfig, resolved: str, given: Sequence[str], stop: Stop) -> None:
    """Serve until told to end."""
    refuse_without_extra()
    from serve import server  # not above: without the extra `serve` a line says what is missing

    settings = config.serve
    asked = [] if settings.join else models(config, given)
    configs = places.together([processes(one) for one in asked], [one.plan.devices for one in asked])
    listener = server.bound(settings)  # before weights load
    stop.then()
    with ExitStack() as held:
        held.callback(listener.close)
        started = outcome(lambda: [start(one, held) for one in configs])
        _say_shared(configs)
        outcome(lambda: asyncio.run(_serve(settings, configs, started, listener, stop)))


def _say_shared(configs: Sequence[Config]) -> None:
    """Say which models share a card: the sessions of one then leave fewer for the other."""
    local = [one for one in configs if one.launcher.name == "local"]
    used = {one.model.name: running.cards(build(one.plan, describe(one)), one) for one in local}
    for line in places.sharing(used):
        print(line, file=sys.stderr, flush=True)


async def _serve(
    settings: ServeConfig,
    configs: Sequence[Config],
    started: Sequence[Running],
    listener: socket.socket,
    stop: Stop,
) -> None:
    """The gateway's loop. It answers from the first moment on; models come to it when they are loaded."""
    from serve import logs, server, tls
    from serve.admission import Admission
    from serve.gateway import Gateway
    from serve.joined import Joins, command
    from serve.link import Link
    from serve.metrics import Metrics
    from serve.tracing import Tracing
    from serve.uploads import Uploads

    handler = logs.setup(settings.logs, [settings.token, settings.turn_secret, settings.join_secret])
    clock = time.monotonic
    metrics = Metrics(clock)
    admission = Admission(settings, clock, rejected=metrics.rejected)
    certificate = tls.certificate(settings)
    host = settings.link_host or next((one.host for one in started if one.host != "127.0.0.1"), "127.0.0.1")
    abroad = certificate if certificate and host != "127.0.0.1" else None
    link = Link(
        host,
        settings.link_port,
        context=abroad.context() if abroad else None,
        digest=abroad.fingerprint.replace(":", "").lower() if abroad else "",
    )
    await link.open()
    uploads = Uploads()
    tracing = Tracing()
    gateway = Gateway(settings, link, {}, admission, metrics, uploads, tracing, clock)
    said = Said(gateway, settings, len(configs) or settings.join)
    loading = asyncio.ensure_future(load(gateway, configs, started))
    loading.add_done_callback(lambda task: task.cancelled() or (task.exception() and gateway.begin_drain()))
    try:
        if settings.join:
            joins = Joins(settings.join, gateway.join)
            address = link.expect(joins.take, settings.join_secret, once=False)
            # Who gave the secret has it, and a batch job's output may be read by others.
            where = address if settings.join_secret is None else f"{address.rpartition('/')[0]}/SECRET"
            print(f"waiting for {settings.join} to join: {command('MODEL', 'PLAN', where)}", flush=True)
        loop = asyncio.get_running_loop()
        stop.then(lambda: loop.call_soon_threadsafe(gateway.begin_drain))
        await server.serve(gateway, said.listening, listener)
        gone = gateway.gone
    finally:
        loading.cancel()
        await asyncio.wait([loading])
        await gateway.close()
        uploads.close()
        await asyncio.to_thread(tracing.close)
        handler.close()
    if not loading.cancelled():
        loading.result()  # what has gone wrong
    if gone:
        raise PeerLost(gone)


async def load(gateway: Gateway, configs: Sequence[Config], started: Sequence[Running]) -> None:
    """Wait for all models, measure one after the other, as no other is busy, and serve them; cancelled, it lets go.

    Raises:
        UserError, RuntimeError, PeerLost, WorkerFailed, Stopped: one cannot be served.
    """
    from serve import capacity, readiness
    from serve.served import Held

    names, found = [one.model.name for one in configs], []
    telling = Waiting(Console(stderr=True), lambda: ", ".join(readiness.awaited(gateway.coming)))
    try:
        with telling, gateway.preparing(names, "loading"):
            for one in started:
                while not one.begun:
                    await asyncio.to_thread(_look, one)
        with gateway.preparing(names, "measuring"):
            for config, one in zip(configs, started, strict=True):
                held = Held(config, one, open_stream)
                found.append([held])
                found[-1].append(await capacity.measured(held))
    except BaseException:
        await asyncio.gather(*(held.close() for held, *_ in found), return_exceptions=True)
        raise
    for held, needs in found:
        gateway.serves(held, needs)


def _look(one: Running) -> None:
    """Wait for a moment for workers that load.

    Raises:
        PeerLost, WorkerFailed, Stopped: they have ended.
    """
    with suppress(TimeoutError):
        one.wait(POLL_S)
        raise PeerLost("the workers have left")


class Said:
    """What is printed: how many sessions each model keeps, and, once all are there, where people find them.

    Args:
        gateway: that has them.
        settings: its own.
        count: models that are waited for.
    """

    def __init__(self, gateway: Gateway, settings: ServeConfig, count: int):
        self._gateway, self._settings, self._count = gateway, settings, count
        self._listening: Listening | None = None
        self._served: set[str] = set()
        gateway.on_served = self.served

    def served(self, name: str) -> None:
        """A model is served."""
        self._served.add(name)
        capacity = self._gateway.admission.capacity(name)
        print(f"{name}: {capacity} session{'s' * (capacity != 1)} at once", flush=True)
        if not capacity:
            _, why = self._gateway.admission.limit(name)
            print(f"warning: nobody can be let in to {name}: {SHORT[why]}", file=sys.stderr, flush=True)
        self._address()

    def listening(self, listening: Listening) -> None:
        """People can connect."""
        self._listening = listening
        self._address()

    def _address(self) -> None:
        if self._listening is None or len(self._served) < self._count:
            return
        self._count = sys.maxsize  # once
        token = f"/#token={self._settings.token}" if self._settings.token else ""
        print(f"open {self._listening.address}{token}", flush=True)
        if self._listening.fingerprint:
            said = f"its certificate is its own; browsers ask once: SHA-256 {self._listening.fingerprint}"
            print(said, flush=True)


def main(argv: list[str] | None = None) -> int:
    """The entry point; returns the exit code."""
    given = sys.argv[1:] if argv is None else list(argv)
    with lasting(), listening() as stop:
        return run(COMMAND, partial(serve, given=given, stop=stop), given, config="serve")


if __name__ == "__main__":
    sys.exit(main())

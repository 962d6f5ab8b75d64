"""Workers on this machine: threads of this process, or processes of their own.

Threads share a device. Processes are for several GPUs, which they go round, and for whoever wants a worker's death to
be its own alone.
"""

from __future__ import annotations

import fcntl
import json
import os
import queue
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO

import torch.distributed as dist

import devices
from conf.schema import Config
from launch.places import on_one_host, refuse_unjoined
from parallel.plan import Plan
from runtime.crew import NoRoom
from runtime.generations import Generation
from runtime.local import LocalRun
from runtime.running import Running, Start

HOST = "127.0.0.1"
LAST_LINES = 20
"""Of a worker's standard error, kept for the line about its death."""
LEAVE_S = 10.0
"""How long a process that has done its part may take to end."""


def launched(start: Start) -> Running:
    """The workers of a run, as `launcher.threads` says, not started yet."""
    if threads(start.config):
        running = LocalRun(start.plan, start.config, Path(start.config.output_dir), start.stdin)
    else:
        refuse_unjoined(start.plan, start.config, cards(start.plan, start.config))
        running = LocalProcesses(start)
    running.open_first(start.first)
    return running


def cards(plan: Plan, config: Config) -> tuple[str, ...]:
    """The GPU of every process; empty: they have none."""
    if not (config.device.may_be_gpu and (count := devices.count())):
        return ()
    if threads(config):
        return ("GPU 0",) * plan.processes
    return tuple(f"GPU {card}" for card in on_one_host(plan, config.plan.devices, count))


def card_of(plan: Plan, config: Config, index: int) -> int | None:
    """The GPU of a member of a plan whose workers are processes; None: there are none."""
    if not (config.device.may_be_gpu and (count := devices.count())):
        return None
    return on_one_host(plan, config.plan.devices, count)[index]


def threads(config: Config) -> bool:
    """Whether workers are threads of this process: unless asked, where there are not several devices for them, and a
    lost one ends the run."""
    if config.launcher.threads != "auto":
        return config.launcher.threads == "true"
    return not config.launcher.recovers and not (config.device.may_be_gpu and devices.count() > 1)


class Starter(threading.Thread):
    """Does what it is asked to, one after the other, on a thread that lives as long as a run.

    Linux kills workers when the thread ends that started them, which need not live as long as its process.
    """

    def __init__(self):
        super().__init__(name="starter", daemon=True)
        self._asked: queue.SimpleQueue[tuple[Future, Callable[[], Any]] | None] = queue.SimpleQueue()
        self.start()

    def call(self, act: Callable[[], Any]) -> Any:
        """What `act` gives, or raises."""
        self._asked.put((done := Future(), act))
        return done.result()

    def run(self) -> None:
        while (asked := self._asked.get()) is not None:
            done, act = asked
            try:
                done.set_result(act())
            except BaseException as error:
                done.set_exception(error)

    def close(self) -> None:
        """End, and whoever was started here and lives."""
        self._asked.put(None)
        self.join()


class LocalProcesses(Running):
    """A plan's workers as processes of this machine. They meet on a store on the loopback address, and end with this
    process.

    """

    one_host = starts = True

    def __init__(self, start: Start):
        super().__init__(start.plan, start.config, dist.TCPStore(HOST, 0, is_master=True, wait_for_workers=False))
        self._live, self._stdin, self._tell = start.live, start.stdin, start.tell
        self._workers: dict[int, subprocess.Popen] = {}
        self._said: dict[int, deque[str]] = {}
        self._readers: dict[int, threading.Thread] = {}
        self._cards: dict[int, int | None] = {}
        self._starter: Starter

    def _launch(self) -> None:
        self._starter = Starter()
        super()._launch()

    def _start(self, process: int, generation: Generation) -> None:
        self._let_go_of_those_that_left()
        if process in self._workers:  # one that was lost had its number
            self._let_go(process, self._workers.pop(process))
        _, plan = generation.of(self.config)
        index = generation.index(process)
        reads = index is None or index == plan.group(plan.encode)[0]
        self._spawn(process, generation, self._reading() if self._live and reads else None)

    def _let_go_of_those_that_left(self) -> None:
        """A run may change its plan for weeks: who has ended holds no descriptor here, and is no zombie."""
        for process in self._workers.keys() - self.left:
            worker = self._workers[process]
            if worker.poll() is not None and not self._readers[process].is_alive():
                self._let_go(process, self._workers.pop(process))
                del self._readers[process], self._said[process]

    def _card(self, process: int, generation: Generation) -> int | None:
        """The GPU of a process, where there are any: as its plan says at first. Who comes later takes one that fewest
        of those who are there have: that of a dead process is free again."""
        config, plan = generation.of(self.config)
        if not generation.number and process in generation.processes:
            return card_of(plan, config, generation.index(process))
        if not (config.device.may_be_gpu and (count := devices.count())):
            return None
        having = [self._cards.get(one) for one in self.left - {process}]
        allowed = sorted({card % count for card in config.plan.devices or range(count)})
        return min(allowed, key=having.count)

    def _reading(self) -> int | None:
        """The descriptor that live sources read; None where this process has no standard input.

        It is a copy with a number above 2: under 0 a worker finds its orders.
        """
        with suppress(OSError, AttributeError):
            return fcntl.fcntl(self._input, fcntl.F_DUPFD_CLOEXEC, 3)
        return None

    @cached_property
    def _input(self) -> int:
        """What all of them share: a second one of a buffer would take half of what is in it."""
        return descriptor(self._stdin) if self._stdin else sys.stdin.fileno()

    def _spawn(self, process: int, generation: Generation, live: int | None) -> None:
        paths = os.pathsep.join(p for p in (str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH")) if p)
        try:
            worker = self._starter.call(
                lambda: subprocess.Popen(
                    [sys.executable, "-m", "launch.worker"],
                    stdin=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    env=os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": str(self.config.device.threads)},
                    pass_fds=() if live is None else (live,),
                    # Ctrl-C is for this process: it says what its workers are to do.
                    start_new_session=True,
                )
            )
        except OSError as error:
            raise NoRoom(f"no process can be started ({error.strerror})") from error
        finally:
            if live is not None:
                os.close(live)  # the worker has it
        given = {
            # The cluster is the planner's: no worker asks for it.
            "config": {key: part for key, part in asdict(self.config).items() if key != "cluster"},
            "process": process,
            "parent": os.getpid(),
            "generation": asdict(generation),
            "processes": self.plan.processes,
            "card": self._cards.setdefault(process, self._card(process, generation)),
            "store": [HOST, self.store.port],
            "live": live,
        }
        # It may be dead already: that is seen by who looks after it. The pipe stays open: its end is this process's.
        with suppress(BrokenPipeError):
            worker.stdin.write(json.dumps(given).encode() + b"\n")
            worker.stdin.flush()
        said: deque[str] = deque(maxlen=LAST_LINES)
        given = worker.stderr, said, self._tell
        reader = threading.Thread(target=_pass_on, args=given, name=f"stderr {process}", daemon=True)
        reader.start()
        self._workers[process], self._said[process], self._readers[process] = worker, said, reader
        threading.Thread(target=self._notice, args=(worker,), name=f"end of {process}", daemon=True).start()

    def _notice(self, worker: subprocess.Popen) -> None:
        """Wake who watches over the workers as soon as one has ended."""
        with suppress(ChildProcessError):
            os.waitid(os.P_PID, worker.pid, os.WEXITED | os.WNOWAIT)
        self._wake.set()

    def _kill(self, process: int) -> None:
        self._workers[process].kill()

    def _gone(self, index: int) -> str | None:
        code = self._workers[index].poll()
        if code is None:
            return None
        self._wake.set()
        self._readers[index].join(LEAVE_S)
        how = f"by {signal.Signals(-code).name}" if code < 0 else f"with exit code {code}"
        last = next((line for line in reversed(self._said[index]) if line.strip()), "")
        return f"its process ended {how}" + (f": {last.strip()[:200]}" if code > 0 and last else "")

    def _end(self) -> None:
        for worker in self._workers.values():
            worker.kill()

    def _release(self) -> None:
        for process, worker in self._workers.items():
            self._let_go(process, worker)
        self._starter.close()
        super()._release()

    def _let_go(self, process: int, worker: subprocess.Popen) -> None:
        """Wait for a worker that ends, and close what led to it."""
        try:
            worker.wait(LEAVE_S)
        except subprocess.TimeoutExpired:
            worker.kill()
            worker.wait()
        with suppress(BrokenPipeError):
            worker.stdin.close()
        self._readers[process].join(LEAVE_S)
        worker.stderr.close()


def descriptor(stream: BinaryIO) -> int:
    """A file descriptor that gives what a stream gives, which may be a buffer of this process."""
    with suppress(OSError):  # io.UnsupportedOperation is one
        return stream.fileno()
    reading, writing = os.pipe()

    def feed() -> None:
        with os.fdopen(writing, "wb") as pipe, suppress(BrokenPipeError):
            while block := stream.read(65536):
                pipe.write(block)
                pipe.flush()

    threading.Thread(target=feed, name="stdin", daemon=True).start()
    return reading


def _pass_on(stream: BinaryIO, said: deque[str], tell: Callable[[str], None]) -> None:
    """Tell what a worker says on standard error, and remember the last lines."""
    for line in stream:
        text = line.decode(errors="replace")
        said.append(text)
        tell(text)

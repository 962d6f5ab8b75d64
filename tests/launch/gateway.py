"""A gateway of a few lines, for runs that join one: it lets one in, gives orders, and keeps what it is told."""

from __future__ import annotations

import json
import queue
import socket
import threading
from contextlib import suppress
from typing import Any

from tests.patience import PATIENT_S

TOKEN = "0123456789abcdef0123456789abcdef"


class Gateway:
    """Listens for one run; a context.

    Args:
        answer: to its hello; None: the connection is closed.

    Attributes:
        address: where, with the token.
        token: that was said.
        told: all that was told and not asked for, in order.
    """

    def __init__(self, answer: dict[str, Any] | None = {"welcome": True}):  # noqa: B006
        self._server, self._answer = socket.create_server(("127.0.0.1", 0)), answer
        self.address = f"tcp://127.0.0.1:{self._server.getsockname()[1]}/{TOKEN}"
        self.told: list[dict[str, Any]] = []
        self.token, self._questions, self._over = "", 0, threading.Event()
        self._saying = threading.Lock()
        self._heard: queue.Queue[dict[str, Any] | None] = queue.Queue()
        self._connection: socket.socket | None = None
        threading.Thread(target=self._listen, daemon=True).start()

    def __enter__(self) -> Gateway:
        return self

    def __exit__(self, *_: object) -> None:
        self.vanish()

    def say(self, order: dict[str, Any]) -> None:
        """Say something, from any thread."""
        with self._saying:
            self._connection.sendall(json.dumps(order).encode() + b"\n")

    def ask(self, order: dict[str, Any]) -> dict[str, Any]:
        """Give an order; returns the answer."""
        self._questions += 1
        self.say(order | {"question": self._questions})
        return self.until(lambda told: told.get("answer") == self._questions)

    def until(self, test) -> dict[str, Any]:
        """Listen until something is told of which `test` holds; returns it."""
        while True:
            told = self._heard.get(timeout=PATIENT_S)
            assert told is not None, f"the run has gone; it told {self.told}"
            self.told.append(told)
            if test(told):
                return told

    def ended(self) -> None:
        """Listen until the run has gone."""
        while (told := self._heard.get(timeout=PATIENT_S)) is not None:
            self.told.append(told)

    def vanish(self) -> None:
        """Be gone, as a process is that was killed."""
        self._over.set()
        for end in (self._connection, self._server):
            if end is not None:
                with suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)
                end.close()

    def _listen(self) -> None:
        with suppress(OSError):
            self._connection, _ = self._server.accept()
            with self._connection.makefile("rb") as file:
                self.token = file.read(len(TOKEN)).decode()
                hello = json.loads(file.readline())
                if self._answer is None:
                    self._connection.shutdown(socket.SHUT_RDWR)
                    return
                # Before anybody hears of the run: an order may not come ahead of the answer.
                self.say(self._answer)
                self._heard.put(hello)
                threading.Thread(target=self._beat, daemon=True).start()
                for line in file:
                    self._heard.put(json.loads(line))
        self._heard.put(None)

    def _beat(self) -> None:
        with suppress(OSError):
            while not self._over.wait(1.0):
                self.say({"beat": True})

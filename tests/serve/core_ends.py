"""A gateway's end of a session's two connections, for tests of the stages' ends; and time that passes when told to."""

from __future__ import annotations

import contextlib
import queue
import socket
import threading
from typing import Any

from stages.link import Wire
from tests.patience import PATIENT_S

TOKEN = "0" * 32


class Clock:
    """Seconds that pass when a test says so."""

    def __init__(self, now: float = 100.0):
        self.now = now

    def __call__(self) -> float:
        return self.now


class End:
    """Listens like a gateway for one stage, and says and hears messages. A context; gone when it is left.

    Args:
        hello: what it says first, a kind and a body; None: nothing.

    Attributes:
        address: for the stage.
        hangs_up: whether it does when the stage says that this was all, as a gateway does.
    """

    def __init__(self, hello: tuple[str, bytes] | None = ("hello", b"")):
        self._hello = hello
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"tcp://127.0.0.1:{self._listener.getsockname()[1]}/{TOKEN}"
        self._there, self.hangs_up = threading.Event(), True
        self._heard: queue.SimpleQueue = queue.SimpleQueue()
        self._wire: Wire | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            connection, _ = self._listener.accept()
        except OSError:  # closed before anybody came
            return
        assert connection.recv(len(TOKEN), socket.MSG_WAITALL).decode() == TOKEN
        self._wire = Wire(connection)
        if self._hello is not None:
            self._wire.send(*self._hello)
        self._there.set()
        while (message := self._wire.receive()) is not None:
            self._heard.put(message)
            if message[0]["kind"] == "end" and self.hangs_up:
                self._wire.close()
        self._heard.put(None)

    def say(self, kind: str, body: bytes = b"", **head: Any) -> None:
        assert self._there.wait(PATIENT_S)
        self._wire.send(kind, body, **head)

    def hear(self, *kinds: str) -> tuple[dict[str, Any], bytes] | None:
        """The next message of these kinds (none given: of any); None: the stage has gone."""
        while True:
            message = self._heard.get(timeout=PATIENT_S)
            if message is None or not kinds or message[0]["kind"] in kinds:
                return message

    def leave(self) -> None:
        """Go as soon as the stage has come."""
        assert self._there.wait(PATIENT_S)
        self._wire.close()

    def close(self) -> None:
        if self._there.is_set():
            self._wire.close()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def __enter__(self) -> End:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

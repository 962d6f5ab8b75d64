"""Which Ray cluster a run takes: one that answers in time, or its own, which nobody else commands."""

import os
import socket
import threading
from contextlib import suppress

import pytest

ray = pytest.importorskip("launch.ray_cluster")

RAY = ("model=nano", "launcher=ray", "launcher.timeout_s=0.2")
SERVERS = {
    "ray": bytes((0, 0, 0, ray.SETTINGS, 0, 0, 0, 0, 0)),
    "http": b"HTTP/1.1 400 Bad Request\r\n\r\n",
    "nothing": b"",
    "silent": None,
}


@pytest.fixture
def server():
    """server(NAME): the address of one that answers so, once."""
    opened = []

    def serve(name):
        listener = socket.create_server(("127.0.0.1", 0))
        opened.append(listener)

        def answer():
            with suppress(OSError):  # the test is over
                connection, _ = listener.accept()
                opened.append(connection)
                if SERVERS[name] is not None:
                    connection.recv(len(ray.PREFACE))
                    connection.sendall(SERVERS[name])
                    connection.close()

        threading.Thread(target=answer, daemon=True).start()
        return "{}:{}".format(*listener.getsockname())

    yield serve
    for one in opened:
        one.close()


@pytest.mark.parametrize("name", SERVERS)
def test_a_server_is_told_from_others(server, monkeypatch, name):
    monkeypatch.delenv("RAY_USE_TLS", raising=False)
    assert ray.answers(server(name), 0.2 if name == "silent" else 60) == (name == "ray")


def test_a_secured_server_is_believed(server, monkeypatch):
    monkeypatch.setenv("RAY_USE_TLS", "1")
    assert ray.answers(server("silent"), 60)


def test_an_address_that_nobody_answers_at(job):
    with socket.create_server(("127.0.0.1", 0)) as closed:
        address = "{}:{}".format(*closed.getsockname())
    for given in (address, "no-such-host.invalid:6379"):
        assert job.fails(*RAY, f"launcher.address={given}") == (
            f"launcher.address={given}: no Ray cluster answers there within 0.2 s; "
            "start one with `ray start --head`, or leave launcher.address out"
        )


def test_an_address_that_is_none(job):
    assert job.fails(*RAY, "launcher.address=head").startswith("launcher.address=head: there is no Ray cluster; ")


def test_a_cluster_that_does_not_start_is_said_in_a_line(job, monkeypatch):
    def late(**_):
        raise Exception("The current node timed out during startup.\nThis could happen")  # as Ray does

    monkeypatch.setattr(ray.ray, "init", late)
    assert job.fails("model=nano", "launcher=ray") == (
        "launcher=ray: Ray does not start on this machine (The current node timed out during startup.); "
        "try again when the machine is less busy, or launcher=local"
    )


def test_a_token_is_there_while_a_cluster_starts(monkeypatch):
    for name in ray.AUTHENTICATION:
        monkeypatch.delenv(name, raising=False)
    told = []
    for _ in range(2):
        with ray.own_token():
            os.environ["RAY_AUTH_MODE"] = "token"  # as Ray does
            told.append(os.environ["RAY_AUTH_TOKEN"])
        assert not set(ray.AUTHENTICATION) & set(os.environ)
    assert told[0] == told[1] and len(told[0]) == 64


@pytest.mark.parametrize("name", ray.AUTHENTICATION)
def test_what_the_user_says_of_tokens_holds(monkeypatch, name):
    for other in ray.AUTHENTICATION:
        monkeypatch.delenv(other, raising=False)
    monkeypatch.setenv(name, "mine")
    before = dict(os.environ)
    with ray.own_token():
        assert dict(os.environ) == before
    assert dict(os.environ) == before

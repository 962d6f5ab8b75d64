"""`everframe serve` as it is started, with random weights: what sessions sample replays to what they show."""

from __future__ import annotations

import json
import threading
import time
import urllib.error
import urllib.request

import numpy as np
import pytest

from benchmarks import visitors
from benchmarks.serving import Server
from serve import client
from tests.patience import PATIENT_S

LEASE_S = 3.0
"""Long enough for whoever has just opened a session to ask after it, on a busy machine, too."""


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    settings = ("model=nano", f"serve.lease_s={LEASE_S}", "serve.drain_s=1")
    with Server(tmp_path_factory.mktemp("served"), *settings) as one:
        yield one


def told(server: Server, made: dict) -> dict:
    """What the server says of a session."""
    request = urllib.request.Request(
        f"{server.url}/v1/sessions/{made['id']}", headers={"X-Session-Secret": made["secret"]}
    )
    with urllib.request.urlopen(request, timeout=PATIENT_S) as answer:
        return json.load(answer)


def reached(true, seconds: float = PATIENT_S) -> bool:
    """Whether something becomes so."""
    end = time.monotonic() + seconds
    while not true() and time.monotonic() < end:
        time.sleep(0.02)
    return true()


def played(session: client.Session, chunks: int, acts: dict) -> list[client.Chunk]:
    """So many chunks, with something done as some begin; then the session is stopped, and watched to its end."""
    seen = []
    for part in session:
        if part.first:
            seen.append(part.chunk)
            acts.get(len(seen), lambda: None)()
            if len(seen) == chunks:
                session.stop()
    return seen


def test_what_a_session_sampled_replays_to_what_it_showed(server, job):
    tone = np.sin(np.arange(20_000) / 7).astype(np.float32)
    with client.connect(server.url, seed=11, prompt="by day") as session:
        ids = []
        acts = {
            1: lambda: (ids.append(session.act("forward")), session.speak(tone, 16_000)),
            2: lambda: (ids.append(session.prompt("by night")), session.hear(tone, 16_000)),
            3: lambda: (ids.append(session.act("left")), ids.append(session.act("none"))),
            4: lambda: ids.append(session.interrupt()),
        }
        seen = played(session, 5, acts)
        done = session.done
    assert [chunk.chunk for chunk in seen] == list(range(len(seen)))
    shown = [id for chunk in seen for id in chunk.events]
    assert shown == ids and all((chunk.latency_s is not None) == bool(chunk.events) for chunk in seen)
    assert done["reason"] == "stopped" and done["chunks"] == len(seen)
    file = server.folder / "out" / "streams.jsonl"
    assert "by day" not in file.read_text() and file.stat().st_mode & 0o777 == 0o600
    recorded = server.folder / f"inputs.{session.id}.jsonl"
    lines = [json.loads(line) for line in recorded.read_text().splitlines()]
    assert [line["prompt"] for line in lines if "prompt" in line] == ["by day", "by night"]
    assert {action for line in lines for action in line.get("actions", [])} >= {0, 1, 3}
    report = job(
        "model=nano", "sink.video=null", f"source.inputs={recorded}", f"stream.id={session.id}", "stream.seed=11",
        f"stream.chunks={len(seen)}",
    )  # fmt: skip
    assert report["latents_sha256"] == done["latents_sha256"]
    other = job(
        "model=nano", "sink.video=null", f"stream.id={session.id}", "stream.seed=11", "stream.prompt=by day",
        f"stream.chunks={len(seen)}",
    )  # fmt: skip
    assert other["latents_sha256"] != done["latents_sha256"]


def test_one_that_vanishes_is_ended_by_its_lease_and_one_that_returns_is_not(server):
    connection, started, bare = visitors.opened(server.url)
    connection.recv(PATIENT_S)
    visitors.cut(bare)
    assert reached(lambda: told(server, started)["state"] == "ended")
    figures = told(server, started)
    assert figures["reason"] == "lease" and figures["latents_sha256"]
    assert reached(lambda: server.sessions() == 0)
    with pytest.raises(client.Refused) as caught:
        client.connect(server.url, session=started["id"], secret=started["secret"])
    assert caught.value.code == "ended"
    with client.connect(server.url) as first:
        known = {"session": first.id, "secret": first.secret}
        second = threading.Thread(target=lambda: _stay(server.url, known))
        second.start()
        for part in first:
            if part.first and part.chunk.chunk == 1:
                break
    second.join(PATIENT_S)
    assert not second.is_alive() and reached(lambda: server.sessions() == 0)


def _stay(url: str, known: dict) -> None:
    """Join a session, watch for longer than a lease, and end it."""
    with client.connect(url, **known) as session:
        begun = time.monotonic()
        for _ in session:
            if time.monotonic() - begun > 1.5 * LEASE_S:
                session.stop()
        assert session.done["reason"] == "stopped"


def test_over_http_a_session_is_opened_asked_after_and_ended(server):
    made = client.create(server.url, seed=3, seconds=60)
    # Somebody watches, so that it is not the lease that ends it on a busy machine.
    with client.connect(server.url, session=made["id"], secret=made["secret"]) as session:
        assert told(server, made)["state"] in ("running", "starting")
        with pytest.raises(urllib.error.HTTPError) as caught:
            told(server, made | {"secret": "guessed"})
        assert caught.value.code in (401, 403)
        client.delete(server.url, made["id"], made["secret"])
        for _ in session:
            pass
        assert session.done["reason"] == "stopped"
    assert reached(lambda: told(server, made)["state"] == "ended")
    assert told(server, made)["reason"] == "stopped"

"""`everframe serve` of a model that draws a camera's pictures anew, as it is started: what it saw replays to what it
showed."""

from __future__ import annotations

import json
import threading

import pytest

from benchmarks.serving import Server
from serve import client
from tests.patience import PATIENT_S
from tests.serve.seen import jpeg

FPS, CHUNKS = 16, 6
SMALL = ("model=nano_video", "stream.height=32", "stream.width=32", "source.fit=crop")


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with Server(tmp_path_factory.mktemp("served"), *SMALL, "serve.drain_s=1", "serve.headroom=0") as one:
        yield one


def filmed(session: client.Session) -> list[client.Chunk]:
    """The chunks of a session that is shown pictures, a brighter one each frame, and then stopped."""
    over, seen, number = threading.Event(), [], 0
    pictures = [jpeg(value) for value in range(20, 240, 4)]

    def show() -> None:
        nonlocal number
        while not over.wait(1 / FPS):
            session.see(pictures[number % len(pictures)], number / FPS)
            number += 1

    thread = threading.Thread(target=show)
    thread.start()
    try:
        for part in session:
            if part.first:
                seen.append(part.chunk)
                if len(seen) == CHUNKS:
                    over.set()
                    session.stop()
    finally:
        over.set()
        thread.join()
    return seen


def test_what_a_camera_showed_replays_to_what_was_made_of_it(server, job):
    with client.connect(server.url, seed=5, prompt="a painting in oil") as session:
        assert session.offer["sees"] and not session.offer["hears"]
        seen = filmed(session)
        done = session.done
    assert done["reason"] == "stopped"
    known = [chunk.camera for chunk in seen if chunk.camera]
    assert len(known) >= CHUNKS // 2, "chunks say what they show of the camera"
    assert all(0 < one["latency_s"] < PATIENT_S and one["at"] >= 0 for one in known)
    assert [one["at"] for one in known] == sorted({one["at"] for one in known})
    recorded = server.folder / f"inputs.{session.id}.jsonl"
    lines = [json.loads(line) for line in recorded.read_text().splitlines()]
    chunks = [line["pictures"] for line in lines if "chunk" in line]
    assert [len(one["shown"]) for one in chunks[:3]] == [12, 12, 12]
    assert len({picture for one in chunks for picture in one["jpeg"]}) > 12
    again = (
        *SMALL, "sink.video=null", f"source.inputs={recorded}", f"stream.id={session.id}", "stream.seed=5",
    )  # fmt: skip
    report = job(*again, f"sink.inputs={server.folder / 'again.jsonl'}")
    assert report["latents_sha256"] == done["latents_sha256"] and report["chunks"] == done["chunks"]
    twice = [json.loads(line) for line in (server.folder / "again.jsonl").read_text().splitlines()]
    assert [line["pictures"] for line in twice if "chunk" in line] == chunks, "a replay records what it was driven by"
    other = job(
        *SMALL, "sink.video=null", "source.video=grey", f"stream.id={session.id}", "stream.seed=5",
        "stream.prompt=a painting in oil", f"stream.chunks={report['chunks']}",
    )  # fmt: skip
    assert other["latents_sha256"] != done["latents_sha256"]

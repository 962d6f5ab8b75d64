"""A worker is lost while a camera is looked at: the same stream goes on, and replays to what it showed."""

from __future__ import annotations

import os
import signal
import threading

import pytest

from benchmarks.serving import Server
from serve import client
from tests.serve.seen import jpeg

pytestmark = pytest.mark.long
SMALL = ("model=nano_video", "stream.height=32", "stream.width=32", "source.fit=crop")
FPS, LOST_AT, CHUNKS = 16, 6, 14


@pytest.fixture
def server(tmp_path):
    settings = ("plan=timestep", "serve.headroom=0", "serve.drain_s=1")
    with Server(tmp_path / "served", *SMALL, *settings) as one:
        yield one


def test_the_stream_goes_on_with_the_pictures_that_it_had_seen(server, job):
    over = threading.Event()
    with client.connect(server.url, seed=5) as session:

        def show() -> None:
            number = 0
            while not over.wait(1 / FPS):
                session.see(jpeg(number * 7 % 256), number / FPS)
                number += 1

        thread, seen = threading.Thread(target=show), []
        thread.start()
        try:
            for part in session:
                if not part.first:
                    continue
                seen.append(part.chunk)
                if len(seen) == LOST_AT:
                    os.kill(server.workers[0], signal.SIGKILL)  # which samples and encodes
                if len(seen) == CHUNKS:
                    over.set()
                    session.stop()
        finally:
            over.set()
            thread.join()
        done, kinds = session.done, [notice["kind"] for notice in session.notices]
    assert done["reason"] == "stopped" and kinds[:2] == ["frozen", "resumed"]
    assert [chunk.chunk for chunk in seen] == list(range(len(seen)))
    assert all(chunk.camera for chunk in seen[-3:]), "the new worker sees what comes"
    recorded = server.folder / f"inputs.{session.id}.jsonl"
    again = (f"source.inputs={recorded}", f"stream.id={session.id}", "stream.seed=5", "sink.video=null")
    assert job(*SMALL, *again)["latents_sha256"] == done["latents_sha256"]

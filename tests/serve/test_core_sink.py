"""A session's sink at its connection: all that was put out is sent before it says that this was the end."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from stages.sinks import session
from stages.sinks.session import SessionSink
from tests.patience import PATIENT_S
from tests.serve.core_ends import End

FPS, FRAMES, SIZE = 240, 24, 32


def opened(end: End, sound: bool) -> SessionSink:
    greeting = threading.Thread(target=lambda: end.say("hello", margin_s=0.3))
    greeting.start()
    sink = SessionSink(end.address, FPS, SIZE, SIZE, sound)
    greeting.join(PATIENT_S)
    end.say("want", codecs=["h264"], thin=[])
    return sink


@pytest.mark.parametrize("sound", [True, False])
def test_its_end_is_told_after_the_last_picture_and_the_last_packet(sound):
    with End(hello=None) as end:
        sink = opened(end, sound)
        frames = np.zeros((FRAMES, SIZE, SIZE, 3), np.uint8)
        for _ in range(2):
            sink.write(frames, np.zeros(FRAMES * 16_000 // FPS, np.float32) if sound else None)
        sink.close()
        heard = []
        while (message := end.hear()) is not None:
            heard.append(message[0]["kind"])
    assert heard[-1] == "end" and heard.count("end") == 1
    assert (heard.count("video"), heard.count("sound")) == (2 * FRAMES, 10 if sound else 0)


def test_a_gateway_that_does_not_hang_up_is_not_waited_for_without_end(monkeypatch):
    monkeypatch.setattr(session, "LAST_S", 0.05)
    with End(hello=None) as end:
        end.hangs_up = False
        sink = opened(end, False)
        sink.close()
        assert end.hear("end") is not None and end.hear() is None

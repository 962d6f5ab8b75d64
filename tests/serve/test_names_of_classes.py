"""A class between a viewer and a session has a name of its own."""

import re
from collections import Counter
from pathlib import Path

FOLDER = Path(__file__).parents[2] / "serve"
BETWEEN = (
    "app", "asked", "bitrate", "channels", "description", "ends", "figures", "fragments", "heard", "incoming", "limits",
    "media", "microphone", "outbox", "realtime", "session", "socket", "tcp_rate", "term", "told", "tracks", "wanted",
    "webrtc",
)  # fmt: skip


def test_no_two_classes_share_a_name():
    texts = [(FOLDER / f"{name}.py").read_text() for name in BETWEEN]
    counted = Counter(name for text in texts for name in re.findall(r"^class (\w+)", text, re.MULTILINE))
    assert len(counted) > 40
    assert not [name for name, count in counted.items() if count > 1]

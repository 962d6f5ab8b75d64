"""What a server's runs may be, and where their workers are heard: each stream of theirs is a person's session."""

from __future__ import annotations

import logging
import re

from conf.errors import UserError
from conf.schema.serve import ServedConfig
from conf.schema.stream import OF_EACH
from conf.secret import unsaid
from stages.sources.image import load_image

log = logging.getLogger("worker")

DRIVEN = "sessions have the sound, pictures, keys and words of the people who open them"
LENGTH = "sessions end by serve.session_s, or by the seconds that are asked for"
RUN = "is said of a run, not of a server"
NOT_OURS = {
    "control": (RUN, None, "control=null"),
    "resume": (RUN, None, "resume=null"),
    "source.audio": (DRIVEN, None, "source.audio=null"),
    "source.actions": (DRIVEN, None, "source.actions=null"),
    "source.camera": (DRIVEN, None, "source.camera=null"),
    "source.video": (DRIVEN, None, "source.video=null"),
    "source.inputs": (DRIVEN, None, "source.inputs=null"),
    "source.session": ("each session has its own", None, "source.session=null"),
    "sink.session": ("each session has its own", OF_EACH, f"sink.session={OF_EACH}"),
    "sink.reader": ("sessions are read by those who open them", None, "sink.reader=null"),
    "stream.chunks": (LENGTH, None, "stream.chunks=null"),
    "stream.seconds": (LENGTH, None, "stream.seconds=null"),
    "stream.count": ("sessions are opened by people", 1, "stream.count=1, and serve.max_sessions for how many may be"),
    "stream.events": (DRIVEN, [], "stream.events=[]"),
}
"""Settings of a stream that no session can have: why, what they have to be, and the remedy."""
CHECKED = 16
"""Pixels each way, of a picture that is only looked at for whether it is one."""
LINE = re.compile(r"(DEBUG|INFO|WARNING|ERROR|CRITICAL): (.*)")


def check(config: ServedConfig) -> None:
    """Refuse what would break every session, before anything loads.

    Raises:
        UserError: it would.
    """
    for name, (rule, wanted, remedy) in NOT_OURS.items():
        value = config
        for part in name.split("."):
            value = getattr(value, part)
        if value != wanted:
            said = unsaid(value) if isinstance(value, str) else value
            raise UserError(f"{name}={said}", rule, f"set {remedy}")
    if config.source.image and config.launcher.name == "local":  # others read it on machines of their own
        load_image(config.source.image, CHECKED, CHECKED)


def logged(line: str) -> None:
    """A worker's line, in the log of the server: with its level where it says one, else as a warning."""
    if not (text := line.strip()):
        return
    found = LINE.fullmatch(text)
    log.log(logging.getLevelName(found[1]) if found else logging.WARNING, "%s", found[2] if found else text)

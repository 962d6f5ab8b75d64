"""What no log may hold: tokens, secrets, what people said or typed, their addresses. Found in any text, tracebacks too.

Secrets that the server knows are found as they are (`Hidden.add`), until they are worth nothing (`Hidden.remove`);
others by their looks.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Iterable
from ipaddress import ip_address
from urllib.parse import quote

HIDDEN = "[hidden]"
LEAST = 6
"""Characters of a secret that is looked for: a shorter one would be found in words."""
SHOWN = 6
"""Characters of a session's id that are shown."""
LONGEST = 1 << 16
"""Characters of a text that are looked at; the rest is left out."""
SECRETS = ("authorization", "token", "secret", "password", "passwd", "credential", "api_key", "api-key", "cookie")
"""What settings, headers and keys are called that hold one; or part of their names."""
SPOKEN = ("prompt", "negative_prompt", "sdp", "candidate", "words", "text", "image")
"""What holds something that people said, typed or sent."""

_SECRETS, _SPOKEN, _QUOTED = "|".join(SECRETS), "|".join(SPOKEN), r"""b?"(?:\\.|[^"\\])*"?|b?'(?:\\.|[^'\\])*'?"""
# Every repetition is bounded or cannot be entered twice: a hostile text takes no longer than another.
_NAMED = re.compile(
    rf"""(?i)(?P<name>["']?\b[\w.-]{{0,40}}(?:{_SECRETS})[\w-]{{0,40}}["']?\s{{0,4}}[=:,]\s{{0,4}})"""
    rf"""(?:{_QUOTED}|(?:bearer|basic)\s+\S+|(?<=[=:])[^\s,;&}}\])]+|(?<=[=:]\s)[^\s,;&}}\])]+)"""
)
# What people write may hold any quotes, escaped any number of times: it is over where the line is.
_SPEECH = re.compile(
    rf"""(?i)(?P<name>["'](?:{_SPOKEN})["']\s{{0,4}}[:,]\s{{0,4}}b?["']|\b(?:prompt|sdp|candidate)=)[^\n]+"""
)
_BEARER = re.compile(r"(?i)(?P<name>\b(?:bearer|basic)\s{1,4})[\w.~+/=-]{6,}")
_PROTOCOL = re.compile(r"(?P<name>\beverframe\.(?:token|session)\.)[\w.~-]+")
_LINK = re.compile(r"(?P<name>\btcp://[^\s/]{1,200}/)[\w-]+")
_BREAK = r"(?:(?:\\{1,4}r)?\\{1,4}n|\r?\n)"
"""As it is, or as `repr` shows it, once or twice."""
_SDP = re.compile(rf"v=0{_BREAK}(?:[a-z]=[^\r\n'\"\\]*(?:{_BREAK}|(?=['\"])|$))*")
_SDP_LINE = re.compile(r"\b(?P<name>a=(?:ice-ufrag|ice-pwd|fingerprint|candidate|crypto):)[^\r\n'\"\\]+")
_RANDOM = re.compile(r"(?<![\w.-])[A-Za-z0-9_-]{20,}(?![\w.(-])")
_FOUR = re.compile(r"(?<![\w.])(?:\d{1,3}\.){3}\d{1,3}(?!\w|\.\d)")
_SIX = re.compile(r"(?<![\w.:])\[?(?:[0-9a-fA-F]{0,4}:){2,7}[0-9a-fA-F]{0,4}(?:%\w{1,16})?\]?(?![\w.])")


class Hidden:
    """What is to be hidden. Threads may share it."""

    def __init__(self, secrets: Iterable[str | None] = ()):
        self._lock, self._known = threading.Lock(), set[str]()
        for secret in secrets:
            self.add(secret)

    def add(self, secret: str | None) -> None:
        """Something that nobody is to read, whatever it looks like; None and what is shorter than LEAST: nothing."""
        if secret is None or len(secret) < LEAST:
            return
        with self._lock:
            self._known |= _forms(secret)

    def remove(self, secret: str) -> None:
        """It is worth nothing any more."""
        with self._lock:
            self._known -= _forms(secret)

    def __len__(self) -> int:
        """How many texts are looked for."""
        return len(self._known)

    def __call__(self, text: str, addresses: bool = False) -> str:
        """The text without what is to be hidden.

        Args:
            text: of a log's record, or of a traceback.
            addresses: may stay.
        """
        text = text[:LONGEST]
        with self._lock:
            known = [secret for secret in self._known if secret in text]
        for secret in sorted(known, key=len, reverse=True):
            text = text.replace(secret, HIDDEN)
        text = _SDP.sub(f"SDP {HIDDEN}", text)
        for pattern in (_BEARER, _NAMED, _SPEECH, _PROTOCOL, _LINK, _SDP_LINE):
            text = pattern.sub(_value, text)
        text = _RANDOM.sub(_random, text)
        return text if addresses else _SIX.sub(_address, _FOUR.sub(_address, text))


def _forms(secret: str) -> set[str]:
    return {secret, quote(secret, safe="")}


def _value(found: re.Match) -> str:
    return f"{found['name']}{HIDDEN}"


def _random(found: re.Match) -> str:
    """What looks drawn, such as `secrets.token_urlsafe(16)` or `token_hex(16)`; names of things stay."""
    word = found[0]
    digits, upper = any(map(str.isdigit, word)), any(map(str.isupper, word))
    lower = any(map(str.islower, word))
    hexadecimal = digits and all(letter in "0123456789abcdefABCDEF" for letter in word)
    return HIDDEN if hexadecimal or (digits and upper and lower) else word


def _address(found: re.Match) -> str:
    """A peer's address; this machine's own and the one that stands for all say nothing."""
    try:
        address = ip_address(found[0].strip("[]").partition("%")[0])
    except ValueError:
        return found[0]  # a time of day, a version
    return found[0] if address.is_loopback or address.is_unspecified else HIDDEN

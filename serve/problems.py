"""What can go wrong for a caller, as RFC 9457 has it: the same body over HTTP and, in short, over a WebSocket."""

from __future__ import annotations

from typing import Any

TYPES = {
    "bad_request": 400,
    "unauthorized": 401,
    "forbidden": 403,
    "not_found": 404,
    "method_not_allowed": 405,
    "timeout": 408,
    "not_while_running": 409,
    "ended": 410,
    "too_large": 413,
    "unsupported_media": 415,
    "unprocessable": 422,
    "upgrade_required": 426,
    "audio_full": 429,
    "too_many": 429,
    "full": 503,
    "draining": 503,
    "not_ready": 503,
    "gone": 503,
    "failed": 500,
}
"""Status by the type of problem."""
RETRYABLE = frozenset({"audio_full", "too_many", "full", "draining", "not_ready", "timeout"})


UNTIL_NOW = {
    "limit": ("too_many", "over the limit of messages a second, or of data channels: send fewer"),
    "vanished": ("timeout", "nothing was heard of this viewer for too long: send session.ping each second"),
    "failed": ("failed", "the server made a mistake; join again"),
}
"""What a viewer is told whose session goes on, by why it is let go of."""


class Problem(Exception):  # noqa: N818  the standard's word
    """A request that is refused, with what the caller is told.

    Args:
        type: one of TYPES.
        detail: value, rule, remedy: one line, nothing of another caller's in it.
        retry_after_s: when to come again.
    """

    def __init__(self, type: str, detail: str, retry_after_s: float | None = None):
        super().__init__(detail)
        self.type, self.status, self.detail, self.retry_after_s = type, TYPES[type], detail, retry_after_s

    @classmethod
    def of_viewer(cls, reason: str) -> Problem:
        """What one viewer is told that is let go of while the session goes on."""
        return cls(*UNTIL_NOW.get(reason, UNTIL_NOW["failed"]))

    @property
    def body(self) -> dict[str, Any]:
        """Of `application/problem+json`."""
        found = {"type": self.type, "title": self.type.replace("_", " "), "status": self.status, "detail": self.detail}
        return found | ({} if self.retry_after_s is None else {"retry_after_s": round(self.retry_after_s, 1)})

    @property
    def message(self) -> dict[str, Any]:
        """Over a WebSocket or a data channel."""
        found = {"type": "error", "code": self.type, "message": self.detail, "retryable": self.type in RETRYABLE}
        return found | ({} if self.retry_after_s is None else {"retry_after_s": round(self.retry_after_s, 1)})

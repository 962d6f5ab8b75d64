"""Why a stream ended before its own end: plain values that travel between processes and stand in its report."""

from __future__ import annotations

import traceback
from dataclasses import asdict, dataclass
from typing import Any

from conf.errors import UserError

LONGEST_LINE, LONGEST_TRACEBACK = 400, 4000
"""Characters kept of each; of a traceback the last ones."""


class StreamFailed(Exception):  # noqa: N818  an event to report, not a programming error of whoever asked
    """A stream was ended by a fault that is no mistake of its user's. One line: what, and where."""


@dataclass(frozen=True)
class Reason:
    """The exception that ended a stream.

    Attributes:
        line: what it says, in one line.
        kind: its class's name.
        where: what was being done, e.g. "worker 1, step2 of chunk 7".
        user: whether it is a mistake of the user's (a `UserError`).
        traceback: where it was raised; empty for a mistake of the user's.
        parts: a `UserError`'s value, rule and remedy; empty for others.
    """

    line: str
    kind: str
    where: str = ""
    user: bool = False
    traceback: str = ""
    parts: tuple[str, ...] = ()

    @staticmethod
    def of(error: BaseException, where: str = "") -> Reason:
        """The reason that an exception is, raised while doing what `where` names."""
        kind = type(error).__name__
        if isinstance(error, UserError):
            parts = (error.value, error.rule, error.remedy)
            return Reason(_cut(str(error)), kind, where, True, parts=parts)
        said = " ".join(str(error).split())
        trace = "".join(traceback.format_exception(error))
        return Reason(_cut(f"{kind}: {said}" if said else kind), kind, where, False, trace[-LONGEST_TRACEBACK:])

    def to_dict(self) -> dict[str, Any]:
        """As plain values, for JSON."""
        return asdict(self) | {"parts": list(self.parts)}

    @staticmethod
    def from_dict(values: dict[str, Any]) -> Reason:
        """What `to_dict` made."""
        return Reason(**values | {"parts": tuple(values.get("parts", ()))})

    def error(self) -> UserError | StreamFailed:
        """The exception to raise for whoever waits for the stream."""
        if self.user:
            return UserError(*self.parts)
        return StreamFailed(f"{self.where}: {self.line}" if self.where else self.line)

    def __str__(self) -> str:
        return self.line


def _cut(line: str) -> str:
    return line if len(line) <= LONGEST_LINE else f"{line[: LONGEST_LINE - 3]}..."

"""What is kept of a run: a line of JSON for everything that happens, on disk at once, and a table of it."""

from __future__ import annotations

import json
import os
from collections import Counter
from pathlib import Path
from typing import Any

BEGUN, OK, MISS, MEASURED, ABSENT, ERROR, LATE = "begun", "ok", "MISS", "measured", "absent", "ERROR", "no time"
"""States of a row: within its bar or not, without a bar, not possible here (the value says why), failed, not tried."""
BAD, LEFT = {MISS, ERROR}, {LATE, BEGUN}
"""What is not as it should be, and what is not known since it was not tried to its end."""
WIDTH = 34
"""Of a name, where others are not known."""


class Log:
    """A file of lines, which several processes may write one after the other.

    Args:
        path: of the file.
    """

    def __init__(self, path: Path):
        self.path = path

    def add(self, **line: Any) -> None:
        """Append a line; it is on disk when this returns."""
        with self.path.open("a") as file:
            file.write(json.dumps(line) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def lines(self) -> list[dict[str, Any]]:
        """All that are whole: the last one may have been cut."""
        text = self.path.read_text() if self.path.exists() else ""
        return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]

    def head(self) -> dict[str, Any]:
        """What was said of the machine and the rows; empty if nothing was."""
        return next((line for line in self.lines() if "rows" in line), {})

    def rows(self) -> dict[str, dict[str, Any]]:
        """Every row as it stands, in the order of the table; one that was never begun had no time."""
        found = {name: {"row": name, "state": LATE} for name in self.head().get("rows", ())}
        return found | {line["row"]: line for line in self.lines() if "row" in line}


def shown(row: dict[str, Any], width: int = WIDTH) -> str:
    """A row of the table, on one line."""
    took = f"{row['seconds']:.1f} s" if "seconds" in row else ""
    bar = f"  ({row['bar']})" if row.get("bar") else ""
    return f"{row['row']:{width}} {row['state']:8} {took:>7}  {row.get('value', '')}{bar}".rstrip()


def table(log: Log) -> str:
    """All rows, under what is known of the machine."""
    head = log.head()
    title = ", ".join(f"{key} {value}" for key, value in head.get("machine", {}).items())
    rows = log.rows()
    return "\n".join([title, *(shown(row, max(map(len, rows))) for row in rows.values())])


def counts(log: Log) -> str:
    """How many rows are in which state, on one line."""
    found = Counter(row["state"] for row in log.rows().values())
    known = (OK, MEASURED, MISS, ERROR, LATE, BEGUN, ABSENT)
    return ", ".join(f"{found[state]} {state}" for state in known if found[state])

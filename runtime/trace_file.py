"""`trace.json`: what all workers kept of their spans, on one clock."""

from __future__ import annotations

import json
from collections import defaultdict, deque
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from conf import disk
from conf.errors import UserError
from runtime.trace import Ring, part_name, title


def offsets(traces: Iterable[dict[str, Any]]) -> dict[int, float]:
    """By worker, the seconds to be added to a moment of its clock, to have it by the first worker's.

    Clocks are known between workers that a channel joins, and so along channels between all.

    Args:
        traces: `of`, a worker's number, and its `clocks`, as `runtime.process.Ends` has them.
    """
    apart: dict[int, dict[int, float]] = defaultdict(dict)
    for packed in traces:
        for peer, seconds in packed.get("clocks", {}).items():
            apart[packed["of"]][int(peer)] = seconds
            apart[int(peer)].setdefault(packed["of"], -seconds)
    found, reached = {0: 0.0}, deque([0])
    while reached:
        worker = reached.popleft()
        for peer in apart[worker].keys() - found.keys():
            found[peer] = found[worker] + apart[worker][peer]
            reached.append(peer)
    return found


def _events(folder: Path, packed: dict[str, Any], offset: float) -> Iterator[str]:
    """A worker's events as JSON, one each, its clock put right by `offset` seconds; none of a part file that is not
    there (it is on another host)."""
    if "spans" in packed:
        yield title(packed["worker"], packed["track"])
        for span in Ring.unpack(packed):
            yield span._replace(start=span.start + offset).event(packed["track"])
        return
    part = folder / packed["part"]
    if not part.is_file():
        return
    with part.open() as lines:
        for line in lines:
            event = line.strip().rstrip(",")
            if event.startswith("{") and event.endswith("}}"):  # a whole one
                yield _shifted(event, offset) if offset else event


def _shifted(event: str, offset: float) -> str:
    values = json.loads(event)
    return json.dumps(values | ({"ts": values["ts"] + round(offset * 1e6)} if "ts" in values else {}))


def join_traces(folder: Path, traces: Iterable[dict[str, Any]]) -> Path | None:
    """Join what workers packed, and their part files, to `trace.json`, and remove these.

    Args:
        folder: the run's.
        traces: `Trace.pack` of every worker that has one.

    Returns:
        The file; None where no worker kept spans.

    Raises:
        UserError: the disk refuses this file, or refused a part of it.
    """
    traces, target = list(traces), Path(folder) / "trace.json"
    if not traces:
        return None
    clocks = offsets(traces)
    with disk.writing(f"output_dir={folder}", target.name), disk.replacing(target) as aside, aside.open("w") as joined:
        joined.write("[\n")
        between = ""
        for packed in traces:
            for event in _events(target.parent, packed, clocks.get(packed.get("of", 0), 0.0)):
                joined.write(between + event)
                between = ",\n"
        joined.write("\n]\n")
    for packed in traces:
        # A stream that failed may have left one behind, whatever it kept.
        disk.remove(target.parent / packed.get("part", part_name(packed["track"])))
    for packed in traces:
        if refused := packed.get("refused"):
            raise UserError(*refused)
    return target

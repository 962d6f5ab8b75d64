"""Curves of a run from its plain logs: `python -m distill.curves runs/NAME docs/media/NAME.png`."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from distill.evaluate.plots import draw, stack

STAGES = ("teacher", "causal", "ode", "dmd")
SHOWN = {
    "teacher": {"loss_low": "sigma < 0.5", "loss_mid": "0.5 to 0.8", "loss_high": "> 0.8"},
    "causal": {"loss_low": "sigma < 0.5", "loss_mid": "0.5 to 0.8", "loss_high": "> 0.8"},
    "ode": {"loss": "end point"},
    "dmd": {"critic_loss": "critic", "motion_ratio": "motion ratio"},
}
SMOOTH = 5
"""Lines of a log that a point of a curve is the mean of."""


def curve(log: Path, key: str) -> tuple[list[float], list[float]]:
    """Steps and values of one number of a log, smoothed; after a rewind the later line counts."""
    by_step = {}
    for line in log.read_text().splitlines():
        entry = json.loads(line)
        if key in entry:
            by_step[entry["step"]] = entry[key]
    steps, values = list(by_step), list(by_step.values())
    means = [
        sum(values[max(0, i - SMOOTH + 1) : i + 1]) / len(values[max(0, i - SMOOTH + 1) : i + 1])
        for i in range(len(values))
    ]
    return steps, means


def main(folder: str, out: str) -> None:
    """Draw every stage that has a log."""
    plots = []
    for stage in STAGES:
        log = Path(folder) / stage / "log.jsonl"
        if log.exists():
            lines = {name: curve(log, key) for key, name in SHOWN[stage].items()}
            plots.append(draw(stage, {name: line for name, line in lines.items() if line[0]}, "steps"))
    stack(out, plots)


if __name__ == "__main__":
    main(*sys.argv[1:3])

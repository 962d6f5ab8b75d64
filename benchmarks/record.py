"""How every measurement is kept: with its configuration, versions, machine and date."""

from __future__ import annotations

import datetime
import json
import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"


def versions() -> dict[str, str]:
    """Versions of everything that can change a number or a bit."""
    found = {"python": platform.python_version()}
    for package in ("everframe", "torch", "numpy", "av", "hydra-core"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


def machine() -> dict[str, Any]:
    """The processor, by name and core count."""
    cpuinfo = Path("/proc/cpuinfo")
    names = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    name = next((line.split(":")[1].strip() for line in names if line.startswith("model name")), platform.processor())
    return {"cpu": name, "cores": os.cpu_count()}


def record(
    theme: str, command: str, configuration: dict[str, Any], measured: dict[str, Any], folder: Path = RESULTS
) -> Path:
    """Write `<folder>/<theme>.json`, print the bars, return the path.

    Args:
        theme: what was measured.
        command: the command that repeats it.
        configuration: everything it was run with.
        measured: numbers; a bar is a dict with `value`, `bar` (text) and `passed`.
    """
    folder.mkdir(exist_ok=True, parents=True)
    path = folder / f"{theme}.json"
    content = {
        "theme": theme,
        "command": command,
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "machine": machine(),
        "versions": versions(),
        "configuration": configuration,
        "measured": measured,
    }
    # Where a checkout lies is nobody else's matter.
    path.write_text(json.dumps(content, indent=2).replace(f"{RESULTS.parents[1]}/", "") + "\n")
    for name, value in measured.items():
        if isinstance(value, dict) and "passed" in value:
            print(f"{'pass' if value['passed'] else 'MISS'}  {name}: {value['value']}  (bar: {value['bar']})")
    return path


def bar(value: Any, rule: str, passed: bool) -> dict[str, Any]:
    """A measured value with the bar it is held against."""
    return {"value": value, "bar": rule, "passed": bool(passed)}

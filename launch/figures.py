"""Numbers as people read them."""

from __future__ import annotations


def human(size: float) -> str:
    """A size in three digits at most: 405 kB, 10.4 GB."""
    units = ["B", "kB", "MB", "GB", "TB"]
    while size >= 999.5 and len(units) > 1:
        size, units = size / 1000, units[1:]
    unit = units[0]
    digits = 0 if unit == "B" or size >= 99.95 else 1 if size >= 9.995 else 2
    return f"{size:.{digits}f} {unit}"


def number(value: float) -> str:
    """A number without zeros that say nothing: 2, 0.5, 1.33."""
    return f"{float(value):.2f}".rstrip("0").rstrip(".")


def seconds(value: float) -> str:
    """A time in three digits: 1.21 s, 62.0 ms."""
    if value >= 0.9995:
        return f"{value:.3g} s" if value < 100 else f"{value:.0f} s"
    return f"{value * 1e3:.3g} ms"

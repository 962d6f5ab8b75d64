"""Whether people should be sent here: judged by what workers have done lately, not by what they once said they were.

A worker that has work and through which nothing comes is stuck, however well its process and its pulse are. One that
has no work may rest as long as it likes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

PERIODS = 8
"""Chunks in whose time something must have come to every worker, while sessions run."""
LEAST_S = 5.0
"""However short chunks are: what workers do is heard of once a second."""
FOLLOWING = "following"
"""What a process is at that only shares its worker's passes: that something moves is told by the worker."""


class Asked(Protocol):
    """What is asked of a model that is served (`serve.served.Served`)."""

    name: str
    offer: dict[str, Any]
    lost: str | None
    frozen: str | None

    def health(self) -> list[dict[str, Any]]: ...


class Places(Protocol):
    """What is asked of admission."""

    draining: bool

    def busy_since(self, name: str) -> float | None: ...


def awaited(coming: Mapping[str, str]) -> list[str]:
    """Models that are not served yet, in words: `loading nano`."""
    return [f"{what} {name}" for name, what in coming.items()]


def reasons(
    served: Sequence[Asked], coming: Mapping[str, str], admission: Places, clock: Callable[[], float]
) -> list[str]:
    """Why nobody should be sent here, one line each; empty: all is well.

    Args:
        served: all models.
        coming: those that will be served, and what is done with each so long, as `loading`.
        admission: who is in.
        clock: seconds, that of `admission`.
    """
    found = ["the server is ending"] if admission.draining else []
    for model in served:
        since = admission.busy_since(model.name)
        found += of_model(model, 0.0 if since is None else clock() - since)
    found += awaited(coming)
    return found if served or coming else [*found, "no model is served"]


def of_model(model: Asked, busy_s: float) -> list[str]:
    """Likewise, of one model.

    Args:
        model: which.
        busy_s: for how long it has had sessions without a break; 0: it has none.
    """
    if model.lost is not None:
        return [f"{model.name}: the pipeline is gone ({model.lost})"]
    if model.frozen is not None:
        return [f"{model.name}: its streams stand still ({model.frozen})"]
    try:
        health = model.health()
    except RuntimeError:  # the store is gone
        return [f"{model.name}: its workers cannot be asked"]
    limit_s = max(LEAST_S, PERIODS * model.offer["chunk_s"])
    said = (_of_worker(one, busy_s > limit_s, limit_s) for one in health)
    return [f"{model.name}: worker {one['worker']} {why}" for one, why in zip(health, said, strict=True) if why]


def _of_worker(one: dict[str, Any], has_work: bool, limit_s: float) -> str | None:
    if one["lost"]:
        return f"is lost ({one['lost']})"
    if not one["loaded"]:
        return f"has not loaded yet ({one['at']})"
    if not one["alive"]:
        return "is not heard of"
    if has_work and one["moved_s"] > limit_s and one["at"] != FOLLOWING:
        return f"is stuck: nothing has moved for {one['moved_s']:.0f} s, at {one['at']}"
    return None

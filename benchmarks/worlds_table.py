"""Predictions of `benchmarks.worlds` as tables of a page."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

NAMES = {
    "matrix_game_2": "Matrix-Game 2, universal", "matrix_game_2_gta_drive": "Matrix-Game 2, driving",
    "matrix_game_2_templerun": "Matrix-Game 2, running", "lingbot_world_fast": "LingBot-World-Fast",
}  # fmt: skip
DECODERS = {"wan": "Wan's", "taehv": "small"}
GOALS = (("mean_s", 0.8), ("worst_s", 0.8), ("mean_s", 0.4))
"""What a column of the overview asks for."""


def row(*cells: object) -> str:
    """A line of a table."""
    return f"| {' | '.join(map(str, cells))} |"


def table(head: Sequence[object], rows: Iterable[Sequence[object]]) -> list[str]:
    """A table, and an empty line behind it."""
    return [row(*head), f"|{'---|' * len(head)}", *(row(*cells) for cells in rows), ""]


def cell(one: Any) -> str:
    """Mean and worst control latency; how much slower than life, if it is."""
    if one.short > 0:
        return "does not fit"
    said = f"{one.mean_s:.2f} / {one.worst_s:.2f}"
    return said if one.realtime >= 0.9995 else f"{said}, x {one.realtime:.2f}"


def by_plan(found: Sequence[Any]) -> list[str]:
    """A plan of one model, kind, rate and decoder a line, a number of steps a column. What the planner chooses is left
    out: one of the named plans is as good."""
    names = dict.fromkeys(one.plan for one in found if not one.plan.startswith("plan=auto"))
    steps, rows = sorted({one.steps for one in found}), []
    for name in names:
        own = {one.steps: one for one in found if one.plan == name}
        devices = max(one.devices for one in own.values())
        held = max(one.bytes for one in own.values())
        rows.append((name, devices, f"{held / 1e9:.0f} GB", *(cell(own[s]) if s in own else "-" for s in steps)))
    head = ("plan", "GPUs", "fullest", *(f"{s} step{'s' * (s > 1)}" for s in steps))
    return table(head, sorted(rows, key=lambda cells: cells[1]))


def code(one: Any) -> str:
    """A plan in a few letters."""
    if one.plan.startswith("plan=auto"):
        return f"auto {one.devices}"
    if one.plan.startswith(("layers", "grid", "timestep")):
        return f"{one.plan.split(',')[0].split()[0]} {one.devices}"
    apart = "+1" if "apart" in one.plan else ""
    return f"{one.devices - len(apart) // 2}{apart}"


def least(found: Iterable[Any], what: str, limit: float) -> str:
    """The plan of fewest GPUs that keeps pace and a latency, of these the soonest."""
    fit = [one for one in found if one.short <= 0 and one.realtime >= 0.9995 and getattr(one, what) < limit]
    return code(min(fit, key=lambda one: (one.devices, one.mean_s))) if fit else "-"


def overview(found: Sequence[Any], published: Mapping[str, tuple[int, float]], kinds: Mapping[str, str]) -> list[str]:
    """Which plans keep a latency, on every kind of GPU, at the rates that published figures imply."""
    rows = []
    for model, (own_steps, rate) in published.items():
        of_model = [one for one in found if one.model == model]
        for steps in sorted({one.steps for one in of_model}):
            if steps != own_steps and model not in ("matrix_game_2", "lingbot_world_fast"):
                continue
            for decoder, said in DECODERS.items():
                own = [o for o in of_model if (o.rate, o.steps, o.decoder) == (rate, steps, decoder)]
                cells = [
                    " · ".join(least([o for o in own if o.kind == kind], *goal) for goal in GOALS) for kind in kinds
                ]
                mark = " (its own)" if steps == own_steps else ""
                rows.append((NAMES[model], f"{steps}{mark}", said, *cells))
    return table(("model", "steps", "decoder", *kinds.values()), rows)


def apart(found: Sequence[Any], one: str, other: str) -> float:
    """Longest difference between two kinds of GPU in the same plan's mean latency, where both have it."""
    key = lambda o: (o.model, o.steps, o.rate, o.decoder, o.plan)  # noqa: E731
    theirs = {key(o): o.mean_s for o in found if o.kind == other}
    return max(abs(o.mean_s - theirs[key(o)]) for o in found if o.kind == one and key(o) in theirs)


def page(
    found: Sequence[Any],
    published: Mapping[str, tuple[int, float]],
    kinds: Mapping[str, str],
    compared: Mapping[str, Any],
) -> str:
    """The tables, with what has to be known to read them.

    Args:
        found: as `benchmarks.worlds.Found`.
        published: steps of every model, and the rate that published figures imply.
        kinds: names of GPUs.
        compared: name to what others measured and what is predicted.
    """

    def of(model: str, rate: float) -> list[Any]:
        return [o for o in found if (o.model, o.kind, o.rate, o.decoder) == (model, "h100", rate, "wan")]

    lines = [
        "*Mean / worst* seconds of control latency on H100, with Wan's decoder; *x* is how fast a stream is where it",
        "cannot keep pace, and *fullest* what the fullest GPU holds.",
        "",
    ]
    for model, rate, said in (
        ("matrix_game_2", 1.0, "Matrix-Game 2, universal, 640x352, a chunk is 0.48 s"),
        ("matrix_game_2", 0.5, "the same at half the rate"),
        ("lingbot_world_fast", 1.0, "LingBot-World-Fast, 832x480, a chunk is 0.75 s"),
        ("lingbot_world_fast", 1.2, "the same at 1.2 of the rate"),
    ):
        lines += [f"**{said}**", "", *by_plan(of(model, rate))]
    lines += [
        f"On H800 these are the same within {apart(found, 'h100', 'h800') * 1e3:.0f} ms.",
        "",
        "**The least that keeps pace** with a mean latency under 0.8 s, a worst one under 0.8 s, and a mean one under",
        "0.4 s, at half the rate (Matrix-Game 2) and at 1.2 of it (LingBot):",
        "",
        *overview(found, published, kinds),
        "`4`: passes shared by so many GPUs of one machine, the decoder beside them (1: `plan=sequential`); `4+1`: the",
        "decoder on one of its own; `layers 4`: two blocks of layers, shared by 2. `-`: none of up to 8 GPUs.",
        "",
        "**Beside what others measured** (in their own programs, with their own windows):",
        "",
        *table(
            ("what", "others", "predicted"),
            [(name, one.get("measured", one.get("claimed")), one["predicted"]) for name, one in compared.items()],
        ),
    ]  # fmt: skip
    return "\n".join(lines).rstrip()

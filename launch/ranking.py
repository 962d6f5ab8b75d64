"""Plans side by side, as tables: what the planner found, or what is predicted for one plan."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from rich import box
from rich.table import Table

from launch.figures import human, number, seconds
from parallel.cluster import Cluster
from parallel.planner import Choice
from parallel.predict import Demand

BEST = 5
"""Plans shown."""


def overrides(choice: Choice) -> str:
    """The command line that asks for a plan by name."""
    c, plan = choice.config, choice.plan
    said = [f"plan={c.name}", f"plan.workers={plan.processes}"]
    for key in ("steps", "layers"):
        if value := getattr(c, key):
            said.append(f"plan.{key}=[{','.join(map(str, value))}]")
    if plan.degree > 1:
        said.append(f"plan.sequence_parallel={plan.degree}")
    if plan.encode != 0:
        said.append(f"plan.encode={plan.encode}")
    if plan.decode != plan.workers - 1:
        said.append(f"plan.decode={plan.decode}")
    if plan.post is not None:
        said.append(f"plan.post={plan.post}")
    if c.devices:
        said.append(f"plan.devices=[{','.join(map(str, c.devices))}]")
    if plan.in_flight != replace(plan, limit=None).in_flight:
        said.append(f"plan.in_flight={plan.in_flight}")
    return " ".join(said)


def spread(choice: Choice) -> str:
    """A plan in a few words: 4 step groups x 2 blocks, each on 2 devices; decode alone."""
    plan = choice.plan
    parts = []
    if len(plan.rows) > 1:
        parts.append("steps " + "+".join(str(sum(row == r for row in plan.owners)) for r in plan.rows))
    if len(plan.blocks) > 1:
        parts.append("layers " + "+".join(str(len(b)) for b in plan.blocks))
    if plan.degree > 1:
        parts.append(f"sequence x{plan.degree}")
    placed = [("encode", plan.encode), *(plan.stages[:-1] or [("decode", plan.decode)])]
    alone = [name for name, worker in placed if not plan.blocks_of(worker)]
    if alone:
        parts.append(" and ".join(alone) + " on workers without steps")
    return ", ".join(parts) or "all on one"


def compared(choices: Sequence[Choice], demand: Demand) -> Table:
    """The best few, a line each."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    right = ("devices", "fps", "first frame", "control mean", "worst", "idle", "bytes, most")
    for column in ("", "plan", *right):
        table.add_column(column, justify="right" if column in right else "left", no_wrap=column != "plan")
    for i, choice in enumerate(choices, 1):
        p = choice.prediction
        control = (seconds(p.control_mean_s), seconds(p.control_worst_s)) if demand.interactive else ("-", "-")
        table.add_row(
            str(i),
            f"{choice.plan.name}: {spread(choice)}",
            str(len(set(choice.placement))),
            f"{p.fps:.1f}",
            seconds(p.first_frame_s),
            *control,
            number(sum(p.idle.values())),
            human(max(b.total for b in choice.bytes)),
        )
    return table


def devices(choice: Choice, cluster: Cluster) -> Table:
    """Bytes of every worker's device, and its seconds per chunk, stages and messages included."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    right = ("weights", "banks", "passes", "stages", "total", "of", "per chunk", "of a period")
    for column in ("worker", "devices", *right):
        table.add_column(column, justify="right" if column in right else "left", no_wrap=True)
    for worker, held in enumerate(choice.bytes):
        places = [choice.placement[n] for n in choice.plan.group(worker)]
        load = choice.prediction.load[worker]
        table.add_row(
            f"worker {worker}",
            f"{cluster.devices[places[0]].kind} {', '.join(map(str, places))}",
            *(human(size) if size else "-" for size in held),
            human(held.total),
            human(choice.usable[worker]),
            seconds(load),
            f"{load / choice.prediction.period_s:.0%}",
        )
    return table


def said(choice: Choice, cluster: Cluster, demand: Demand) -> str:
    """What is predicted for a plan, in sentences."""
    p = choice.prediction
    each = f", {demand.streams} streams" if demand.streams > 1 else ""
    realtime = p.fps / demand.streams / demand.fps
    lines = [
        f"{p.fps:.1f} frames/s{each} ({realtime:.2f} x real time): a chunk every {seconds(p.period_s)}, "
        f"set by {p.bound}.",
        f"First frame after {seconds(p.first_frame_s)}; a chunk is under way for {seconds(p.chunk_latency_s)}, "
        f"{p.in_flight} in flight at most.",
    ]
    if demand.interactive:
        limit = demand.max_control_latency_s
        allowed = f" (at most {limit:g} s allowed)" if limit is not None else ""
        lines.append(
            f"A control shows after {seconds(p.control_mean_s)} in the mean and {seconds(p.control_worst_s)} at "
            f"worst{allowed}, the viewer's network and player apart."
        )
    lines += [f"Times on {basis}." for basis in cluster.bases()]
    return "\n".join(lines)

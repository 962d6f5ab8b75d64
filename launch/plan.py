"""What a plan would do, before anything loads.

Takes what `launch.stream` takes, refuses what it refuses, and prints who holds what, what travels, how the load is
spread, and a drawing of the pipeline as it fills. Sources are not opened and weights not read.

With `launcher.recover=exact` it says what cuts take of devices and hosts, and what a loss costs.

With `cluster=NAME` (or `FILE.yaml`) it also predicts what the plan will do there. Without a plan, or with `plan=auto`,
it looks for the best one by `objective=fps|first_frame|control_latency` and prints the best few. With `capacity=0.999`
it says how many live streams the cluster can serve with that share of frames on time.
"""

from __future__ import annotations

import logging
import math
import sys
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise

from rich import box
from rich.console import Console
from rich.table import Table

from conf.schema import Config
from launch import capacity, planning, ranking, recovering
from launch.cli import run
from launch.command import Command
from launch.figures import human, number
from parallel import capability, timeline
from parallel.builders import build
from parallel.cluster import Cluster
from parallel.plan import Hop, Plan, Version
from parallel.planner import Choice, assess, rank, refuse
from parallel.simulated import simulated

COMMAND = Command("plan", __doc__, schema=Config)
COLUMNS = 110
BAR = 40
"""Characters of the slowest worker's bar."""
PERIODS = 10


def _run(numbers: Sequence[int]) -> str:
    """Consecutive numbers: 3, or 0-5."""
    return str(numbers[0]) if len(numbers) == 1 else f"{numbers[0]}-{numbers[-1]}"


def holds(plan: Plan, worker: int) -> str:
    """What a worker has to do, in words."""
    found = ["encode"] if worker == plan.encode else []
    for block in plan.blocks_of(worker):
        steps, layers = plan.steps_of(worker, block), plan.blocks[block]
        found.append(f"step{'s' * (len(steps) > 1)} {_run(steps)} of layer{'s' * (len(layers) > 1)} {_run(layers)}")
    own = [stage.name for stage in plan.stages if stage.worker == worker]
    return ", ".join(found + own)


def _table(*columns: str, right: tuple[str, ...] = ()) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for column in columns:
        table.add_column(column, justify="right" if column in right else "left", no_wrap=column != "holds")
    return table


def workers(plan: Plan, streams: int) -> Table:
    """Who holds what, and how many bytes of it."""
    total = "weights and banks" + (f", {streams} streams" if streams > 1 else "")
    sizes = ("weights", "banks per stream", total)
    table = _table("worker", "holds", *sizes, right=sizes)
    for member in plan.members:
        weights, banks = plan.weight_bytes(*member), plan.bank_bytes(member.worker)
        cells = (human(weights), human(banks) if banks else "-", human(weights + streams * banks))
        held = f"a share of worker {member.worker}'s passes" if member.rank else holds(plan, member.worker)
        table.add_row(f"worker {member}", held, *cells)
    return table


def stages(plan: Plan) -> Table:
    """What stages beside cells take of memory."""
    sizes = ("weights", "each stream", "at work")
    table = _table("worker", "stage", *sizes, right=sizes)
    w = plan.workload
    weights = {"encode": w.encode_bytes, "decode": w.decode_bytes, "post": w.post_bytes}
    for worker in range(plan.workers):
        for name, taken in plan.taken(worker).items():
            row = (weights.get(name, 0), *taken)
            if any(row):
                table.add_row(f"worker {worker}", name, *(human(size) if size else "-" for size in row))
    return table


def missing(config: Config) -> list[str]:
    """What is counted of encoders whose files are not named, a line each."""
    found = planning.missing_encoders(config).items()
    return [f"{setting} is not set: {human(size)} are counted, as the published one has" for setting, size in found]


def _route(plan: Plan) -> Counter[Hop]:
    """Messages of one chunk in steady running, from its first step to its last stage."""
    w, found = plan.workload, Counter()
    for cell in plan.route_of(1):
        following = plan.after(cell)
        if following is None:
            found[Hop(plan.owner(cell), plan.stages[0].worker, "latents", w.final_bytes)] += 1
        elif following.block:
            found[Hop(plan.owner(cell), plan.owner(following), "hidden", w.latent_bytes + w.hidden_bytes)] += 1
        else:
            found[Hop(plan.owner(cell), plan.owner(following), "latents", w.latent_bytes)] += 1
    found.update(Hop(a.worker, b.worker, "pictures", w.picture_bytes) for a, b in pairwise(plan.stages))
    return Counter({hop: count for hop, count in found.items() if hop.source != hop.target})


def _often(plan: Plan, hop: Hop) -> str:
    """How often a message is sent."""
    if count := _route(plan)[hop]:
        return f"{count} per chunk"
    if hop.what == "reference":
        return "at the start"
    if hop.what in ("hidden", "sink or commit") and not plan.workload.commits_every_chunk:
        return "per attention sink"
    return "1 per chunk"


def hops(plan: Plan) -> Table:
    """What travels between workers, with the size of a message."""
    table = _table("from", "to", "what", "message", "how often", right=("message",))
    refers = any(v.source < 0 for v in plan.workload.versions)
    for hop in sorted(h for h in plan.hops if refers or h.what != "reference"):
        size = human(hop.bytes) if hop.bytes else "small"
        table.add_row(f"worker {hop.source}", f"worker {hop.target}", hop.what, size, _often(plan, hop))
    return table


def travels(plan: Plan) -> str:
    """The sum of a chunk's messages."""
    route = _route(plan)
    if not route:
        return "A chunk stays on one worker from its first step to its last stage."
    total, count = sum(hop.bytes * n for hop, n in route.items()), sum(route.values())
    return f"On its route a chunk is sent {count} time{'s' * (count > 1)}, {human(total)} in all."


def loads(plan: Plan) -> Table:
    """How the work of a chunk is spread, counted in steps: stages beside them take no step."""
    load = plan.load()
    table = _table("worker", "load", "steps per chunk", "of the most", right=("steps per chunk", "of the most"))
    for worker, own in enumerate(load):
        share = own / max(load)
        if not plan.blocks_of(worker):
            table.add_row(f"worker {worker}", f"({holds(plan, worker)}: no steps)", "-", "-")
            continue
        bar = "#" * max(1, round(BAR * share))
        table.add_row(f"worker {worker}", f"{bar:.<{BAR}}", number(own), f"{share:.0%}")
    return table


def slowest(plan: Plan) -> str:
    """What sets the pace."""
    load = plan.load()
    top = [w for w, own in enumerate(load) if math.isclose(own, max(load))]
    them = _run(top) if top[-1] - top[0] == len(top) - 1 else ", ".join(map(str, top))
    many = len(top) > 1
    period = number(max(load))
    lines = [
        f"Slowest: worker{'s' * many} {them}. A period is {'their' if many else 'its'} time per chunk: "
        f"{period} step{'s' * (period != '1')} of the whole network.",
        f"In flight: {plan.in_flight} chunk{'s' * (plan.in_flight > 1)} at most.",
    ]
    pace = timeline.pace_of(plan)
    reason = ""
    if plan.workload.commits_every_chunk:
        reason = ": with model.context=clean a chunk waits for the clean pass of the one before"
    elif pace > 1:
        reason = ": chunks enter in bursts, and wait for room"
    lines.append(f"Steady running: one chunk every {number(pace)} period{'s' * (number(pace) != '1')}{reason}.")
    return "\n".join(lines)


def _free_from(plan: Plan, version: Version) -> int:
    """The first chunk from which a version could be in force without a wait."""
    first = version.in_force_from
    while plan.idle_periods(Version(version.source, first)) > 0:
        first += 1
    return first


def _origin(version: Version) -> str:
    """An attention-sink version in words."""
    if version.source < 0:
        return "reference"
    if version.kind == "prefill":
        return "recalibration"
    return "first chunk as sink" if version.source == 0 else f"chunk {version.source} as sink"


def idleness(plan: Plan) -> Table:
    """What each version of the attention sink costs, one sentence each."""
    table = _table("attention sink", "holds from", "periods lost", "what happens", right=("periods lost",))
    table.columns[3].no_wrap = False
    for version in plan.workload.versions:
        idle, first = plan.idle_periods(version), version.in_force_from
        if version.source < 0:
            said = "Is made before chunk 0 enters, so no chunk waits for it."
        elif idle == 0:
            said = f"Chunk {version.source} is finished, and the sink made of it, before chunk {first} enters."
        elif version.kind == "prefill":
            free = _free_from(plan, version)
            said = (
                f"Chunk {first} waits for the sink made of chunk {version.source}, once; "
                f"with model.recalibrate_chunk={free} it would not."
            )
        else:
            said = f"Chunk {first} waits until chunk {version.source} is finished and in every bank, once."
        table.add_row(_origin(version), f"chunk {first}", number(idle), said)
    return table


def legend(plan: Plan) -> str:
    """How to read the drawing."""
    marks = [f"number: the chunk a worker is with; {timeline.IDLE} idle"]
    if plan.workload.versions:
        marks.append(f"{timeline.SINK} makes an attention sink (drawn as a whole step)")
    if plan.workload.commits_every_chunk:
        marks.append(f"{timeline.COMMIT} clean pass of a finished chunk")
    for stage in plan.stages[:-1]:
        if not plan.blocks_of(stage.worker):
            marks.append(f"{stage.name} drawn as one period")
    return "; ".join(marks)


def search(config: Config, console: Console) -> Plan:
    """Print the best few plans for a configuration, and what is predicted for the best; returns it.

    Raises:
        UserError: nothing fits, or nothing is fast enough to be steered.
    """
    workload, cluster, demand = planning.planned(config), planning.cluster_of(config), planning.demand(config)
    found = rank(workload, cluster, demand, config.objective, config.plan, check=simulated)
    best = found[0]
    console.print(
        f"cluster={cluster.name}: {len(cluster.devices)} devices; {len(found)} plans fit, the best "
        f"{min(ranking.BEST, len(found))} by objective={config.objective} (idle: periods that attention sinks cost; "
        f"control: from a key to its first frame):\n"
    )
    console.print(ranking.compared(found[: ranking.BEST], demand))
    console.print(f"\nThe first, as {ranking.overrides(best)}:\n")
    console.print(ranking.devices(best, cluster))
    console.print(f"{ranking.said(best, cluster, demand)}\n")
    recovery(config, best, cluster, console)
    return best.plan


def predicted(config: Config, console: Console) -> Plan:
    """Print what is predicted for a plan that was asked for, on a cluster; returns it.

    Raises:
        UserError: it does not fit, or is too slow to be steered.
    """
    workload, cluster, demand = planning.planned(config), planning.cluster_of(config), planning.demand(config)
    choice = assess(config.plan, workload, cluster, demand, check=simulated)
    refuse(choice, cluster, demand, config.plan.force)
    console.print(f"cluster={cluster.name}: {len(cluster.devices)} devices\n")
    console.print(ranking.devices(choice, cluster))
    console.print(f"{ranking.said(choice, cluster, demand)}\n")
    recovery(config, choice, cluster, console)
    return choice.plan


def recovery(config: Config, choice: Choice, cluster: Cluster, console: Console) -> None:
    """Print what exact recovery takes of a plan on a cluster, where it is asked for.

    Raises:
        UserError: a machine has too little memory.
    """
    if recovering.asked(config):
        console.print(f"{recovering.told(config, choice, cluster)}\n")


def show(config: Config, console: Console) -> None:
    """Print the plan of a configuration.

    Raises:
        UserError: the plan cannot be, or cannot run.
    """
    capability.check(config.model.context)
    for note in (*recovering.notes(config), *missing(config)):
        console.print(note, highlight=False)
    if config.capacity is not None:
        capacity.show(config, console)
        return
    if config.plan.name == "auto":
        plan = search(config, console)
    elif config.cluster.named:
        plan = predicted(config, console)
    else:
        plan = build(config.plan, planning.planned(config))
        if recovering.asked(config):
            # This machine's, whose rates are known well enough for that.
            cluster = planning.cluster_of(config)
            recovery(config, recovering.choice_of(config, cluster), cluster, console)
    w, model = plan.workload, config.model
    console.print(
        f"model={model.name} plan={plan.name}: {w.steps} steps, {w.layers} layers, {model.context}, {model.dtype}, "
        f"on {plan.processes} worker{'s' * (plan.processes > 1)}\n"
    )
    console.print(workers(plan, config.stream.count))
    console.print()
    if (table := stages(plan)).row_count:
        console.print(table)
        console.print()
    if plan.hops:
        console.print(hops(plan))
    console.print(f"{travels(plan)}\n")
    console.print(loads(plan))
    console.print(f"{slowest(plan)}\n")
    if w.versions:
        console.print(idleness(plan))
        console.print()
    for line in timeline.draw(plan, PERIODS):
        console.print(line, no_wrap=True, crop=False)
    console.print(legend(plan))


def job(config: Config, resolved: str) -> None:
    """Print to standard output, in colour on a terminal and as plain text elsewhere."""
    console = Console(highlight=False, markup=False)
    console.width = min(console.width, COLUMNS) if console.is_terminal else COLUMNS
    show(config, console)


def main(argv: list[str] | None = None) -> int:
    """The entry point; returns the exit code."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    arguments = sys.argv[1:] if argv is None else argv
    if any(a.startswith("cluster=") for a in arguments) and not any(a.startswith("plan=") for a in arguments):
        # Asking what to do with a cluster, and not how, is asking for the best.
        arguments = [*arguments, "plan=auto"]
    return run(COMMAND, job, arguments)


if __name__ == "__main__":
    sys.exit(main())

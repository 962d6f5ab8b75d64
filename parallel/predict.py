"""What a plan will do on a cluster, in closed form: period, first frame, latency of a control, idle periods.

Terms as in the code that paces (`parallel.pacing`, `parallel.schedule`): a chunk is *granted* when there is room in
flight, sampled and encoded at once, walks its route, and its leaving is told to the head, which grants the next. All
times are of steady running; jitter, prompt changes and the cheaper first chunks of an empty ring are left out.
`parallel.simulator` executes the same plan event by event, and is the check on what is said here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from math import ceil

from parallel.cost import Costs
from parallel.passes import Pass
from parallel.plan import Cell, Version, pace, whole

CLOSE = 1e-3
"""Relative difference below which a load counts as the period."""


@dataclass(frozen=True)
class Demand:
    """What is asked of a plan.

    Attributes:
        frames: video frames of a chunk.
        fps: at which a viewer watches.
        streams: open at once.
        interactive: whether somebody acts on what they see.
        paced: whether chunks enter no faster than they are watched.
        max_control_latency_s: of an interactive stream; None: no limit.
    """

    frames: int = 12
    fps: float = 16.0
    streams: int = 1
    interactive: bool = False
    paced: bool = False
    max_control_latency_s: float | None = None


@dataclass(frozen=True)
class Prediction:
    """Seconds, unless it says otherwise.

    Attributes:
        period_s: between chunks that leave, all streams together.
        bound: what sets it, in words.
        fps: frames per second, all streams together.
        first_frame_s: from "weights loaded, stream opened" to the first decoded frame.
        chunk_latency_s: from a chunk's grant, when controls are sampled, until its frames are out.
        control_mean_s, control_worst_s: from a control to the first frame that was made with it from its noise on.
        in_flight: chunks at most.
        idle: periods the head waits for each attention-sink version.
        load: seconds each worker spends on a chunk.
        travels: bytes of a chunk's messages.
    """

    period_s: float
    bound: str
    fps: float
    first_frame_s: float
    chunk_latency_s: float
    control_mean_s: float
    control_worst_s: float
    in_flight: int
    idle: dict[Version, float]
    load: tuple[float, ...]
    travels: float


def predict(costs: Costs, demand: Demand) -> Prediction:
    """All of it.

    Control latency: `L = W + transit`. A control waits `W` for the next sampling and then travels with its chunk until
    the first frame is shown. Between samplings pass `T_s = max(T_play, T_chunk)` where play paces the stream, so
    `mean W = T_s / 2` and the worst is `T_s` (in bursts of unequal gaps g: `sum g^2 / 2 sum g`, and the longest). The
    way is `sum of stages + hops`, and at full speed `in_flight * T` (Little's law), since a chunk then waits wherever
    the slowest stage is, unless that is the head. Where chunks are denoised together, what is sampled joins the window
    behind S - 1 others: its frames are those that leave S - 1 chunks later. The network to and from the viewer, and the
    viewer's buffers, come on top.
    """
    plan, streams = costs.plan, demand.streams
    load = costs.load()
    chunks = room(costs)
    in_flight = ceil(round(chunks, 6))
    turn = turnaround(costs)
    bounds = [(max(load), f"worker {load.index(max(load))}")]
    for device, workers in costs.shared.items():
        bounds.append((costs.device_s(device), f"device {device}, shared by workers {', '.join(map(str, workers))}"))
    wire = costs.wire()
    bounds += [(seconds, f"link from worker {a} to {b}") for (a, b), seconds in wire.items()]
    bounds.append((turn / chunks, f"a chunk's round trip, {in_flight} in flight"))
    output = costs.output_s() / streams
    bounds.append((output, "output"))
    loop = 0.0
    if plan.workload.every_chunk:
        loop = clean_loop(costs)
        bounds.append((loop / streams, f"chunks that wait for clean context, {streams} in turn"))
    # Bounds that are equal but for rounding: the first, which is the plainest, is named.
    period = max(seconds for seconds, _ in bounds)
    bound = next(name for seconds, name in bounds if seconds >= period * (1 - 1e-6))
    told = costs.hop_s(plan.leaves, plan.encode, 0)
    play = demand.frames / demand.fps
    if demand.paced and play >= streams * period:
        gaps, way = [play], turn
    elif output >= period * (1 - CLOSE):
        # Its own room lets a chunk in when output will be free for it: it meets nobody.
        gaps, way = [streams * period], turn
    else:
        gaps = _gaps(costs, in_flight, streams, period, loop)
        way = _way(costs, chunks, streams, period, turn, loop)
    latency = way - told + _behind(costs)
    # The chunk that is sampled then may have to go through windows of others first.
    joined = plan.workload.ahead * max([streams * period, *([play] if demand.paced else [])])
    shown = latency - costs.shared_s() - costs.output_s() + costs.shown_s() + joined
    return Prediction(
        period_s=period,
        bound=bound,
        fps=demand.frames / period,
        first_frame_s=first_frame(costs),
        chunk_latency_s=latency,
        control_mean_s=sum(g * g for g in gaps) / (2 * sum(gaps)) + shown,
        control_worst_s=max(gaps) + shown,
        in_flight=in_flight,
        idle={v: idle_periods(costs, v, period) for v in plan.workload.versions},
        load=tuple(load),
        travels=sum(size for _, _, size in costs.traffic),
    )


def room(costs: Costs) -> float:
    """Chunks in flight, in the mean: as many as fill the plan, or what it allows if that is less."""
    return min(costs.plan.most_in_flight, filling(costs))


def filling(costs: Costs, share: float | None = None) -> float:
    """Chunks in flight, in the mean, that keep the slowest stage busy: a chunk's way / slowest stage.

    As the pacer counts: encode, steps, messages and the last stages but output; passes off the route take no room.

    Args:
        share: of the full rate that is enough, where only whole chunks fill the plan; None: the plan's own.
    """
    plan = costs.plan
    own = [0.0] * plan.workers
    for cell in plan.route_of(1):
        own[plan.owner(cell)] += costs.cell_s(cell)
    for stage in plan.stages[:-1]:
        own[stage.worker] += costs.stage_s(stage.name)
    own.append(costs.sample_s() + costs.encode_s())
    if not any(own):
        return plan.in_flight
    share = plan.share if share is None else share
    # Workers that share a device are as slow as what they do there together.
    slowest = max([*own, *(sum(own[worker] for worker in workers) for workers in costs.shared.values())])
    way = sum(own) if plan.returns else turnaround(costs)
    return whole(way / slowest, share) if plan.returns else max(1.0, way / slowest)


def walk(costs: Costs, start: float, ready: Callable[[Cell], float] = lambda cell: 0.0, chunk: int = 1) -> float:
    """When a chunk's latents are final that is encoded at `start` and meets nobody: sum of the route and its hops.

    Args:
        ready: before when a cell may not begin.
        chunk: 0, whose way is another where chunks are denoised together, or any other.
    """
    plan, w, now, here = costs.plan, costs.plan.workload, start, costs.plan.encode
    for cell in plan.route_of(chunk):
        owner = plan.owner(cell)
        now += costs.hop_s(here, owner, w.latent_bytes + (w.hidden_bytes if cell.block else 0))
        now = max(now, ready(cell)) + costs.cell_s(cell) * float(w.share_of(cell.step))
        here = owner
    return now


def turnaround(costs: Costs) -> float:
    """From a chunk's grant to the head knowing that it has left the shared stages: encode, route, hops, decode, post,
    and the way back."""
    plan = costs.plan
    final = walk(costs, costs.sample_s() + costs.encode_s()) + _to_stages(costs)
    return final + costs.shared_s() + costs.hop_s(plan.leaves, plan.encode, 0)


def _to_stages(costs: Costs) -> float:
    """Final latents on their way to the first of the last stages, if streams share it."""
    plan = costs.plan
    shared = len(plan.stages) > 1
    return costs.hop_s(plan.tail, plan.stages[0].worker, plan.workload.final_bytes) if shared else 0.0


def _behind(costs: Costs) -> float:
    """From leaving the shared stages to being out."""
    plan = costs.plan
    return costs.output_s() + costs.hop_s(plan.leaves, plan.stages[-1].worker, plan.workload.final_bytes)


def first_frame(costs: Costs) -> float:
    """Encode, the reference's prefill where there is one (chunk 0 waits for it, block by block), route, hops, decode.
    Where chunks are denoised together chunk 0 goes through all windows that fill: its step s takes (s + 1) / S.

    (arXiv 2512.04677: four steps and the decoder, once its reference is in, counts the same.)
    """
    plan, w = costs.plan, costs.plan.workload
    encoded = costs.sample_s() + costs.encode_s(first=True)
    filled: dict[tuple[int, int], float] = {}
    if any(v.source < 0 for v in w.versions):
        for row in plan.rows:
            now = encoded + costs.hop_s(plan.encode, row[0], 0)
            for b, worker in enumerate(row):
                one = costs.pass_s("prefill", worker, b)
                filled[worker, b] = now + one * len(plan.levels_of(worker, b))
                if b + 1 < len(row):
                    # The first level's hidden states go on; the worker fills its other levels meanwhile.
                    now += one + costs.hop_s(worker, row[b + 1], w.hidden_bytes)
    final = walk(costs, encoded, lambda cell: filled.get((plan.owner(cell), cell.block), 0.0), chunk=0)
    if not w.every_chunk:
        final += _met(costs)
    return final + costs.hop_s(plan.tail, plan.stages[0].worker, w.final_bytes) + costs.shown_s(first=True)


def _met(costs: Costs) -> float:
    """What the first chunk waits in rings for those behind it.

    It goes first, but no pass is broken off for it: with n chunks in a ring a round takes n of its longest passes, if
    that is more than the round itself. So many are in it as fill it, or as there is room for.
    """
    plan, w, waits = costs.plan, costs.plan.workload, 0.0
    most = ceil(room(costs))
    for row in plan.rows:
        passes = [costs.cell_s(Cell(plan.owners.index(row), b)) for b in range(len(row))]
        chunks = min(most, whole(pace(passes)))
        hops = [costs.hop_s(a, b, w.latent_bytes + w.hidden_bytes) for a, b in pairwise(row)]
        around = sum(passes) + sum(hops) + costs.hop_s(row[-1], row[0], w.latent_bytes)
        waits += (plan.owners.count(row) - 1) * max(0.0, chunks * max(passes) - around)
    return waits


def clean_loop(costs: Costs) -> float:
    """One stream's period under `clean`, from latents that are final to the next chunk's.

    The commit follows every row, block by block, and each block's next pass waits for its own commit only; where encode
    is beside the head, a chunk is sampled when the head's commit is done. With one block this is the whole route and
    one commit: `(S + c) t_f` (and the way back).
    """
    plan, w = costs.plan, costs.plan.workload
    committed: dict[tuple[int, int], float] = {}
    for row in plan.rows:
        now = costs.hop_s(plan.tail, row[0], w.latent_bytes)
        for b, worker in enumerate(row):
            now += sum(costs.pass_s(kind.name, worker, b) for kind in w.every_chunk)
            committed[worker, b] = now
            if b + 1 < len(row):
                beyond = max(kind.cargo(w, Pass(kind.name, 0, 0, block=b + 1)) for kind in w.every_chunk)
                now += costs.hop_s(worker, row[b + 1], beyond)
    start = committed[plan.head, 0] + costs.sample_s() + costs.encode_s() if plan.encode == plan.head else float("-inf")
    return walk(costs, start, lambda cell: committed[plan.owner(cell), cell.block])


def idle_periods(costs: Costs, version: Version, period: float) -> float:
    """Periods the head waits for an attention-sink version, beyond what the pipeline takes anyway.

    Chunk `source` begins in period `source` and is final when it has walked its route; the version then passes the
    head's banks, and what holds from it is sampled.
    """
    plan, w = costs.plan, costs.plan.workload
    if version.source < 0:
        return 0.0
    begins = costs.hop_s(plan.encode, plan.head, w.latent_bytes)
    final = version.source * period + walk(costs, 0.0) - begins
    kind = "prefill" if version.kind == "prefill" else "commit"
    passes = len(plan.levels_of(plan.head, 0)) * costs.pass_s(kind, plan.head, 0)
    made = final + costs.hop_s(plan.tail, plan.head, w.latent_bytes) + passes
    sampled = costs.sample_s() + costs.encode_s() + begins if plan.encode == plan.head else 0.0
    # Rounding is not idleness.
    return max(0.0, round((made + sampled) / period - version.in_force_from, 9))


def _way(costs: Costs, in_flight: float, streams: int, period: float, turn: float, loop: float) -> float:
    """From grant to leaving being known, at full speed."""
    plan = costs.plan
    if plan.encode == plan.head:
        if loop:
            # A chunk is granted when its context is clean, so it waits only for other streams.
            return turn if streams == 1 else max(turn, min(in_flight * period, turn + streams * period - loop))
        if plan.returns and costs.load()[plan.head] >= period * (1 - CLOSE):
            # A head that is never idle lets a chunk in between two passes, and then begins it at once.
            return turn
    return max(turn, in_flight * period)


def _gaps(costs: Costs, in_flight: int, streams: int, period: float, loop: float) -> list[float]:
    """Times between one stream's samplings at full speed.

    In a ring of B blocks that a chunk goes round, and no room for more than fill the rings, B chunks enter one after
    another, and the next when they have left.
    """
    plan, own = costs.plan, streams * period
    rounds = sum(row[0] == plan.head for row in plan.lasting)
    burst = len(plan.blocks)
    full = in_flight == burst * len(plan.rows)
    if loop or burst == 1 or rounds == 1 or streams > 1 or not full:
        return [own]
    entry = costs.cell_s(Cell(0, 0))
    return [entry] * (burst - 1) + [burst * own - (burst - 1) * entry]

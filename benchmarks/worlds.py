"""How soon a world shows what is pressed, plan by plan. `python -m benchmarks.worlds`. Runs nothing but arithmetic.

For every kind of GPU in conf/cluster, both families that are walked, 1, 2 and 4 steps (Matrix-Game 2's universal and
driving models have 3 by themselves): what the planner predicts for every kind of plan, of a stream that is driven live,
by keys as by poses of a camera, which are sampled at the same moment. Steps differ in number only, so levels do not
matter. What is predicted for a plan holds on every cluster that has its devices in one machine.

Bytes are those that `everframe plan` counts, with the encoders of the published files. Times are derived from the rates
that conf/cluster assumes, and stand beside what others measured where that is known. Each family is told a second time,
at the rate that published figures imply: Matrix-Game 2 at half of it, since networks of its size reach a fifth of a
data sheet's rate in StreamDiffusionV2's rows, not 45 %; LingBot at 1.2 of it, as its passes were measured on H200.

Writes benchmarks/results/worlds.json, and the tables between two marks in docs/worlds.md.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields, replace
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.published import H100
from benchmarks.record import record
from benchmarks.worlds_table import DECODERS, page
from conf.errors import UserError
from conf.schema import ClusterConfig, Config, PlanConfig
from launch import clusters
from launch.cli import compose
from launch.planning import demand, planned, subject
from launch.ranking import overrides
from parallel.cluster import Cluster
from parallel.cost import Costs
from parallel.plan import Workload
from parallel.planner import Choice, assess, rank
from parallel.predict import Demand
from parallel.simulated import simulated
from runtime.arithmetic import rule_cost
from stages.encode import clip, umt5

PAGE = Path(__file__).parents[1] / "docs" / "worlds.md"
KINDS = {"h100": "H100", "h800": "H800", "h200": "H200", "a100": "A100", "l40s": "L40S", "rtx4090": "RTX 4090"}
COUNTS = (1, 2, 4, 5, 8)
"""Devices of one machine that there are cluster files for."""
SMALL_S = 0.01
"""Of a chunk in the small decoder: assumed. Others measured 3 ms on a faster device (flashdreams #46)."""
LEVELS = {1: [1000], 2: [1000, 500], 3: [1000, 666, 333], 4: [1000, 750, 500, 250]}


class World(NamedTuple):
    """A model, and what is told of it.

    Attributes:
        steps: numbers of steps that are tried.
        published: how many it has.
        rates: of the assumed rate of arithmetic: all of it, and what published figures imply.
    """

    steps: tuple[int, ...]
    published: int
    rates: tuple[float, ...]


WORLDS = {
    "matrix_game_2": World((1, 2, 3, 4), 3, (1.0, 0.5)),
    "matrix_game_2_gta_drive": World((1, 2, 3, 4), 3, (1.0, 0.5)),
    "matrix_game_2_templerun": World((1, 2, 3, 4), 4, (1.0, 0.5)),
    "lingbot_world_fast": World((1, 2, 4), 4, (1.0, 1.2)),
}


@dataclass(frozen=True)
class Found:
    """What is predicted for a plan; seconds and bytes.

    Attributes:
        kind, model, steps, decoder, rate: of what; `rate` as in `World`.
        plan: what it is called in tables.
        asked: how it is asked for.
        devices: that it needs.
        clusters: of conf/cluster that have as many of this kind.
        period_s, realtime: between chunks, and how much longer they are watched.
        soonest_s, mean_s, worst_s: from a control that is accepted to the first frame that shows it: one that comes
            just before a chunk is sampled, any, and just behind.
        first_frame_s: of a stream.
        bytes: of the fullest device.
        short: bytes that it lacks; zero or less: all fits.
    """

    kind: str
    model: str
    steps: int
    decoder: str
    rate: float
    plan: str
    asked: str
    devices: int
    clusters: list[str]
    period_s: float
    realtime: float
    soonest_s: float
    mean_s: float
    worst_s: float
    first_frame_s: float
    bytes: float
    short: float


def plans(steps: int) -> Iterator[tuple[str, PlanConfig]]:
    """Every kind of plan, fewest devices first."""
    yield "sequential", PlanConfig(name="sequential")
    yield "sequential, decoder apart", PlanConfig(name="timestep", steps=[steps], workers=2)
    yield "layers, two blocks", PlanConfig(name="layers", workers=2)
    if steps > 1:
        yield "timestep, decoder apart", PlanConfig(name="timestep", workers=steps + 1)
        yield "grid, 2 x 2", PlanConfig(name="grid", grid=[2, 2], workers=4)
    for degree in (2, 4, 5, 8):
        shared = {"sequence_parallel": degree}
        yield f"passes shared by {degree}", PlanConfig(name="sequential", **shared)
        if degree < max(COUNTS):
            apart = PlanConfig(name="timestep", steps=[steps], workers=degree + 1, **shared)
            yield f"passes shared by {degree}, decoder apart", apart
    yield "layers, two blocks shared by 2", PlanConfig(name="layers", workers=4, sequence_parallel=2)


@cache
def known(name: str) -> ClusterConfig:
    """A cluster of conf/cluster, by name."""
    return clusters.load(compose("stream", Config, ["model=nano", f"cluster={name}"]).cluster)


@cache
def hosts() -> dict[str, list[int]]:
    """Devices in each machine of every cluster of GPUs, by name."""
    found = {}
    for path in sorted(clusters.CONF.glob("*.yaml")):
        if path.stem.rstrip("0123456789").removesuffix("x") in KINDS:
            nodes = [group.node for group in known(path.stem).devices for _ in range(group.count)]
            found[path.stem] = [nodes.count(node) for node in sorted(set(nodes))]
    return found


def with_room(kind: str, devices: int) -> list[str]:
    """Clusters of a kind that have so many devices in one machine, smallest first."""
    fit = [name for name, there in hosts().items() if name.startswith(f"{kind}x") and max(there) >= devices]
    return sorted(fit, key=lambda name: (sum(hosts()[name]), name))


class Asked:
    """A model with a number of steps, driven live.

    Args:
        model: of `WORLDS`.
        steps: of a chunk.
        decoder: `model.codec.kind`.
    """

    def __init__(self, model: str, steps: int, decoder: str = "wan"):
        levels = ",".join(map(str, LEVELS[steps]))
        lines = [f"model={model}", f"model.steps={steps}", f"model.timesteps=[{levels}]", "source.actions=-"]
        lines.append(f"model.codec.kind={decoder}")
        self.model, self.steps, self.decoder = model, steps, decoder
        self.config = compose("stream", Config, lines)
        self.workload: Workload = planned(self.config)
        self.demand: Demand = demand(self.config)
        self.subject = subject(self.config)

    def on(self, cluster: str, rate: float) -> Cluster:
        """A cluster with this model's times."""
        config = known(cluster)
        kinds = {name: replace(kind, flops=kind.flops and kind.flops * rate) for name, kind in config.kinds.items()}
        found = Cluster.of(replace(config, kinds=kinds), self.subject)
        if self.decoder != "wan":
            found.times = {key: replace(times, decode_s=SMALL_S) for key, times in found.times.items()}
        return found

    def told(self, choice: Choice, name: str, kind: str, rate: float) -> Found:
        """What is predicted for it."""
        p, devices = choice.prediction, len(set(choice.placement))
        play = self.demand.frames / self.demand.fps
        return Found(
            kind, self.model, self.steps, self.decoder, rate, name, overrides(choice), devices,
            with_room(kind, devices),
            period_s=round(p.period_s, 4), realtime=round(play / p.period_s, 3),
            soonest_s=round(2 * p.control_mean_s - p.control_worst_s, 4), mean_s=round(p.control_mean_s, 4),
            worst_s=round(p.control_worst_s, 4), first_frame_s=round(p.first_frame_s, 4),
            bytes=max(b.total for b in choice.bytes), short=choice.short,
        )  # fmt: skip

    def every(self, kind: str, rate: float) -> Iterator[Found]:
        """Every plan on a kind of GPU."""
        for name, plan in plans(self.steps):
            devices = plan.workers or plan.sequence_parallel
            names = with_room(kind, devices)
            try:
                choice = assess(plan, self.workload, self.on(names[0], rate), self.demand, check=simulated)
            except UserError:
                continue  # heads or tokens that do not divide
            yield self.told(choice, name, kind, rate)

    def chosen(self, kind: str, rate: float) -> Iterator[Found]:
        """What the planner chooses on clusters of 4, 5 and 8 of a kind."""
        for count in COUNTS[2:]:
            wanted = PlanConfig(name="auto", force=True)
            try:
                cluster = self.on(f"{kind}x{count}", rate)
                best = rank(self.workload, cluster, self.demand, "control_latency", wanted, simulated)[0]
            except UserError:
                continue  # nothing fits
            yield self.told(best, f"plan=auto of {count}", kind, rate)


def beside() -> dict[str, Any]:
    """Predictions beside what others measured of the same networks (their sources are the comments')."""
    lingbot, found = Asked("lingbot_world_fast", 4), {}
    # vllm-omni #6672, #7074: H200, 480x832, compiled; a pass is a fifth of a chunk's time without its decoder.
    for degree, measured in ((1, 457), (2, 255), (4, 145)):
        plan = PlanConfig(name="sequential", sequence_parallel=degree)
        choice = assess(plan, lingbot.workload, lingbot.on("h200x4", 1.0), lingbot.demand)
        one = Costs(choice.plan, lingbot.on("h200x4", 1.0)).pass_s("step", 0, 0)
        found[f"LingBot, a pass on {degree} H200 (ms)"] = {"measured": measured, "predicted": round(one * 1e3)}
    # vllm-omni #7648: 4 H200, served, a chunk of 12 frames; flashdreams' table: 4 H100, window 15 + 3, a small decoder.
    for name, decoder, cluster, measured in (
        ("H200, served", "wan", "h200x4", 721),
        ("H100, small decoder", "taehv", "h100x4", 629),
    ):
        asked, plan = Asked("lingbot_world_fast", 4, decoder), PlanConfig(name="sequential", sequence_parallel=4)
        for rate in WORLDS["lingbot_world_fast"].rates:
            period = assess(plan, asked.workload, asked.on(cluster, rate), asked.demand).prediction.period_s
            said = f"LingBot, a chunk on 4 {name}, rate x {rate:g} (ms)"
            found[said] = {"measured": measured, "predicted": round(period * 1e3)}
    # What steps 2 to 4 add to a latent frame of it on one H100, at the sizes of its rows.
    for size, (height, width) in {"480x832": (480, 832), "512x512": (512, 512)}.items():
        lines = ["model=stream_diffusion_v2_1_3b", f"stream.height={height}", f"stream.width={width}"]
        flops = sum(work.flops for work in rule_cost(compose("stream", Config, lines)).step.layers)
        rates = H100["1.3B", size][0]
        step_s, assumed = (4 / rates[3] - 4 / rates[0]) / 3, known("h100x1").kinds["h100"].flops
        found[f"StreamDiffusionV2 1.3 B {size}, a step on H100 (ms)"] = {
            "measured": round(step_s * 1e3, 1), "predicted": round(flops / assumed * 1e3, 1)
        }  # fmt: skip
    game = Asked("matrix_game_2", 3)
    for rate in (1.0, 0.5):
        fps = assess(PlanConfig(name="sequential"), game.workload, game.on("h100x1", rate), game.demand).prediction.fps
        found[f"Matrix-Game 2, one H100, rate x {rate:g} (frames/s)"] = {"claimed": 25, "predicted": round(fps, 1)}
    return found


def listed(found: list[Found]) -> dict[str, Any]:
    """Every plan, a line of values; and what lines have in common: how plans are asked for, and which
    clusters have so many devices of a kind in one machine."""
    asked, fit, lines = {}, {}, []
    apart = ("asked", "clusters")
    for one in found:
        values = asdict(one)
        whose = f", {one.model}, {one.kind}" if one.plan.startswith("plan=auto") else ""
        asked[f"{one.plan}, {one.steps} steps{whose}"] = one.asked
        fit[f"{one.kind}, {one.devices}"] = " ".join(one.clusters)
        lines.append(
            "; ".join(
                f"{value:g}" if isinstance(value, float) else str(value)
                for name, value in values.items()
                if name not in apart
            )
        )
    columns = "; ".join(one.name for one in fields(Found) if one.name not in apart)
    return {"asked for": asked, "clusters": fit, "columns": columns, "plans": lines}


def main() -> None:
    """Predict, record, write the page."""
    found: list[Found] = []
    for model, world in WORLDS.items():
        for steps in world.steps:
            for decoder in DECODERS:
                asked = Asked(model, steps, decoder)
                for kind, rate in product(KINDS, world.rates):
                    found += asked.every(kind, rate)
                    if (steps, decoder) == (world.published, "wan"):
                        found += asked.chosen(kind, rate)
            print(f"{model}, {steps} steps", flush=True)
    compared = beside()
    sources = {kind: known(f"{kind}x1").note for kind in KINDS}
    configuration = {
        "predictions": "derived from assumed rates by the planner and its simulator, nothing was run on a GPU",
        "devices": sources, "demand": "one stream, driven live, sampled no faster than it is watched",
        "encoders": {"umt5": umt5.PUBLISHED[4096], "clip": clip.PUBLISHED[257, 1280]}, "small_decoder_s": SMALL_S,
        "steps": {name: world.steps for name, world in WORLDS.items()},
    }  # fmt: skip
    measured = {"beside others": compared} | listed(found)
    record("worlds", "python -m benchmarks.worlds", configuration, measured)
    before, _, rest = PAGE.read_text().partition("<!-- predictions -->\n")
    _, _, after = rest.partition("<!-- /predictions -->\n")
    told = page(found, {name: (world.published, world.rates[-1]) for name, world in WORLDS.items()}, KINDS, compared)
    PAGE.write_text(f"{before}<!-- predictions -->\n{told}\n<!-- /predictions -->\n{after}")


if __name__ == "__main__":
    sys.exit(main())

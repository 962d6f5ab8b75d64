"""Workers that are lost, plans that change, and what that costs: `python -m benchmarks.recover`.

    (nothing)          25 streams x 4 losses each, on processes of this machine and on Ray
    --plans            20 changes among 6 plans, in two streams of 400 chunks
    --again            a loss during recovery, 20 times
    --cost             throughput with cuts against without, by turns within a run
    --launchers ray    only these
    --only 3,8,watched only these streams
    --quick            two losses of each, and shorter runs
    --seconds 300      of every run of --cost

What is only a part of that is recorded under a name of its own (`recover-part.json`).

Every stream is to end as an undisturbed run over the same recorded inputs does: the same latents, the same pictures,
once each, in its file and at its viewer; and nothing is to be left behind.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from benchmarks import recover_cost
from benchmarks.emulated import busy
from benchmarks.launched import run
from benchmarks.record import bar, record
from benchmarks.recover_cases import (
    AGAIN,
    MODELS,
    NODES,
    PLAN_CHANGES,
    RECORDING,
    WATCHED,
    cases,
)
from benchmarks.recover_runs import Recorded, checked, done, with_inputs
from benchmarks.recover_watched import watched
from benchmarks.recovering import Case

LAUNCHERS = ("local", "ray")
FROZEN_S = {True: 1.5, False: 6.0}
"""Median of the time that streams stand still, with a spare and without."""
SECONDS = 300.0
"""Of every run that is measured for cost."""
CHANGE_S, AGAIN_TIMES = 1.0, 20
PARTS = ("detect_s", "load_s", "connect_s", "replay_s")


def told(name: str, found: dict[str, Any]) -> None:
    """Say how a case went."""
    frozen = [one.get("frozen_s") for one in found["losses"]]
    said = f"{'good ' if found['good'] else 'WRONG'}  {name}: frozen {frozen} {'; '.join(found['wrong'])[:600]}"
    print(said, flush=True)


def kept(found: dict[str, Any]) -> dict[str, Any]:
    """What is recorded of a case: where nothing is wrong, its losses."""
    names = ("losses", "seconds", "video", "end", "wrong", "notices", "chunks", "first and last", "cut_off")
    return {name: found[name] for name in names if found.get(name)}


def one(case: Case, folder: Path, recorded: Recorded) -> dict[str, Any]:
    """A case, against the undisturbed run."""
    try:
        found = checked(case, done(with_inputs(case, recorded), folder), folder, recorded)
    except (SystemExit, Exception) as error:  # the next one is tried all the same
        found = {"losses": [], "wrong": [f"{type(error).__name__}: {error}"[-900:]], "good": False}
    if found["good"]:
        shutil.rmtree(folder, ignore_errors=True)
    told(case.name, found)
    return found


# -- losses -----------------------------------------------------------------------------------------------------------


def streams(launchers: Iterable[str], only: set[str], quick: bool, folder: Path) -> dict[str, Any]:
    """All streams of a launcher, and what came of each, by name; with whether there was a spare."""
    recorded, found = Recorded(folder / "recorded"), {}
    for launcher in launchers:
        chosen = [*cases(launcher), *([NODES] if launcher == "ray" else [])]
        for number, case in enumerate(chosen):
            if only and str(number) not in only and not (case is NODES and "nodes" in only):
                continue
            shorter = case if not quick else replace(case, losses=case.losses[:2])
            found[case.name] = one(shorter, folder / f"{launcher}{number}", recorded) | {"spares": case.spares}
        for index in range(len(WATCHED)):
            if only and "watched" not in only:
                continue
            name = f"{launcher} watched {WATCHED[index][0]}{' with a spare' if WATCHED[index][1] else ''}"
            try:
                seen = watched(launcher, index, folder / f"{launcher}watched{index}", quick)
            except (SystemExit, Exception) as error:
                seen = {"losses": [], "wrong": [f"{type(error).__name__}: {error}"[-900:]], "good": False}
            told(name, seen)
            found[name] = seen | {"spares": WATCHED[index][1], "watched": True}
    return found


def quantile(values: list[float], share: float) -> float | None:
    """The value below which a share of them is."""
    return sorted(values)[min(len(values) - 1, int(share * len(values)))] if values else None


def frozen(found: dict[str, Any], spare: bool) -> dict[str, Any]:
    """How long streams stood still after losses that are seen at once, and by what."""
    losses = [
        loss for case in found.values() if bool(case["spares"]) == spare and not case.get("watched")
        for loss in case["losses"]
    ]  # fmt: skip
    dead = [loss for loss in losses if not loss["loss"].startswith("stop") and loss["loss"].endswith("chunk")]
    silent = [loss["frozen_s"] - loss["detect_s"] for loss in losses if loss["loss"].startswith("stop")]
    parts = {part: [quantile([loss[part] for loss in dead], share) for share in (0.5, 0.95)] for part in PARTS}
    times = [loss["frozen_s"] for loss in dead]
    return {
        "losses": len(losses),
        "frozen_s, p50 and p95": [quantile(times, 0.5), quantile(times, 0.95)],
        "p50 and p95 of": parts,
        "stopped processes, once seen, p50 and p95": [quantile(silent, 0.5), quantile(silent, 0.95)],
        "at other moments, p50 and p95": [
            quantile([x["frozen_s"] for x in losses if not x["loss"].endswith("chunk")], share) for share in (0.5, 0.95)
        ],
    }


def loss_bars(found: dict[str, Any]) -> dict[str, Any]:
    """What was measured, against what was to be."""
    good = [name for name, case in found.items() if case["good"]]
    losses = sum(len(case["losses"]) for case in found.values())
    measured: dict[str, Any] = {
        "streams that end as undisturbed ones do, with nothing left behind": bar(
            f"{len(good)} of {len(found)}, {losses} losses", "all", len(good) == len(found)
        )
    }
    for spare, limit in FROZEN_S.items():
        name, of = ("with a spare" if spare else "without a spare"), frozen(found, spare)
        p50 = of["frozen_s, p50 and p95"][0]
        measured[f"frozen, {name}, p50"] = bar(p50, f"<= {limit:g} s", p50 is None or p50 <= limit)
        measured[f"frozen, {name}"] = of
    late = [
        loss["late_frames"] for case in found.values() for loss in case["losses"] if loss.get("late_frames") is not None
    ]
    most = quantile(late, 0.5)
    measured["latency 5 s later, frames more than before, median"] = bar(most, "<= 1", most is None or most <= 1)
    measured["latency 5 s later, frames more than before"] = sorted(late)
    return measured


def main_losses(given: argparse.Namespace, folder: Path) -> bool:
    """The first bar."""
    only = set(filter(None, (given.only or "").split(",")))
    load = busy()
    found = streams(given.launchers.split(","), only, given.quick, folder)
    measured = loss_bars(found) | {"streams": {name: kept(case) for name, case in found.items()}}
    configuration = {
        "models": MODELS, "recorded": RECORDING, "load before": load,
        "cases": [asdict(case) for launcher in given.launchers.split(",") for case in cases(launcher)],
    }  # fmt: skip
    return finished(given, "recover", configuration, measured)


# -- plans ------------------------------------------------------------------------------------------------------------


def main_plans(given: argparse.Namespace, folder: Path) -> bool:
    """Changes of plan in flight."""
    case = PLAN_CHANGES if not given.quick else replace(PLAN_CHANGES, changes=6, chunks=120)
    base = [f"model={case.model}", "device=cpu", *(one for one in case.settings if not one.startswith("plan"))]
    alone = run("sequential", 1, folder / "oracle", *base, f"stream.chunks={case.chunks}")
    load, found = busy(), done(case, folder / "plans", 900)
    found["cut_off"] = [] if len(found["losses"]) == case.changes else [f"{len(found['losses'])} of {case.changes}"]
    hashes = [stream["latents_sha256"] for stream in found["streams"]]
    wanted = [stream["latents_sha256"] for stream in alone["streams"]]
    times = [change["frozen_s"] for change in found["losses"]]
    measured = {
        "hashes of both streams": bar([h and h[:12] for h in hashes], [h[:12] for h in wanted], hashes == wanted),
        "changes": bar(f"{len(times)} {found['end']}", str(case.changes), len(times) == case.changes),
        "frozen, most": bar(max(times, default=None), f"<= {CHANGE_S:g} s each", times and max(times) <= CHANGE_S),
        "frozen, p50": quantile(times, 0.5),
        "left behind": bar(found["left"] or "nothing", "nothing", not found["left"]),
        "each": found["losses"],
    }
    return finished(given, "recover-plans", {"case": asdict(case), "load before": load}, measured)


# -- again ------------------------------------------------------------------------------------------------------------


def main_again(given: argparse.Namespace, folder: Path) -> bool:
    """A loss while another is being recovered."""
    recorded, found, load = Recorded(folder / "recorded"), {}, busy()
    for seed in range(AGAIN_TIMES if not given.quick else 3):
        case = replace(AGAIN, name=f"again {seed}", seed=seed, spares=seed % 2)
        found[case.name] = one(case, folder / f"again{seed}", recorded)
    ends = {
        "recovered": sum(case["good"] for case in found.values()),
        "ended with one line": sum(not case["good"] and _one_line(case) for case in found.values()),
        "hangs": sum(bool(case.get("hangs")) for case in found.values()),
    }
    told = ends["recovered"] + ends["ended with one line"]
    measured = {
        "losses during recovery": bar(ends, "recovered, or one line that says why", told == len(found)),
        "each": {name: kept(case) for name, case in found.items()},
    }
    return finished(given, "recover-again", {"case": asdict(AGAIN), "load before": load}, measured)


def _one_line(case: dict[str, Any]) -> bool:
    """Whether a run ended of what it says in one line, and left nothing."""
    return (
        bool(case.get("end")) and not case.get("hangs") and not case.get("left") and "did not go on" not in case["end"]
    )


def main_cost(given: argparse.Namespace, folder: Path) -> bool:
    """What cuts take of throughput."""
    load, measured = busy(), recover_cost.measure(folder, given.seconds)
    return finished(given, "recover-cost", recover_cost.configuration(given.seconds) | {"load before": load}, measured)


def finished(given: argparse.Namespace, theme: str, configuration: dict[str, Any], measured: dict[str, Any]) -> bool:
    """Record; a part of the bench stands beside the whole of it."""
    part = given.quick or given.only or given.seconds < SECONDS
    if theme == "recover" and given.launchers != ",".join(LAUNCHERS):
        theme = f"recover-{given.launchers}"
    command = " ".join(["python -m benchmarks.recover", *given.words])
    record(f"{theme}-part" if part else theme, command, configuration, measured)
    return all(one["passed"] for one in measured.values() if isinstance(one, dict) and "passed" in one)


WAYS: dict[str, Callable[[argparse.Namespace, Path], bool]] = {
    "plans": main_plans, "again": main_again, "cost": main_cost, "losses": main_losses,
}  # fmt: skip


def main() -> bool:
    """Measure what was asked for, record, print the bars."""
    import sys

    parser = argparse.ArgumentParser(prog="python -m benchmarks.recover")
    for way in ("plans", "again", "cost", "quick"):
        parser.add_argument(f"--{way}", action="store_true")
    parser.add_argument("--launchers", default=",".join(LAUNCHERS))
    parser.add_argument("--only")
    parser.add_argument("--seconds", type=float, default=SECONDS)
    given = parser.parse_args()
    given.words = sys.argv[1:]
    way = next((name for name in ("plans", "again", "cost") if getattr(given, name)), "losses")
    folder = Path(tempfile.mkdtemp(prefix="recover-"))
    passed = WAYS[way](given, folder)
    if passed:
        shutil.rmtree(folder, ignore_errors=True)
    else:
        print(f"what went wrong is in {folder}", flush=True)
    return passed


if __name__ == "__main__":
    raise SystemExit(not main())

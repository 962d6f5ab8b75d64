"""Does a restructuring change any bit? `python -m benchmarks.unchanged [--keep]`.

`latents_sha256` of ten models, each under the plans that it allows: every plan must give the oracle's, and the one that
`benchmarks/results/unchanged.json` holds. 20 chunks are more than any ring or window holds; every model gets all that
it takes (sound, actions, a picture) and new prompts, LongLive one within its window and one behind it, and two of them
are recalibrated.

`--keep`, or a run where nothing is recorded yet, makes the hashes the reference. No other run replaces a recorded hash,
so a difference stays one until it is kept. A difference on another kind of processor or with another torch is expected,
since sums are rounded in another order there: keep and compare on one machine.
"""

from __future__ import annotations

import argparse
import datetime
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.launched import run
from benchmarks.live_avatar import SMALL
from benchmarks.record import RESULTS, bar, machine, record, versions

CHUNKS = 20
BASE = ("sink.video=null", f"stream.chunks={CHUNKS}")
WAN = (
    "model.dtype=float32", "model.network.dim=48", "model.network.ffn_dim=80", "model.network.heads=4",
    "model.network.layers=6", "model.network.freq_dim=32", "model.network.text_dim=24", "model.network.text_tokens=8",
    "stream.height=32", "stream.width=48", "stream.prompt=hello",
    "stream.events=[{chunk: 2, prompt: other}, {chunk: 11, prompt: third}]",
)  # fmt: skip
IMAGE, AUDIO, ACTIONS = (
    "source.image=assets/portrait.png", "source.audio=assets/speech.wav", "source.actions=assets/actions.jsonl",
)  # fmt: skip
MODELS = {
    "nano": (
        "model=nano", IMAGE, AUDIO, ACTIONS, "model.recalibrate_chunk=4", "stream.prompt=hello",
        "stream.events=[{chunk: 11, prompt: other}]",
    ),
    "pocket_avatar": (
        "model=pocket_avatar", IMAGE, AUDIO, "stream.prompt=a happy person",
        "stream.events=[{chunk: 11, prompt: a sad person}]",
    ),
    "pocket_world": (
        "model=pocket_world", ACTIONS, "stream.prompt=a maze by day",
        "stream.events=[{chunk: 11, prompt: a maze by night}]",
    ),
    "small Wan": ("model=wan21_t2v_1_3b", *WAN),
    "small LongLive": ("experiment=longlive", *WAN),
    "small Reward Forcing": ("model=reward_forcing", *WAN),
    "small Deep Forcing": (
        "model=deep_forcing", *WAN, "model.window_frames=12", "model.sink_frames=4", "model.compress.budget_frames=9",
    ),
    "small Rolling Forcing": ("model=rolling_forcing", *WAN, "model.window_frames=18"),
    "small stream batch": (
        "model=wan21_t2v_1_3b", *WAN, "model.timesteps=[700,500,400,200]", "model.shift=8.0",
        "model.warp=false", "model.chunk_frames=1", "model.first_chunk_frames=2", "model.window_frames=5",
        "model.sink_frames=3", "model.stream_batch=true", "model.refresh_frames=9",
    ),
    "small Live Avatar": (*SMALL, AUDIO, "stream.prompt=hello", "stream.events=[{chunk: 11, prompt: other}]"),
}  # fmt: skip
"""Live Avatar is recalibrated at chunk 4 by its own configuration."""
UNDIVIDED = ("small Deep Forcing", "small Rolling Forcing")
"""Models whose steps stay on one worker."""
ORACLE = "sequential"
PLANS = {
    ORACLE: ("sequential", 1, ()),
    "timestep": ("local", 4, ("plan=timestep",)),
    "layers": ("local", 2, ("plan=layers",)),
    "grid": ("local", 4, ("plan=grid",)),
    "uneven grid": ("local", 6, ("plan=grid", "plan.steps=[3,1]", "plan.layers=[1,3,2]")),
}
"""Workers are threads of one process, which starts sooner than several."""


def plans_of(model: str) -> tuple[str, ...]:
    """Those that a model allows."""
    return (ORACLE, "layers") if model in UNDIVIDED else tuple(PLANS)


Hashes = dict[str, dict[str, str]]
"""By model and plan."""


def hashes(folder: Path) -> Hashes:
    """What every model gives under every plan."""
    found: Hashes = {}
    for model, overrides in MODELS.items():
        found[model] = {}
        for plan, (launcher, workers, how) in ((plan, PLANS[plan]) for plan in plans_of(model)):
            where = folder / model.replace(" ", "-") / plan.replace(" ", "-")
            found[model][plan] = run(launcher, workers, where, *BASE, *overrides, *how)["latents_sha256"]
    return found


def compare(found: Hashes, reference: Hashes) -> dict[str, Any]:
    """A bar for every hash: it is the oracle's of today, and it is the recorded one."""
    bars = {}
    for model, plans in found.items():
        for plan, sha in plans.items():
            oracle, recorded = plans[ORACLE], reference.get(model, {}).get(plan, "none")
            rule = f"oracle {oracle[:12]}, recorded {recorded[:12]}"
            bars[f"{model}, {plan}"] = bar(sha, rule, sha == oracle == recorded)
    return bars


def main(keep: bool = False, results: Path = RESULTS) -> bool:
    with tempfile.TemporaryDirectory() as temporary:
        found = hashes(Path(temporary))
    path = results / "unchanged.json"
    today = {"machine": machine(), "versions": versions()}
    if keep or not path.exists():
        date = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d")
        reference = {"date": date, **today, "hashes": found}
    else:
        reference = json.loads(path.read_text())["measured"]["reference"]
        for what, now in today.items():
            if reference[what] != now:
                print(f"note: {what} of the reference: {reference[what]}; here: {now}")
    measured = compare(found, reference["hashes"])
    configuration = {"base": BASE, "models": MODELS, "plans": PLANS}
    record("unchanged", "python -m benchmarks.unchanged", configuration, measured | {"reference": reference}, results)
    return all(m["passed"] for m in measured.values())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m benchmarks.unchanged")
    parser.add_argument("--keep", action="store_true", help="make the hashes of this run the reference")
    sys.exit(not main(parser.parse_args().keep))

"""A stream saved under one plan and gone on with under another. `python -m benchmarks.resume [MODEL ...]`.

`nano`, 40 chunks in all (the ring holds 4), recalibrated at chunk 4, prompts at 17 and 27: saved at chunk 20 under each
of three plans and gone on with under each of them on the other launcher, torchrun to Ray and Ray to torchrun, and to
and from the oracle itself; `latents_sha256` against the oracle's, uninterrupted. A few of these pairs `late` (a
recalibration made before the state and in force at 23), under `clean` context, with `pocket_avatar` (sound,
recalibration, prompt events) and with `pocket_world` (actions). The run that saves goes on for five chunks behind the
state, as one that is killed would.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from benchmarks.launched import run
from benchmarks.record import bar, record

CHUNKS, AT, BEYOND = 40, 20, 25
PLANS = {
    "timestep": (4, ("plan=timestep",)),
    "layers x2": (2, ("plan=layers",)),
    "grid": (4, ("plan=grid",)),
    "sequential": (1, ()),
}
LAUNCHERS = ("torchrun", "ray")
NANO = (
    "model=nano", "sink.video=null", "stream.prompt=hello", "model.recalibrate_chunk=4",
    "stream.events=[{chunk: 17, prompt: other}, {chunk: 27, prompt: third}]",
)  # fmt: skip
MODELS = {
    "nano": NANO,
    "late": (*NANO, "model.recalibrate_chunk=23"),
    "clean": (*NANO, "model.context=clean"),
    "avatar": (
        "model=pocket_avatar", "sink.video=null", "source.image=assets/portrait.png", "source.audio=assets/speech.wav",
        "model.recalibrate_chunk=4", "stream.prompt=a happy person",
        "stream.events=[{chunk: 17, prompt: a sad person}, {chunk: 27, prompt: an angry person}]",
    ),
    "world": (
        "model=pocket_world", "sink.video=null", "source.actions=assets/actions.jsonl", "stream.prompt=a maze by day",
        "stream.events=[{chunk: 27, prompt: a maze by night}]",
    ),
}  # fmt: skip
THREE = ("timestep", "layers x2", "grid")


def pairs(model: str) -> Iterator[tuple[str, str, str, str]]:
    """(plan, launcher) that save and (plan, launcher) that go on."""
    if model == "nano":
        for one, other in (LAUNCHERS, LAUNCHERS[::-1]):
            yield from ((a, one, b, other) for a in THREE for b in THREE)
        yield from (("sequential", "sequential", b, "torchrun") for b in THREE)
        yield from ((a, "torchrun", "sequential", "sequential") for a in THREE)
    else:
        yield from ((a, "torchrun", b, "ray") for a, b in zip(THREE, (*THREE[1:], THREE[0]), strict=True))
        yield "timestep", "ray", "layers x2", "torchrun"


def measure(model: str, temporary: Path) -> bool:
    """All pairs of a model, recorded; whether all are exact."""
    base, measured, saved, count = MODELS[model], {}, {}, iter(range(1000))

    def report(launcher: str, plan: str, *overrides: str) -> tuple[Path, dict]:
        folder, (workers, settings) = temporary / model / str(next(count)), PLANS[plan]
        return folder, run(launcher, workers, folder, *overrides, *settings)

    expected = report("sequential", "sequential", *base, f"stream.chunks={CHUNKS}")[1]["latents_sha256"]
    for a, one, b, other in pairs(model):
        if (a, one) not in saved:
            saving = (f"stream.chunks={BEYOND}", f"stream.save_every_chunks={AT}")
            saved[a, one], before = report(one, a, *base, *saving)
            if before["state"]["saved"] != AT:
                raise SystemExit(f"{a} on {one} saved no state: {before['state']}")
        _, after = report(other, b, *base, f"stream.chunks={CHUNKS}", f"resume={saved[a, one]}")
        found = after["latents_sha256"]
        exact = found == expected and after["state"]["resumed_at"] == AT and after["chunks"] == CHUNKS
        measured[f"{a} on {one} -> {b} on {other}"] = bar(found[:12], expected[:12], exact)
        print(f"{'pass' if exact else 'MISS'}  {model}: {a} on {one} -> {b} on {other}", file=sys.stderr, flush=True)
    configuration = {"model": base, "chunks": CHUNKS, "saved_at": AT}
    record(f"resume-{model}", f"python -m benchmarks.resume {model}", configuration, measured)
    return all(m["passed"] for m in measured.values())


def main() -> bool:
    with tempfile.TemporaryDirectory() as temporary:
        passed = [measure(model, Path(temporary)) for model in sys.argv[1:] or MODELS]
    return all(passed)


if __name__ == "__main__":
    sys.exit(not main())

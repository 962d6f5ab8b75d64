"""A stream saved under one plan and gone on with under another. `python -m benchmarks.resume [nano|pocket]`.

`nano`, 40 chunks in all (the ring holds 4), recalibrated at chunk 4, prompts at 17 and 27: saved at chunk 20 under each
of three plans and gone on with under each of them on the other launcher, torchrun to Ray and Ray to torchrun;
`latents_sha256` against the sequential oracle's, uninterrupted. The same pairs of plans under `clean` context, and to
and from the oracle itself. Then the pocket models: `pocket_avatar` with sound, recalibration and a prompt event,
`pocket_world` with actions. The run that saves goes on for five chunks behind the state, as one that is killed would.
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
    "nano, recalibrated at 23": (*NANO, "model.recalibrate_chunk=23"),
    "nano, clean": (*NANO, "model.context=clean"),
    "pocket_avatar, sound, recalibrated, prompt event": (
        "model=pocket_avatar", "sink.video=null", "source.image=assets/portrait.png", "source.audio=assets/speech.wav",
        "model.recalibrate_chunk=4", "stream.prompt=a happy person",
        "stream.events=[{chunk: 17, prompt: a sad person}, {chunk: 27, prompt: an angry person}]",
    ),
    "pocket_world, actions": (
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


def main() -> bool:
    wanted = [name for name in sys.argv[1:] if "=" not in name] or ["nano", "pocket"]
    measured, saved = {}, {}
    with tempfile.TemporaryDirectory() as temporary:
        count = iter(range(1000))

        def report(launcher: str, plan: str, *overrides: str) -> tuple[Path, dict]:
            folder, (workers, settings) = Path(temporary) / str(next(count)), PLANS[plan]
            return folder, run(launcher, workers, folder, *overrides, *settings)

        for model, base in MODELS.items():
            if not model.startswith(tuple(wanted)):
                continue
            _, oracle = report("sequential", "sequential", *base, f"stream.chunks={CHUNKS}")
            expected = oracle["latents_sha256"]
            for a, one, b, other in pairs(model):
                key = model, a, one
                if key not in saved:
                    saved[key], before = report(
                        one, a, *base, f"stream.chunks={BEYOND}", f"stream.save_every_chunks={AT}"
                    )
                    if before["state"]["saved"] != AT:
                        raise SystemExit(f"{key} saved no state: {before['state']}")
                _, after = report(other, b, *base, f"stream.chunks={CHUNKS}", f"resume={saved[key]}")
                found = after["latents_sha256"]
                exact = found == expected and after["state"]["resumed_at"] == AT and after["chunks"] == CHUNKS
                name = f"{model}: {a} on {one} -> {b} on {other}"
                measured[name] = bar(found[:12], expected[:12], exact)
                print(f"{'pass' if exact else 'MISS'}  {name}", file=sys.stderr, flush=True)
    configuration = {"chunks": CHUNKS, "saved_at": AT, "models": MODELS}
    command = " ".join(["python -m benchmarks.resume", *sys.argv[1:]])
    record("resume" if len(wanted) == 2 else f"resume-{wanted[0]}", command, configuration, measured)
    return all(m["passed"] for m in measured.values())


if __name__ == "__main__":
    sys.exit(not main())

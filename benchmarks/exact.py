"""Every plan under every launcher gives the oracle's bits. `python -m benchmarks.exact`.

`nano`, 40 chunks (the ring holds 4), a prompt change at chunk 17 and recalibration at chunk 4: `latents_sha256`
of each plan under torchrun and Ray against the sequential oracle's, for both context rules; the hash must differ
without the prompt change and without the recalibration; two streams of one run have the hashes they have alone;
live sound and actions through a pipe give the hash of the same from files.
"""

from __future__ import annotations

import json
import sys
import tempfile
import wave
from pathlib import Path
from subprocess import PIPE

import numpy as np

from benchmarks.launched import ROOT, run, start
from benchmarks.record import bar, record
from stages.sources.audio import RATE
from stages.sources.audio_file import AudioFile

EVENT, RECALIBRATE = "stream.events=[{chunk: 17, prompt: other}]", "model.recalibrate_chunk=4"
BASE = ("model=nano", "stream.chunks=40", "sink.video=null", "stream.prompt=hello")
PLANS = {
    "timestep": (4, ("plan=timestep",)),
    "layers x2": (2, ("plan=layers",)),
    "layers x3": (3, ("plan=layers", "plan.layers=[2,2,2]")),
    "grid 2x2": (4, ("plan=grid",)),
    "4 steps on 3": (3, ("plan=timestep",)),
}
CLEAN = ("timestep", "layers x2", "grid 2x2")
LAUNCHERS = ("torchrun", "ray")


def main() -> bool:
    measured = {}
    with tempfile.TemporaryDirectory() as temporary:
        count = iter(range(1000))

        def sha(launcher: str, workers: int, *overrides: str) -> str:
            return run(launcher, workers, Path(temporary) / str(next(count)), *BASE, *overrides)["latents_sha256"]

        for context, names in (("same_level", tuple(PLANS)), ("clean", CLEAN)):
            rule = f"model.context={context}"
            oracle = sha("sequential", 1, EVENT, RECALIBRATE, rule)
            for what, without in (("prompt change", (RECALIBRATE,)), ("recalibration", (EVENT,))):
                other = sha("sequential", 1, *without, rule)
                measured[f"{context}: without the {what}"] = bar(other[:12], "another hash", other != oracle)
            for launcher in LAUNCHERS:
                for name in names:
                    workers, plan = PLANS[name]
                    found = sha(launcher, workers, EVENT, RECALIBRATE, rule, *plan)
                    measured[f"{context}: {name} on {launcher}"] = bar(found[:12], oracle[:12], found == oracle)
        alone = [sha("sequential", 1, f"stream.id={i}") for i in (0, 1)]
        for launcher in LAUNCHERS:
            report = run(launcher, 4, Path(temporary) / str(next(count)), *BASE, "plan=timestep", "stream.count=2")
            both = [s["latents_sha256"] for s in report["streams"]]
            measured[f"two streams on {launcher}"] = bar([h[:12] for h in both], [h[:12] for h in alone], both == alone)
        measured |= live(Path(temporary))
    record("exact", "python -m benchmarks.exact", {"base": BASE, "event": EVENT, "recalibrate": RECALIBRATE}, measured)
    return all(m["passed"] for m in measured.values())


def live(folder: Path) -> dict:
    """Sound and actions over a pipe against the same from files, on Ray (whose workers have no standard input)."""
    assets = ROOT / "assets"
    pcm = np.round(AudioFile(assets / "speech.wav").read(RATE * 4) * 32768).astype("<i2").tobytes()
    with wave.open(str(folder / "cut.wav"), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(RATE)
        file.writeframes(pcm)
    cases = {
        "audio": (folder / "cut.wav", pcm, ()),
        "actions": (assets / "actions.jsonl", (assets / "actions.jsonl").read_bytes(), ("stream.chunks=20",)),
    }
    found = {}
    for name, (path, data, length) in cases.items():
        base = ("model=nano", "sink.video=null", *length)
        expected = run("sequential", 1, folder / f"{name}-file", *base, f"source.{name}={path}")["latents_sha256"]
        live = ("plan=timestep", f"source.{name}=-", "source.pace=free")
        process = start("ray", 4, folder / f"{name}-live", *base, *live, stdin=PIPE)
        process.stdin.buffer.write(data)
        process.communicate(timeout=300)
        report = json.loads((folder / f"{name}-live" / "report.json").read_text())
        same = report["latents_sha256"] == expected
        found[f"live {name} over a pipe, on ray"] = bar(report["latents_sha256"][:12], expected[:12], same)
    return found


if __name__ == "__main__":
    sys.exit(not main())

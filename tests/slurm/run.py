"""`make test-slurm`: both batch scripts on two SLURM nodes give the oracle's latents. Needs root and Debian's packages.

    python -m tests.slurm.run [torchrun-timestep ray-grid torchrun-requeue array ...]

A job that its time limit cuts and that goes back to the queue gives the uninterrupted stream's latents, and one video.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from benchmarks.launched import ROOT, run
from tests.launch.test_stream import decoded
from tests.slurm.cluster import Slurm, install

BASE = ("model=nano", "device=cpu", "stream.prompt=hello", "model.recalibrate_chunk=4")
SHORT, LONG = 12, 1500
"""Chunks: of most streams, and of one that is cut before it ends: SLURM may take half a minute to look."""
PLANS = {"timestep": ("plan=timestep", "plan.workers=4"), "grid": ("plan=grid", "plan.workers=4")}
SCRIPTS = {
    "torchrun": ("--nodes=2", "--ntasks-per-node=2", "slurm/stream_torchrun.sbatch"),
    "ray": ("--nodes=2", "--cpus-per-task=2", "slurm/stream_ray.sbatch"),
}


class Cases:
    """What is tried, each with a folder of its own.

    Args:
        slurm: the cluster.
        folder: for results.
    """

    def __init__(self, slurm: Slurm, folder: Path):
        self.slurm, self.folder, self.passed = slurm, folder, True
        self._oracles: dict[tuple[str, ...], str] = {}
        self.cases: dict[str, Callable[[], None]] = {"array": self.array, "ray-exclusive": self.exclusive}
        for script in SCRIPTS:
            for plan in PLANS:
                self.cases[f"{script}-{plan}"] = lambda s=script, p=plan: self.exact(s, p)
            self.cases[f"{script}-requeue"] = lambda s=script: self.requeue(s)

    def exact(self, script: str, plan: str) -> None:
        name, length = f"{script}-{plan}", f"stream.chunks={SHORT}"
        self.submit(name, script, *PLANS[plan], length)
        report = self.report(name)
        self.check(f"{script}, {plan}", report["latents_sha256"], self.oracle(length))
        self.check(f"{script}, {plan}: nodes", len(set(report["nodes"].values())), 2)

    def requeue(self, script: str) -> None:
        """Cut by the time limit in the middle, whatever the machine's speed: it is lowered once the stream runs."""
        name, length = f"{script}-requeue", f"stream.chunks={LONG}"
        job = self.begin(name, script, *PLANS["timestep"], length, options=("--time=60", "--requeue"))
        video, log = self.folder / name / "video.mp4", self.folder / f"{name}.out"
        self.slurm.until(lambda: video.exists() and video.stat().st_size > 30_000, "the stream's video", 240, log)
        hours, minutes, _ = self.slurm.property(job, "RunTime").split(":")
        # With less left than --signal asks for SLURM sends it when it looks next, twice a minute.
        self.slurm("scontrol", "update", f"JobId={job}", f"TimeLimit={60 * int(hours) + int(minutes) + 2}")
        self.slurm.until(lambda: self.slurm.property(job, "Restarts") == "1", "back in the queue", 240, log)
        self.slurm("scontrol", "update", f"JobId={job}", "TimeLimit=60")
        self.check(f"{script}, cut by its time limit", "cut by the time limit" in log.read_text(), True)
        self.finish(job, name, 1500)
        report = self.report(name)
        self.check(f"{script}, requeued", report["latents_sha256"], self.oracle(length))
        self.check(f"{script}, requeued: frames of its one video", decoded(video)[0], 12 * LONG)

    def exclusive(self) -> None:
        """A node of one's own: `ray symmetric-run`, which wants no other Ray on the machine."""
        length = f"stream.chunks={SHORT}"
        self.submit("exclusive", "ray", *PLANS["timestep"], length, options=("--nodes=1", "--exclusive"))
        self.check("ray on a node of its own", self.report("exclusive")["latents_sha256"], self.oracle(length))

    def array(self) -> None:
        """One job of a multirun for each task."""
        length = f"stream.chunks={SHORT}"
        self.submit("array", "torchrun", *PLANS["timestep"], length, "stream.seed=1,2", options=("--array=0-1",))
        for task, seed in enumerate((1, 2)):
            found = self.report(f"array/{task}")["latents_sha256"]
            self.check(f"array task {task}", found, self.oracle(length, f"stream.seed={seed}"))

    # -- parts ------------------------------------------------------------------------------------------------------

    def begin(self, name: str, script: str, *overrides: str, options: tuple[str, ...] = ()) -> int:
        """Submit a job, or an array of them; returns its number."""
        folder = self.folder / name
        folder.mkdir()
        *ours, file = SCRIPTS[script]
        environment = f"--export=ALL,EVERFRAME_ENV={sys.prefix},EVERFRAME_OUTPUT={folder}"
        output = f"--output={self.folder}/{name}.out"
        return self.slurm.submit(environment, output, *ours, *options, file, *BASE, *overrides, cwd=ROOT)

    def finish(self, job: int, name: str, timeout_s: float = 240) -> None:
        """Wait for a job that must succeed."""
        log = self.folder / f"{name}.out"
        states = self.slurm.wait(job, timeout_s=timeout_s, log=log)
        if states != {"COMPLETED"}:
            raise SystemExit(f"{name} ended as {states}:\n{log.read_text()[-6000:]}")

    def submit(self, name: str, script: str, *overrides: str, options: tuple[str, ...] = ()) -> None:
        """Run a job that must succeed."""
        self.finish(self.begin(name, script, *overrides, options=options), name)

    def report(self, name: str) -> dict:
        return json.loads((self.folder / name / "report.json").read_text())

    def oracle(self, *overrides: str) -> str:
        """The hash that one device gives."""
        if overrides not in self._oracles:
            folder = self.folder / f"oracle-{len(self._oracles)}"
            found = run("sequential", 1, folder, *BASE, *overrides, "sink.video=null")
            self._oracles[overrides] = found["latents_sha256"]
        return self._oracles[overrides]

    def check(self, what: str, found: object, expected: object) -> None:
        self.passed &= found == expected
        print(f"{'pass' if found == expected else 'MISS'}  {what}: {found}  (bar: {expected})", flush=True)


def main(wanted: list[str]) -> bool:
    install()
    with tempfile.TemporaryDirectory(prefix="slurm-") as temporary, Slurm(Path(temporary)) as slurm:
        results = Path(temporary) / "results"
        results.mkdir()
        cases = Cases(slurm, results)
        for name in wanted or cases.cases:
            cases.cases[name]()
    return cases.passed


if __name__ == "__main__":
    sys.exit(not main(sys.argv[1:]))

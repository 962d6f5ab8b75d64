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
SHORT, LONG = 12, 3000
"""Chunks: of a stream that ends by itself, and of one that its first run cannot finish."""
PLANS = {"timestep": ("plan=timestep", "plan.workers=4"), "grid": ("plan=grid", "plan.workers=4")}
SCRIPTS = {
    "torchrun": ("--nodes=2", "--ntasks-per-node=2", "slurm/stream_torchrun.sbatch"),
    "ray": ("--nodes=2", "--cpus-per-task=2", "slurm/stream_ray.sbatch"),
}
# SLURM looks every half minute whose time is nearly over, so a signal may come that much earlier.
LIMITED = ("--time=2", "--signal=B:USR1@30", "--requeue")


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
        name, length = f"{script}-requeue", f"stream.chunks={LONG}"
        job = self.submit(name, script, *PLANS["timestep"], length, options=LIMITED, timeout_s=1500)
        report = self.report(name)
        restarts = int(self.slurm("scontrol", "show", "job", "-o", str(job)).split("Restarts=")[1].split()[0])
        self.check(f"{script}, cut and requeued {restarts} times", report["latents_sha256"], self.oracle(length))
        self.check(f"{script}, it was cut", restarts > 0, True)
        self.check(f"{script}, frames of its one video", decoded(self.folder / name / "video.mp4")[0], 12 * LONG)

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

    def submit(
        self, name: str, script: str, *overrides: str, options: tuple[str, ...] = (), timeout_s: float = 240
    ) -> int:
        """Run a job, or an array of them, that must succeed; returns its number."""
        folder = self.folder / name
        folder.mkdir()
        *ours, file = SCRIPTS[script]
        environment = f"--export=ALL,EVERFRAME_ENV={sys.prefix},EVERFRAME_OUTPUT={folder}"
        output = f"--output={self.folder}/{name}.out"
        job = self.slurm.submit(environment, output, *ours, *options, file, *BASE, *overrides, cwd=ROOT)
        log = self.folder / f"{name}.out"
        states = self.slurm.wait(job, timeout_s=timeout_s, log=log)
        if states != {"COMPLETED"}:
            raise SystemExit(f"{name} ended as {states}:\n{log.read_text()[-6000:]}")
        return job

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

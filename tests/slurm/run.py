"""`make test-slurm`: both batch scripts on two SLURM nodes give the oracle's latents. Needs root and Debian's packages.

python -m tests.slurm.run [torchrun-timestep ray-grid ...]
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

from benchmarks.launched import ROOT, run
from tests.slurm.cluster import Slurm, install

BASE = ("model=nano", "device=cpu", "stream.chunks=12", "stream.prompt=hello", "model.recalibrate_chunk=4")
PLANS = {"timestep": ("plan=timestep", "plan.workers=4"), "grid": ("plan=grid", "plan.workers=4")}
SCRIPTS = {
    "torchrun": ("--nodes=2", "--ntasks-per-node=2", "slurm/stream_torchrun.sbatch"),
    "ray": ("--nodes=2", "--cpus-per-task=2", "slurm/stream_ray.sbatch"),
}


class Jobs:
    """Submits jobs to a cluster and finds what they left."""

    def __init__(self, slurm: Slurm, folder: Path):
        self.slurm, self.folder = slurm, folder

    def __call__(self, script: str, *overrides: str, options: tuple[str, ...] = (), timeout_s: float = 120) -> dict:
        """The report of a job that must succeed."""
        *ours, file = SCRIPTS[script]
        more = f"--export=ALL,EVERFRAME_ENV={sys.prefix}"
        log = f"--output={self.folder}/%j.out"
        job = self.slurm.submit(more, log, *ours, *options, file, *overrides, cwd=ROOT)
        output = self.folder / f"{job}.out"
        state = self.slurm.wait(job, timeout_s=timeout_s, log=output)[job]
        text = output.read_text()
        if state != "COMPLETED":
            raise SystemExit(f"job {job} ended as {state}:\n{text[-4000:]}")
        return {"log": text, **json.loads((self.folder / "report.json").read_text())}


def main(wanted: list[str]) -> bool:
    install()
    passed = True
    with tempfile.TemporaryDirectory(prefix="slurm-") as temporary, Slurm(Path(temporary)) as slurm:
        folder = Path(temporary) / "oracle"
        oracle = run("sequential", 1, folder, *BASE, "sink.video=null")["latents_sha256"]
        for script in SCRIPTS:
            for name, plan in PLANS.items():
                if wanted and f"{script}-{name}" not in wanted:
                    continue
                folder = Path(temporary) / f"{script}-{name}"
                folder.mkdir()
                report = Jobs(slurm, folder)(script, *BASE, *plan, f"output_dir={folder}")
                same = report["latents_sha256"] == oracle
                passed &= same
                print(f"{'pass' if same else 'MISS'}  {script} on two nodes, {name}: {report['latents_sha256'][:12]}"
                      f" (oracle: {oracle[:12]})", flush=True)  # fmt: skip
    return passed


if __name__ == "__main__":
    sys.exit(not main(sys.argv[1:]))

"""What orchestration costs, up to dozens of workers. `python -m benchmarks.efficiency [torchrun|ray] [5] [16] [48]`.

Emulated devices: every stage holds its worker for 50 ms and sends 0.4 MB on; all else is real. *Efficiency* is the
steady rate of chunks times the time of one stage: 1 if nothing but the stages took time. *First chunk*: from its entry
until its latents are final, in a pipeline that fills behind it.

*Two streams* share a ring of four workers under `clean` context, where one stream alone leaves most of them idle.

With 48 workers on two cores each chunk leaves 2 ms of processor time for one worker's whole part in it, in all its
threads: run it on a machine that does nothing else.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from benchmarks.emulated import BASE, LATENT_BYTES, busy, first_chunk_s, rate
from benchmarks.launched import run
from benchmarks.record import bar, record

STAGE_S, CHUNKS = 0.05, 200
WORKERS = {5: 0.97, 16: 0.95, 48: 0.90}
LAUNCHERS = ("torchrun", "ray")
RING, RING_CHUNKS, BLOCK_S = 4, 16, 0.05


def pipeline(launcher: str, workers: int, least: float, folder: Path) -> dict:
    """Efficiency of a plan with one step per worker."""
    load = busy()
    overrides = ("plan=timestep", f"model.steps={workers}", f"device.emulated.step_s={STAGE_S}", "sink.video=null")
    report = run(launcher, workers, folder, *BASE, *overrides, f"stream.chunks={CHUNKS}")
    efficiency, first = rate(report) * STAGE_S, first_chunk_s(folder)
    name, limit = f"{launcher}, {workers} workers", workers * STAGE_S * 1.1
    held = [s["time_s"]["p50"] for stage, s in report["stages"].items() if stage.startswith("step")]
    return {
        f"{name}: efficiency": bar(f"{efficiency:.3f}", f">= {least}", efficiency >= least),
        f"{name}: first chunk": bar(f"{first:.3f} s", f"<= sum of stages + 10 % = {limit:.3f} s", first <= limit),
        f"{name}: more": {
            "time to first frame (s)": round(report["time_to_first_frame_s"], 3),
            "chunk latency (s)": report["chunk_latency_s"],
            "longest median stage (s)": round(max(held), 5),
            "load before": load,
        },
    }


def ring(launcher: str, folder: Path) -> dict:
    """Total throughput of two streams through one ring of blocks, over that of one."""
    overrides = (
        "plan=layers", f"model.network.layers={2 * RING}", "model.context=clean", "sink.video=null",
        f"device.emulated.step_s={RING * BLOCK_S}", f"stream.chunks={RING_CHUNKS}",
    )  # fmt: skip
    rates = [rate(run(launcher, RING, folder / str(n), *BASE, *overrides, f"stream.count={n}")) for n in (1, 2)]
    gain = rates[1] / rates[0]
    return {
        f"{launcher}: two streams over one, {RING} workers, clean": bar(f"{gain:.2f} x", ">= 1.8 x", gain >= 1.8),
        f"{launcher}: chunks per second (one, two)": [round(r, 3) for r in rates],
    }


def main(*only: str) -> bool:
    launchers = [name for name in LAUNCHERS if name in only] or LAUNCHERS
    workers = [n for n in WORKERS if str(n) in only] or ([] if "ring" in only else WORKERS)
    measured: dict = {}
    with tempfile.TemporaryDirectory() as temporary:
        for launcher in launchers:
            for n in workers:
                measured |= pipeline(launcher, n, WORKERS[n], Path(temporary) / f"{launcher}{n}")
            if "ring" in only or not only:
                (Path(temporary) / f"{launcher}-ring").mkdir()
                measured |= ring(launcher, Path(temporary) / f"{launcher}-ring")
    configuration = {"stage_s": STAGE_S, "chunks": CHUNKS, "latent_bytes": LATENT_BYTES, "ring_block_s": BLOCK_S}
    command = " ".join(("python -m benchmarks.efficiency", *only))
    theme = "-".join(("efficiency", *only))
    record(theme, command, configuration, measured)
    return all(m["passed"] for m in measured.values() if isinstance(m, dict) and "passed" in m)


if __name__ == "__main__":
    sys.exit(not main(*sys.argv[1:]))

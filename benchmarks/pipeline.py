"""What a pipeline gains, and that it is paced. `python -m benchmarks.pipeline`.

*Real work*: the pocket network at 128x128 under `timestep` with two workers (torchrun, one thread each) against the
sequential loop with one thread, in interleaved pairs; bar: at least 1.6 x.

*Recalibrated*: `nano` as threads, its steps held to a fixed time, the pipeline full: what the head idles before the
chunk that waits for a new attention sink, against what the plan predicts. The plan counts a prefill as a step and
messages as nothing, so short steps show what messages and sampling cost.

*Paced*: `nano` under `timestep` as threads, its steps held to a fixed time and its sink to twice that, so that the
machine's noise does not decide; 800 chunks, since the first few fill the pipeline before anything was measured. Bar:
the 99th percentile of chunk latency at most the sum of stage times plus one slowest stage, plus 15 %.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from unittest.mock import patch

from benchmarks.constant import resident_bytes
from benchmarks.launched import ROOT, run
from benchmarks.record import bar, record
from conf.schema import Config
from launch.cli import compose
from parallel.builders import build
from runtime.block import Block
from runtime.local import LocalRun
from runtime.outputs import Outputs
from runtime.pipeline import results, run_all
from runtime.trace_file import join_traces
from runtime.workload import describe

CHUNKS, PAIRS = 40, 3
STEP_S, SINK_S, PACED_CHUNKS, RECALIBRATE = 0.02, 0.04, 800, 4
WATCH_S = 0.5


def gain(folder: Path) -> dict:
    """Frames per second of two workers over one."""
    base = (
        "model=pocket_avatar",
        f"stream.chunks={CHUNKS}",
        "stream.height=128",
        "stream.width=128",
        "sink.video=null",
    )
    pairs = []
    for i in range(PAIRS):
        two = run("torchrun", 2, folder / f"two{i}", *base, "plan=timestep")["fps"]
        one = run("sequential", 1, folder / f"one{i}", *base)["fps"]
        pairs.append((two, one))
    ratio = statistics.median(two / one for two, one in pairs)
    return {
        "timestep on two workers over sequential": bar(f"{ratio:.2f} x", ">= 1.6 x", ratio >= 1.6),
        "fps (two, one)": [(round(two, 1), round(one, 1)) for two, one in pairs],
    }


def held(seconds: float, work):
    """`work`, made to take at least `seconds`."""

    def longer(*args, **kwargs):
        start = time.perf_counter()
        result = work(*args, **kwargs)
        time.sleep(max(0.0, seconds - (time.perf_counter() - start)))
        return result

    return longer


def nano(folder: Path, chunks: int) -> Config:
    """A `nano` stream under `timestep` that is recalibrated, writing to `folder`."""
    folder.mkdir()
    overrides = [
        "model=nano", "plan=timestep", f"stream.chunks={chunks}", f"output_dir={folder}", "device=cpu",
        f"source.image={ROOT / 'assets' / 'portrait.png'}", f"model.recalibrate_chunk={RECALIBRATE}",
    ]  # fmt: skip
    return compose("stream", Config, overrides)


def streamed(plan, config: Config, folder: Path, watch=lambda chunks: None) -> tuple[list[dict], dict]:
    """Run a stream on threads; returns every worker's and the stream's part of the report.

    Args:
        watch: told the number of finished chunks now and then.
    """
    engine = LocalRun(plan, config, folder)
    run_all(engine.pipeline, config)
    engine.start()
    while not engine.pipeline.ended(0):
        if at := engine.pipeline.progress(0):
            watch(at["chunks"])
        time.sleep(WATCH_S)
    return engine.wait(), results(engine.pipeline)[0]


def recalibrated(folder: Path, step_s: float) -> dict:
    """Idle time of the head before the chunk that waits for a new attention sink, nothing else holding it back."""
    config = nano(folder, CHUNKS)
    plan = build(config.plan, describe(config))
    with patch.object(Block, "step", held(step_s, Block.step)):
        workers, _ = streamed(plan, config, folder)
    idle, predicted = (
        head_idle(folder, workers) / step_s,
        max(plan.idle_periods(v) for v in plan.workload.versions),
    )
    rule = f"<= {predicted:.2f} as the plan predicts"
    name = f"head idle before chunk {RECALIBRATE}, recalibrated, steps of {step_s * 1e3:.0f} ms"
    return {name: bar(f"{idle:.2f} periods", rule, idle <= predicted)}


def paced(folder: Path) -> dict:
    """Chunk latency and memory behind a sink twice as slow as a step."""
    config = nano(folder, PACED_CHUNKS)
    plan = build(config.plan, describe(config))
    memory: dict[int, int] = {}
    slow = patch.object(Outputs, "pictures", held(SINK_S, Outputs.pictures))
    with patch.object(Block, "step", held(STEP_S, Block.step)), slow:
        workers, found = streamed(plan, config, folder, lambda at: memory.update({at: resident_bytes()}))
    early = min(at for at in memory if at >= PACED_CHUNKS // 4)
    growth = memory[max(memory)] / memory[early] - 1
    stages = {name: s for r in workers for name, s in r["stages"].items() if name not in ("wait", "send", "prefill")}
    typical = {name: s["time_s"]["p50"] for name, s in stages.items()}
    limit = (sum(typical.values()) + max(typical.values())) * 1.15
    p99 = found["chunk_latency_s"]["p99"]
    return {
        "chunk latency p99 behind a slow sink": bar(
            f"{p99 * 1e3:.0f} ms", f"<= sum of stages + slowest + 15 % = {limit * 1e3:.0f} ms", p99 <= limit
        ),
        "memory behind a slow sink": bar(
            f"{growth:+.2%} from chunk {early} to {max(memory)}", "flat (2 %)", abs(growth) <= 0.02
        ),
        "chunk latency p50 (s)": found["chunk_latency_s"]["p50"],
        "stage times p50 (s)": {name: round(t, 4) for name, t in typical.items()},
    }


def head_idle(folder: Path, workers: list[dict]) -> float:
    """Idle time of the first worker between its steps of chunks e - 1 and e, beyond what it waits anyway, in seconds.

    The chunks after e, in a pipeline that is full and paced alike, say what it waits anyway.
    """
    trace = join_traces(folder, [packed for worker in workers for packed in worker["traces"]])
    events = json.loads(trace.read_text())
    steps = {e["args"]["chunk"]: e for e in events if e["name"] == "step0"}

    def gap(chunk: int) -> float:
        before = steps[chunk - 1]
        return steps[chunk]["ts"] - before["ts"] - before["dur"]

    usual = statistics.median(gap(chunk) for chunk in range(CHUNKS // 2, CHUNKS))
    return max(0.0, gap(RECALIBRATE) - usual) / 1e6


def main() -> bool:
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        measured = gain(folder) | paced(folder / "paced")
        for step_s in (STEP_S, 0.05):
            measured |= recalibrated(folder / f"recalibrated-{step_s}", step_s)
    configuration = {"chunks": CHUNKS, "pairs": PAIRS, "step_s": STEP_S, "sink_s": SINK_S}
    record("pipeline", "python -m benchmarks.pipeline", configuration, measured)
    return all(m["passed"] for m in measured.values() if isinstance(m, dict) and "passed" in m)


if __name__ == "__main__":
    sys.exit(not main())

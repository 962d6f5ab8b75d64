"""Streams that fail, one after the other, beside one that runs: `python -m benchmarks.islands [threads torchrun ray]`.

On one long-lived pipeline per launcher stream `a` runs while streams `b` come and fail by injection
(`benchmarks.faults`): every seam with every error. `a` must be what the oracle makes of it, bit for bit; every `b` must
end with its own error as the reason; nothing may hang. A second pipeline with `clean` context covers the
passes that only it has.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
import wave
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import faults
from benchmarks.launched import ROOT
from benchmarks.record import bar, record
from conf.schema import Config
from launch.cli import compose
from launch.running import start
from runtime.identity import keep_of
from runtime.pipeline import Pipeline

LAUNCHERS = ("threads", "torchrun", "ray")
CONTEXTS = ("same_level", "clean")
CHUNKS, WAIT_S = 4, 60
SPARED = {("save", "OSError"), ("join", "UserError")}
"""What costs no stream: a disk that refuses a state, and parts of a video that stay parts."""
SEAMS_OF = {
    context: [name for name, seam in faults.SEAMS.items() if (seam.needs == "clean") == (context == "clean")]
    for context in CONTEXTS
}


def overrides(context: str, folder: Path) -> list[str]:
    """The run's configuration: everything that a fault may hit is used."""
    return [
        "model=nano",
        f"model.context={context}",
        *(["model.prompt_switch=recache"] if context == "clean" else []),
        "plan=timestep",
        "plan.steps=[2,2]",
        "plan.workers=3",
        "post=upscale",
        "post.scale=2",
        "device=cpu",
        "launcher.timeout_s=60",
        f"output_dir={folder}",
    ]


def configuration(launcher: str, context: str, folder: Path) -> Config:
    """The run that streams come and go on; `control` keeps it open."""
    name = {"threads": "local"}.get(launcher, launcher)
    return compose("stream", Config, [*overrides(context, folder), f"launcher={name}"])


class Scenario:
    """Streams on a pipeline, one of which runs throughout.

    Args:
        pipeline: of running workers.
        config: the run.
        folder: for what streams write.
    """

    def __init__(self, pipeline: Pipeline, config: Config, folder: Path):
        self.pipeline, self.config, self.folder = pipeline, config, folder
        self.files = {"audio": str(folder / "sound.wav"), "actions": str(folder / "actions.jsonl")}
        with wave.open(self.files["audio"], "wb") as file:
            file.setparams((1, 2, 16000, 0, "NONE", ""))
            file.writeframes((np.sin(np.arange(16000 * 8) / 20) * 9000).astype("<i2").tobytes())
        Path(self.files["actions"]).write_text('{"frame": 0, "action": "forward"}\n')

    def run(self, seams: list[str]) -> dict[str, Any]:
        """Stream `a` and all that fail beside it; returns its chunks and hash, and what went wrong."""
        config = self.config
        plain = replace(config.sink, video=None)
        a = self.pipeline.open(replace(config.stream, id="a", seed=1), config.source, plain)
        wrong, count = [], 0
        for seam in seams:
            for error in faults.ERRORS:
                count += 1
                if found := self._one(seam, error):
                    wrong.append(found)
                    print(f"wrong  {found}", flush=True)
        self.pipeline.stop(a)
        result = self.pipeline.result(a, WAIT_S)
        return {"chunks": result["chunks"], "hash": result["latents_sha256"], "streams": count, "wrong": wrong}

    def _one(self, seam: str, error: str) -> str:
        """A stream that fails at a seam; returns what is wrong with how it ended, or nothing."""
        needs, name = faults.SEAMS[seam].needs, faults.name_of(seam, error)
        try:
            number = self._open(name, seam, needs)
            if needs == "prompt":
                self._until(number, 1)
                self.pipeline.prompt(number, "a happy person")
            if needs == "stop":
                self._until(number, 1)
                self.pipeline.stop(number)
            report = self.pipeline.report(number, WAIT_S)
        except Exception as unexpected:
            return f"{name}: {type(unexpected).__name__}: {unexpected}"
        reason = report.get("error")
        if (seam, error) in SPARED:
            return "" if report["finished"] and reason is None else f"{name}: should have gone on, says {reason}"
        if reason is None:
            return f"{name}: ended without a reason, {report['chunks']} chunks"
        if reason["kind"] != error or f"fault at {seam}" not in reason["line"]:
            return f"{name}: says {reason['kind']}: {reason['line']}"
        return ""

    def _open(self, name: str, seam: str, needs: str) -> int:
        config = self.config
        stream = replace(config.stream, id=name, chunks=None if needs in ("prompt", "stop") else CHUNKS)
        stream = replace(stream, prompt="a neutral person", events=[])
        if seam == "recache":
            stream = replace(stream, events=[type_event(2)])
        image = str(ROOT / "assets" / "portrait.png")
        source = replace(config.source, image=image, **self.files)
        if seam == "tensors":
            source = replace(source, tensors=str(self._tensors()))
        sink = replace(
            config.sink, video=str(self.folder / f"{name}.mp4"), latents=str(self.folder / f"{name}.safetensors"),
            frames=str(self.folder / f"{name}.png"), contact_sheet=str(self.folder / f"{name}.sheet.png"),
        )  # fmt: skip
        keep = None
        if needs == "saving":
            stream = replace(stream, save_every_chunks=2)
            keep = keep_of(config, stream, sink, name)
        if needs == "resuming":
            sound = replace(stream, save_every_chunks=2)
            first = self.pipeline.open(sound, source, sink, keep_of(config, sound, sink, name))
            self.pipeline.result(first, WAIT_S)
            stream = replace(sound, chunks=CHUNKS + 2)
            keep = keep_of(config, stream, sink, name, str(self.folder))
        return self.pipeline.open(stream, source, sink, keep)

    def _tensors(self) -> Path:
        from safetensors.torch import save_file
        from torch import zeros

        path = self.folder / "given.safetensors"
        if not path.exists():
            save_file({"context": zeros(1, 4, self.config.model.network.text_dim)}, path)
        return path

    def _until(self, stream: int, chunks: int) -> None:
        end = time.monotonic() + WAIT_S
        while not self.pipeline.ended(stream) and time.monotonic() < end:
            if (self.pipeline.progress(stream) or {"chunks": 0})["chunks"] >= chunks:
                return
            time.sleep(0.02)


def type_event(chunk: int) -> Any:
    """A prompt that changes at a chunk."""
    from conf.schema import Event

    return Event(chunk, "a happy person")


def scenario(launcher: str, context: str, folder: Path) -> None:
    """Run it in this process (under torchrun in every rank), and write what came of it to `result.json`."""
    faults.arm()
    config = configuration(launcher, context, folder)
    with start(config) as running:
        if running.leads:
            found = Scenario(running.pipeline, config, folder).run(SEAMS_OF[context])
            (folder / "result.json").write_text(json.dumps(found))
            running.close()
        running.wait()


def launched(launcher: str, context: str, folder: Path) -> dict[str, Any]:
    """The scenario's result, in processes of its own."""
    folder.mkdir(parents=True)
    module = ["-m", "benchmarks.islands", "--scenario", launcher, context, str(folder)]
    command = [sys.executable, *module]
    if launcher == "torchrun":
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=3", *module]
    environment = faults.in_children(folder / "hook") if launcher == "ray" else dict(os.environ)
    done = subprocess.run(
        command, cwd=ROOT, env=environment | {"OMP_NUM_THREADS": "1"}, stderr=subprocess.PIPE, text=True, timeout=1800
    )
    if done.returncode or not (folder / "result.json").exists():
        raise SystemExit(f"{launcher} {context} failed ({done.returncode}):\n{done.stderr[-4000:]}")
    return json.loads((folder / "result.json").read_text())


def oracle(context: str, chunks: int, folder: Path) -> str:
    """The hash of stream `a` alone, by the sequential loop."""
    given = [
        *overrides(context, folder)[: 3 if context == "clean" else 2], "device=cpu", f"output_dir={folder}",
        "stream.id=a", "stream.seed=1", f"stream.chunks={chunks}", "sink.video=null",
    ]  # fmt: skip
    subprocess.run([sys.executable, "-m", "launch.stream", *given], cwd=ROOT, check=True, capture_output=True)
    return json.loads((folder / "report.json").read_text())["latents_sha256"]


def measure(launchers: list[str], folder: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """(name, what came of it) of every launcher and context."""
    for launcher in launchers:
        for context in CONTEXTS:
            found = launched(launcher, context, folder / f"{launcher}-{context}")
            alone = oracle(context, found["chunks"], folder / f"oracle-{launcher}-{context}")
            yield f"{launcher}, {context}", found | {"exact": found.pop("hash") == alone}


def main() -> None:
    """Measure, record, print the bars."""
    if sys.argv[1:2] == ["--scenario"]:
        scenario(sys.argv[2], sys.argv[3], Path(sys.argv[4]))
        return
    launchers = sys.argv[1:] or list(LAUNCHERS)
    with tempfile.TemporaryDirectory() as folder:
        measured = {}
        for name, found in measure(launchers, Path(folder)):
            good = found["exact"] and not found["wrong"]
            rule = "every stream ends by its own error, and the one beside them is the oracle's"
            said = f"{found['streams'] - len(found['wrong'])} of {found['streams']}, exact: {found['exact']}"
            measured[name] = bar(said, rule, good) | found
            print(f"{'pass' if good else 'MISS'}  {name}: {said}", flush=True)
        seams = {"seams": len(faults.SEAMS), "errors": list(faults.ERRORS)}
        record("islands", "python -m benchmarks.islands " + " ".join(launchers), seams, measured)


if __name__ == "__main__":
    main()

"""The main job: `python -m launch.stream model=pocket_avatar source.image=face.png source.audio=speech.wav`."""

from __future__ import annotations

import logging
import sys
from pathlib import Path

from rich.console import Console

from conf.errors import UserError
from conf.schema import Config
from launch.cli import run
from launch.progress import ProgressLine
from launch.signals import stop_event
from parallel import capability
from runtime.report import write_json
from runtime.run import SequentialRun


def _folder(config: Config) -> Path:
    folder = Path(config.output_dir)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"output_dir={folder}", f"cannot be made ({error.strerror})", "give a folder you may write to"
        ) from error
    return folder


def stream(config: Config, resolved: str) -> None:
    """Run every stream of a configuration and say where the results are."""
    console = Console(stderr=True)
    capability.check(config.model.context, config.plan.name, config.launcher.name)
    with stop_event() as stop:
        engine = SequentialRun(config, stop)
        if config.model.checkpoint is None:
            console.print(f"model={config.model.name} has random weights: expect noise, not pictures", style="yellow")
        folder = _folder(config)
        (folder / "config.yaml").write_text(resolved)
        reports = []
        for index in range(config.stream.count):
            label = config.model.name if config.stream.count == 1 else f"{config.model.name} stream {index}"
            running = engine.stream(index, folder)
            with ProgressLine(label, running.length, console) as line:
                for timeline in running:
                    line(timeline)
            reports.append(running.report())
            content = reports[0] if config.stream.count == 1 else {"streams": reports}
            write_json(folder / "report.json", content)
    print(f"report: {folder / 'report.json'}")
    print(f"trace: {folder / 'trace.json'}")
    for found in reports:
        for name, path in found["outputs"].items():
            print(f"{name.replace('_', ' ')}: {path}")
        print(f"latents_sha256: {found['latents_sha256']}")


def main(argv: list[str] | None = None) -> int:
    """The entry point; returns the exit code."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    return run("stream", Config, stream, argv)


if __name__ == "__main__":
    sys.exit(main())

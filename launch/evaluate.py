"""Evaluation of a trained model of this repository.

Streams held-out cases with the sequential oracle, reads them with hand-written estimators (which are checked first),
and prints every bar. Leaves `evaluation.json` and `drift.png` in `output_dir`. With `compare_rules=true` it streams
long held-out cases under every published rule of what a chunk attends to instead, and leaves `rules.json`, `rules.png`
and `rules-strip.png`, anew after every segment.
"""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from conf import disk
from conf.schema import Config, SinkConfig
from conf.schema.evaluate import EvaluateConfig
from launch.cli import run
from launch.command import Command

COMMAND = Command("evaluate", __doc__, schema=EvaluateConfig)
LEFT = ("evaluation.json", "drift.png", "rules.json", "rules.png", "rules-strip.png")
"""What it leaves beside its configuration."""
VERDICT = {True: "met", False: "[bold red]missed[/]", None: "not judged"}


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for i, column in enumerate(columns):
        table.add_column(column, justify="right" if i else "left")
    return table


def _print(report: dict[str, Any], console: Console) -> None:
    scores = report["estimators"]
    table = _table("Estimators on held-out clips of the generator (0.98 needed as drawn)", "estimator", *scores)
    for name in scores["drawn"]:
        table.add_row(name, *(_number(s[name]) for s in scores.values()))
    console.print(table)
    runs = [report["student"], *([report["compare"]] if "compare" in report else [])]
    verdicts = report.get("verdicts", {})
    heads = ["student", "compared", "student is"][: 1 + 2 * ("compare" in report)]
    table = _table(f"{report['model']}: numbers", "number", *heads)
    for name in runs[0]["numbers"]:
        cells = [_number(r["numbers"].get(name)) for r in runs] + [verdicts.get(name, "")] * ("compare" in report)
        table.add_row(name, *cells)
    console.print(table)
    table = _table(f"{report['model']}: bars", "bar", "rule", "value", "verdict")
    for bar in report["bars"]:
        table.add_row(bar["name"], bar["rule"], _number(bar["value"]), VERDICT[bar["met"]])
    if verdicts:
        worse = [name for name, verdict in verdicts.items() if verdict == "worse"]
        better = sum(verdict == "better" for verdict in verdicts.values())
        table.add_row("beats the compared weights", "nowhere worse", f"{better} better", VERDICT[not worse])
    console.print(table)


def _print_rules(report: dict[str, Any], console: Console) -> None:
    runs = [rule for rule in report["rules"] if "seen" in rule]
    title = f"{report['model']}, {report['minutes']:g} min under each rule (* trained for): what "
    for part, what in (("seen", "is seen"), ("costs", "it costs")):
        table = _table(title + what, "rule", *runs[0][part])
        for rule in runs:
            table.add_row(rule["name"] + " *" * rule["trained"], *map(_number, rule[part].values()))
        console.print(table)
    for rule in report["rules"]:
        if "cannot" in rule:
            console.print(f"{rule['name']} cannot run: {rule['cannot']}")
    if report["left out"]:
        console.print(f"left out: {report['left out']}", style="yellow")


def _plot(report: dict[str, Any], config: EvaluateConfig, path: Path) -> bool:
    """Segments of the long streams over time; whether there were any."""
    from distill.evaluate import plots

    lines: dict[str, dict[str, tuple[list[float], list[float]]]] = {}
    for who in ("student", "compare"):
        for number, stream in enumerate(report.get(who, {}).get("long", ())):
            for name, values in stream["segments"].items():
                times = [(i + 1) * config.segment_s / 60 for i in range(len(values))]
                if len(values) > 1:
                    lines.setdefault(name, {})[f"{who} {number + 1}"] = times, values
    if lines:
        plots.stack(path, [plots.draw(name, of, "minutes") for name, of in lines.items()])
    return bool(lines)


def _plot_rules(report: dict[str, Any], path: Path) -> None:
    """Segments of every rule's first stream over time."""
    from distill.evaluate import plots

    runs = [rule for rule in report["rules"] if "seen" in rule]
    drawn = [plots.key([rule["name"] for rule in runs])]
    for name in runs[0]["segments"][0]:
        lines = {rule["name"]: rule["segments"][0][name] for rule in runs}
        per = report["segment_s"] / 60
        lines = {rule: ([(i + 1) * per for i in range(len(values))], values) for rule, values in lines.items()}
        drawn.append(plots.draw(name, lines, "minutes", named=False))
    plots.stack(path, drawn)


def _compare_rules(config: EvaluateConfig, given: str, folder: Path, console: Console) -> None:
    from distill.evaluate import plots
    from distill.evaluate.side_by_side import AT, SideBySide
    from runtime.oracle import generate

    file, plot, strip = (folder / name for name in LEFT[2:])
    heads = [f"{at * config.minutes:g} min" for at in AT]
    both = SideBySide(config, generate, lambda text: console.print(text, style="dim", soft_wrap=True))

    def keep(part: dict[str, Any]) -> None:
        disk.write_text(given, file, json.dumps(part, indent=1))
        with disk.writing(given, plot.name):
            _plot_rules(part, plot)
            rows = both.strips()
            plots.strip(strip, rows, heads[: max(map(len, rows.values()))])

    _print_rules(both(keep), console)
    print(f"report: {file}\nplot: {plot}\nfilm strips: {strip}")


def evaluate(config: EvaluateConfig, resolved: str) -> None:
    """Run an evaluation and say where its results are."""
    import torch

    from launch.folder import claimed, look

    torch.set_num_threads(config.threads)
    console = Console()
    whose = Config(model=config.model, output_dir=config.output_dir, sink=SinkConfig(video=None))
    look(whose, LEFT)
    if config.model.checkpoint is None:
        console.print(f"model={config.model.name} has random weights: expect noise", style="yellow")
    with claimed(whose, LEFT) as folder:
        given = f"output_dir={folder}"
        disk.write_text(given, folder / "config.yaml", resolved)
        (_compare_rules if config.compare_rules else _judge)(config, given, folder, console)


def _judge(config: EvaluateConfig, given: str, folder: Path, console: Console) -> None:
    from distill.evaluate.whole import Evaluation
    from runtime.oracle import generate

    file, plot = (folder / name for name in LEFT[:2])
    evaluation = Evaluation(config, generate, lambda text: console.print(text, style="dim", soft_wrap=True))
    # An hour of streams may be cut off: what there is after each part is kept.
    report = evaluation(lambda part: disk.write_text(given, file, json.dumps(part, indent=1)))
    _print(report, console)
    print(f"report: {file}")
    with disk.writing(given, plot.name):
        if _plot(report, config, plot):
            print(f"plot: {plot}")


def main(argv: list[str] | None = None) -> int:
    """The entry point; returns the exit code."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    return run(COMMAND, evaluate, argv, "evaluate")


if __name__ == "__main__":
    sys.exit(main())

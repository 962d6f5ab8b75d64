"""What a checkpoint is, and what it would take to run it.

PATH is a file, a folder, or a name of the Hugging Face hub that is in its cache. Prints its family, sizes, types and
parts, the licence that its folder states, which of its keys the model does not know or lacks, and, with the overrides
that `launch.stream` takes, what every worker of a plan would hold (`plan=layers plan.workers=9`), whether that fits a
cluster (`cluster=h100x5`), and what a LoRA adapts (`model.lora=FILE`). Reads headers, not weights. What is known and
nothing here runs is refused by the line that `launch.stream` has for it, with exit code 2.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from conf import families, hub, published
from conf.errors import UserError
from conf.paths import is_folder, is_there
from conf.schema import Config, ModelConfig
from launch import plan as plans
from launch import planning, ranking
from launch.cli import EXIT_USER_ERROR, compose, run
from launch.command import Command
from launch.figures import human
from parallel.builders import build
from parallel.planner import assess, check_devices, choose, too_big
from parallel.simulated import simulated
from stages.build import rename_of, whole
from stages.file_kinds import LORA, FileKind, kind_of, refusal
from stages.inputs import inputs_of, made_of
from stages.lora import PARAMETERS, Lora, role_of
from stages.weight_file import WeightFile
from stages.weights import IGNORED, first

COMMAND = Command("inspect", __doc__, usage="PATH [KEY=VALUE ...]", schema=Config)
WIDTHS = {"dim": "width", "ffn_dim": "feed-forward"}


class Contents:
    """A weight file and its kind.

    Raises:
        UserError: it is no weight file, of no kind that is known here, or of one that nothing here runs.
    """

    def __init__(self, path: str):
        self.path = path = hub.found(path)
        raw = WeightFile(path, "PATH")
        kind = kind_of({key: e.shape for key, e in raw.entries.items()})
        if kind is None:
            raise UserError(
                path,
                f"is of no family known here ({len(raw.entries)} keys: {first(raw.entries)})",
                "give a network of a known family, a codec, a text or audio encoder, or a LoRA",
            )
        if kind.refused:
            raise refusal(raw.name, kind)
        self.kind: FileKind = kind
        self.entries = WeightFile(path, "PATH", kind.rename).entries
        self.shapes = {name: e.shape for name, e in self.entries.items()}

    @property
    def configured(self) -> bool:
        """Whether a config.json tells its sizes."""
        return is_folder(self.path) and bool(published.said(self.path))

    def overrides(self, given: list[str]) -> list[str]:
        """The command line of `launch.stream` that runs it: its model, and its sizes where no config.json says them."""
        sizes = self.kind.sizes(self.shapes)
        name = self.kind.models[0]
        for model in self.kind.models:
            if compose("stream", Config, [f"model={model}"]).model.network.dim == sizes.get("dim"):
                name = model
        told = self._told(name, sizes)
        own = [f"model.network.{k}={v}".replace(" ", "") for k, v in sizes.items() if k not in told]
        named = [] if any(g.startswith("model=") for g in given) else [f"model={name}"]
        return [*named, *own, f"model.checkpoint={self.path}", *given]

    def _told(self, model: str, sizes: Collection[str]) -> Collection[str]:
        """Those of some sizes of a model's network that a config.json tells."""
        if not self.configured:
            return ()
        family = compose("stream", Config, [f"model={model}"]).model.family
        tell = families.needed(families.FAMILIES, family, "sizes").published
        with suppress(UserError):  # whoever reads it for the model says so
            return tell(published.said(self.path))
        return sizes

    def rows(self) -> dict[str, str]:
        """What it is, in a few lines; empty ones are not known."""
        count, size = Counter(), Counter()
        for entry in self.entries.values():
            count[entry.dtype] += entry.shape.numel()
            size[entry.dtype] += entry.nbytes
        types = (f"{_named(t)} {_count(n)} ({human(size[t])})" for t, n in count.most_common())
        files = {entry.file for entry in self.entries.values()}
        licence = published.licence(self.path)
        saved = self.kind.saved(entry.key for entry in self.entries.values())
        rules = ", ".join(f"model={name}" for name in self.kind.others)
        return {
            "family": self.kind.name,
            "files": f"{len(files)}, {human(sum(f.stat().st_size for f in files))}",
            "keys": str(len(self.entries)),
            "parameters": ", ".join(types),
            "saved as": f"{saved}; if it was trained for that: {rules}" if saved else "",
            "licence": licence or "",
        } | self.kind.rows(self.shapes)


def _named(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _count(parameters: int) -> str:
    return human(parameters).removesuffix("B").strip().replace("G", "B").replace("k", "K")


def model_rows(contents: Contents, model: ModelConfig) -> dict[str, str]:
    """Of a network: its sizes, what of it does not fit the model, and the other parts in its folder."""
    network, known = model.network, whole(model)
    unknown = [e.key for name, e in contents.entries.items() if name not in known and not IGNORED.fullmatch(name)]
    missing = [name for name in known if name not in contents.entries]
    shapes = [
        f"{e.key} {list(e.shape)} instead of {list(known[name])}"
        for name, e in contents.entries.items()
        if name in known and e.shape != known[name]
    ]
    prompt = made_of(inputs_of(model), "prompt")
    widths = ", ".join(f"{WIDTHS.get(name, name)} {n}" for name, n in network.widths.items())
    found = {
        "model": f"{model.name} ({model.context}, {model.step_count} steps, window {model.window_frames})",
        "sizes": f"{network.layers} layers, {widths}, {network.heads} heads"
        + ("" if contents.configured else " (not told by shapes: assumed)")
        + (f", text {prompt.shape[1]} x {prompt.shape[0]}" if prompt else ""),
    }
    for what, names in (("unknown keys", unknown), ("missing keys", missing), ("other shapes", shapes)):
        found[what] = f"{len(names)}: {first(names)}" if names else "none"
    for name in published.parts() if is_folder(contents.path) else ():
        found[name.replace("_", " ")] = str(published.part(contents.path, name) or "not in the folder")
    if model.codec.checkpoint:
        found["codec"] = model.codec.checkpoint
    for config in model.lora or []:
        found[f"lora {Path(config.path).name}"] = lora(Lora(config, known, model.lora_alpha, rename_of(model)))
    return found


def lora(adapter: Lora) -> str:
    """What an adapter changes, and by which factors."""
    scales = Counter(round(pair.scale, 4) for pair in adapter.pairs.values())
    ranks = Counter(adapter.file.entries[pair.a].shape[0] for pair in adapter.pairs.values())
    counted = [
        (adapter.pairs, f"{len(adapter.pairs)} weights, rank {_listed(ranks)}, scale {_listed(scales)}"),
        (adapter.differences, f"{len(adapter.differences)} whole differences"),
        (adapter.skipped, f"{len(adapter.skipped)} keys for parts that the model does not have"),
    ]
    return ", ".join(said for some, said in counted if some)


def _listed(counts: Counter) -> str:
    return ", ".join(str(value) for value, _ in counts.most_common(3)) + (", ..." if len(counts) > 3 else "")


def _table(rows: dict[str, str]) -> Table:
    table = Table.grid(padding=(0, 2))
    for name, value in rows.items():
        if value:
            table.add_row(name, value)
    return table


def _fit(config: Config, console: Console) -> None:
    """What every worker holds, and whether that fits: on a named cluster, and for `plan=auto` on this machine."""
    workload = planning.workload_of(config)
    if not config.cluster.named and config.plan.name != "auto":
        console.print(plans.workers(build(config.plan, workload), config.stream.count))
        return
    cluster, demand = planning.cluster_of(config), planning.demand(config)
    check_devices(config.plan.devices, len(cluster.devices), cluster.name)
    if config.plan.name == "auto":
        try:
            choice = choose(workload, cluster, demand, config.objective, config.plan, simulated)
        except UserError as error:
            console.print(f"Does not fit cluster={cluster.name}: {error}")
            return
    else:
        choice = assess(config.plan, workload, cluster, demand)
    console.print(f"plan: {ranking.overrides(choice)}\n")
    console.print(ranking.devices(choice, cluster))
    if choice.short > 0:
        console.print(f"Does not fit cluster={cluster.name}: {too_big(choice, cluster)}")
    else:
        console.print(f"Fits cluster={cluster.name}.")


def job(contents: Contents, config: Config, console: Console) -> None:
    """Print what is known of a network's checkpoint."""
    console.print(_table(contents.rows() | model_rows(contents, config.model)))
    console.print()
    _fit(config, console)


def part_rows(contents: Contents) -> dict[str, str]:
    """Of a file that is a part of a model."""
    if contents.kind.name == LORA:
        roles = Counter(role_of(key)[1] for key in contents.shapes)
        ranks = Counter(s[0] for key, s in contents.shapes.items() if role_of(key)[1] == "A" and s)
        return {
            "adapts": f"{roles['A']} weights, rank {_listed(ranks)}",
            "whole differences": str(sum(roles[role] for role in PARAMETERS)),
        }
    return {}


def main(argv: list[str] | None = None) -> int:
    """The entry point; returns the exit code."""
    arguments = sys.argv[1:] if argv is None else argv
    console = Console(highlight=False, markup=False, soft_wrap=True)
    console.width = plans.COLUMNS if not console.is_terminal else console.width
    paths = [a for a in arguments if "=" not in a or is_there(a)]
    given = [a for a in arguments if a not in paths]
    try:
        if COMMAND.answers(arguments):
            return 0
        if len(paths) != 1:
            raise UserError("launch.inspect " + " ".join(paths), "takes one PATH", "name a weight file or a folder")
        contents = Contents(paths[0])
        if not contents.kind.models:
            console.print(_table(contents.rows() | part_rows(contents)))
            return 0
        overrides = contents.overrides(given)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_USER_ERROR
    if any(g.startswith("cluster=") for g in given) and not any(g.startswith("plan=") for g in given):
        overrides.append("plan=auto")
    return run(COMMAND, lambda config, resolved: job(contents, config, console), overrides)


if __name__ == "__main__":
    sys.exit(main())

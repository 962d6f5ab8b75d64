"""Cluster files: found by name or path, joined with what was measured, or made up for an emulated machine."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from conf.errors import UserError, nearest
from conf.schema import ClusterConfig, Config
from conf.schema.cluster import DeviceGroup, DeviceKind, Link, StageTimes

CONF = Path(__file__).parent.parent / "conf" / "cluster"
GLOO = Link(latency_s=1.0e-3, bandwidth=1.0e9)
"""Between processes of one machine without GPUs, message handling included."""
NOISE_S = 3e-3
"""Drawing 14B-sized noise for a chunk, on one core of such a machine."""
KEYS = ("name", "note", "kinds", "host_bytes", "devices", "intra", "inter", "times")


def arguments(given: list[str]) -> list[str]:
    """`cluster=FILE.yaml` as Hydra takes it: a group has names, not paths."""
    return [f"cluster.file={a[len('cluster=') :]}" if _is_file(a) else a for a in given]


def _is_file(argument: str) -> bool:
    return argument.startswith("cluster=") and argument.endswith((".yaml", ".yml"))


def load(config: ClusterConfig) -> ClusterConfig:
    """A cluster with its file, if it is one of the user's own, and what was measured.

    Of measured files, times go before those of the cluster; kinds, devices and links replace its own.

    Raises:
        UserError: a file is missing, no YAML, or has keys or values of another kind.
    """
    found = OmegaConf.structured(config)
    if config.file is not None:
        found = _merged(found, _read(config.file, f"cluster={config.file}"), config.file)
    for path in reversed(config.measured):
        new = _read(path, f"cluster.measured=[{path}]")
        times = [*(new.get("times") or []), *OmegaConf.to_container(found.times)]
        found = _merged(found, new | {"times": times}, path)
    return OmegaConf.to_object(found)


def _read(path: str, asked: str) -> dict[str, Any]:
    """A cluster file or a part of one.

    Args:
        asked: what named it, with its value.
    """
    try:
        # References are resolved here: one that leads to itself is found while the file's name is at hand.
        content = OmegaConf.to_container(OmegaConf.load(path), resolve=True)
    except FileNotFoundError as error:
        names = sorted(p.stem for p in CONF.glob("*.yaml"))
        raise UserError(asked, "there is no such file", nearest(Path(path).stem, names)) from error
    except RecursionError as error:
        rule = "cannot be read as YAML (it is nested too deep, or holds itself)"
        raise UserError(asked, rule, "see docs/planner.md") from error
    except (OSError, ValueError, YAMLError, OmegaConfBaseException) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(asked, f"cannot be read as YAML ({reason})", "see docs/planner.md") from error
    if not isinstance(content, dict):
        raise UserError(asked, f"has no keys such as {', '.join(KEYS)}", "see docs/planner.md")
    # A file in conf/cluster may build on another of them, which only Hydra follows.
    bases = content.pop("defaults", [])
    if not isinstance(bases, list):
        raise UserError(f"{path}: defaults", "is a list of cluster files to build on", "see docs/planner.md")
    for base in reversed(bases):
        if isinstance(base, str) and base != "_self_":
            content = _read(str(CONF / f"{base}.yaml"), f"{path}: defaults: {base}") | content
    for key in content:
        if key not in KEYS:
            raise UserError(f"{path}: {key}", "is no part of a cluster file", nearest(key, KEYS))
    return content


def _merged(found: Any, new: dict[str, Any], path: str) -> Any:
    try:
        return OmegaConf.merge(found, new)
    except OmegaConfBaseException as error:
        key = getattr(error, "full_key", None) or "?"
        raise UserError(f"{path}: {key}", str(error).splitlines()[0], "see docs/planner.md") from error


def emulated(config: Config, count: int) -> ClusterConfig:
    """The cluster that `device=emulated` is, with links as they are between processes of this machine."""
    e = config.device.emulated
    speeds = [e.speeds[i] if i < len(e.speeds) else 1.0 for i in range(count)]
    times = StageTimes(
        model=config.model.name,
        kind="emulated",
        source="device.emulated",
        layer_s=e.layers_s,
        step_s=e.step_s if e.layers_s is None else None,
        commit_s=e.commit_s,
        prefill_s=e.prefill_s,
        # Drawing a chunk's noise is real work on an emulated device, too.
        sample_s=NOISE_S,
        encode_s=e.encode_s,
        decode_s=e.decode_s,
        post_s=e.post_s,
        output_s=e.output_s,
    )
    return ClusterConfig(
        name="emulated",
        kinds={"emulated": DeviceKind(memory_bytes=1e15)},
        devices=[DeviceGroup("emulated", speed=speed) for speed in speeds],
        intra=GLOO,
        inter=GLOO,
        times=[_shared(times, degree) for degree in range(1, count + 1)],
    )


def _shared(times: StageTimes, degree: int) -> StageTimes:
    """Times of passes that so many processes share, as emulated devices do: in equal parts, and nothing else."""

    def part(seconds: float | None) -> float | None:
        return None if seconds is None else seconds / degree

    layers = None if times.layer_s is None else [part(seconds) for seconds in times.layer_s]
    passes = {"step_s": part(times.step_s), "commit_s": part(times.commit_s), "prefill_s": part(times.prefill_s)}
    return replace(times, degree=degree, layer_s=layers, **passes)

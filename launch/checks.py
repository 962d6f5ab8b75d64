"""What one worker can say of its own machine before a run: value, rule and remedy of each. Leaves nothing behind."""

from __future__ import annotations

import fcntl
import hashlib
import math
import os
import re
import shutil
import socket
import struct
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

import devices
from conf import disk
from conf.errors import UserError
from conf.paths import is_there
from conf.schema import Config
from launch.places import said
from parallel.plan import Plan
from parallel.transport import NCCL, Place, by_nccl, of_channels, refuse
from runtime.fast import require
from stages.sinks.video import VideoSink

ROOT = Path(__file__).parents[1]
PACKAGES = ("conf", "devices", "everframe", "launch", "parallel", "runtime", "serve", "stages")
SHARED_BYTES = 250_000_000
"""Of shared memory: NCCL's rings of a process and Ray's object store, as the batch scripts start it."""
DISK_BYTES = 1_000_000_000
"""Of disk: some hours of video."""
DRIVER = Path("/proc/driver/nvidia/version")
SIOCGIFADDR = 0x8915
"""Linux: asks for an interface's IPv4 address."""


class Finding(NamedTuple):
    """One line of a check.

    Attributes:
        what: was looked at.
        value: what was found.
        rule: what is right.
        remedy: what to do; empty where the rule is kept.
    """

    what: str
    value: str
    rule: str
    remedy: str = ""

    @property
    def ok(self) -> bool:
        return not self.remedy


def fingerprint() -> str:
    """Version of this Everframe, and a digest of all its code and settings: two checkouts may have one version."""
    digest = hashlib.sha256()
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*")):
            if path.suffix in (".py", ".yaml"):
                digest.update(str(path.relative_to(ROOT)).encode() + b"\0" + path.read_bytes() + b"\0")
    try:
        number = version("everframe")
    except PackageNotFoundError:
        number = "checkout"
    return f"{number} ({digest.hexdigest()[:12]}), torch {torch.__version__}"


def local(config: Config, decodes: bool, device: torch.device | None = None) -> list[Finding]:
    """Everything that needs nobody else.

    Args:
        decodes: whether this worker writes the video.
        device: this worker's; None: what the configuration means here.
    """
    checks: list[Callable[[], Finding]] = [
        lambda: _device(config, device),
        lambda: _fast(config, device),
        _driver,
        _cuda,
        _nccl,
        *_networks(),
    ]
    checks += [_shared_memory, lambda: _output(config), lambda: _disk(config)]
    if decodes and config.sink.video:
        checks.append(_encoder)
    return [check() for check in checks]


def shared(plan: Plan, cards: Sequence[str], transport: str | None, libraries: Sequence[str]) -> list[Finding]:
    """Who is to compute where, and how they reach each other.

    Args:
        cards: the GPU of every process, by a name of its own; empty: not all have one.
        transport: `launcher.transport`; None: workers are threads, which hand tensors over.
        libraries: version of NCCL of every process; empty: none.
    """
    value = said(plan, cards) or f"none for {plan.processes} worker{'s' * (plan.processes > 1)}"
    found = [Finding("GPUs", value, "who computes most has one of its own")]
    if transport == NCCL and not cards:
        value = "launcher.transport=nccl: joins GPUs, and not every worker has one"
        return [*found, Finding("transport", value, "goes between all workers", "use launcher.transport=auto")]
    if not cards or transport is None or plan.processes == 1:
        return found
    places = [Place(card, library) for card, library in zip(cards, libraries, strict=True)]
    ways: dict[str, set[bool]] = {}
    for hop in plan.hops:
        ends = [places[plan.group(worker)[0]] for worker in (hop.source, hop.target)]
        if hop.bytes:
            ways.setdefault(hop.what, set()).add(by_nccl(of_channels(plan, transport), ends, hop.bytes))
    for worker in range(plan.workers):
        if len(group := plan.group(worker)) > 1:
            ways.setdefault("shared passes", set()).add(by_nccl(transport, [places[p] for p in group], math.inf))
    named = {True: "by NCCL", False: "through hosts"}
    value = ", ".join(f"{what} {' or '.join(named[way] for way in sorted(how))}" for what, how in ways.items())
    try:
        if transport == NCCL:
            refuse(plan, places)
    except UserError as error:
        return [*found, Finding("transport", f"{error.value}: {error.rule}", "goes between all workers", error.remedy)]
    rule = "by NCCL where it can go and bodies are large" if transport == "auto" else f"launcher.transport={transport}"
    return [*found, Finding("transport", value, rule)]


def _device(config: Config, device: torch.device | None) -> Finding:
    rule = "computes"
    try:
        device = devices.choose(config.device.kind) if device is None else device
        ones = torch.ones(64, 64, device=device)
        assert (ones @ ones).sum().item() == 64**3
    except UserError as error:
        return Finding("device", error.value, error.rule, error.remedy)
    except (RuntimeError, AssertionError) as error:
        return Finding("device", f"{device}: {str(error).splitlines()[0]}", rule, "see nvidia-smi and the driver")
    if total := devices.of(device).total_bytes():
        return Finding("device", f"{device.type}, {devices.of(device).title()}, {size(total)}", rule)
    value = f"cpu, {config.device.threads} of {os.cpu_count()} processors"
    if config.device.kind == "auto" and (idle := devices.idle_gpu()):
        return Finding("device", f"{value}; {idle[0]}", "a GPU where there is one", idle[1])
    return Finding("device", value, rule)


def _fast(config: Config, device: torch.device | None) -> Finding:
    """Attention, compiled regions and graphs, as they are asked for."""
    rule = "can be done by the device"
    try:
        if config.device.kind != "emulated":
            require(config, devices.choose(config.device.kind) if device is None else device)
    except UserError as error:
        return Finding("speed", f"{error.value}: {error.rule}", rule, error.remedy)
    model, asked = config.model, config.device
    value = f"attention={model.attention}, compile={asked.compile}, graphs={asked.graphs}"
    return Finding("speed", value, rule)


def _driver(path: Path = DRIVER) -> Finding:
    try:
        found = re.search(r"\b(\d{3}(\.\d+)+)\b", path.read_text())
    except OSError:
        found = None
    return Finding("GPU driver", found[1] if found else "none", "needed for GPUs alone")


def _cuda() -> Finding:
    return Finding("CUDA", f"torch {torch.__version__}, CUDA {torch.version.cuda or 'none'}", "needed for GPUs alone")


def _nccl() -> Finding:
    return Finding("NCCL", devices.nccl_version() or "none", "joins GPUs, where there are several")


def interfaces() -> dict[str, str]:
    """IPv4 address of every network interface that has one, by its name."""
    found = {}
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for _, name in socket.if_nameindex():
            with suppress(OSError):
                told = fcntl.ioctl(probe, SIOCGIFADDR, struct.pack("256s", name[:15].encode()))
                found[name] = socket.inet_ntoa(told[20:24])
    return found


def _networks() -> Iterator[Callable[[], Finding]]:
    there = interfaces()
    yield lambda: _network("gloo", there, "the one from which the first host is reached", str.__eq__)
    # NCCL's setting has other forms, too (`^docker`, `=eth0:1`), which are for NCCL to judge.
    yield lambda: _network("NCCL", there, "one that is neither lo nor docker's", str.startswith)


def _network(library: str, there: dict[str, str], default: str, fits: Callable[[str, str], bool]) -> Finding:
    """Which interface of those that are `there` a library takes; `fits`: whether what its setting says means one."""
    what, variable, rule = f"{library} network", f"{library.upper()}_SOCKET_IFNAME", "one that all hosts share"
    given = os.environ.get(variable, "")
    named = {n: a for n, a in there.items() if any(fits(n, part) for part in given.split(","))} if given else there
    listed = ", ".join(f"{name} {address}" for name, address in (named or there).items()) or "none"
    if not given:
        return Finding(what, f"{default}, of {listed}", f"{rule}, or {variable} names it")
    if named or given[0] in "^=":
        return Finding(what, f"{variable}={given}, of {listed}", rule)
    return Finding(what, f"{variable}={given}: no such interface", rule, f"name one of {listed}")


def _shared_memory() -> Finding:
    rule = f"{size(SHARED_BYTES)} or more free"
    try:
        free = shutil.disk_usage("/dev/shm").free
    except OSError as error:
        return Finding("shared memory", f"/dev/shm: {error.strerror}", rule, "mount a tmpfs there")
    remedy = "" if free >= SHARED_BYTES else "enlarge it (of a container: --shm-size), or remove what lies there"
    return Finding("shared memory", f"/dev/shm: {size(free)} free", rule, remedy)


def existing(folder: Path) -> Path:
    """The folder itself, or the nearest one above it that there is."""
    return next(path for path in (folder, *folder.parents) if is_there(path))


def _output(config: Config) -> Finding:
    # The folder's own name may hold the time of day.
    folder = existing(Path(config.output_dir).absolute())
    try:
        disk.look(config.output_dir)
    except OSError as error:
        value, remedy = f"{folder}: {error.strerror}", "give output_dir=DIR, a folder you may write to"
        return Finding("output folder", value, "can be written", remedy)
    return Finding("output folder", str(folder), "can be written")


def _disk(config: Config) -> Finding:
    free = shutil.disk_usage(existing(Path(config.output_dir).absolute())).free
    remedy = "" if free >= DISK_BYTES else "make room, or choose another output_dir"
    return Finding("free disk", size(free), f"{size(DISK_BYTES)} or more", remedy)


def _encoder() -> Finding:
    rule, frames = "encodes and writes an mp4", np.zeros((8, 64, 64, 3), np.uint8)
    try:
        with tempfile.TemporaryDirectory() as folder:
            sink = VideoSink(Path(folder) / "a.mp4", 16, 64, 64, sound=True)
            sink.write(frames, np.zeros(8000, np.float32))
            sink.close()
    except UserError as error:
        return Finding(
            "video encoder", str(error), rule, "install PyAV with libx264 (pip install av), or sink.video=null"
        )
    return Finding("video encoder", "H.264 and AAC", rule)


def merged(found: dict[str, list[Finding]]) -> Iterator[tuple[str, Finding]]:
    """Findings by who found them, each once with all who did."""
    who: dict[Finding, list[str]] = {}
    for name, findings in found.items():
        for finding in findings:
            who.setdefault(finding, []).append(name)
    for finding, names in who.items():
        yield ", ".join(names), finding


def size(count: float) -> str:
    """Bytes, in powers of 1000."""
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"

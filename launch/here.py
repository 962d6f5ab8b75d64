"""The cluster that the machine at hand is (`cluster=here`): its devices as they name themselves, with the rates of the
kinds that they are."""

from __future__ import annotations

import logging
import math
import os
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import NamedTuple

import devices
from conf.schema import ClusterConfig, Config
from conf.schema.cluster import DeviceGroup, DeviceKind, StageTimes

LIMIT = Path("/sys/fs/cgroup/memory.max")
"""Bytes that a container may use, or `max`."""
PROCESSOR = "cpu"
"""What a processor is called, as a device and as a kind."""


class Card(NamedTuple):
    """A device as it describes itself.

    Attributes:
        where: which one it is, among all of its machine.
        title: by its maker.
        memory_bytes: all of it.
    """

    where: str
    title: str
    memory_bytes: float


def machine(config: Config) -> list[Card]:
    """The devices that a run may use here: all GPUs, or where there are none, processors with threads enough for one
    worker each."""
    if config.device.may_be_gpu and (count := devices.count()):
        found = (devices.of(devices.choose("cuda", number)) for number in range(count))
        return [Card(card.where(), card.title(), card.total_bytes()) for card in found]
    count = max(1, len(os.sched_getaffinity(0)) // config.device.threads)
    return [Card(f"processor {number}", PROCESSOR, _memory() / count) for number in range(count)]


def _memory() -> float:
    """Bytes of this machine's own memory, or its container's."""
    size = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    with suppress(OSError, ValueError):
        return min(size, int(LIMIT.read_text()))
    return size


@cache
def known() -> dict[str, ClusterConfig]:
    """The cluster file that describes each kind: that of one GPU, and that of a machine without."""
    from launch import clusters  # reads YAML, which a machine with little but torch has not

    files = (*sorted(clusters.CONF.glob("*x1.yaml")), clusters.CONF / "cpu2.yaml")
    found = (clusters.load(ClusterConfig(file=str(path))) for path in files)
    return {config.devices[0].kind: config for config in found}


def kind_of(title: str) -> str:
    """What cluster files call a device, by its maker's name: the kind that is in it, or all of it in small letters."""
    plain = re.sub(r"[\W_]|^nvidia", "", title.lower())
    return max((kind for kind in known() if kind in plain), key=len, default=plain)


def cluster(machines: Sequence[Sequence[Card]], measured: Sequence[str] = ()) -> ClusterConfig:
    """Machines as a cluster. Memory is what the devices say; rates and links are those of their kinds.

    A kind that no file describes has the rates of the known one with the nearest memory, which is told, unless times
    were measured.

    Args:
        machines: the devices of each.
        measured: files of times, as `cluster.measured`.
    """
    kinds: dict[str, DeviceKind] = {}
    found: list[DeviceGroup] = []
    bases: dict[str, ClusterConfig] = {}
    for node, cards in enumerate(machines):
        for card in cards:
            kind = kind_of(card.title)
            base = bases[kind] = known().get(kind) or _nearest(card, bool(measured))
            sheet = base.kinds[base.devices[0].kind]
            # Of two that only differ in memory both have what the smaller one has.
            least = min(card.memory_bytes, kinds[kind].memory_bytes if kind in kinds else math.inf)
            kinds[kind] = replace(sheet, memory_bytes=least)
            found.append(DeviceGroup(kind, node=node))
    times: list[StageTimes] = [times for kind, base in bases.items() for times in base.times if times.kind == kind]
    return ClusterConfig(
        name="here",
        note=" ".join(dict.fromkeys(base.note for base in bases.values())),
        measured=list(measured),
        kinds=kinds,
        host_bytes=_memory(),
        devices=found,
        intra=min((base.intra for base in bases.values()), key=lambda link: link.bandwidth),
        inter=min((base.inter for base in bases.values()), key=lambda link: link.bandwidth),
        times=times,
    )


def _nearest(card: Card, silent: bool) -> ClusterConfig:
    """The file of the GPU whose memory is nearest to a card's."""

    def apart(kind: str) -> float:
        return abs(math.log(known()[kind].kinds[kind].memory_bytes / card.memory_bytes))

    kind = min((kind for kind in known() if kind != PROCESSOR), key=apart)
    if not silent:
        _warn(card.title, kind)
    return known()[kind]


@cache
def _warn(title: str, kind: str) -> None:
    """Say once that rates are another card's."""
    logging.getLogger(__name__).warning(
        f"cluster=here: no file describes {title}: it is given the rates of {kind}, whose memory is nearest; "
        "measure it (everframe bench) and add cluster.measured=[FILE]"
    )

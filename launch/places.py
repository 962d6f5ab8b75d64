"""Which card every process of a plan computes on, and in words who shares one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import devices
from conf.errors import UserError
from conf.schema import Config
from launch.here import PROCESSOR, known
from parallel.builders import build
from parallel.placement import hosts, place, process_loads, share
from parallel.plan import Plan
from parallel.transport import NCCL, Place, refuse
from runtime.arithmetic import rule_cost
from runtime.workload import describe
from stages.build import TEMPORAL_STRIDE

SPARE = 0.1
"""Share of a chunk's playing time below which its steps on a processor gain nothing from a GPU that a viewer would see:
ten times that are left for the decoder, and for more workers than processors."""


class Seat(NamedTuple):
    """Where a process was started by somebody else.

    Attributes:
        node: number of its machine.
        name: of that machine.
        cards: that the process sees there, by UUID.
    """

    node: int
    name: str
    cards: tuple[str, ...]


def settled(config: Config) -> Config:
    """The configuration; `device=auto` is the processor where there may be a GPU that would be no gain."""
    elsewhere = config.launcher.name == "ray" and config.launcher.address is not None
    asks = config.device.kind == "auto" and (devices.count() or elsewhere)
    if not asks or processor_time(config) >= SPARE:
        return config
    return replace(config, device=replace(config.device, kind="cpu"))


def processor_time(config: Config) -> float:
    """What the steps of a run take on a processor, as a share of the time that it plays. By arithmetic: what decoders
    take is not in it."""
    model, rate = config.model, known()[PROCESSOR].kinds[PROCESSOR].flops * config.device.threads
    cost = rule_cost(config)
    steps = cost.steps * cost.step.whole.flops / rate
    return config.stream.count * steps / (model.chunk_frames * TEMPORAL_STRIDE / model.fps)


def small(config: Config) -> str:
    """Why the processor is enough for a run, and how to have a GPU."""
    share = processor_time(config)
    return f"the model's steps take a processor {share:.2g} of the time that they play; device=cuda computes on a GPU"


def on_one_host(plan: Plan, wanted: Sequence[int] | None, cards: int) -> tuple[int, ...]:
    """The card of every process, on a machine of its own.

    Args:
        wanted: as `plan.devices`: numbers of the cluster's devices, which here go round its cards.
        cards: how many it has, one at least.
    """
    return tuple(device % cards for device in wanted) if wanted else place(plan, [0] * cards)


def together(configs: Sequence[Config], asked: Sequence[Sequence[int] | None]) -> list[Config]:
    """Runs side by side on the cards of this machine: each has those that fewest processes have before it.

    Args:
        configs: the runs, their plans resolved; those of other launchers, and without cards, stay as they are.
        asked: `plan.devices` of each, as a person has said it: that holds.
    """
    count = devices.count()
    taken, found = [0] * count, []
    for config, devices_asked in zip(configs, asked, strict=True):
        if config.launcher.name == "local" and config.device.may_be_gpu and count:
            cards = on_one_host(build(config.plan, describe(config)), config.plan.devices, count)
            if devices_asked is None:
                free = sorted(range(count), key=lambda card: taken[card])
                cards = tuple(free[card] for card in cards)
                config = replace(config, plan=replace(config.plan, devices=list(cards)))
            for card in cards:
                taken[card] += 1
        found.append(config)
    return found


def sharing(runs: Mapping[str, Sequence[str]]) -> list[str]:
    """Which runs share a card, in words, one line for each card that several have.

    Args:
        runs: the cards of each, by its name.
    """
    cards = dict.fromkeys(card for own in runs.values() for card in own)
    having = {card: [name for name, own in runs.items() if card in own] for card in cards}
    return [f"{', '.join(names)} share {card}" for card, names in having.items() if len(names) > 1]


def on_seats(
    plan: Plan, wanted: Sequence[int] | None, seats: Sequence[Seat]
) -> tuple[tuple[int, ...], tuple[int | None, ...]]:
    """(the seat of every process, its card among those that are seen from there), where there is a seat for each.

    Args:
        wanted: as `plan.devices`. Where it names each seat once, seat i is device i.
        seats: in the order in which they were numbered.
    """
    nodes = [seat.node for seat in seats]
    by_seat = wanted is not None and sorted(wanted) == list(range(len(seats)))
    of = tuple(wanted) if by_seat else hosts(plan, nodes)
    cards: list[int | None] = [None] * plan.processes
    loads = process_loads(plan)
    for view in dict.fromkeys((seat.node, seat.cards) for seat in seats if seat.cards):
        # Who sees the same cards shares them; a process with a card that only it sees has that.
        own = [p for p in range(plan.processes) if (seats[of[p]].node, seats[of[p]].cards) == view]
        own.sort(key=lambda process: of[process])
        count = len(view[1])
        one = wanted and not by_seat and len(own) == plan.processes
        there = on_one_host(plan, wanted, count) if one else share([loads[p] for p in own], [1.0] * count)
        for process, card in zip(own, there, strict=True):
            cards[process] = card
    return of, tuple(cards)


def named(seats: Sequence[Seat], of: Sequence[int], cards: Sequence[int | None]) -> tuple[str, ...]:
    """A name for the card of every process, the same for the same card; empty: not all have one.

    Args:
        seats, of, cards: as `on_seats` takes and gives them.
    """
    if None in cards:
        return ()
    known: dict[int, dict[str, None]] = {}
    for seat in seats:
        known.setdefault(seat.node, {}).update(dict.fromkeys(seat.cards))
    numbers = {node: list(there) for node, there in known.items()}
    chosen = [(seats[seat], seats[seat].cards[card]) for seat, card in zip(of, cards, strict=True)]
    return tuple(
        f"GPU {numbers[seat.node].index(card)}" + f" of {seat.name}" * (len(known) > 1) for seat, card in chosen
    )


def refuse_without_cards(config: Config) -> None:
    """Refuse `launcher.transport=nccl` where workers are of this machine, and it has no card for them.

    Raises:
        UserError: so it is.
    """
    here = config.launcher.name != "ray" and not (config.device.may_be_gpu and devices.count())
    if config.launcher.transport == NCCL and here:
        raise UserError("launcher.transport=nccl", "joins GPUs, and none is used here", "use launcher.transport=auto")


def refuse_unjoined(plan: Plan, config: Config, cards: Sequence[str]) -> None:
    """Refuse `launcher.transport=nccl` where workers that send each other tensors share a card.

    Args:
        cards: the GPU of every process, by a name of its own; empty: they have none.

    Raises:
        UserError: it names two of them.
    """
    if config.launcher.transport == NCCL and cards:
        refuse(plan, [Place(card, NCCL) for card in cards])


def said(plan: Plan, cards: Sequence[str]) -> str:
    """Who shares which card, in words.

    Args:
        cards: of every process, by a name that no other has.
    """
    held = {card: [str(plan.members[p]) for p, own in enumerate(cards) if own == card] for card in dict.fromkeys(cards)}
    parts = [f"workers {', '.join(who)} share {card}" for card, who in held.items() if len(who) > 1]
    alone = [who[0] for who in held.values() if len(who) == 1]
    if alone:
        parts.append(f"worker{'s' * (len(alone) > 1)} {', '.join(alone)}: a GPU each")
    return "; ".join(parts)

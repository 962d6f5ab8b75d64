"""A chunk's pass as a CUDA graph: recorded once it comes round, then started by a single call.

Ring state is integers of the host, so where a pass writes is part of its graph, and there is one for each bank, step
and slot: four for a step of a ring of four chunks, steps x slots where one bank serves all steps. Slots as tensors
would need one graph only, but every layer would then write its keys and values twice (into a result, and from there to
where an index says). Graphs share a memory pool, since only one runs at a time and what leaves it is copied at once.

A pass has a key that says all that its graph holds fixed. The first time a key is asked for, the pass just runs, which
is also its warm-up; the second time it is recorded. While the ring fills no key comes again, so nothing is recorded.

What does change (latents, rotations, sound, actions, text) is copied into buffers that stay where they are. Attention-
sink keys are rotated, and prefills and commits of others write, in the bank's own memory, which a graph reads as it
finds it; so a new reference needs nothing, and a new prompt is copied when it first enters.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map_only

import devices
from conf.errors import UserError
from devices import Recorder
from stages.denoise.bank import Bank
from stages.denoise.denoiser import Denoiser, Work
from stages.inputs import Given


@dataclass
class Held:
    """What graphs of one bank have in common.

    Attributes:
        states: where its graphs find the states of an epoch, by shapes.
        epochs: the states that are there. Held, so that nothing else can be taken for them.
        entering: where they find all else, by name and shape.
        seen: keys that have run.
        graphs: by key.
    """

    states: dict[Hashable, Any] = field(default_factory=dict)
    epochs: dict[Hashable, Any] = field(default_factory=dict)
    entering: dict[Hashable, dict[str, Tensor]] = field(default_factory=dict)
    seen: set[Hashable] = field(default_factory=set)
    graphs: dict[Hashable, Callable[[], Tensor | None]] = field(default_factory=dict)


class Graphs:
    """A runner that records what comes again. A closed stream's graphs go with its banks."""

    def __init__(self, record: Recorder):
        self.record = record
        self.held: WeakKeyDictionary[Bank, Held] = WeakKeyDictionary()

    def __call__(self, bank: Bank, key: Hashable, work: Work, states: Any, entering: Given) -> Tensor | None:
        held = self.held.setdefault(bank, Held())
        shapes = tuple((name, t.shape, t.dtype) for name, t in entering.items())
        state_shapes = tuple(t.shape for t in _tensors(states))
        whole = key, shapes, state_shapes
        if whole not in held.seen:
            held.seen.add(whole)
            return work(states, entering)
        kept = held.entering.setdefault(shapes, {name: torch.empty_like(t) for name, t in entering.items()})
        for name, t in entering.items():
            kept[name].copy_(t)
        at = self._kept_states(held, states, state_shapes)
        if whole not in held.graphs:
            held.graphs[whole] = self.record(lambda: work(at, kept))
        out = held.graphs[whole]()
        # The next graph writes over it.
        return None if out is None else out.clone()

    @staticmethod
    def _kept_states(held: Held, states: Any, shapes: Hashable) -> Any:
        """Where graphs find the states: a copy, made anew when others come."""
        if shapes not in held.states:
            held.states[shapes] = tree_map_only(Tensor, torch.empty_like, states)
        if held.epochs.get(shapes) is not states:
            for kept, t in zip(_tensors(held.states[shapes]), _tensors(states), strict=True):
                kept.copy_(t)
            held.epochs[shapes] = states
        return held.states[shapes]


def _tensors(states: Any) -> list[Tensor]:
    """Of an epoch's states; none where a family has no such inputs."""
    return [leaf for leaf in tree_leaves(states) if isinstance(leaf, Tensor)]


def attach(denoiser: Denoiser, wish: str) -> None:
    """Let a denoiser run graphs, if `device.graphs` is `auto` and the device has them, or `always`.

    Raises:
        UserError: `always`, and it cannot.
    """
    device = devices.of(denoiser.network.device)
    if recorder := device.recorder():
        denoiser.runner = Graphs(recorder)
    elif wish == "always":
        rule = f"CUDA graphs are for CUDA devices, not {device.kind}"
        raise UserError("device.graphs=always", rule, "set device.graphs=auto")

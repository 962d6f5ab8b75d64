"""A chunk's pass as a CUDA graph: recorded once, then started by a single call.

Ring state is integers of the host, so where a pass writes is part of its graph, and there is one for each bank, step
and slot: of a ring of four chunks four, and three more while it fills. Slots as tensors would need one graph only, but
every layer would then write its keys and values twice (into a result, and from there to where an index says).

A pass has a key that says all that its graph holds fixed. The first time a key is asked for, the pass just runs, which
is also its warm-up: kernels are chosen and loaded by shapes, so once serves all banks. When it is asked for again it is
recorded, over each set of banks anew. Banks come out of a pool, so what was recorded over them while a worker loaded
(`runtime.warm`) serves one stream after another. Over a set that was opened later a pass is recorded in the stream:
torch then waits for the device, gives memory back that is free, and runs the pass's Python once without computing. A
recache, whose number of chunks is not known before, is recorded when it comes over the same slots again.

What does change is copied into buffers that stay where they are: latents, rotations, sound and actions into those of
all graphs, an epoch's states, which are large, into those of a set of banks, when they are others. Attention-sink keys
are rotated, and prefills and commits of others write, in the bank's own memory, which a graph reads as it finds it; so
a new reference needs nothing. Graphs share a memory pool, since only one runs at a time and what leaves it is copied to
where the next one does not write.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map_only

import devices
from conf.errors import UserError
from devices import Recorder
from stages.denoise.denoiser import Denoiser, PassKey, StreamBanks, Work
from stages.inputs import Given

log = logging.getLogger(__name__)

SETTING = "device.graphs=always"
TRIES = 3
"""How often a pass is recorded for which memory lacks; it may be there again when another stream has ended."""


@dataclass
class Held:
    """What graphs over one set of banks have in common.

    Attributes:
        states: where they find the states of an epoch, by shapes.
        epochs: the states that are there. Held, so that nothing else can be taken for them.
        graphs: by key.
    """

    states: dict[Hashable, Any] = field(default_factory=dict)
    epochs: dict[Hashable, Any] = field(default_factory=dict)
    graphs: dict[Hashable, Callable[[], Any]] = field(default_factory=dict)

    def clear(self) -> None:
        """Let go of the states; graphs stay."""
        self.epochs.clear()


class Graphs:
    """A runner that records what comes again. A set's graphs go with its banks.

    Args:
        record: makes graphs.
        must: whether a pass that cannot be recorded is an error; otherwise none is recorded from then on, or only not
            this one where memory lacks.

    Attributes:
        recorded: graphs that were made.
    """

    def __init__(self, record: Recorder, must: bool = False):
        self._record, self._must, self.recorded = record, must, 0
        self._fails = False
        self._lacked: Counter[Hashable] = Counter()
        """How often memory lacked for a recording, by key."""
        self._entering: dict[Hashable, Given] = {}
        """Where graphs find what enters, by names and shapes."""
        self._leaving: dict[Hashable, Tensor] = {}
        """Where they leave what comes out, by shape."""
        self._out: dict[Hashable, Tensor | None] = {}
        """The same by key, of all keys that have run; None: nothing comes out."""

    def __call__(self, banks: StreamBanks, key: PassKey, work: Work, entering: Given) -> Tensor | None:
        shapes = tuple((name, t.shape, t.dtype) for name, t in entering.items())
        state_shapes = tuple(t.shape for t in _tensors(banks.states))
        whole, held = (key, shapes, state_shapes), banks.kept.setdefault(self, Held())
        if whole not in held.graphs and (self._fails or whole not in self._out or self._lacked[whole] == TRIES):
            out = work(banks.states, entering)
            if whole not in self._out:
                self._out[whole] = None if out is None else self._place(out)
            return out
        at = self._entered(shapes, entering), self._kept_states(held, banks.states, state_shapes)
        if whole not in held.graphs:
            try:
                held.graphs[whole] = self._recorded(work, *at, self._out[whole])
            except RuntimeError as error:
                self._fail(key, whole, error)
            if whole not in held.graphs:  # after the error, which holds what the recording held
                return work(banks.states, entering)
        held.graphs[whole]()
        out = self._out[whole]
        # The next graph writes over it.
        return None if out is None else out.clone()

    def _recorded(self, work: Work, entering: Given, states: Any, place: Tensor | None) -> Callable[[], Any]:
        def whole() -> None:
            out = work(states, entering)
            if place is not None:
                place.copy_(out)

        made = self._record(whole)
        self.recorded += 1
        return made

    def _fail(self, key: PassKey, whole: Hashable, error: RuntimeError) -> None:
        """Record nothing from now on, and say why. Where memory lacks that says nothing of other passes, or of later.

        Raises:
            UserError: graphs are a must.
        """
        why = str(error).strip().partition("\n")[0] or type(error).__name__
        if self._must:
            raise UserError(SETTING, f"{key} cannot be recorded: {why}", "set device.graphs=auto") from error
        if isinstance(error, torch.OutOfMemoryError):
            self._lacked[whole] += 1
            if self._lacked[whole] == TRIES:
                log.warning("%s is not recorded as a CUDA graph, and runs without: memory lacks (%s)", key, why)
            return
        self._fails = True
        log.warning("%s cannot be recorded as a CUDA graph (%s); passes run without from now on", key, why)

    def _place(self, out: Tensor) -> Tensor:
        key = out.shape, out.dtype
        if key not in self._leaving:
            self._leaving[key] = torch.empty_like(out)
        return self._leaving[key]

    def _entered(self, shapes: Hashable, entering: Given) -> Given:
        """Where graphs find what enters: a copy."""
        if shapes not in self._entering:
            self._entering[shapes] = {name: torch.empty_like(t) for name, t in entering.items()}
        kept = self._entering[shapes]
        for name, t in entering.items():
            kept[name].copy_(t)
        return kept

    @staticmethod
    def _kept_states(held: Held, states: Any, shapes: Hashable) -> Any:
        """Where graphs find the states: a copy, made anew when others come.

        Levels of a stream may be at different epochs for a while. Each of their passes then copies, and a copy takes
        less than a hundredth of a pass.
        """
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
    require(denoiser.network.device, wish)
    if recorder := devices.of(denoiser.network.device).recorder():
        denoiser.runner = Graphs(recorder, must=wish == "always")


def require(device: torch.device, wish: str) -> None:
    """Refuse `device.graphs=always` where there are none.

    Raises:
        UserError: it is asked for.
    """
    if wish == "always" and devices.of(device).recorder() is None:
        rule = f"CUDA graphs are for CUDA devices, not {device.type}"
        raise UserError(SETTING, rule, "set device.graphs=auto")

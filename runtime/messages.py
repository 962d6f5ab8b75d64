"""The messages that make workers run passes: what enters with a chunk, and what follows from a pass."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

import devices
from parallel.message import DUE, Message
from parallel.pacing import ENCODE
from parallel.passes import Pass, along_rows, entering
from parallel.plan import Plan
from runtime.guard import Guard
from runtime.head import Entry
from stages.inputs import CARRY, FINITE, LATENTS, REFERENCE, SEED, marked, part

STOPPED = "stopped"
"""What a stream's end says if it came from outside."""
WHOLE = "whole"
"""What a `done` says of a cut that is whole."""


class Messages:
    """Makes one worker's messages. Those of a hollow stream are hollow.

    Args:
        plan: the plan.
        device: of this worker: all tensors of a message travel in one buffer.
        guard: of this worker.
    """

    def __init__(self, plan: Plan, device: torch.device, guard: Guard):
        self.plan, self.device, self.guard = plan, devices.of(device), guard

    def entering(self, entry: Entry) -> Iterator[tuple[int, Message]]:
        """What a sampled chunk, or the end of its stream, sends off: (worker, message), in that order."""
        stream, chunk, head = entry.stream, entry.chunk, self.plan.head
        # A mark takes the way of the chunk behind it, so that nothing of that comes to a place before it.
        step = self.plan.workload.first_step(chunk)
        if entry.mark is not None:
            yield head, self._marked(Message("save", stream=stream, chunk=chunk, step=step, note=entry.mark.note))
        if entry.tensors is None:
            note = STOPPED if entry.stopped else ""
            yield head, self._marked(Message("end", stream=stream, chunk=chunk, step=step, note=note))
            return
        placed: dict[str, dict[str, Tensor]] = {}
        with self.guard(stream, f"entering chunk {chunk}"):
            states = self.placed(entry.states)
            own = {"step": entry.tensors, "prefill": entry.sink, "recache": {}}
            placed = {kind: self.placed(tensors) | states for kind, tensors in own.items()}
            placed["sidecar"] = self.placed(entry.sidecar)
        due = {name: at for name, at in entry.moments.items() if name == DUE}
        for worker, item in entering(self.plan, stream, chunk, entry.epoch):
            message = message_of(
                item,
                placed.get(item.kind, {}),
                epoch=entry.epoch,
                distances=entry.distances,
                times={ENCODE: entry.took_s} if item.kind == "step" else {},
                moments=entry.moments if item.kind == "sidecar" else due if item.kind == "step" else {},
                timestep=entry.timestep,
            )
            yield worker, self._marked(message)

    def again(self, stream: int, chunk: int, sink: dict[str, Tensor]) -> Iterator[tuple[int, Message]]:
        """A recalibration that was made before a stream's state was saved, and is in force from `chunk` on."""
        placed: dict[str, Tensor] = {}
        with self.guard(stream, "opening"):
            placed = self.placed(sink)
        # Hollow or not, they come: the chunks behind them wait for them.
        for worker, item in along_rows(self.plan, Pass("prefill", stream, chunk)):
            yield worker, self._marked(message_of(item, placed))

    def following(self, item: Pass, following: Pass, message: Message) -> Message:
        """What goes out to a pass that follows from `item`, whose outcome is `message`."""
        tensors = message.tensors
        if following.kind == "done":
            tensors = {}
        elif tensors and item.kind == "step" and following.kind != "step":
            # Latents are final: on to the last stages, and to every bank that is made from them.
            with self.guard(item.stream, f"{following.kind} of chunk {following.chunk}"):
                # What is carried on goes to the bank of the first block, with the clean pass that it waits for.
                names = (LATENTS, FINITE, *([CARRY] if following.kind == "commit" and CARRY in tensors else []))
                lasting, seed = part("sink", tensors), tensors.get(SEED)
                tensors = {name: tensors[name] for name in names}
                if following.kind == "commit" and seed is not None:
                    tensors[LATENTS] = seed
                if following.kind == "prefill":
                    tensors = marked("sink", lasting | {REFERENCE: tensors[LATENTS][:, :, :1]})
        travels = following.kind == "done" or self.plan.workload.passes[following.kind].carries_chunk
        made = message_of(
            following,
            tensors,
            # A bank made from a chunk carries that chunk's text: a recalibration epoch 0, which began with chunk 0.
            epoch=message.epoch if item.kind == following.kind else 0,
            times=message.times if travels else {},
            spans=message.spans if travels else [],
            distances=message.distances,
            moments=message.moments if following.kind == "step" else {},
            timestep=message.timestep if following.kind == "step" else 0.0,
            note=message.note,
            hollow=message.hollow,
        )
        return self._marked(made)

    def placed(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Tensors on this worker's device."""
        for tensor in tensors.values():
            if tensor.device == self.device.torch:
                self.device.follow(None, tensor)  # it was made on another queue
        return {name: self.device.upload(tensor) for name, tensor in tensors.items()}

    def _marked(self, message: Message) -> Message:
        return self.guard.mark(message)


def message_of(item: Pass, tensors: dict[str, Tensor], **rest: Any) -> Message:
    """What makes a worker run a pass. Messages are built once and then changed: there are some on every hop."""
    return Message(item.kind, item.stream, item.chunk, item.step, item.block, tensors=dict(tensors), **rest)

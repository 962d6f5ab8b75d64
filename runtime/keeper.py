"""What a worker does to save states: its part of each, when the mark that goes behind a chunk comes to it.

The head writes how its sources stand and sends the mark off; every cell on the route adds its bank, the last stage the
rest. The mark carries the files' hashes. A mark without tensors (its stream was cancelled, or a disk refused) only goes
its way: no state comes of it, and the stream is none the worse for it.
"""

from __future__ import annotations

import json
import logging
from dataclasses import replace

import torch
from torch import Tensor

from parallel.message import Message
from parallel.passes import Pass
from runtime.cells import Cells
from runtime.conditioning import Progress
from runtime.finish import Finish
from runtime.state import Keep

log = logging.getLogger(__name__)


class Keeper:
    """One worker's part of all states.

    Args:
        cells: the worker's.
        finishes: its streams' last stages, where it has them.
    """

    def __init__(self, cells: Cells, finishes: dict[int, Finish]):
        self.cells, self.finishes = cells, finishes
        self.keeps: dict[int, Keep] = {}

    def open(self, stream: int, keep: Keep | None) -> None:
        """A stream begins, and its state is kept like this; None: not at all."""
        if keep:
            self.keeps[stream] = keep

    def forget(self, stream: int) -> None:
        """A stream has ended here."""
        self.keeps.pop(stream, None)

    def begin(self, stream: int, chunk: int, progress: Progress) -> Message | None:
        """The mark that saves the state before `chunk`; None where the disk refuses."""
        keep = self.keeps[stream]
        try:
            files = progress.write(keep.begin(chunk))
        except OSError as error:
            keep.complain(error)
            return None
        return Message("save", stream=stream, chunk=chunk, tensors=self._packed(files))

    def run(self, item: Pass, mark: Message) -> Message:
        """Save what is here; returns the mark as it goes on."""
        if not mark.tensors or item.step > self.cells.plan.workload.steps:
            return mark
        keep, files = self.keeps[item.stream], json.loads(bytes(mark.tensors["files"].cpu().numpy()))
        try:
            if item.step == self.cells.plan.workload.steps:
                self.finishes[item.stream].save(item.chunk, files)
            else:
                files |= self.cells.save(item, keep.part(item.chunk))
        except OSError as error:
            keep.complain(error)
            return replace(mark, tensors={})
        return replace(mark, tensors=self._packed(files))

    def _packed(self, files: dict[str, str]) -> dict[str, Tensor]:
        """Names and hashes of files as they travel: too many for a message's header, so as bytes [n]."""
        content = torch.frombuffer(bytearray(json.dumps(files).encode()), dtype=torch.uint8)
        return {"files": content.to(self.cells.parts.device)}

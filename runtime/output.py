"""The last stage of a stream: latents are hashed, pictures and sound written to its files, its viewer's clock kept.

It may outlive the generation of its run: then chunks come again that it has put out, and it puts out none of them
twice.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from conf.schema import ModelConfig, StreamConfig
from runtime.encoders import frames_of
from runtime.outputs import Outputs
from runtime.reasons import Reason
from runtime.report import Timeline, stream_report, versions
from runtime.saving import Mark, Saver, Whole
from runtime.snapshot import ANCHOR, OUTPUT
from runtime.state import Keep
from runtime.trace import Trace
from stages.denoise.schedule import schedule_of
from stages.inputs import REFERENCE, Given, part
from stages.post import to_pictures


@dataclass
class Sidecar:
    """What the head sends to the last stages beside a chunk's way.

    Attributes:
        entered: when the chunk entered, in seconds of this host's clock.
        accepted: when the control was accepted that first shows in it, likewise; None: nothing is new in it.
        sound: to be heard with it, float32 [n] at 16 kHz; None: none.
        lasting: with chunk 0 of some models, inputs of the attention sink that are used again.
    """

    entered: float
    accepted: float | None = None
    sound: Tensor | None = None
    lasting: Given = field(default_factory=dict)

    @staticmethod
    def of(tensors: dict[str, Tensor], moments: dict[str, float]) -> Sidecar:
        """From a message's tensors and moments."""
        return Sidecar(moments["entered"], moments.get("accepted"), tensors.get("sound"), part("sink", tensors))


class Output:
    """One stream's last stage. One thread at a time may use it.

    Args:
        stream: whose it is.
        model: the run's.
        make: opens the sinks.
        timeline: what a viewer notices.
        trace: told how long the sinks took.
        keep: how the stream's state is kept; None: not.
        decodes: whether the stream has a decoder, so that its state can go on with pictures.
        private: whether it is a visitor's.

    Attributes:
        next: the chunk that it puts out next.
        resumed: told of the next chunk that it puts out, once: the stream goes on. None: nobody is.
    """

    def __init__(
        self,
        stream: StreamConfig,
        model: ModelConfig,
        make: Callable[[], Outputs],
        timeline: Timeline,
        trace: Trace,
        keep: Keep | None = None,
        decodes: bool = False,
        private: bool = False,
    ):
        self.stream, self.model, self.make, self.timeline, self.trace = stream, model, make, timeline, trace
        self.keep, self.decodes, self.private = keep, decodes, private
        self.finished = False
        """Whether the stream came to its own end."""
        self.due: int | None = None
        """The chunk before which a state was to be saved last."""
        self.outputs: Outputs | None = None
        self.next = keep.first if keep else 0
        self.resumed: Callable[[int], None] | None = None
        self._renewed = schedule_of(model).renewed
        self._anchor: Given = {}
        """The attention sink's inputs of a recalibration, from the chunk that it is made of until it holds."""
        self._saved: int | None = None
        self._cut: threading.Event | None = None
        """Set when the video is on disk up to the latest cut, and all before it has left for who watches."""
        self._leaving: list[tuple[int, threading.Event]] = []
        """Of cuts whose video is on disk: the chunk up to which all has to have left, and what is set then."""
        self._saving: set[int] = set()
        """Chunks before which states are being saved."""
        self._changed = threading.Condition()
        self._released = False

    def open(self) -> None:
        """Open the sinks, unless they are.

        Raises:
            UserError: one cannot be opened.
        """
        if self.outputs is not None:
            return
        self.outputs = self.make()
        if self._released:
            self.outputs.release()
        if self.keep and self.keep.state:
            self._anchor = self.keep.state.anchor

    def release(self) -> None:
        """From any thread: a generation ends, and who watches is waited for no more until `hold`. A chunk that is
        being put out is kept by its sinks, and counts as put out."""
        self._released = True
        if self.outputs:
            self.outputs.release()

    def hold(self) -> None:
        """Another generation goes on with it."""
        self._released = False
        if self.outputs:
            self.outputs.hold()

    def write(self, chunk: int, latents: Tensor, frames: Tensor | None, sidecar: Sidecar) -> None:
        """Put a chunk out, unless that was done.

        Args:
            chunk: which.
            latents: its final ones, [1, C, c, h, w].
            frames: its pictures, [1, 3, n, H, W] in [-1, 1]; None: none are made.

        Raises:
            UserError: a sink cannot go on.
        """
        self.open()
        if self.keep and self._renewed and chunk == self._renewed.source:
            self._anchor = {name: t.to(latents) for name, t in sidecar.lasting.items()}
            self._anchor[REFERENCE] = latents[:, :, :1]
        if chunk < self.next:
            return
        with self.trace.span("output", chunk):
            self.outputs.latents(latents)
            if frames is not None:
                sound = None if sidecar.sound is None else sidecar.sound.cpu().numpy()
                self.outputs.pictures(to_pictures(frames), sound)
        self.timeline.chunk(sidecar.entered, frames_of(self.model, chunk)[1], sidecar.accepted)
        self._settle()
        self.next = chunk + 1
        if self.resumed:
            resumed, self.resumed = self.resumed, None
            resumed(chunk)

    def save(
        self,
        saver: Saver,
        stream: int,
        chunk: int,
        parts: set[str],
        mark: Mark,
        then: Callable[[bool], None],
    ) -> None:
        """Write what is here of the cut before `chunk`, and have the cut completed when all parts are there.

        That is put off until the video so far is on disk: who goes on from it finds all frames before it.

        Args:
            parts: names of all parts.
            mark: what the mark says.
            then: called with whether the cut is whole, once that is known; where a state is due, when it is on disk or
                given up.

        Raises:
            OSError: there is no place for cuts.
        """
        self.due = chunk if mark.disk else self.due
        folder = saver.folder(stream)
        self.open()
        if self._renewed is None or chunk > self._renewed.in_force_from:
            self._anchor = {}
        tensors = {f"{ANCHOR}{name}": tensor for name, tensor in self._anchor.items()}
        counters, video = self.outputs.progress()
        content = {"frames": self.timeline.frames, "video": video, "decodes": self.decodes, "versions": versions()}

        def saved(good: bool) -> None:
            then(whole.made)  # first: who waits for it may end this worker
            self._saved = chunk if good and mark.disk else self._saved
            self.given_up(chunk)

        whole = Whole(stream, chunk, self.keep, parts, {}, content, saved, cut=folder, disk=mark.disk)
        saver.take(stream, chunk, OUTPUT, tensors, counters, mark)
        self._settle()  # of an earlier one: what comes before this cut is on disk with it
        self._cut = whole.ready
        self.awaits(chunk)
        if not self.outputs.cut():
            self._settle()
        saver.complete(whole)

    def awaits(self, chunk: int) -> None:
        """The cut before a chunk is waited for."""
        with self._changed:
            self._saving.add(chunk)

    def given_up(self, chunk: int) -> None:
        """It is waited for no more."""
        with self._changed:
            self._saving.discard(chunk)
            self._changed.notify_all()

    def _settle(self) -> None:
        """The video is on disk up to the cut. Who goes on from it shows nothing before it: that must have left."""
        if self._cut:
            self._leaving.append((self.next, self._cut))
            self._cut = None
        seen = self.outputs.seen
        for one in [one for one in self._leaving if one[0] <= seen]:
            one[1].set()
            self._leaving.remove(one)

    def close(self) -> None:
        """Finish every file.

        Raises:
            UserError: one could not be finished; the others are.
        """
        try:
            if self.outputs:
                self.outputs.close()
        finally:
            for cut in [cut for _, cut in self._leaving] + ([self._cut] if self._cut else []):
                cut.set()
            self._leaving, self._cut = [], None

    def leave(self) -> None:
        """Let go of it, since another process goes on with the stream: files are finished as they are and play, and
        who watches is told of no end. No cut becomes whole any more.

        Raises:
            UserError: as `close`.
        """
        self._leaving, self._cut = [], None
        if self.outputs:
            self.outputs.leave()

    def wait_saved(self) -> None:
        """Wait until every state that was begun is whole or given up. Close the files before: states wait for them."""
        with self._changed:
            self._changed.wait_for(lambda: not self._saving)

    def report(self, reason: Reason | None = None) -> dict[str, Any]:
        """The stream's part of `report.json`.

        Args:
            reason: why it ended before its time; None: it did not.
        """
        found = stream_report(self.stream, self.timeline, self.outputs, private=self.private)
        found["finished"] = self.finished and reason is None
        if self.keep and self.keep.saves:
            found["state"] = {
                "resumed_at": self.keep.began or None,
                "due": self.due,
                "saved": self._saved,
                "folder": self.keep.folder,
            }
        return found | ({"error": reason.to_dict()} if reason else {})

"""Passes of the network over a stream's banks: step, commit, prefill and recache.

A `Denoiser` is one block range on one device with everything that does not change while streams run: step
constants, rotation tables, slots. A `StreamBanks` is what one stream owns there. Which worker calls which
pass, and when, is decided elsewhere; so is whether a pass is shared with others (`share`).
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass, field, fields, replace
from typing import Protocol

import torch
from torch import Tensor

from conf.schema import ModelConfig
from stages.denoise.bank import Bank, BankPass, Layout
from stages.denoise.frame_pack import packed_table
from stages.denoise.layers import KeysValues
from stages.denoise.network import Drive, Network
from stages.denoise.rope import Rope
from stages.denoise.sampler import Sampler, zero_timestep
from stages.denoise.share import ALL, Share


@dataclass
class ChunkConditioning:
    """What was encoded for one chunk and travels with it.

    Attributes:
        audio: tokens [1, c, a, audio_dim], or None for a model without sound.
        actions: one-hot [1, c, 4 * classes], or None for a model without actions.
        pose: latents [1, C, c, h, w] that say where the body is, or None where nothing does.
    """

    audio: Tensor | None = None
    actions: Tensor | None = None
    pose: Tensor | None = None

    def tensors(self) -> dict[str, Tensor]:
        """Those that there are, by name: how they travel."""
        return {name: tensor for name, tensor in vars(self).items() if tensor is not None}

    @classmethod
    def of(cls, tensors: dict[str, Tensor]) -> ChunkConditioning:
        """From tensors by name, others among them."""
        return cls(**{f.name: tensors.get(f.name) for f in fields(cls)})


@dataclass
class StreamBanks:
    """One stream's history and text on one worker."""

    banks: dict[int, Bank]
    text: dict[int, KeysValues] = field(default_factory=dict)


Work = Callable[[dict[int, KeysValues], dict[str, Tensor]], "Tensor | None"]
"""Device work of one pass: text and what enters, all on the device, to what leaves. It asks nothing of the host."""


class Runner(Protocol):
    """How such work is started."""

    def __call__(
        self, bank: Bank, key: Hashable, work: Work, text: dict[int, KeysValues], entering: dict[str, Tensor]
    ) -> Tensor | None:
        """The result of `work(text, entering)`.

        Args:
            key: on one bank, and with tensors of the same names and shapes, works of one key do the same but for the
                values of their tensors.
        """


def run(bank: Bank, key: Hashable, work: Work, text: dict[int, KeysValues], entering: dict[str, Tensor]):
    """At once."""
    return work(text, entering)


class Denoiser:
    """A block range of a model, ready to run passes for any number of streams.

    Args:
        model: the model.
        network: its network, or a range of it, on its device.
        rows, columns: tokens of a latent frame.

    Attributes:
        grid: height and width of a latent frame.
        share: the part of the tokens and heads that is computed here; set it before streams are opened.
        runner: how the work of a chunk's pass is started (`stages.denoise.graphs`); likewise.
        stream_bytes: of the banks of one stream here; 0 before one was opened.
    """

    def __init__(self, model: ModelConfig, network: Network, rows: int, columns: int):
        self.model, self.network = model, network.fuse()
        self.share: Share = ALL
        self.runner: Runner = run
        self.stream_bytes = 0
        self.sampler = Sampler.of(model)
        self.rope = Rope(model.network.head_dim, rows, columns, network.device)
        _, ph, pw = model.network.patch
        self.grid = rows * ph, columns * pw
        self.layout = Layout.of(model, rows * columns)
        # Motion tokens are never moved, and the reference is prefilled where it was trained to stand beside them; alone
        # it sees only itself, and its position means nothing.
        start = model.sink_shift.start if self.layout.motion else -self.layout.reference
        self._prefilled = range(start, start + self.layout.reference)
        motion = [packed_table(self.rope)] if self.layout.motion else []
        self._prefill_table = torch.cat([*motion, self.rope.table(self._prefilled)])
        self.core = network.core
        with torch.inference_mode():
            timesteps = [torch.full((1, 1), self.sampler.timestep(s)) for s in range(self.sampler.steps)]
            self._embeddings = [network.time_embeddings(t) for t in [*timesteps, zero_timestep()]]
            self._terms = [network.time_terms(e) for e in self._embeddings]
        self._place: tuple[range, tuple] | None = None

    def level(self, step: int) -> int:
        """The bank a step reads and writes."""
        return self.model.rule.level(step)

    @property
    def text_bytes(self) -> int:
        """Keys and values of one prompt, of all layers held here."""
        config = self.model.network
        return 2 * len(self.network.layers) * config.text_tokens * config.dim * self.network.dtype.itemsize

    def open(self, levels: Iterable[int] | None = None, parts: int | None = None) -> StreamBanks:
        """Empty banks for a new stream.

        Args:
            levels: None: all.
            parts: how many denoisers share the heads; None: as `share` says.
        """
        config, network = self.model.network, self.network
        levels = range(self.model.levels) if levels is None else levels
        heads = config.heads // (parts or self.share.parts)
        banks = {
            level: Bank(self.layout, network.layers, heads, config.head_dim, network.dtype, network.device)
            for level in levels
        }
        self.stream_bytes = sum(bank.nbytes for bank in banks.values())
        return StreamBanks(banks)

    @torch.inference_mode()
    def set_text(self, stream: StreamBanks, context: Tensor) -> None:
        """Put text rows [1, L, text_dim] in force: keys and values of every layer, once per epoch."""
        stream.text = self.network.text_states(context)

    @torch.inference_mode()
    def prefill(
        self, stream: StreamBanks, reference: Tensor, text: dict[int, KeysValues] | None = None
    ) -> Tensor | None:
        """Write the reference [1, C, 1, h, w], and motion frames behind it, into the attention sink of every bank.

        A prefill, at t = 0, carries the text of what it was made from (`text`; None: the stream's present one).

        Like every pass it returns what the next block range takes in (for the last range: nothing of use).
        """
        bank, others = self._first_and_others(stream)
        frames, motion = len(self._prefilled), self.layout.motion
        runs = [(0, 0, frames)]
        attend = BankPass(bank, self._prefill_table, self._prefilled, runs, frames, self.core, motion)
        drive = Drive(replace(self._terms[-1], head=()), stream.text if text is None else text)
        x = self.network.enter_sink(reference.to(self.network.device, self.network.dtype))
        out = self._shared(x, drive, attend, 1)
        for other in others:
            other.copy_sink(bank)
        return out

    @torch.inference_mode()
    def step(
        self, stream: StreamBanks, step: int, chunk: int, x: Tensor, given: ChunkConditioning, distance: int = 0
    ) -> Tensor | None:
        """One denoising forward of `chunk`: latents (or hidden states) in, velocity (or hidden states) out."""
        bank = stream.banks[self.level(step)]
        return self._forward(bank, stream, step, self._frames(chunk), x, given, distance)

    @torch.inference_mode()
    def commit(
        self, stream: StreamBanks, chunk: int, x: Tensor, given: ChunkConditioning, distance: int = 0
    ) -> Tensor | None:
        """Write a finished chunk's clean keys and values, at t = 0, in place of its noisy ones.

        Under `clean` every chunk is committed. Under `same_level` only a chunk of the frame attention sink
        is: that is the prefill of that version, and it is the same in every bank.
        """
        bank, others = self._first_and_others(stream)
        out = self._forward(bank, stream, -1, self._frames(chunk), x, given, distance)
        for other in others:
            other.copy_sink(bank)
        return out

    @torch.inference_mode()
    def recache(
        self, stream: StreamBanks, chunk: int, x: Tensor, given: ChunkConditioning, distance: int = 0
    ) -> Tensor | None:
        """Write what `chunk` is going to read again, with the stream's present text: one forward at t = 0.

        The chunks that are run again (`recached`) see each other, and the attention sink, both ways.

        Args:
            x, given: clean latents (or hidden states) and conditioning of those chunks, joined.
            distance: of the attention sink from the latest of them.
        """
        bank, _ = self._first_and_others(stream)
        return self._forward(bank, stream, -1, self.layout.recached(self._frames(chunk).start), x, given, distance)

    def recached(self, chunk: int) -> range:
        """Finished chunks that a recache before `chunk` runs again."""
        frames, count = self.layout.recached(self._frames(chunk).start), self.model.chunk_frames
        return range(frames.start // count, frames.stop // count)

    def commits(self, chunk: int) -> bool:
        """Whether `chunk` is committed when it is finished."""
        return self.model.rule.commits or chunk * self.model.chunk_frames < self.model.sink_frames

    def _first_and_others(self, stream: StreamBanks) -> tuple[Bank, list[Bank]]:
        first, *others = stream.banks.values()
        return first, others

    def _frames(self, chunk: int) -> range:
        count = self.model.chunk_frames
        return range(chunk * count, (chunk + 1) * count)

    def _where(self, frames: range) -> tuple[Tensor, range, list[tuple[int, int, int]], int]:
        """The frames' rotation, positions, slots and visible slots: once per chunk, for all its passes and layers."""
        if self._place is None or self._place[0] != frames:
            slots, visible = self.layout.slots(frames.start, len(frames)), self.layout.visible(frames.stop)
            self._place = frames, (self.rope.table(frames), frames, slots, visible)
        return self._place[1]

    def _forward(
        self,
        bank: Bank,
        stream: StreamBanks,
        time: int,
        frames: range,
        x: Tensor,
        given: ChunkConditioning,
        distance: int,
    ) -> Tensor | None:
        model, layout, count = self.model, self.layout, self.model.chunk_frames
        latest = frames.stop - count
        bank.place(self.rope, layout.sink_positions(model.positions, latest, count, model.sink_shift, distance))
        table, positions, runs, visible = self._where(frames)
        entering = {"x": x, "table": table} | {
            name: t.to(self.network.device, self.network.dtype) for name, t in given.tensors().items()
        }

        def work(text: dict[int, KeysValues], entering: dict[str, Tensor]) -> Tensor | None:
            terms, actions = self._terms[time], entering.get("actions")
            if actions is not None:
                terms = self.network.time_terms(self._embeddings[time], actions)
            attend = BankPass(bank, entering["table"], positions, runs, visible, self.core)
            inside = self.network.enter(entering["x"], pose=entering.get("pose"))
            out = self._shared(inside, Drive(terms, text, entering.get("audio")), attend, len(frames))
            return None if out is None else self.network.leave(out, self._shape(len(frames)))

        # Frames of the attention sink come once, and where they are placed is noted on the host; a shared pass waits
        # for the others.
        runner = run if frames.start < model.sink_frames or self.share.parts > 1 else self.runner
        return runner(bank, (time, *runs, visible), work, stream.text, entering)

    def _shared(self, x: Tensor, drive: Drive, attend: BankPass, frames: int) -> Tensor | None:
        """The layers over `x`, as much of it as is computed here; None where the result is gathered elsewhere."""
        share = self.share
        own = self.network.through(share.take(x, frames), drive, share.history(attend, frames))
        return share.gather(own, frames)

    def _shape(self, frames: int) -> torch.Size:
        return torch.Size((1, self.model.network.in_channels, frames, *self.grid))

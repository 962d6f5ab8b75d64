"""Passes of the network over a stream's banks: step, commit, prefill and recache.

A `Denoiser` is one block range on one device with everything that does not change while streams run: step
constants, rotation tables, slots. A `StreamBanks` is what one stream owns there. Which worker calls which
pass, and when, is decided elsewhere; so is whether a pass is shared with others (`share`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

import devices
from conf.schema import Adapter, ModelConfig
from stages.denoise.bank import AdapterPass, Bank, BankPass, Layout
from stages.denoise.network import Network
from stages.denoise.rope import Rope
from stages.denoise.sampler import Sampler, zero_timestep
from stages.denoise.schedule import schedule_of
from stages.denoise.share import ALL, Share
from stages.inputs import Given, marked, part

PLACES = 8
"""Chunks whose places are kept: passes of several chunks and streams take turns on a worker."""


class Kept(Protocol):
    """What a runner keeps over one set of banks."""

    def clear(self) -> None:
        """Let go of what belongs to the stream that was in them."""


@dataclass
class StreamBanks:
    """One stream's history on one worker, and the states of its epoch (`Network.states`).

    Attributes:
        banks: by level.
        states: in force.
        kept: what runners keep over these banks, by runner; all views of the set share it.
    """

    banks: dict[int, Bank]
    states: Any = None
    kept: dict[Any, Kept] = field(default_factory=dict)

    def view(self, level: int, states: Any) -> StreamBanks:
        """One level of the set, with states of its own."""
        return StreamBanks({level: self.banks[level]}, states, self.kept)

    def clear(self) -> None:
        """Forget the stream that was in it; memory, and what was recorded over it, stay."""
        self.states = None
        for held in (*self.kept.values(), *self.banks.values()):
            if held is not None:  # an emulated device has no banks
                held.clear()


class PassKey(NamedTuple):
    """What passes have in common that are the same work over a set of banks.

    Attributes:
        level: of the bank.
        step: which; -1: t = 0.
        runs: slots written, as in `Place`.
        visible: slots read.
    """

    level: int
    step: int
    runs: tuple[tuple[int, int, int], ...]
    visible: int

    def __str__(self) -> str:
        what = "a pass at t = 0" if self.step < 0 else f"step {self.step}"
        slots = ", ".join(f"{slot} to {slot + count - 1}" for _, slot, count in self.runs)
        return f"{what} into slots {slots} of bank {self.level}"


Work = Callable[[Any, Given], "Tensor | None"]
"""Device work of one pass: states of the epoch and what enters, all on the device, to what leaves. It asks nothing of
the host."""


class Runner(Protocol):
    """How such work is started."""

    def __call__(self, banks: StreamBanks, key: PassKey, work: Work, entering: Given) -> Tensor | None:
        """The result of `work(banks.states, entering)`.

        Args:
            key: over one set of banks, and with tensors of the same names and shapes, works of one key do the same but
                for the values of their tensors.
        """


def run(banks: StreamBanks, key: PassKey, work: Work, entering: Given) -> Tensor | None:
    """At once."""
    return work(banks.states, entering)


@dataclass(frozen=True)
class Place:
    """Where a pass's frames stand, and what it reads: once per chunk, for all its passes and layers.

    Attributes:
        frames: generated frames of the pass; their positions, too.
        runs: slots written.
        visible: slots read.
        tables: rotation of the tokens (under an empty name) and of the adapters' entries.
    """

    frames: range
    runs: list[tuple[int, int, int]]
    visible: int
    tables: dict[str, Tensor]


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
        self.schedule = schedule_of(model)
        self.sampler = Sampler.of(model, self.schedule.steps)
        self.rope = Rope(model.network.head_dim, rows, columns, network.device)
        _, ph, pw = model.network.patch
        self.grid = rows * ph, columns * pw
        self.layout = Layout.of(model, rows * columns)
        # Fixed tokens are never moved, and the reference is prefilled where it was trained to stand beside them; alone
        # it sees only itself, and its position means nothing.
        start = model.sink_shift.start if self.layout.fixed else -self.layout.reference
        self._prefilled = range(start, start + self.layout.reference)
        fixed = network.fixed_table(self.rope) if self.layout.fixed else None
        self._prefill_table = torch.cat([*([] if fixed is None else [fixed]), self.rope.table(self._prefilled)])
        self.core = network.core
        with torch.inference_mode():
            timesteps = [torch.full((1, 1), self.sampler.timestep(s)) for s in range(self.sampler.steps)]
            self._constants = [network.constants(t) for t in [*timesteps, zero_timestep()]]
        self._places: dict[range, Place] = {}
        """The latest, by their frames."""

    def level(self, step: int) -> int:
        """The bank a step reads and writes."""
        return self.model.rule.level(step)

    @property
    def states_bytes(self) -> int:
        """States of one stream, of all layers held here: of two epochs at a change, and the copy that graphs read."""
        epoch = len(self.network.layers) * self.model.network.states_values() * self.network.dtype.itemsize
        return (2 + self.records) * epoch

    @property
    def records(self) -> bool:
        """Whether passes are recorded."""
        return self.runner is not run

    def open(self, levels: Iterable[int] | None = None, parts: int | None = None) -> StreamBanks:
        """Empty banks for a new stream.

        Args:
            levels: None: all.
            parts: how many denoisers share the heads; None: as `share` says.
        """
        config, network, parts = self.model.network, self.network, parts or self.share.parts
        kind = {"dtype": network.dtype, "device": network.device}

        def adapters() -> dict[str, Bank]:
            return {
                a.name: Bank(
                    Layout.of_adapter(self.model, a, self.layout.tokens // parts),
                    [i for i in a.layers if i in network.layers], a.heads, a.head_dim, **kind, each=a.each,
                )
                for a in config.adapters
            }  # fmt: skip

        banks = {
            level: Bank(
                self.layout, network.layers, config.heads // parts, config.head_dim, **kind, adapters=adapters()
            )
            for level in (range(self.model.levels) if levels is None else levels)
        }
        self.stream_bytes = sum(bank.nbytes for bank in banks.values())
        return StreamBanks(banks)

    @torch.inference_mode()
    def set_states(self, stream: StreamBanks, epoch: Given) -> None:
        """Put an epoch in force: what its inputs (`text`: rows [1, L, text_dim], ...) become, once."""
        stream.states = self.network.states(epoch)

    @torch.inference_mode()
    def prefill(self, stream: StreamBanks, sink: Given | Tensor, states: Any = None) -> Tensor | None:
        """Write the attention sink's inputs (`reference`: a latent [1, C, 1, h, w], ...) into that of every bank.

        A prefill, at t = 0, carries the states of what it was made from (`states`; None: the stream's present ones).

        Args:
            sink: its inputs; for a later range of the network the hidden states that the range before gave.

        Like every pass it returns what the next block range takes in (for the last range: nothing of use).
        """
        bank, others = self._first_and_others(stream)
        frames, fixed = len(self._prefilled), self.layout.fixed
        runs = [(0, 0, frames)]
        bank.touch(bank.sink_slots(frames))
        attend = BankPass(bank, self._prefill_table, self._prefilled, runs, frames, self.core, fixed)
        states = stream.states if states is None else states
        drive = self.network.drive(self._constants[-1], states, {}, partial(self.share.take, frames=1), leaves=False)
        dtype, upload = self.network.dtype, devices.of(self.network.device).upload
        if self.network.first:
            x = self.network.enter_sink({name: upload(t).to(dtype) for name, t in sink.items()})
        else:
            x = upload(sink).to(dtype)
        out = self._shared(x, drive, attend, 1)
        for other in others:
            other.copy_sink(bank)
        return out

    @torch.inference_mode()
    def step(
        self, stream: StreamBanks, step: int, chunk: int, x: Tensor, given: Given, distance: int = 0
    ) -> Tensor | None:
        """One denoising forward of `chunk`: latents (or hidden states) in, velocity (or hidden states) out."""
        return self._forward(self.level(step), stream, step, self.schedule.frames(chunk), x, given, distance)

    @torch.inference_mode()
    def commit(self, stream: StreamBanks, chunk: int, x: Tensor, given: Given, distance: int = 0) -> Tensor | None:
        """Write a finished chunk's clean keys and values, at t = 0, in place of its noisy ones.

        Under `clean` every chunk is committed. Under `same_level` only a chunk of the frame attention sink
        is: that is the prefill of that version, and it is the same in every bank.
        """
        bank, others = self._first_and_others(stream)
        out = self._forward(next(iter(stream.banks)), stream, -1, self.schedule.frames(chunk), x, given, distance)
        for other in others:
            other.copy_sink(bank)
        return out

    @torch.inference_mode()
    def recache(self, stream: StreamBanks, chunk: int, x: Tensor, given: Given, distance: int = 0) -> Tensor | None:
        """Write what `chunk` is going to read again, with the stream's present states: one forward at t = 0.

        The chunks that are run again (`Schedule.recached`) see each other, and the attention sink, both ways.

        Args:
            x, given: clean latents (or hidden states) and what was given for those chunks, joined.
            distance: of the attention sink from the latest of them.
        """
        chunks = self.schedule.recached(chunk)
        frames = range(self.schedule.frames(chunks.start).start, self.schedule.frames(chunk).start)
        return self._forward(next(iter(stream.banks)), stream, -1, frames, x, given, distance)

    def _first_and_others(self, stream: StreamBanks) -> tuple[Bank, list[Bank]]:
        first, *others = stream.banks.values()
        return first, others

    def _where(self, frames: range) -> Place:
        if frames not in self._places:
            layout = self.layout
            own = {adapter.name: self._table(adapter)(frames) for adapter in self.model.network.adapters}
            tables = {"": self.rope.table(frames)} | own
            runs, visible = layout.slots(frames.start, len(frames)), layout.visible(frames.stop)
            self._places[frames] = Place(frames, runs, visible, tables)
            if len(self._places) > PLACES:
                del self._places[next(iter(self._places))]
        return self._places[frames]

    def _table(self, adapter: Adapter) -> Callable[[range], Tensor]:
        """Rotation of an adapter's entries, which stand in time only, for frames at given positions."""
        rope = Rope(adapter.head_dim, 1, 1, self.network.device, adapter.widths, adapter.base)
        entries = Layout.of_adapter(self.model, adapter, self.layout.tokens // self.share.parts).tokens
        return lambda positions: rope.table(positions).repeat_interleave(entries, 0)

    def _pass(self, bank: Bank, place: Place, tables: dict[str, Tensor]) -> BankPass:
        """Attention of one pass over a bank and its adapters' banks."""
        frames, adapters = place.frames, {}
        for name, own in bank.adapters.items():
            runs, visible = own.layout.slots(frames.start, len(frames)), own.layout.visible(frames.stop)
            adapters[name] = AdapterPass(own, tables[name], frames, runs, visible, self.core)
        return BankPass(bank, tables[""], frames, place.runs, place.visible, self.core, adapters=adapters)

    def _place_sink(self, bank: Bank, first: int, distance: int) -> None:
        """Rotate attention-sink keys to where the chunk at frame `first` reads them."""
        model, layout = self.model, self.layout
        wanted = layout.sink_positions(model.positions, first, model.chunk_frames, model.sink_shift, distance)
        bank.place(self.rope.table, wanted)
        for adapter in model.network.adapters:
            # Generated frames only, where the tokens of the same frames stand.
            bank.adapters[adapter.name].place(self._table(adapter), wanted[layout.reference :])

    def _forward(
        self, level: int, stream: StreamBanks, time: int, frames: range, x: Tensor, given: Given, distance: int
    ) -> Tensor | None:
        bank = stream.banks[level]
        self._place_sink(bank, frames.stop - self.model.chunk_frames, distance)
        bank.writing(frames)
        place, network = self._where(frames), self.network
        upload = devices.of(network.device).upload
        here = {name: upload(t) for name, t in given.items()}
        entering = {"x": x} | marked("table", place.tables) | marked("given", here)

        def work(states: Any, entering: Given) -> Tensor | None:
            given = part("given", entering)
            attend = self._pass(bank, place, part("table", entering))
            inside = network.enter(entering["x"], given)
            drive = network.drive(self._constants[time], states, given, partial(self.share.take, frames=len(frames)))
            out = self._shared(inside, drive, attend, len(frames))
            return None if out is None else network.leave(out, self._shape(len(frames)))

        # Frames of the attention sink come once, and where they are placed is noted on the host; a shared pass waits
        # for the others.
        runner = run if frames.start < self.model.sink_frames or self.share.parts > 1 else self.runner
        return runner(stream, PassKey(level, time, tuple(place.runs), place.visible), work, entering)

    def _shared(self, x: Tensor, drive: Any, attend: BankPass, frames: int) -> Tensor | None:
        """The layers over `x`, as much of it as is computed here; None where the result is gathered elsewhere."""
        share = self.share
        own = self.network.through(share.take(x, frames), drive, share.history(attend, frames))
        return share.gather(own, frames)

    def _shape(self, frames: int) -> torch.Size:
        return torch.Size((1, self.model.network.in_channels, frames, *self.grid))

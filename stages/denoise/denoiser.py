"""Passes of the network over a stream's banks: step, commit, prefill and recache.

A `Denoiser` is one block range on one device with everything that does not change while streams run: step
constants, rotation tables, slots. A `StreamBanks` is what one stream owns there. Which worker calls which
pass, and when, is decided elsewhere; so is whether a pass is shared with others (`share`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

import devices
from conf.schema import Adapter, ModelConfig
from stages.denoise.bank import Bank
from stages.denoise.bank_pass import AdapterPass, AdaptingPass, BankPass, RecallingPass, SelectingPass
from stages.denoise.history import History, Place, history_of
from stages.denoise.layout import Layout, Run, Slots
from stages.denoise.network import Network
from stages.denoise.rope import Rope
from stages.denoise.sampler import Sampler, zero_timestep
from stages.denoise.schedule import schedule_of
from stages.denoise.share import ALL, Share
from stages.inputs import Given, marked, part

TOLD = 8
"""Timesteps beside the steps' whose constants are kept."""
PLACES = 8
"""Chunks whose places are kept: passes of several chunks and streams take turns on a worker."""


class Kept(Protocol):
    """What a runner keeps over one set of banks."""

    def clear(self) -> None:
        """Let go of what belongs to the stream that was in them."""


@dataclass
class Once:
    """What of a chunk is the same in all its passes over one bank (`Network.once`). It lies where it lay for the chunk
    before, since what was recorded over the bank finds it there.

    Attributes:
        room: for what `NetworkConfig.once_values` counts, one number after the other; what is more lies by itself.
        frames: of the chunk; None: of none yet.
        places: what of the room is whose, by the number of frames.
    """

    room: Tensor
    frames: range | None = None
    places: dict[int, Given] = field(default_factory=dict)

    def clear(self) -> None:
        """Forget the chunk; its place stays."""
        self.frames = None

    def of(self, frames: range, make: Callable[[], Iterable[tuple[str, Tensor]]]) -> Given:
        """Of the chunk of these frames."""
        place = self.places.setdefault(len(frames), {})
        if self.frames == frames:
            return place
        self.frames, end = None, 0
        # One after the other, so that no more than one is anywhere else.
        for name, tensor in make():
            start, end = end, end + tensor.numel()
            if name not in place:
                fits = end <= len(self.room)
                place[name] = self.room[start:end].view(tensor.shape) if fits else torch.empty_like(tensor)
            place[name].copy_(tensor)
        self.frames = frames
        return place


@dataclass
class StreamBanks:
    """One stream's history on one worker, and the states of its epoch (`Network.states`).

    Attributes:
        banks: by level.
        states: in force.
        kept: what runners keep over these banks, by runner; all views of the set share it.
        once: what is made once for a chunk, by level; likewise.
    """

    banks: dict[int, Bank]
    states: Any = None
    kept: dict[Any, Kept] = field(default_factory=dict)
    once: dict[int, Once] = field(default_factory=dict)

    def view(self, level: int, states: Any) -> StreamBanks:
        """One level of the set, with states of its own."""
        return StreamBanks({level: self.banks[level]}, states, self.kept, self.once)

    def clear(self) -> None:
        """Forget the stream that was in it; memory, and what was recorded over it, stay."""
        self.states = None
        for held in (*self.kept.values(), *self.banks.values(), *self.once.values()):
            if held is not None:  # an emulated device has no banks
                held.clear()


class PassKey(NamedTuple):
    """What passes have in common that are the same work over a set of banks.

    Attributes:
        level: of the bank.
        step: which; -1: t = 0.
        runs, reads: slots written and read, as in `Place`.
        queue: what is done with a bank's queue of slots, by `Place.compares` and `Place.advances`.
    """

    level: int
    step: int
    runs: tuple[Run, ...]
    reads: tuple[Slots, ...]
    queue: tuple[int, bool] = (0, False)

    def __str__(self) -> str:
        what = "a pass at t = 0" if self.step < 0 else f"step {self.step}"
        slots = ", ".join(f"{slot} to {slot + count - 1}" for _, slot, count in self.runs) or "of none"
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
        stream_bytes: of the banks of one stream here, and of what is made once for a chunk; 0 before one was opened.
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
        self.history = history_of(model, self.layout)
        # Fixed tokens are never moved, and the reference is prefilled where it was trained to stand beside them; alone
        # it sees only itself, and its position means nothing.
        start = model.sink_shift.start if self.layout.fixed else -self.layout.reference
        self._prefilled = range(start, start + self.layout.reference)
        fixed = network.fixed_table(self.rope) if self.layout.fixed else None
        self._prefill_table = torch.cat([*([] if fixed is None else [fixed]), self.rope.table(self._prefilled)])
        self.core = network.core
        with torch.inference_mode():
            timesteps = [self._timesteps(step) for step in range(self.sampler.steps)]
            self._constants = [network.constants(t) for t in [*timesteps, zero_timestep()]]
        self._own: dict[float, Any] = {}
        self._turns: dict[range, dict[str, Tensor]] = {}
        """The latest rotations, by frames: of the tokens (under an empty name) and of the adapters' entries."""

    def _timesteps(self, step: int) -> Tensor:
        """Of a pass: [1, 1], or one for each of its frames [1, f] where chunks at several levels are in it."""
        of_chunks = [self.sampler.timestep(level) for level in self.schedule.together(step)]
        frames = 1 if len(of_chunks) == 1 else self.model.chunk_frames
        return torch.cat([torch.full((1, frames), timestep) for timestep in of_chunks], 1)

    def _told(self, timestep: float) -> Any:
        """Constants of a timestep that is a chunk's own; there are some hundred."""
        if timestep not in self._own:
            self._own[timestep] = self.network.constants(torch.full((1, 1), timestep))
            if len(self._own) > TOLD:
                del self._own[next(iter(self._own))]
        return self._own[timestep]

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
        choice = self.model.choice

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
                self.layout,
                network.layers,
                config.heads // parts,
                config.head_dim,
                **kind,
                adapters=adapters(),
                **choice,
            )
            for level in (range(self.model.levels) if levels is None else levels)
        }
        once = {level: Once(torch.empty(self._once_values(parts), **kind)) for level in banks}
        self.stream_bytes = sum(bank.nbytes for bank in banks.values()) + sum(o.room.nbytes for o in once.values())
        return StreamBanks(banks, once=once)

    def _once_values(self, parts: int) -> int:
        """Numbers that are made once for a chunk over one bank, for all layers held here."""
        frames = max(len(self.model.frames(chunk)) for chunk in (0, 1))
        tokens = frames * self.layout.tokens // parts
        return len(self.network.layers) * self.model.network.once_values(tokens, frames)

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
        bank.touch(bank.sink_slots(frames))
        place = Place(self._prefilled, ((0, 0, frames),), ((0, frames),))
        attend = BankPass(bank, self._prefill_table, place, self.core, fixed=fixed)
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
        self, stream: StreamBanks, step: int, chunk: int, x: Tensor, given: Given, distance: int = 0,
        timestep: float = 0.0,
    ) -> Tensor | None:  # fmt: skip
        """One denoising forward of `chunk`: latents (or hidden states) in, velocity (or hidden states) out.

        Where chunks are denoised together, `x` is of all those that are in the pass (`Schedule.together`).

        Args:
            timestep: that the network is told instead of the step's, of 1000; 0: none. Such a pass is not recorded.
        """
        bank = stream.banks[self.level(step)]
        begins = bank.begin(chunk)
        return self._forward(bank, stream, step, lambda of: of.step(chunk, step, begins), x, given, distance, timestep)

    @torch.inference_mode()
    def commit(self, stream: StreamBanks, chunk: int, x: Tensor, given: Given, distance: int = 0) -> Tensor | None:
        """Write a finished chunk's clean keys and values, at t = 0, in place of its noisy ones.

        Under `clean` every chunk is committed. Under `same_level` only a chunk of the frame attention sink
        is: that is the prefill of that version, and it is the same in every bank. Banks that are seeded are given the
        first chunk as its last step has written it: `x` is what entered that step.
        """
        bank, others = self._first_and_others(stream)
        time = self.sampler.steps - 1 if self.schedule.seeded else -1
        out = self._forward(bank, stream, time, lambda of: of.commit(chunk), x, given, distance)
        for other in others:
            if self.schedule.seeded:
                other.copy(bank, self.history.commit(chunk).slots(self.layout))
            else:
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
        frames = range(self.model.frames(chunks.start).start, self.model.frames(chunk).start)
        bank, _ = self._first_and_others(stream)
        return self._forward(bank, stream, -1, lambda of: of.again(frames), x, given, distance)

    def _first_and_others(self, stream: StreamBanks) -> tuple[Bank, list[Bank]]:
        first, *others = stream.banks.values()
        return first, others

    def _tables(self, frames: range) -> dict[str, Tensor]:
        """Rotations of a pass's own entries, by their positions: once per chunk, for all its passes and layers."""
        if frames not in self._turns:
            own = {adapter.name: self._table(adapter)(frames) for adapter in self.model.network.adapters}
            self._turns[frames] = {"": self.rope.table(frames)} | own
            if len(self._turns) > PLACES:
                del self._turns[next(iter(self._turns))]
        return self._turns[frames]

    def _table(self, adapter: Adapter) -> Callable[[Sequence[int]], Tensor]:
        """Rotation of an adapter's entries, which stand in time only, for frames at given positions."""
        rope = Rope(adapter.head_dim, 1, 1, self.network.device, adapter.widths, adapter.base)
        entries = Layout.of_adapter(self.model, adapter, self.layout.tokens // self.share.parts).tokens
        return lambda positions: rope.table(positions).repeat_interleave(entries, 0)

    def _each(self, bank: Bank) -> Iterator[tuple[str, Bank, History, Callable[[Sequence[int]], Tensor]]]:
        """A bank and its adapters' banks, each with its rule and its rotation."""
        yield "", bank, self.history, self.rope.table
        for adapter in self.model.network.adapters:
            own = bank.adapters[adapter.name]
            yield adapter.name, own, history_of(self.model, own.layout), self._table(adapter)

    def _prepare(self, bank: Bank, place_of: Callable[[History], Place], distance: int) -> dict[str, Place]:
        """Do to a bank what is done before a pass, in every layer; returns its places, and those of its adapters."""
        places = {}
        for name, own, history, table in self._each(bank):
            place = places[name] = place_of(history)
            # Frames of an adapter's bank are generated ones only, and stand where the tokens of the same frames do.
            wanted = self.history.sink(places[""], distance)
            wanted = None if wanted is None else wanted[self.layout.reference - own.layout.reference :]
            moving = None if name else self.rope.moving
            if place.merges:
                left = [frame - own.layout.ring for frame in place.frames]
                share, reference = self.model.sink_ema, own.layout.reference
                own.average(table, place.merges, left, share, wanted[reference : reference + len(left)], moving)
            if wanted is not None:
                own.place(table, wanted, moving)
            own.touch(place.slots(own.layout))
        return places

    def _pass(self, bank: Bank, places: dict[str, Place], tables: dict[str, Tensor]) -> BankPass:
        """Attention of one pass over a bank and its adapters' banks."""
        own = bank.adapters.items()
        adapters = {name: AdapterPass(its, tables[name], places[name], self.core) for name, its in own}
        place, kind, rest = places[""], BankPass, {}
        if place.selects:
            kind, rest = SelectingPass, {"reuse": self.model.compress.reuse, "all_heads": self.share.all_heads}
        elif place.recalls:
            kind = RecallingPass
        elif place.compares:
            rest = {"sinks": self.model.sink_frames, "threshold": self.model.adaptive_sink}
            kind, rest = AdaptingPass, rest | {"kept": self.history.kept, "all_heads": self.share.all_heads}
        return kind(bank, tables[""], place, self.core, adapters=adapters, **rest)

    def _forward(
        self,
        bank: Bank,
        stream: StreamBanks,
        time: int,
        place_of: Callable[[History], Place],
        x: Tensor,
        given: Given,
        distance: int,
        timestep: float = 0.0,
    ) -> Tensor | None:
        constants = self._told(timestep) if timestep else self._constants[time]
        places, network = self._prepare(bank, place_of, distance), self.network
        place = places[""]
        frames = len(place.frames)
        upload = devices.of(network.device).upload
        here = {name: upload(t) for name, t in given.items()}
        entering = {"x": x} | marked("table", self._tables(place.at)) | marked("given", here)
        level = next(level for level, own in stream.banks.items() if own is bank)
        take = partial(self.share.take, frames=frames)
        once = self._once(stream, level, place.frames, partial(network.once, here, take))

        def work(states: Any, entering: Given) -> Tensor | None:
            given = part("given", entering)
            attend = self._pass(bank, places, part("table", entering))
            inside = network.enter(entering["x"], given)
            drive = network.drive(constants, states, given | once, take)
            out = self._shared(inside, drive, attend, frames)
            return None if out is None else network.leave(out, self._shape(frames))

        # Frames of the attention sink come once, and where they are placed is noted on the host; a shared pass waits
        # for the others.
        into_sink = any(slot < self.layout.anchored for _, slot, _ in place.runs)
        runner = run if into_sink or timestep or self.share.parts > 1 else self.runner
        key = PassKey(level, time, place.runs, place.reads, (place.compares, place.advances))
        return runner(stream, key, work, entering)

    def _once(
        self, stream: StreamBanks, level: int, frames: range, make: Callable[[], Iterable[tuple[str, Tensor]]]
    ) -> Given:
        """What is made once for a chunk; nothing for several that are run again in one pass."""
        if len(frames) > max(len(self.model.frames(chunk)) for chunk in (0, 1)):
            return {}
        return stream.once[level].of(frames, make)

    def _shared(self, x: Tensor, drive: Any, attend: BankPass, frames: int) -> Tensor | None:
        """The layers over `x`, as much of it as is computed here; None where the result is gathered elsewhere."""
        share = self.share
        own = self.network.through(share.take(x, frames), drive, share.history(attend, frames))
        return share.gather(own, frames)

    def _shape(self, frames: int) -> torch.Size:
        return torch.Size((1, self.model.network.in_channels, frames, *self.grid))

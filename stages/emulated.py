"""A device that computes nothing: stages hold their worker for a given time and emit messages of the right size.

Everything around them stays real, so orchestration can be measured with more workers than there are devices. No weights
are read, and banks are only memory that cuts copy, where that is asked for; what travels has the model's own shapes and
dtype, and means nothing.
"""

from __future__ import annotations

import hashlib
import math
import threading
import time
from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor

from conf.schema import EmulatedConfig, ModelConfig
from stages.codec.base import CodecState
from stages.denoise.bank import Bank
from stages.denoise.denoiser import StreamBanks
from stages.denoise.history import history_of
from stages.denoise.layout import Layout
from stages.denoise.sampler import Sampler
from stages.denoise.schedule import schedule_of
from stages.denoise.share import ALL
from stages.encode.audio_features import LogMel
from stages.inputs import Given, Input

LATEST = 2e-4
"""Seconds by which a timer alone wakes a sleeper late, at most."""


class EmulatedDevice:
    """The device of one worker: one thing at a time, each for as long as it is told.

    Args:
        config: durations, speeds and jitter.
        worker: whose device; picks its speed and keys its jitter.
    """

    def __init__(self, config: EmulatedConfig, worker: int):
        self.config, self.worker = config, worker
        self.speed = config.speeds[worker] if worker < len(config.speeds) else 1.0
        self._one_at_a_time = threading.Lock()
        self._late = _timer_late()

    def hold(self, seconds: float, chunk: int, what: str) -> None:
        """Occupy the device for `seconds` at speed 1; the caller waits."""
        seconds = seconds / self.speed * self._factor(chunk, what)
        if seconds <= 0:
            return
        with self._one_at_a_time:
            time.sleep(max(0.0, seconds - self._late))

    def _factor(self, chunk: int, what: str) -> float:
        """A log-normal draw of mean 1: a pure function of seed, worker, pass and chunk."""
        jitter = self.config.jitter
        if not jitter:
            return 1.0
        key = hashlib.sha256(f"{self.config.seed}/{self.worker}/{what}".encode()).digest()[:16]
        philox = np.random.Philox(key=np.frombuffer(key, np.uint64), counter=[0, 0, 0, chunk % 2**64])
        return math.exp(jitter * np.random.Generator(philox).standard_normal() - jitter**2 / 2)


def _timer_late() -> float:
    """Seconds that this machine's timer wakes a sleeper late at the least: no part of what is measured."""
    late = []
    for _ in range(5):
        start = time.perf_counter()
        time.sleep(0.001)
        late.append(time.perf_counter() - start - 0.001)
    # On a busy machine even the least is no measure of the timer.
    return min(max(0.0, min(late)), LATEST)


class EmulatedSampler(Sampler):
    """A sampler whose arithmetic the emulated device has already done."""

    def update(self, step: int, x: Tensor, v: Tensor, noise: Tensor | None = None, timestep: float = 0.0) -> Tensor:
        """The latents as they came."""
        return x


class EmulatedNetwork:
    """What is asked of a network besides its passes."""

    def __init__(self, layers: range, dtype: torch.dtype):
        self.layers, self.dtype, self.device = layers, dtype, torch.device("cpu")
        self.first = layers.start == 0

    def states(self, epoch: Given) -> dict:
        """No layer has keys or values."""
        return {}


class EmulatedDenoiser:
    """A block range with the face of `stages.denoise.denoiser.Denoiser`. Streams hold no memory here, unless banks are
    given a size.

    Args:
        device: what is held.
        model: its geometry and context rule.
        layers: the block.
        rows, columns: tokens of a latent frame.
    """

    def __init__(self, device: EmulatedDevice, model: ModelConfig, layers: range, rows: int, columns: int):
        self.device, self.model, self.layers = device, model, layers
        self.share, self.stream_bytes, self.states_bytes = ALL, 0, 0
        self.schedule = schedule_of(model)
        self.sampler = Sampler.of(model, self.schedule.steps)
        dtype = getattr(torch, model.dtype)
        self.network = EmulatedNetwork(layers, dtype)
        _, ph, pw = model.network.patch
        self._tokens, self._grid, self._dtype = rows * columns, (rows * ph, columns * pw), dtype
        self._outputs: dict[int, Tensor] = {}
        times, count = device.config, model.network.layers
        self._step_s, share = times.block_s(layers, count), len(layers) / count
        self._commit_s = self._step_s if times.commit_s is None else times.commit_s * share
        self._prefill_s = self._step_s if times.prefill_s is None else times.prefill_s * share
        self._output(model.chunk_frames)

    def level(self, step: int) -> int:
        """The bank a step reads and writes."""
        return self.model.rule.level(step)

    def open(self, levels: Iterable[int] | None = None, parts: int | None = None) -> StreamBanks:
        """Banks that hold nothing, or bytes of no meaning; `levels` None: all."""
        levels = range(self.model.levels) if levels is None else levels
        size = self.device.config.bank_bytes
        if size is None:
            return StreamBanks(dict.fromkeys(levels))
        found = {level: self._bank(size // (parts or self.share.parts)) for level in levels}
        self.stream_bytes = sum(bank.nbytes for bank in found.values())
        return StreamBanks(found)

    def _bank(self, size: int) -> Bank:
        """A bank of a size for the whole network, of which these layers have their share: as many slots as a real one
        has, and in each the bytes that this gives."""
        layout = Layout.of(self.model, 1)
        choice = self.model.choice
        entries = Bank.bytes_needed(layout, self.model.network.layers, 1, 1, torch.uint8, **choice)
        bank = Bank(layout, self.layers, 1, max(1, size // entries), torch.uint8, torch.device("cpu"), **choice)
        for held in (bank.keys, bank.values, bank.raw):
            for tensor in held.values():
                tensor.fill_(1)  # memory that nobody has written is one page, and copied too fast
        return bank

    def _writing(self, stream: StreamBanks | None, chunk: int) -> None:
        """A chunk's slots are written by the pass."""
        for bank in () if stream is None else stream.banks.values():
            if bank is not None:
                place = history_of(self.model, bank.layout).commit(chunk)
                bank.touch(place.slots(bank.layout))

    def set_states(self, stream: StreamBanks, epoch: Given) -> None:
        """A prompt changes nothing here."""

    def prefill(self, stream: StreamBanks, sink: Given | Tensor, states: dict | None = None) -> Tensor:
        """Take as long as one; returns what the next block takes in."""
        self._hold(self._prefill_s, 0, f"prefill {self.layers.start}")
        return self._output(1)

    def step(
        self,
        stream: StreamBanks,
        step: int,
        chunk: int,
        x: Tensor,
        given: Given,
        distance: int = 0,
        timestep: float = 0.0,
    ) -> Tensor:
        """Take as long as a step; returns what the next block, or the sampler, takes in."""
        together, every = len(self.schedule.together(step)), len(self.schedule.together(len(self.schedule.steps) - 1))
        if together == 1:
            self._writing(stream, chunk)
        self._hold(self._step_s * together / every, chunk, f"step{step} {self.layers.start}")
        return self._output(len(self.model.frames(chunk)) + self.model.chunk_frames * (together - 1))

    def commit(self, stream: StreamBanks, chunk: int, x: Tensor, given: Given, distance: int = 0) -> Tensor:
        """Take as long as a commit; returns what the next block takes in."""
        self._writing(stream, chunk)
        self._hold(self._commit_s, chunk, f"commit {self.layers.start}")
        return self._output(len(self.model.frames(chunk)))

    def recache(self, stream: StreamBanks, chunk: int, x: Tensor, given: Given, distance: int = 0) -> Tensor:
        """Take as long as the commits of all chunks that are run again; returns what the next block takes in."""
        chunks = len(self.schedule.recached(chunk))
        self._hold(self._commit_s * chunks, chunk, f"recache {self.layers.start}")
        return self._output(self.model.chunk_frames * chunks)

    def _hold(self, seconds: float, chunk: int, what: str) -> None:
        """Processes that share a pass take equal parts of its time; what they exchange takes none here."""
        self.device.hold(seconds / self.share.parts, chunk, what)

    def _output(self, frames: int) -> Tensor:
        """Hidden states of some frames, or latents after the last layer: made once, and never written."""
        if frames not in self._outputs:
            network, times = self.model.network, self.device.config
            if self.layers.stop == network.layers:
                made = torch.zeros(latent_shape(self.model, times, frames, *self._grid), dtype=self._dtype)
            elif times.hidden_bytes is not None:
                made = torch.zeros(times.hidden_bytes, dtype=torch.uint8)
            else:
                made = torch.zeros(1, frames * self._tokens, network.dim, dtype=self._dtype)
            self._outputs[frames] = made
        return self._outputs[frames]


def latent_shape(model: ModelConfig, config: EmulatedConfig, frames: int, height: int, width: int) -> tuple[int, ...]:
    """The shape of latents [1, C, frames, h, w]; of as many bytes as `latent_bytes` says for a chunk, if it says."""
    if config.latent_bytes is None:
        return 1, model.network.in_channels, frames, height, width
    return 1, 1, max(1, config.latent_bytes // getattr(torch, model.dtype).itemsize)


class EmulatedDecoder:
    """A decoder that takes its time and makes no pictures.

    Args:
        device: what is held.
        model: its picture is `model.width` wide unless `width` says otherwise.
        height, width: of its pictures, in pixels; it makes none of them.
    """

    spatial_stride, temporal_stride = 8, 4

    def __init__(self, device: EmulatedDevice, model: ModelConfig, height: int, width: int):
        self.device, self.channels = device, model.network.out_channels
        self._none = torch.zeros(1, 3, 0, height, width)

    def start(self) -> CodecState:
        """A fresh stream."""
        return CodecState()

    def __call__(self, latents: Tensor, state: CodecState) -> Tensor:
        """Frames [1, 3, 0, H, W]: none."""
        self.device.hold(self.device.config.decode_s, state.steps, "decode")
        state.steps += 1
        return self._none


class EmulatedTextEncoder:
    """Rows of zeros, of a prompt's full length."""

    def __init__(self, prompt: Input):
        self._rows = torch.zeros(prompt.full())

    def ids(self, prompt: str) -> tuple[list[int], list[str]]:
        """Every word is known."""
        return [], []

    def __call__(self, prompt: str) -> Tensor:
        """The prompt's rows [1, L, width]."""
        return self._rows


class EmulatedEncoder:
    """A chunk's own entries of an input, all zeros."""

    def __init__(self, one: Input):
        self._tokens = torch.zeros(one.own())

    def tokens(self, given: Tensor) -> Tensor:
        """As many entries as a chunk has."""
        return self._tokens


class EmulatedFeatures(LogMel):
    """Features of zeros, as many as there would be, once the sound has come that a video frame lasts."""

    def __init__(self, one: Input, fps: float):
        super().__init__(fps, rows_per_frame=1)
        self._width = math.prod(one.given_shape[1:-1])

    def frames(self, n: int) -> np.ndarray:
        """float32 [n, layers * width]."""
        self.skip(n)
        return np.zeros((n, self._width), np.float32)

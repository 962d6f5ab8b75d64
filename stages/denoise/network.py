"""What the denoiser asks of a network, whatever family it is of.

A network is single-device code over a range [lo, hi) of its layers. The first range takes latents and makes tokens of
them, later ones take hidden states, the last gives latents again. What drives it comes in four parts, by how often it
changes: constants of a step, made when it is loaded; states of an epoch, made once for a prompt; what was given for a
chunk; and what of that is the same in all its passes, made once. All of it is the network's own: the denoiser hands it
on.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from typing import Any, Self

import torch
from torch import Tensor, nn

from conf.errors import UserError
from conf.schema import NetworkConfig
from stages.denoise.attention import Attend, History, backend
from stages.denoise.rope import Rope
from stages.inputs import REFERENCE, Given

Take = Callable[[Tensor], Tensor]


class Network(nn.Module, ABC):
    """A range of layers. It is made on the meta device and its weights are filled in later, so all that it holds has to
    be parameters; what can be computed (tables, say) is computed where it is used.

    Args:
        config: sizes of the whole network.
        layers: those held; None: all.
        attention: name of the attention back end.

    Attributes:
        first, last: whether the range begins and ends the network.
    """

    def __init__(self, config: NetworkConfig, layers: range | None = None, attention: str = "sdpa"):
        super().__init__()
        self.config, self.attention = config, attention
        self.layers = range(config.layers) if layers is None else layers
        self.first, self.last = self.layers.start == 0, self.layers.stop == config.layers

    @property
    def dtype(self) -> torch.dtype:
        """Of what it computes in."""
        return next(self.parameters()).dtype

    @property
    def device(self) -> torch.device:
        """Of its weights."""
        return next(self.parameters()).device

    @property
    def core(self) -> Attend:
        """The attention back end."""
        return backend(self.attention, self.device, self.dtype, self.config.head_dim)

    # -- preparing ----------------------------------------------------------------------------------------------------

    def fuse(self) -> Self:
        """Prepare for inference; called before the weights are read, and again once they are in place."""
        return self

    def quantise(self, kind: str) -> Self:
        """Replace large products by 8-bit ones (`model.fp8`).

        Raises:
            UserError: it has none, or the device has not.
        """
        raise UserError(f"model.fp8={kind}", "this family has no 8-bit products", "set model.fp8=null")

    def compile(self, compiled: Callable[[Callable], Callable]) -> Self:
        """Replace what lies between attentions by what `compiled` makes of it; by itself nothing is compiled."""
        return self

    # -- what drives --------------------------------------------------------------------------------------------------

    @abstractmethod
    def constants(self, timestep: Tensor) -> Any:
        """What does not change of a pass at a timestep [1, 1], 0 to 1000."""

    @abstractmethod
    def states(self, epoch: Given) -> Any:
        """What an epoch's inputs become: tensors, in tuples or dictionaries."""

    def once(self, given: Given, take: Take) -> Iterable[tuple[str, Tensor]]:
        """What the inputs of a chunk become that is the same in all its passes: tensors in the network's dtype, which
        every pass of it is given beside the inputs, under names of their own. They are made one after the other, as
        they are asked for; `NetworkConfig.once_values` says how many numbers that are. A pass that runs several chunks
        again is given none of it, and makes what it needs.

        Args:
            given, take: as of `drive`. What there is of every token has to pass through `take` here already.
        """
        return ()

    def timed(self) -> Iterable[tuple[str, nn.Module]]:
        """Parts whose time is of interest, in order: `layer0`, ... and `last`; none: a pass is timed whole."""
        return ()

    @abstractmethod
    def drive(self, constants: Any, states: Any, given: Given, take: Take, leaves: bool = True) -> Any:
        """What drives one pass.

        Args:
            constants: of the step, or of t = 0.
            states: of the epoch; None for a family without such inputs.
            given: inputs of the chunk, by name, on the device; empty in the prefill of the attention sink.
            take: tokens [B, f n, d] to those that are computed here [B, f n / parts, d]: what there is of every token
                passes through it, since processes may share a pass.
            leaves: whether the output is wanted, or only what the pass writes.
        """

    # -- a pass -------------------------------------------------------------------------------------------------------

    @abstractmethod
    def enter(self, x: Tensor, given: Given) -> Tensor:
        """Latents [1, C, f, h, w] to tokens [1, f n, d], frame by frame; hidden states, which later ranges take, pass
        unchanged."""

    def enter_sink(self, sink: Given) -> Tensor:
        """The attention sink's inputs to tokens: those that are no whole frame, then those of the reference. Unless a
        family says otherwise, a reference enters as any frame does."""
        return self.enter(sink[REFERENCE], {})

    def fixed_table(self, rope: Rope) -> Tensor | None:
        """Rotation of the attention sink's tokens that are no whole frame and never move; None: there are none."""
        return None

    @abstractmethod
    def through(self, x: Tensor, drive: Any, attend: History) -> Tensor:
        """The layers, over any tokens of each frame: only `attend` lets them see each other. Returns hidden states
        [1, N, d], or what `leave` takes after the last layer."""

    @abstractmethod
    def leave(self, x: Tensor, shape: torch.Size) -> Tensor:
        """What `through` gave, as the velocity of latents of `shape` after the last layer; else as it is."""

"""What every model's network says of itself, whatever family it is of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from conf.errors import UserError, positive


@dataclass(frozen=True)
class Adapter:
    """A part inside some layers that has a history of its own, in banks beside those of the tokens.

    Attributes:
        name: as the layers call it.
        layers: that have it.
        heads, head_dim: of its keys and values.
        each: what has an entry: `latent` (one for a latent frame) or `place` (one for each token of it, which reads
            only the same place in other frames).
        widths: channels of a head that turn with (frame, row, column), though an entry stands in time only; None: as
            the tokens' do.
        base: of the angles, likewise.
    """

    name: str
    layers: tuple[int, ...]
    heads: int
    head_dim: int
    each: str = "latent"
    widths: tuple[int, int, int] | None = None
    base: float = 10000.0


@dataclass
class NetworkConfig:
    """Sizes that plans, banks and channels count with. A family adds its own in `stages/models/FAMILY/sizes.py`."""

    dim: int = 64
    """Width of a hidden state."""
    heads: int = 4
    layers: int = 6
    patch: list[int] = field(default_factory=lambda: [1, 2, 2])
    """Latent frames, rows and columns that become one token."""
    in_channels: int = 16
    """Channels of the latents that are denoised."""
    out_channels: int = 16

    def __post_init__(self):
        for name in ("dim", "heads", "layers", "in_channels", "out_channels"):
            positive(f"model.network.{name}", getattr(self, name), most=100_000)
        if self.in_channels != self.out_channels:
            raise UserError(
                f"model.network.in_channels={self.in_channels}",
                f"what enters a step must have the channels of what leaves it, out_channels={self.out_channels}: "
                "conditions beside the latents are inputs of their own",
                f"use {self.out_channels}, or a checkpoint of another model",
            )
        if self.dim % self.heads or (self.dim // self.heads) % 2:
            fits = [h for h in range(1, self.heads + 1) if self.dim % h == 0 and self.dim // h % 2 == 0]
            raise UserError(
                f"model.network.heads={self.heads}",
                f"must divide dim={self.dim} into heads of even width",
                f"use {fits[-1]}" if fits else f"use an even dim, {self.dim + 1}",
            )
        if len(self.patch) != 3 or min(self.patch) < 1:
            raise UserError(f"model.network.patch={self.patch}", "is three sizes: frames, rows, columns", "use [1,2,2]")

    @property
    def head_dim(self) -> int:
        """Width of a head."""
        return self.dim // self.heads

    # -- what a family may say otherwise -----------------------------------------------------------------------------

    @property
    def widths(self) -> dict[str, int]:
        """Widths of the layers' large products, by name: what 8-bit products need in sixteens."""
        return {"dim": self.dim}

    @property
    def before(self) -> int:
        """Latent frames of what was before a stream that the attention sink holds beside the reference; 0: none."""
        return 0

    @property
    def unit(self) -> int:
        """Rows and columns of tokens must be multiples of it."""
        return 1

    @property
    def adapters(self) -> tuple[Adapter, ...]:
        """Parts of the layers that have banks of their own."""
        return ()

    def fixed(self, tokens: int) -> int:
        """Tokens of the attention sink that are no whole frames and never move, where a latent frame has `tokens`."""
        return 0

    def states_values(self) -> int:
        """Numbers that one layer keeps of what holds for an epoch, for one stream (keys and values of its text)."""
        return 0

    def once_values(self, new: int, frames: int) -> int:
        """Numbers that one layer keeps, for one stream and bank, of what is the same in all passes of a chunk of `new`
        tokens, those of so many latent frames (`stages.denoise.network.Network.once`)."""
        return 0

    def once_flops(self, new: int) -> Sequence[float]:
        """Floating point operations of every layer that are made once for all passes of such a chunk."""
        return [0.0] * self.layers

    def once_moved(self, new: int) -> Sequence[float]:
        """Numbers that those read or write, as `layer_values` counts them."""
        return [0.0] * self.layers

    def layer_flops(self, new: int, keys: int) -> Sequence[float]:
        """Floating point operations of every layer in one pass over `new` tokens that read `keys`; two per
        multiply-add: 2 n 12 d^2 in the products of a common layer, 4 n m d in attention."""
        return [float(24 * new * self.dim**2 + 4 * new * keys * self.dim)] * self.layers

    def layer_values(self, new: int, keys: int) -> Sequence[float]:
        """Numbers that products and attention of every layer read or write in one pass, each once; scores are left out.
        A product of n rows by [a, b] has n a + a b + n b: q, k and v in one, o, and a feed-forward four times as
        wide."""
        d = self.dim
        return [float(new * d * (4 + 2 + 5 + 5 + 2) + 12 * d * d + 2 * keys * d)] * self.layers

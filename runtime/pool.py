"""Banks of a block, allocated when the block is loaded and used by one stream after another.

Memory is then taken before the first viewer comes, a stream opens without touching fresh pages, and what was recorded
over a bank (CUDA graphs) serves the next stream as well.
"""

from __future__ import annotations

from collections.abc import Sequence

from stages.denoise.denoiser import Denoiser, StreamBanks


class BankPool:
    """One stream's banks at a time, taken and given back.

    Args:
        denoiser: the block's.
        levels: that the block's steps read and write here.
        streams: sets of banks that are allocated now; more are allocated when they are asked for.
        parts: how many processes share the heads; None: as the denoiser says.

    Raises:
        torch.OutOfMemoryError, RuntimeError: the device has no room.
    """

    def __init__(self, denoiser: Denoiser, levels: Sequence[int], streams: int, parts: int | None = None):
        self.denoiser, self.levels, self.parts = denoiser, tuple(levels), parts
        self._free = [denoiser.open(self.levels, parts) for _ in range(streams)]
        self.allocated = streams

    def take(self) -> StreamBanks:
        """Empty banks; raises as making the pool does."""
        if self._free:
            return self._free.pop()
        banks = self.denoiser.open(self.levels, self.parts)
        self.allocated += 1
        return banks

    def give(self, banks: StreamBanks) -> None:
        """Take banks back that nothing reads or writes any more."""
        banks.clear()
        self._free.append(banks)

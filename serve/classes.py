"""Which of two encodings each viewer is sent, so that one thin line does not make the pictures of all others poorer."""

from __future__ import annotations

from collections.abc import Iterable

from serve.media import Packet

THIN, RICH = 0.5, 0.7
"""Of what the best line takes: a viewer with no more than the first is sent the thin encoding, with more than the
second the other one again. Half the pictures are half the rate: who takes nothing at all is left with the thin one."""

Rate = tuple[int | None, int]
"""What a line takes: bits per second (None: anything), and one picture of how many."""


class Line:
    """One viewer's.

    Attributes:
        rate: what it takes.
        thin: which encoding it is to be sent.
        seen: which it is sent, until a key frame of the other.
    """

    def __init__(self):
        self.rate: Rate = None, 1
        self.thin = self.seen = False

    def takes(self, packet: Packet) -> bool:
        """Whether a picture of its codec goes to this viewer.

        Who is to have the thin one has nothing until that begins: the line is behind already. The other one comes
        first of both, so that no picture is sent twice.
        """
        if packet.key and packet.thin == self.thin:
            self.seen = packet.thin
        return packet.thin == self.seen and (packet.thin or not self.thin)


def sort(lines: Iterable[Line], most: int) -> bool:
    """Decide which encoding each is to be sent; returns whether that has changed for one.

    Args:
        most: bits per second that pictures are worth.
    """
    takes = {line: (most if line.rate[0] is None else min(line.rate[0], most)) / line.rate[1] for line in lines}
    before, best = [line.thin for line in takes], max(takes.values(), default=most)
    for line, bits in takes.items():
        line.thin = bits <= (RICH if line.thin else THIN) * best
    return before != [line.thin for line in takes]


def thinnest(lines: Iterable[Line], thin: bool) -> Rate | None:
    """What everyone takes who is sent an encoding; None: nobody is."""
    rates = [line.rate for line in lines if line.thin == thin]
    if not rates:
        return None
    return min((bits for bits, _ in rates if bits is not None), default=None), max(every for _, every in rates)

"""What can be pressed and turned: the row of numbers that stands for each video frame, and how it is said.

A model that knows one action at a time has the action's index for a row. One whose keys may be held together has a
number for every key, 1 where it is held, and one for every axis (a mouse's, say) behind them.
"""

from __future__ import annotations

from dataclasses import dataclass

Row = int | tuple[float, ...]
"""Of one video frame."""
NONE = "none"
"""The action of holding nothing."""


@dataclass(frozen=True)
class Controls:
    """Of a model.

    Attributes:
        keys: names, in the order of the row. Where one holds at a time, the first is that of no action.
        one: whether one holds at a time.
        axes: names of numbers behind the keys; none where one holds at a time.
    """

    keys: tuple[str, ...]
    one: bool = False
    axes: tuple[str, ...] = ()

    @property
    def rest(self) -> Row:
        """The row of nothing pressed and nothing turned."""
        return 0 if self.one else (0.0,) * (len(self.keys) + len(self.axes))

    @property
    def actions(self) -> tuple[str, ...]:
        """Names that may be said as an action: that of no action first, then every key by itself."""
        return self.keys if self.one else (NONE, *self.keys)

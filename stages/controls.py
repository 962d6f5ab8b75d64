"""What can be pressed and turned: the row of numbers that stands for each video frame, and how it is said.

A model that knows one action at a time has the action's index for a row. One whose keys may be held together has a
number for every key, 1 where it is held, and one for every axis (a mouse's, say) behind them.

Lines, events and calls say it in one form, all that holds from then on:

    {"action": "forward"}                                  this key and no other; "none": no key
    {"keys": ["forward", "left"], "mouse": [0.1, -0.1]}    all keys that are held, and the axes in their order

`keys` or `mouse` may be left out: then no key is held, nothing turns. `mouse` may stand beside `action`, too.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from conf.errors import LONGEST, UserError, nearest

Row = int | tuple[float, ...]
"""Of one video frame."""
NONE = "none"
"""The action of holding nothing."""
ACTION, KEYS, MOUSE = FORM = ("action", "keys", "mouse")
"""What an entry may say."""
MOST = 10.0
"""Furthest from 0 that an axis is turned."""
EXAMPLE = '{"keys": ["forward", "left"]}'


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

    @classmethod
    def of(cls, known: Controls | Iterable[str]) -> Controls:
        """Controls as they are; names alone are actions of a model that knows one at a time."""
        return known if isinstance(known, Controls) else cls(tuple(known), one=True)

    @property
    def rest(self) -> Row:
        """The row of nothing pressed and nothing turned."""
        return 0 if self.one else (0.0,) * (len(self.keys) + len(self.axes))

    @property
    def actions(self) -> tuple[str, ...]:
        """Names that may be said as an action: that of no action first, then every key by itself."""
        return self.keys if self.one else (NONE, *self.keys)

    def parse(self, entry: Mapping[str, Any], where: str) -> Row:
        """The row that an entry says; what else stands in the entry is nobody's here.

        Args:
            entry: of the form above.
            where: names the entry in a complaint.

        Raises:
            UserError: it says nothing, or what the model does not know.
        """
        if not any(name in entry for name in FORM):
            raise UserError(where, "has no action", f"say what is held, e.g. {EXAMPLE}")
        if ACTION not in entry:
            held = self._held(entry.get(KEYS, []), where)
        elif KEYS in entry:
            raise UserError(f"{where}: {_said(entry, ACTION)}", "stands beside keys", "give one of the two")
        elif entry[ACTION] in self.actions:
            held = {entry[ACTION]} & set(self.keys)
        else:
            raise _unknown(where, entry, ACTION, entry[ACTION], self.actions)
        turned = self._turned(entry[MOUSE], where) if MOUSE in entry else (0.0,) * len(self.axes)
        if self.one:
            return self.keys.index(*held) if held else 0
        return *(float(key in held) for key in self.keys), *turned

    def _held(self, keys: Any, where: str) -> set[str]:
        said = f"{where}: {_said({KEYS: keys}, KEYS)}"
        if not isinstance(keys, list | tuple) or not all(isinstance(key, str) for key in keys):
            raise UserError(said, "is no list of names", f"e.g. {EXAMPLE}")
        for key in keys:
            if key not in self.keys:
                raise _unknown(where, {KEYS: key}, KEYS, key, self.keys)
        if self.one and len(set(keys)) > 1:
            raise UserError(said, "the model knows one at a time", "give one of them")
        return set(keys)

    def _turned(self, mouse: Any, where: str) -> tuple[float, ...]:
        said = f"{where}: {_said({MOUSE: mouse}, MOUSE)}"
        if not isinstance(mouse, list | tuple) or len(mouse) != len(self.axes):
            if not self.axes:
                raise UserError(said, "the model has no axes", "leave it out")
            raise UserError(said, f"is a list of {', '.join(self.axes)}", f"give {len(self.axes)} numbers")
        if not all(_is_number(turn) and -MOST <= turn <= MOST for turn in mouse):
            raise UserError(said, f"numbers are from {-MOST:g} to {MOST:g}", "turn less")
        return tuple(map(float, mouse))

    def fits(self, row: Any) -> bool:
        """Whether something is a row of these, as JSON has it."""
        if self.one:
            return type(row) is int and 0 <= row < len(self.keys)
        return (
            isinstance(row, list | tuple)
            and len(row) == len(self.keys) + len(self.axes)
            and all(_is_number(value) and -MOST <= value <= MOST for value in row)
        )


def row_of(told: int | Sequence[float]) -> Row:
    """A row of what JSON has in its place."""
    return told if isinstance(told, int) else tuple(told)


def entry_of(action: str | None, keys: Iterable[str] | None, mouse: Iterable[float] | None) -> dict[str, Any]:
    """The entry that says what is given."""
    entry: dict[str, Any] = {} if action is None else {ACTION: action}
    if keys is not None:
        entry[KEYS] = list(keys)
    if mouse is not None:
        entry[MOUSE] = [float(turn) for turn in mouse]
    return entry


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _said(entry: Mapping[str, Any], name: str) -> str:
    return f"{name}={str(entry[name])[:LONGEST]}"


def _unknown(where: str, entry: Mapping[str, Any], name: str, word: Any, known: Sequence[str]) -> UserError:
    rule, said = "the model does not know it", f"{where}: {_said(entry, name)}"
    return UserError(said, rule, nearest(str(word)[:LONGEST], known) if known else f"leave {name} out")

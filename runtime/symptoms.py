"""Who of a run's processes is lost, as their pulses tell it: who says nothing any more, and who stands still.

A dead process is found by whoever started it. One that was stopped, whose machine is gone or whose device never comes
back from a pass is still there: of the first two no new beat comes, the third one beats on. How long a pass may take
nobody knows beforehand, so each is held against the longest that the same process took so far.

Pure: what was heard and what time it is comes from outside.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

from conf.schema import LauncherConfig
from runtime.pulse import beat_s, stage_of

SILENT, STUCK = "silent", "stuck"
STUCK_LEAST_S, TIMES = 5.0, 20.0
"""A pass that takes so long, and so many times its longest so far, does not end any more."""
OUTSIDE = frozenset({"output"})
"""Stages that may wait for somebody outside: a viewer who has paused, the reader of a pipe."""
LOOK_S, LEAST_LOOK_S = 0.2, 0.01
"""Whoever supervises looks so often, or twice in a beat where that is more; never more often than the second."""
HELD_UP_BEATS = 2
"""A look that comes later than it was meant to by more beats than that was held up. Less hides no silence, which is
longer than WITHIN_SILENCE of them, so it changes nothing."""
STANDSTILLS = 4
"""Latest times of being held up that count as nobody's silence. A supervisor that is late at every look must not
forgive for ever."""
COLD_S = 60.0
"""Until a process says its first word when a run begins, at least: it may read all libraries from a cold disk."""


class Lost(NamedTuple):
    """A process that is lost.

    Attributes:
        why: `silent` or `stuck`.
        seconds: since when, by the time it was found.
        at: what it was at.
        limit_s: that this may last.
        missing_s: for how long nothing has come of it: since it was last heard of, or since its pass took longer than
            any before.
    """

    why: str
    seconds: float
    at: str
    limit_s: float
    missing_s: float

    def __str__(self) -> str:
        if self.why == SILENT:
            return f"silent for {self.seconds:.1f} s, at most {self.limit_s:g} s; it had come to {self.at}"
        return f"stuck: {self.at} has taken {self.seconds:.1f} s so far, at most {self.limit_s:.3g} s"


@dataclass
class _Heard:
    """Of one process: whose last beat it was, what it told, when that was heard, and since when it is there."""

    beat: tuple[Any, Any]
    pulse: Mapping[str, Any]
    when: float
    since: float


UNHEARD: Mapping[str, Any] = {"at": "nothing yet", "at_s": 0.0, "busy": False}


class Symptoms:
    """Watches over processes; fed by whoever supervises them, a few times between two beats.

    Args:
        silent_s: without a new beat, after which a process is lost.
        timeout_s: that a process may take to say something at all, and a pass of a kind that it never did before.
        beat_s: between two beats.

    Attributes:
        look_s: between two looks, as they are meant to come.
    """

    def __init__(self, silent_s: float, timeout_s: float, beat_s: float):
        self.silent_s, self.timeout_s, self.beat_s = silent_s, timeout_s, beat_s
        self.look_s = max(LEAST_LOOK_S, min(LOOK_S, beat_s / 2))
        self._heard: dict[int, _Heard] = {}
        self._stood: deque[tuple[float, float]] = deque(maxlen=STANDSTILLS)
        """Looks that were held up: when they came at last, and how much too late."""
        self._now: float | None = None

    @classmethod
    def of(cls, launcher: LauncherConfig) -> Symptoms:
        """As the settings say."""
        return cls(launcher.silent_s, launcher.timeout_s, beat_s(launcher))

    def expect(self, process: int, now: float) -> None:
        """A process begins, maybe in the place of another: nothing is known of it."""
        self._heard[process] = _Heard((None, None), UNHEARD, now, now)

    def forget(self, process: int) -> None:
        """A process has left, or was given up: it is watched no longer."""
        self._heard.pop(process, None)

    def at_pass(self, process: int) -> bool:
        """Whether a process is at a pass, as it was last heard of, and does not just wait for somebody outside."""
        pulse = self._heard[process].pulse if process in self._heard else UNHEARD
        return pulse["busy"] and stage_of(pulse["at"]) not in OUTSIDE

    def outside_s(self, process: int, now: float) -> float:
        """For how long a process has waited for somebody outside, as it was last heard of; 0: it does not."""
        if process not in self._heard or self.at_pass(process):
            return 0.0
        heard = self._heard[process]
        return heard.pulse["at_s"] + now - heard.when if heard.pulse["busy"] else 0.0

    def look(self, pulses: Mapping[int, Mapping[str, Any] | None], now: float, cold: bool = False) -> dict[int, Lost]:
        """Take in what is told, and say who is lost; to be asked more often than pulses beat.

        Args:
            pulses: what stands on the board for every process; None: nothing yet. One that is new here begins now.
            now: seconds of the supervisor's clock.
            cold: whether the run begins, so that a first word may take longer.
        """
        # Where the supervisor was held up itself, the whole machine may have stood: that time is nobody's silence.
        if self._now is not None and (late := now - self._now - self.look_s) > HELD_UP_BEATS * self.beat_s:
            self._stood.append((now, late))
        self._now = now
        for process, pulse in pulses.items():
            if process not in self._heard:
                self.expect(process, now)
            if pulse is not None:
                self._take(self._heard[process], pulse, now)
        watched = [process for process in pulses if process in self._heard]
        # Whoever waits for a silent one inside a pass may look stuck, and is not.
        unheard = max(self.timeout_s, COLD_S) if cold else self.timeout_s
        silent = partial(self._silent, unheard=unheard)
        return self._found(watched, silent, now) or self._found(watched, self._stuck, now)

    def _awake(self, begin: float, now: float) -> float:
        """Seconds from `begin` to `now` in which the machine was not held up, as far as is known."""
        return now - begin - sum(min(late, when - begin) for when, late in self._stood if when > begin)

    @staticmethod
    def _take(heard: _Heard, pulse: Mapping[str, Any], now: float) -> None:
        beat = pulse.get("process"), pulse["beats"]
        if beat[0] != heard.beat[0]:
            heard.since = now  # another process has its place, whose passes are its own
        if beat != heard.beat:
            heard.beat, heard.pulse, heard.when = beat, pulse, now

    def _found(self, watched: Iterable[int], symptom: Any, now: float) -> dict[int, Lost]:
        found = {process: symptom(self._heard[process], now) for process in watched}
        return {process: lost for process, lost in found.items() if lost is not None}

    def _silent(self, heard: _Heard, now: float, unheard: float) -> Lost | None:
        limit = unheard if heard.pulse is UNHEARD else self.silent_s
        silent = self._awake(heard.when, now)
        return Lost(SILENT, silent, heard.pulse["at"], limit, silent) if silent >= limit else None

    def _stuck(self, heard: _Heard, now: float) -> Lost | None:
        pulse, stage = heard.pulse, stage_of(heard.pulse["at"])
        if not pulse["busy"] or stage in OUTSIDE:
            return None
        took = self._awake(max(heard.when - pulse["at_s"], heard.since), now)
        longest = pulse.get("longest", {}).get(stage)
        limit = self.timeout_s if longest is None else max(STUCK_LEAST_S, TIMES * longest)
        return Lost(STUCK, took, pulse["at"], limit, took - (longest or 0.0)) if took >= limit else None

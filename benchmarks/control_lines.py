"""Control lines, good and bad, from a seed: what a careless, confused or hostile writer may put into the pipe."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

MAIN = "main"
"""The stream that no line may touch."""
WRONG = {
    "chunks": ["5", 2.5, True, [], {}, 0, -1, 10**30, 2**63],
    "seconds": ["5", True, [1], {}, 0, -2.5, 10**400],
    "seed": ["7", 1.5, False, None, [], 2**64, -(2**64)],
    "prompt": [5, True, None, ["x"], {"x": 1}, "x" * 100_001, "a\0b", "\ud800"],
    "height": ["48", 48.0, [], 10**20, 7, 4096],
    "width": ["48", None.__class__.__name__, {}, -48, 4096],
    "events": [5, "x", {}, [5], [None], [{"chunk": "1"}], [{"chunk": -1}], [{"chunks": 1}], [{"prompt": 5}]],
    "save_on_stop": ["yes", 1, None, []],
    "save_every_chunks": ["1", 0, 0.5, []],
    "source": [None, 5, "x", [], {"audoi": "x"}, {"image": 5}, {"actions": ["x"]}, {"tensors": "x" * 5000}],
    "sink": [None, 5, "x", [], {"vidoe": "x"}, {"video": 5}, {"latents": [1]}, {"frames": "a\0b"}],
    "resume": [5, True, [], {}, "/no/such/folder"],
    "id": ["b"],
    "count": [2],
    "speed": [1],
}
"""Per key of an opening line, values that it must be refused for."""


class Line(NamedTuple):
    """A line without its end, and whether it is an order that can be obeyed."""

    text: bytes
    good: bool


def lines(number: int, seed: int, streams: float = 0.02) -> Iterator[Line]:
    """`number` lines; a share of `streams` opens one of one chunk, and ends, waits for or steers others so opened."""
    draw = random.Random(seed)
    opened: list[str] = []
    for _ in range(number):
        if draw.random() < streams or not opened:
            opened = [*opened[-20:], f"s{draw.getrandbits(48):x}"]
            yield Line(
                _json({"open": opened[-1], "chunks": 1, "seed": draw.randrange(9), "sink": {"video": None}}), True
            )
        elif draw.random() < 0.1:
            yield Line(_good(draw, draw.choice(opened)), True)
        else:
            yield Line(draw.choice(BAD)(draw, draw.choice(opened)), False)


def _json(value: Any) -> bytes:
    return json.dumps(value).encode()


def _good(draw: random.Random, name: str) -> bytes:
    """Each may come while the stream runs, ends, or has ended."""
    orders = ({"prompt": "hello", "stream": name}, {"stop": name}, {"cancel": name}, {"wait": name})
    return draw.choice([b"", b"   ", *map(_json, orders)])


def _opening(draw: random.Random, **changes: Any) -> dict[str, Any]:
    return {"open": f"b{draw.getrandbits(48):x}", "chunks": 1} | changes


def _wrong_value(draw: random.Random, name: str) -> bytes:
    key = draw.choice(list(WRONG))
    return _json(_opening(draw, **{key: draw.choice(WRONG[key])}))


def _wrong_name(draw: random.Random, name: str) -> bytes:
    return _json(_opening(draw, open=draw.choice([MAIN, "", "../a", "a b", "x" * 200, 5, None, True, [], {}, "a\n"])))


def _both_lengths(draw: random.Random, name: str) -> bytes:
    return _json(_opening(draw, seconds=1))


def _unknown_stream(draw: random.Random, name: str) -> bytes:
    order = draw.choice(["stop", "cancel", "wait"])
    return _json({order: draw.choice(["nobody", 5, True, [], {}, [name], {"name": name}, "x" * 1000])})


def _wrong_prompt(draw: random.Random, name: str) -> bytes:
    wrong = draw.choice([{"prompt": value} for value in WRONG["prompt"]] + [{"stream": s} for s in ("no", 5, None, [])])
    return _json({"prompt": "hello", "stream": name} | wrong | draw.choice([{}, {"also": 1}]))


def _no_order(draw: random.Random, name: str) -> bytes:
    orders = ({"opne": name}, {}, {"": 1}, {"close": True}, {"stop": name, "cancel": name}, {"wait": name, "for": 5})
    return _json(draw.choice([*orders, 5, "stop", None, [], [{"stop": name}], True, 1.5]))


def _broken(draw: random.Random, name: str) -> bytes:
    whole = _json({"stop": name, "prompt": "a \u2603"})
    cut = whole[: draw.randrange(1, len(whole) - 1)]
    words = (b'{"stop": NaN}', b'{"stop": "a", "stop": "a"}', b"{'stop': 'a'}", b"stop", b"\xff", b'{"stop": "\xc3"}')
    return draw.choice([cut, *words, b"[" * 20_000, b'{"a":' * 5000, b'{"stop": ' + b"9" * 5000 + b"}", b"\x00"])


def _random_bytes(draw: random.Random, name: str) -> bytes:
    return b"x" + draw.randbytes(draw.randrange(200)).replace(b"\n", b"")


def _too_long(draw: random.Random, name: str) -> bytes:
    if draw.random() < 0.9:
        return _random_bytes(draw, name)
    return _json({"prompt": "x" * (1 << 20), "stream": name})


BAD: tuple[Callable[[random.Random, str], bytes], ...] = (
    _wrong_value, _wrong_value, _wrong_value, _wrong_name, _both_lengths, _unknown_stream, _wrong_prompt, _no_order,
    _broken, _random_bytes, _too_long,
)  # fmt: skip

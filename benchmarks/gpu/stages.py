"""Speed of stages: a step of the published models in every variant, and a decode, against the card's own rates."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from functools import cache, partial
from typing import Any

import torch

from benchmarks import models, stage
from benchmarks.alone import Counted
from benchmarks.gpu.rows import Bench, Row, allowed
from benchmarks.record import bar
from conf.errors import UserError
from conf.schema import CodecConfig, ModelConfig
from stages.dit import fp8

REPEATS, SMALL_REPEATS = 12, 2
AVATAR, LARGE, SMALLER = "live_avatar_14b", "wan21_t2v_14b", "wan21_t2v_1_3b"
WALKED, SEEN = "matrix_game_2", "lingbot_world_fast"
TINY = (
    "height=64", "width=64", "dtype=float32", "network.dim=32", "network.ffn_dim=64", "network.heads=2",
    "network.layers=2",
)  # fmt: skip
TEXT = ("network.text_dim=16", "network.text_tokens=4")
EXTRA = {
    AVATAR: (*TEXT, "network.audio.layers=[0]"), LARGE: TEXT, SMALLER: TEXT, SEEN: TEXT,
    WALKED: ("network.image_dim=20", "network.image_tokens=5", "network.actions.layers=[0]"),
}  # fmt: skip
ATTENTION = f"attention {AVATAR}"
"""A row."""
Judge = Callable[[dict[str, Any]], tuple[str, bool]]

SHARE, STEP_S, DECODE_S, SMALL_DECODE_S = 0.60, 0.17, 0.15, 0.010
"""Goals: share of the matrix rate of a bfloat16 step, an 8-bit step (70 frames per second), 12 frames of a codec."""


def at_least(share: float) -> Judge:
    return lambda found: (f">= {share:.0%} of the matrix rate", found["of_matrix_rate"] >= share)


def at_most(seconds: float) -> Judge:
    return lambda found: (f"<= {seconds * 1e3:g} ms", found["ms"] <= seconds * 1e3)


def subject(name: str, bench: Bench) -> ModelConfig:
    """A model at its own size with the fastest attention found here; a tiny one in a rehearsal."""
    if bench.small:
        return models.model(name, [*TINY, *EXTRA[name]])
    return replace(models.model(name), attention=fastest(bench))


def fastest(bench: Bench) -> str:
    """The attention back end that took least on a layer of the avatar; of the other models heads are as wide. Torch's
    own choice where that row has failed: what it died of would end every step, too."""
    found = bench.log.rows().get(ATTENTION, {}).get("attention", {})
    timed = {which: one["ms"] for which, one in found.items() if "ms" in one}
    return min(timed, key=timed.get, default="sdpa")


@cache
def counts(bench: Bench, name: str) -> dict[str | None, Counted]:
    """What was counted of a model's steps, for all its variants."""
    return {}


def shown(found: dict[str, Any]) -> str:
    once = f", once for a chunk {found['once']['ms']:.2f} ms" if "once" in found else ""
    return (
        f"{found['ms']:.2f} ms, {found['tflop_per_s']:.1f} TFLOP/s, {found['of_matrix_rate']:.1%} of the matrix rate, "
        f"floor {found['floor_ms']:.2f} ms{once}"
    )


def judged(found: dict[str, Any], judge: Judge | None, bench: Bench) -> dict[str, Any]:
    """A row of what was measured; goals are for cards."""
    value = shown(found)
    if judge is None or bench.small:
        return {"value": value, **found}
    return bar(value, *judge(found)) | found


def rates(bench: Bench) -> dict[str, Any]:
    """What the device does in large products and a large copy: all else is held against it."""
    machine, own = bench.machine, torch.float32 if bench.small else torch.bfloat16
    found = {str(own)[6:]: machine.flops(own)}
    for kind in ("per_tensor", "per_row"):
        with suppress(UserError):  # an older card
            fp8.check(kind, bench.device, own)
            found[kind] = machine.flops(own, kind)
    value = ", ".join(f"{name} {rate / 1e12:.1f} TFLOP/s" for name, rate in found.items())
    return {"value": f"{value}, copy {machine.bytes_per_s / 1e9:.0f} GB/s", "rates": found}


def attention(name: str, bench: Bench) -> dict[str, Any]:
    """A layer's attention over a full ring, by every back end that runs here."""
    given = models.model(name, [*TINY, *EXTRA[name]] if bench.small else [])
    found = stage.attention_times(given, bench.machine, SMALL_REPEATS if bench.small else REPEATS)
    told = [f"{which} {one.get('ms', one.get('error'))}" for which, one in found.items()]
    return {"value": f"{', '.join(told)} (ms)", "attention": found}


def step(name: str, variant: str, judge: Judge | None, bench: Bench) -> dict[str, Any]:
    """A step of a model with random weights, its ring full."""
    words = variant.split("+")
    if bench.small:  # no compiler in a rehearsal, and no graphs on a processor
        variant = "+".join(w for w in words if w not in ("compile", "graphs")) or "plain"
    kind = next((kind for word in words if (kind := stage.WORDS[word])), None)
    if kind and not bench.small:
        allowed(lambda: fp8.check(kind, bench.device, torch.bfloat16))
    model, repeats = subject(name, bench), SMALL_REPEATS if bench.small else REPEATS
    found = stage.measure(model, bench.machine, variant, repeats, counts(bench, name))
    return judged(found | {"variant": variant, "attention": model.attention}, judge, bench)


def decoded(kind: str, bench: Bench) -> tuple[CodecConfig, ModelConfig]:
    """A codec, and whose latents it decodes."""
    if bench.small:
        return CodecConfig(kind, width=2), models.model(SMALLER, [*TINY, *TEXT, "height=16", "width=16"])
    return CodecConfig(kind), models.model(AVATAR)


def decode(kind: str, compiled: bool, judge: Judge | None, bench: Bench) -> dict[str, Any]:
    """One chunk of the avatar's latents through a decoder: 12 frames."""
    repeats = SMALL_REPEATS if bench.small else REPEATS
    found = stage.decode(*decoded(kind, bench), bench.machine, compiled and not bench.small, repeats)
    return judged(found, judge, bench)


def _step(name: str, variant: str, seconds: float, judge: Judge | None = None) -> Row:
    return Row(f"step {name} {variant}", seconds, partial(step, name, variant, judge))


def _decode(kind: str, compiled: bool, seconds: float, judge: Judge) -> Row:
    label = f"decode {kind}{' compiled' * compiled}"
    return Row(label, seconds, partial(decode, kind, compiled, judge))


FIRST = [
    Row("rates", 8, rates),
    Row(ATTENTION, 3, partial(attention, AVATAR)),
    _step(AVATAR, "plain", 20, at_least(SHARE)),
    _decode("taehv", False, 4, at_most(SMALL_DECODE_S)),
    _decode("wan", False, 8, at_most(DECODE_S)),
    _step(AVATAR, "graphs", 15, at_least(SHARE)),
    _step(AVATAR, "fp8", 20, at_most(STEP_S)),
    _step(AVATAR, "fp8+compile+graphs", 45, at_most(STEP_S)),
    _step(AVATAR, "compile+graphs", 45, at_least(SHARE)),
]
THEN = [
    _step(SMALLER, "plain", 8),
    _step(WALKED, "plain", 8),
    _step(SEEN, "plain", 20),
    _step(LARGE, "plain", 15),
    _step(AVATAR, "fp8_row+compile+graphs", 45, at_most(STEP_S)),
    _step(WALKED, "compile+graphs", 35),
    _step(SEEN, "compile+graphs", 50),
    _step(LARGE, "compile+graphs", 45),
    _step(SMALLER, "compile+graphs", 35),
    _step(LARGE, "fp8_row+compile+graphs", 45),
    _step(AVATAR, "compile", 40, at_least(SHARE)),
    _decode("wan", True, 90, at_most(DECODE_S)),
]

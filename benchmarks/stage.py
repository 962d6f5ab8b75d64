"""One stage of a model, alone on a device: its step once the window has filled, and its decode.

The step is the first one of its chunk in the bank, with what a history rule does to the bank then; where chunks are
denoised together it goes over all of them. What a model makes once for all passes of a chunk is made before, and timed
by itself (`once`).

`python -m benchmarks.stage live_avatar_14b --variants all`, or all that is to be known of a GPU: `... --suite`. Needs
torch, numpy and safetensors; weights are random and made on the device. Times stand beside what the same device does in
a large matrix product and a large copy in the same run, and beside the least that counted arithmetic and bytes take at
those rates. Results go to `$OUT`, or benchmarks/results.

A variant is `plain`, or words joined by `+` (`benchmarks.alone`).
"""

from __future__ import annotations

import argparse
import gc
import os
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from benchmarks import models
from benchmarks.alone import PIXELS, WORDS, Counted, Stage, placed
from benchmarks.counting import Count, count
from benchmarks.rates import copy_rate, matrix_rate, seconds
from benchmarks.record import RESULTS, record
from conf.codecs import declared
from conf.errors import UserError
from conf.families import CODECS, known
from conf.schema import CodecConfig, ModelConfig
from runtime.rule_costs import Counting, period
from stages.build import decoder_of
from stages.compiled import compile_decoder
from stages.denoise.attention import backend, usable
from stages.denoise.layout import Layout
from stages.inputs import FRAMES_PER_LATENT

ALL = ("plain", "compile", "graphs", "compile+graphs", "fp8", "fp8+compile+graphs", "fp8_row+compile+graphs")
SUITE = (
    ("live_avatar_14b", ALL),
    ("wan21_t2v_14b", ("plain", "compile+graphs", "fp8_row+compile+graphs")),
    ("wan21_t2v_1_3b", ("plain", "compile+graphs")),
    ("reward_forcing", ("plain", "compile+graphs")),
    ("deep_forcing", ("plain", "compile+graphs")),
    ("rolling_forcing", ("plain", "compile+graphs")),
    ("matrix_game_2", ("plain", "compile+graphs")),
    ("lingbot_world_fast", ("plain", "compile+graphs")),
)
SUITE_S = 430.0
"""After so long no other variant is begun."""
Work = Callable[[], object]
OWN = "own"
"""The decoder of the model's own codec."""


class Machine:
    """A device and its rates, each measured once."""

    def __init__(self, device: torch.device):
        self.device, self.rates = device, {}
        self.name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
        self.bytes_per_s = copy_rate(device)

    def flops(self, dtype: torch.dtype, kind: str | None = None) -> float:
        if (dtype, kind) not in self.rates:
            self.rates[dtype, kind] = matrix_rate(self.device, dtype, kind)
        return self.rates[dtype, kind]

    def floor(self, counted: Count, dtype: torch.dtype, kind: str | None = None) -> float:
        """The least seconds that counted work takes at these rates."""
        arithmetic = counted.linear / self.flops(dtype, kind) + counted.attention / self.flops(dtype)
        return max(arithmetic, counted.bytes / self.bytes_per_s)

    def judged(self, times: list[float], counted: Count, dtype: torch.dtype, kind: str | None = None) -> dict[str, Any]:
        took, floor = statistics.median(times), self.floor(counted, dtype, kind)
        return {
            "ms": round(took * 1e3, 3),
            "ms_fastest": round(min(times) * 1e3, 3),
            "tflop": round(counted.flops / 1e12, 6),
            "tflop_per_s": round(counted.flops / took / 1e12, 3),
            "of_matrix_rate": round(counted.flops / took / self.flops(dtype), 4),
            "counted_bytes": counted.bytes,
            "floor_ms": round(floor * 1e3, 3),
            "floor_over_time": round(floor / took, 4),
        }


def fps(model: ModelConfig, step_s: float, decode_s: float, once_s: float = 0.0) -> float:
    """Frames per second of one stream under plan `timestep`, a worker for each step and one for the decoder.

    Where finished chunks are committed, the next one waits for this one's steps and commit: all are its period. Where
    they are denoised together, these are one step over all of them, and a commit that is as long as its share of that.
    What is made once for a chunk every worker makes for its own bank, before its step.
    """
    steps = made = 1.0
    if not model.rule.bank_per_step:
        steps, made = model.step_count + 1.0, model.step_count
    if model.rule.joint:
        steps = 1 + 1 / model.step_count
    return model.chunk_frames * FRAMES_PER_LATENT / max(steps * step_s + made * once_s, decode_s)


def attention_shape(model: ModelConfig) -> tuple[int, int, int, int]:
    """Of self-attention in a step over a full window, where it is widest: queries, keys, heads, channels of a head."""
    n = model.network
    tokens = (model.height // PIXELS // n.patch[1]) * (model.width // PIXELS // n.patch[2])
    keys = Counting(model, tokens, 1).keys
    place = max((passed[0].place for passed in period(model, Layout.of(model, tokens))), key=keys)
    return len(place.frames) * tokens, keys(place), n.heads, n.head_dim


def attention_times(model: ModelConfig, machine: Machine, repeats: int) -> dict[str, dict[str, float]]:
    """Self-attention of one layer over a full ring, by every back end that runs here."""
    dtype, (new, keys, heads, channels) = getattr(torch, model.dtype), attention_shape(model)
    q, k, v = (torch.randn(1, m, heads, channels, device=machine.device, dtype=dtype) for m in (new, keys, keys))
    found = {}
    for name in usable(machine.device, dtype, channels):
        try:
            core = backend(name, machine.device, dtype, channels)
            took = statistics.median(seconds(lambda core=core: core(q, k, v, None), machine.device, repeats))
        except Exception as error:  # a kernel that torch, or a package for another torch, lacks
            found[name] = {"error": (str(error).splitlines() or [type(error).__name__])[0]}
            continue
        found[name] = {"ms": round(took * 1e3, 4), "tflop_per_s": round(4 * q.numel() * keys / took / 1e12, 3)}
    return found


def decode_work(codec: CodecConfig, model: ModelConfig, device: torch.device, compiled: bool = False) -> Work:
    """One chunk of a model's latents through a codec's decoder, when the stream has begun."""
    dtype = getattr(torch, model.dtype)
    shape = 1, model.network.in_channels, model.chunk_frames, model.height // PIXELS, model.width // PIXELS
    decoder = placed(lambda: decoder_of(codec), device, dtype)
    latents, state = torch.randn(shape, device=device, dtype=dtype), decoder.start()
    if compiled and device.type != "meta":
        compile_decoder(decoder)

    @torch.inference_mode()
    def work() -> object:
        return decoder(latents, state)

    work()
    return work


def decode(codec: CodecConfig, model: ModelConfig, machine: Machine, compiled: bool, repeats: int) -> dict[str, Any]:
    """How long that takes."""
    work, counted = (decode_work(codec, model, d, compiled) for d in (machine.device, torch.device("meta")))
    return machine.judged(seconds(work, machine.device, repeats), count(counted), getattr(torch, model.dtype))


def measure(
    model: ModelConfig, machine: Machine, variant: str, repeats: int, counts: dict[str | None, Counted]
) -> dict[str, Any]:
    """One variant of a model's step, and under `once` what is made once for a chunk; `counts` keeps what was counted
    for others."""
    device = machine.device
    word = next((w for w in variant.split("+") if WORDS[w]), "plain")
    kind = WORDS[word]
    if kind not in counts:
        # Only `sdpa` knows the meta device, whatever runs.
        counts[kind] = Stage(replace(model, attention="sdpa"), torch.device("meta"), word).count()
    counted, stage = counts[kind], Stage(model, device, variant)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    begun = time.perf_counter()
    times = seconds(stage.step, device, repeats, stage.settled)
    found = machine.judged(times, counted.step, stage.dtype, kind) | {
        "weight_bytes": stage.weight_bytes, "bank_bytes": stage.bank_bytes,
        "wall_s": round(time.perf_counter() - begun, 2),
    }  # fmt: skip
    if counted.once:
        found["once"] = machine.judged(seconds(stage.once, device, repeats), counted.once, stage.dtype, kind)
    if device.type == "cuda":
        found["peak_bytes"] = torch.cuda.max_memory_allocated(device)
    return found


def run(
    name: str,
    overrides: list[str],
    machine: Machine,
    variants: tuple[str, ...],
    attention: str,
    repeats: int,
    decoders: tuple[str, ...],
    until: float = float("inf"),
    strict: bool = True,
) -> dict[str, Any]:
    """Everything about one model; what fails is told in its place unless `strict`."""
    model = models.model(name, overrides)
    own = model.codec.kind
    decoders = tuple(own + d.removeprefix(OWN) if d.partition("+")[0] == OWN else d for d in decoders)
    found: dict[str, Any] = {"attention": attention_times(model, machine, repeats), "step": {}, "decode": {}, "fps": {}}
    timed = {n: a["ms"] for n, a in found["attention"].items() if "ms" in a}
    model = replace(model, attention=min(timed, key=timed.get) if attention == "fastest" else attention)
    print(f"{name} {model.height}x{model.width} {model.dtype}, attention {model.attention}, {machine.name}", flush=True)

    def keep() -> None:
        """Write what there is: a run may be cut short."""
        times = {k: d["ms"] / 1e3 for k, d in found["decode"].items() if "ms" in d and k.partition("+")[0] == own}
        for variant, step in found["step"].items():
            if "ms" in step:
                once_s = step.get("once", {}).get("ms", 0.0) / 1e3
                found["fps"][variant] = round(fps(model, step["ms"] / 1e3, min(times.values(), default=0), once_s), 2)
        rates = {f"{str(d)[6:]}{' ' + k if k else ''}": round(r / 1e12, 3) for (d, k), r in machine.rates.items()}
        found.update(attention_used=model.attention, matrix_tflop_per_s=rates, copy_bytes_per_s=machine.bytes_per_s)
        configuration = {
            "model": name, "overrides": overrides, "device": machine.name, "dtype": model.dtype,
            "height": model.height, "width": model.width, "repeats": repeats,
        }  # fmt: skip
        theme = f"stage-{machine.name.lower().replace(' ', '_')}-{name}"
        command = " ".join(["python -m benchmarks.stage", *sys.argv[1:]])
        record(theme, command, configuration, found, Path(os.environ.get("OUT", RESULTS)))

    def tried(part: str, label: str, work: Callable[[], dict[str, Any]]) -> None:
        if time.monotonic() > until:
            found[part][label] = {"skipped": "out of time"}
            return
        try:
            r = found[part][label] = work()
            for name, one in ((part, r), ("once", r.get("once"))):
                if one:
                    print(
                        f"  {name:6} {label:24} {one['ms']:10.2f} ms {one['tflop_per_s']:9.2f} TFLOP/s "
                        f"{one['of_matrix_rate']:6.1%} of matrix rate, floor {one['floor_ms']:.2f} ms",
                        flush=True,
                    )
        except Exception as error:
            if strict:
                raise
            found[part][label] = {"error": f"{type(error).__name__}: {str(error)[:500]}"}
            print(f"  {part:6} {label:24} {found[part][label]['error'].splitlines()[0]}", flush=True)
        keep()
        gc.collect()
        if machine.device.type == "cuda":
            torch.cuda.empty_cache()

    counts: dict[str | None, Counted] = {}
    for part in ("decode", "step", "decode compiled"):
        if part == "step":
            for variant in variants:
                tried(part, variant, lambda variant=variant: measure(model, machine, variant, repeats, counts))
            continue
        # Compiling a decoder takes longest: whatever ends the run early should have the steps.
        for label in (d for d in decoders if ("+" in d) == (part == "decode compiled")):
            kind, compiled = label.partition("+")[0], "+" in label
            tried("decode", label, lambda k=kind, c=compiled: decode(CodecConfig(k), model, machine, c, repeats))
    keep()
    print(f"  matrix rates {found['matrix_tflop_per_s']} TFLOP/s, copy {machine.bytes_per_s / 1e9:.0f} GB/s")
    print(f"  fps under plan timestep: {found['fps']}", flush=True)
    return found


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.stage", description=__doc__.splitlines()[0])
    parser.add_argument("model", nargs="?", default="live_avatar_14b", help="of conf/model")
    parser.add_argument("overrides", nargs="*", help="keys of the model: height=704 network.layers=4 dtype=float32")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--variants", default="plain", help=f"by commas, or all: {', '.join(ALL)}")
    parser.add_argument(
        "--decoders", default=OWN, help=f"by commas: {', '.join((OWN, *known(CODECS)))}, own+compile, or none"
    )
    parser.add_argument("--attention", default="fastest", help="a back end, or fastest: of those that run here")
    parser.add_argument("--repeats", type=int, default=12)
    parser.add_argument("--suite", action="store_true", help="all models and variants, in less than nine minutes")
    a = parser.parse_args(argv)
    until = time.monotonic() + SUITE_S
    try:
        variants = ALL if a.variants == "all" else tuple(a.variants.split(","))
        for word in {w for v in variants for w in v.split("+")} - set(WORDS):
            raise UserError(f"--variants {word}", "is no variant", f"use {', '.join(WORDS)}, joined by +")
        decoders = () if a.decoders == "none" else tuple(a.decoders.split(","))
        for word in {d.partition("+")[0] for d in decoders} - {OWN, *known(CODECS)}:
            raise UserError(f"--decoders {word}", "is no decoder", f"use {', '.join((OWN, *known(CODECS)))}")
        machine = Machine(torch.device(a.device))
        if not a.suite:
            run(a.model, a.overrides, machine, variants, a.attention, a.repeats, decoders)
            return 0
        for i, (name, variants) in enumerate(SUITE):
            own = models.model(name).codec.kind
            others = [kind for kind in known(CODECS) if declared(kind).encoder == own]
            decoders = (own, *others, f"{own}+compile") if i == 0 else (own,)
            run(name, a.overrides, machine, variants, a.attention, a.repeats, decoders, until, strict=False)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())

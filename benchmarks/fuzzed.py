"""What `benchmarks.fuzz` types and gives: command lines with wild values, and files that are damaged.

A case is a pure function of its number and the seed, so that one that failed can be run again alone.
"""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file

from conf.schema import Config
from conf.settings import Setting, by_name
from launch import stream
from launch.arguments import groups, options

NANO = ("model=nano", "device=cpu", "stream.chunks=1", "sink.video=null")
KEPT_AWAY = (
    "launcher",
    "control",
    "logging",
    "source.audio",
    "source.actions",
    "output_dir",
    "sink",
    "cluster",
    "resume",
)
"""Settings that would leave this process, wait for standard input, or write outside the case's folder."""
NUMBERS = (
    "0", "-1", "1", "2", "3", "7", "13", "1.5", "1e3", "1e308", "-1e308", "nan", "inf", "-inf", "1e-300", str(2**31),
    str(2**63), str(-(2**63)), str(10**18), str(10**400), "0x10", "1_000", "\u0663", "1,2", "0.1.2", "",
)  # fmt: skip
WORDS = (
    "", " ", "null", "true", "a b", "(", ")", "[", "]", "{", "}", "[]", "{}", "[[]]", "[1,2", "{a: 1", "{a: {b: 2}}",
    "'", '"', "\\", "${", "${x}", "${output_dir}", "$(x)", "a,b", "a=b", "=", "../..", "/", "/dev/null",
    "/proc/self/mem", ".", "\u00e4\u7ae0\U0001f600", "\x07", "\n", "a" * 5000, "-", "--", "*", "~", "None", "auto",
    "nano", "cuda", "[null]", "[1,null]", "[a,b]", "[1.5]", "[-1]", "[0]", "[99999999999]",
    "[{chunk: 1, prompt: a}]", "[{chunk: -1}]", "[{chunk: a}]", "[{x: 1}]",
)  # fmt: skip


@dataclass(frozen=True)
class Case:
    """One thing to try.

    Attributes:
        kind: for the summary.
        command: of `everframe`.
        arguments: its own; the folder of the results is added.
    """

    kind: str
    command: str
    arguments: tuple[str, ...]


def case(number: int, seed: int, folder: Path) -> Case:
    """Case `number`; files that it needs are written to `folder`."""
    draw = random.Random(f"{seed}/{number}")
    kinds: dict[str, tuple[int, Callable]] = {
        "settings of plan": (40, lambda: Case("settings of plan", "plan", ("model=nano", *_settings(draw)))),
        "settings of stream": (25, lambda: Case("settings of stream", "stream", _stream(draw, *_settings(draw)))),
        "keys": (5, lambda: Case("keys", "plan", tuple(_misspelt(draw) for _ in range(draw.randint(1, 2))))),
        "files": (25, lambda: _file(draw, folder)),
        "clusters": (5, lambda: _cluster(draw, folder)),
    }
    name = draw.choices(list(kinds), [weight for weight, _ in kinds.values()])[0]
    return kinds[name][1]()


def _stream(draw: random.Random, *more: str) -> tuple[str, ...]:
    """Arguments of a short run; wild ones come last and win."""
    plan = draw.choice(["plan=sequential", "plan=sequential", "plan=timestep", "plan=layers"])
    return (*NANO, plan, *more)


def _may_be_set(setting: Setting) -> bool:
    return not any(setting.name == away or setting.name.startswith(f"{away}.") for away in KEPT_AWAY)


def _settings(draw: random.Random) -> list[str]:
    known = [setting for setting in by_name(Config).values() if _may_be_set(setting)]
    found = []
    for setting in draw.sample(known, draw.randint(1, 3)):
        value = draw.choice((*NUMBERS, *NUMBERS, *WORDS) if setting.holds in (int, float) else WORDS + NUMBERS)
        if setting.choices and draw.random() < 0.5:
            value = draw.choice(setting.choices)
        found.append(f"{setting.name}={value}")
    if draw.random() < 0.2:
        group = draw.choice([g for g in groups(Config) if g not in (*KEPT_AWAY, "model")])
        found.append(f"{group}={draw.choice((*options(group), *WORDS))}")
    # Long streams and large pictures are what people may want; here they would only take time.
    lengths = ("stream.chunks=", "stream.seconds=", "stream.count=")
    return [
        f for f in found if not f.startswith(lengths) or f.split("=")[1] in (*WORDS, "0", "-1", "nan", "inf", "1e308")
    ]


def _misspelt(draw: random.Random) -> str:
    name = list(draw.choice(list(by_name(Config))))
    for _ in range(draw.randint(1, 3)):
        at = draw.randrange(len(name))
        name[at : at + draw.randint(0, 1)] = draw.choice(["", "x", ".", "+", "~", "@", "=", " ", "\u00e9", "[", "_"])
    return draw.choice(["", "", "+", "++", "~"]) + "".join(name) + draw.choice(["", "=", "=1", "=null"])


# -- files ----------------------------------------------------------------------------------------------------------


def originals(folder: Path) -> None:
    """Whole files of every kind that is read, to be damaged: weights, a state, pictures, sound, lines, tensors."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 255, (40, 48, 3), np.uint8)).save(folder / "a.png")
    Image.fromarray(rng.integers(0, 255, (40, 48, 3), np.uint8)).save(folder / "a.jpg")
    _wav(folder / "a.wav", rng)
    (folder / "a.jsonl").write_text("".join(f'{{"frame": {4 * i}, "action": "forward"}}\n' for i in range(4)))
    save_file({"noise.000000.step.0": torch.zeros(1, 16, 3, 4, 4)}, folder / "a.safetensors")
    _weights(folder)
    quiet = ("stream.chunks=2", "stream.save_every_chunks=1", f"output_dir={folder / 'run'}")
    inputs = (f"sink.inputs={folder / 'inputs.jsonl'}", f"source.actions={folder / 'a.jsonl'}")
    if stream.main([*NANO, *quiet, *inputs]):
        raise RuntimeError("a plain run failed")


def _wav(path: Path, rng: np.random.Generator) -> None:
    import wave

    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(16000)
        file.writeframes(rng.integers(-9000, 9000, 16000).astype("<i2").tobytes())


def _weights(folder: Path) -> None:
    """Weights of nano as .safetensors and .pt, and a LoRA of it."""
    from launch.cli import compose
    from stages.build import whole

    names = whole(compose("stream", Config, ["model=nano"]).model)
    torch.manual_seed(0)
    weights = {name: 0.02 * torch.randn(shape) for name, shape in names.items()}
    save_file(weights, folder / "weights.safetensors")
    torch.save({"generator": weights}, folder / "weights.pt")
    key = "blocks.0.self_attn.q"
    save_file(
        {f"{key}.lora_A.weight": torch.randn(2, 48), f"{key}.lora_B.weight": torch.randn(48, 2)},
        folder / "lora.safetensors",
    )


READ = {
    "source.image": ("a.png", "a.jpg"),
    "source.audio": ("a.wav",),
    "source.actions": ("a.jsonl",),
    "source.tensors": ("a.safetensors",),
    "source.inputs": ("inputs.jsonl",),
    "model.checkpoint": ("weights.safetensors", "weights.pt"),
    "model.lora": ("lora.safetensors",),
    "model.codec.checkpoint": ("weights.safetensors",),
    "resume": ("run",),
}
"""Settings that name a file, and whole files of that kind."""


def _file(draw: random.Random, folder: Path) -> Case:
    whole, setting = folder.parent / "originals", draw.choice(list(READ))
    names = READ[setting] if draw.random() < 0.85 else draw.choice(list(READ.values()))
    given = folder / draw.choice(names)
    _copied(whole / given.name, given)
    if given.is_dir():
        parts = sorted(p for p in given.rglob("*") if p.is_file() and "state" in p.parts)
        damage(draw, draw.choice(parts))
    else:
        damage(draw, given)
    more = [f"{setting}={given}"]
    if setting == "model.lora":
        more.append(f"model.checkpoint={whole / 'weights.safetensors'}")
    if setting == "resume":
        more.append("stream.chunks=3")
    return Case("files", "stream", (*NANO, *more))


def _copied(source: Path, target: Path) -> None:
    if source.is_dir():
        shutil.copytree(source, target)
    else:
        shutil.copy(source, target)


def damage(draw: random.Random, path: Path) -> None:
    """Cut a file, flip some of its bits, put other bytes into it, or put something else in its place."""
    content = bytearray(path.read_bytes())
    how = draw.choice(["cut", "flip", "flip", "head", "insert", "zero", "other", "empty", "folder", "text"])
    if how == "cut":
        content = content[: draw.randrange(len(content) + 1)]
    elif how in ("flip", "head"):
        within = min(len(content), 400) if how == "head" else len(content)
        for _ in range(draw.randint(1, 8) if within else 0):
            content[draw.randrange(within)] ^= 1 << draw.randrange(8)
    elif how == "insert":
        at = draw.randrange(len(content) + 1)
        content[at:at] = draw.randbytes(draw.randint(1, 40))
    elif how == "zero":
        content = bytearray(len(content))
    elif how == "other":
        content = bytearray(draw.randbytes(draw.randint(1, 3000)))
    elif how == "text":
        content = bytearray(
            draw.choice(
                [
                    b"version https://git-lfs.github.com/spec/v1\n",
                    b"<html>404</html>",
                    b"{}",
                    b"[]",
                    b"null",
                    b"\xff\xfe",
                ]
            )
        )
    elif how == "empty":
        content = bytearray()
    path.unlink()
    if how == "folder":
        path.mkdir()
    else:
        path.write_bytes(content)


KEYS = ("name", "note", "kinds", "devices", "intra", "inter", "times", "defaults", "x")


def _cluster(draw: random.Random, folder: Path) -> Case:
    """A cluster file with wild keys and values."""
    path = folder / "cluster.yaml"
    values = [
        1, -1, 1e400, None, "a", [], {}, [{}], [[1]], {"a": {}}, {"gpu": {"memory_bytes": 1e9, "flops": 1e12}},
        [{"kind": "gpu", "count": 2}], [{"kind": "gpu", "count": -1}], {"latency_s": -1, "bandwidth": 0}, "${kinds}",
    ]  # fmt: skip
    content = {key: draw.choice(values) for key in draw.sample(KEYS, draw.randint(1, 5))}
    path.write_text(
        json.dumps(content)
        if draw.random() < 0.7
        else "[" * draw.randint(1, 4000) + str(content)[: draw.randint(0, 60)]
    )
    return Case("clusters", "plan", ("model=nano", "plan=timestep", f"cluster={path}"))

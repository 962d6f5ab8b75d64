"""Does a worker read and hold only its own weights? `python -m benchmarks.loading`.

A checkpoint with the proportions of Wan2.1 14B at 3/16 of its width (1 GB in bfloat16) is written to a temporary
folder, and one eighth of its layers is loaded by a process of its own, with and without conversion and a LoRA. Bytes
are those that the reader counts, headers included. Memory is the process's peak resident size while it loads, less what
it had before, against the weights it holds then.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from safetensors.torch import save_file

from benchmarks.record import bar, record
from tests.checkpoints import SMALL, lora_tensors, random_tensors, t2v_config, t2v_shapes, write_folder

SIZES = {"dim": 960, "ffn_dim": 2592, "num_heads": 40, "text_dim": 768, "freq_dim": 48}
LAYERS = range(15, 20)
RANK = 24

CHILD = """
import json, sys
from pathlib import Path
import torch
from launch.cli import compose
from conf.schema import Config
from stages.build import Checkpoint, build_network
from stages.codec.base import parameter_bytes

def status(key):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key))

torch.set_num_threads(1)
def load(overrides, layers):
    model = compose("stream", Config, ["model=wan21_t2v_14b", *overrides]).model
    checkpoint = Checkpoint(model, torch.device("cpu"))
    return checkpoint, build_network(model, torch.device("cpu"), layers, checkpoint).fuse()

small, first, stop, *overrides = sys.argv[1:]
# What libraries take at their first use is not the weights'.
load([f"model.checkpoint={small}", f"model.lora={small}.safetensors"], range(1, 2))
Path("/proc/self/clear_refs").write_text("5")
before = status("VmRSS")
checkpoint, network = load(overrides, range(int(first), int(stop)))
print(json.dumps({
    "read": checkpoint.file.bytes_read, "peak": status("VmHWM") - before, "held": parameter_bytes(network),
}))
"""


def loaded(small: Path, *overrides: str) -> dict[str, int]:
    """What a process that loads `LAYERS` counts, after a small checkpoint as a rehearsal."""
    argv = [sys.executable, "-c", CHILD, str(small), str(LAYERS.start), str(LAYERS.stop), *overrides]
    return json.loads(subprocess.run(argv, check=True, capture_output=True, text=True).stdout)


def main() -> bool:
    config = t2v_config(**SIZES)
    shapes = t2v_shapes(config)
    total = sum(torch.Size(s).numel() for s in shapes.values())
    measured: dict[str, object] = {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        little = t2v_config(**SMALL)
        write_folder(folder / "small", little, random_tensors(t2v_shapes(little)))
        save_file(lora_tensors(t2v_shapes(little), 4), folder / "small.safetensors")
        tensors = random_tensors(shapes, torch.bfloat16)
        write_folder(folder / "bf16", config, tensors, shards=4)
        (folder / "pth").mkdir()
        (folder / "pth" / "config.json").write_text(json.dumps(config))
        wide = {f"model.{name}": value.float() for name, value in tensors.items()}
        torch.save({"generator": wide}, folder / "pth" / "model.pt")
        save_file(lora_tensors(shapes, RANK), folder / "lora.safetensors")
        cases = {
            "safetensors, 4 shards, bf16": (2, [f"model.checkpoint={folder / 'bf16'}"]),
            "the same, made float32": (2, [f"model.checkpoint={folder / 'bf16'}", "model.dtype=float32"]),
            "the same, with a LoRA": (
                2,
                [f"model.checkpoint={folder / 'bf16'}", f"model.lora={folder / 'lora.safetensors'}"],
            ),
            ".pt, float32 made bf16": (4, [f"model.checkpoint={folder / 'pth'}"]),
        }
        for name, (width, overrides) in cases.items():
            found = loaded(folder / "small", *overrides)
            share, peak = found["read"] / (total * width), found["peak"] / found["held"]
            measured[f"{name}: share of the bytes read"] = bar(round(share, 4), "<= 1/8 + 0.02", share <= 0.145)
            measured[f"{name}: peak memory / own weights"] = bar(round(peak, 3), "<= 1.1", peak <= 1.1)
            measured[f"{name}: counted"] = found
    configuration = {**SIZES, "layers": 40, "loaded": [LAYERS.start, LAYERS.stop], "parameters": total, "rank": RANK}
    record("loading", "python -m benchmarks.loading", configuration, measured)
    return all(m["passed"] for m in measured.values() if "passed" in m)


if __name__ == "__main__":
    sys.exit(not main())

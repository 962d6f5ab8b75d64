"""One denoising step of the pocket network against its bare matrix products, attention calls and GELUs.

`python -m benchmarks.step`: one thread, float32, both timed in interleaved pairs within one run. The bare
side calls the same kernels on the same shapes and nothing else: no norms, modulation, rotation, residuals,
no bank writes and no module overhead.

The bar is held against single calls that alternate. The ratio of a chunk's four steps in a row to four bare runs is
recorded beside it: there a step finds the caches as its own stream leaves them.
"""

from __future__ import annotations

import statistics
import time

import torch
import torch.nn.functional as F

from benchmarks.record import bar, record
from conf.schema import ModelConfig
from stages.denoise.denoiser import Denoiser, StreamBanks
from stages.models.wan.network import Network
from stages.models.wan.sizes import Sizes
from stages.weights import initialise

DIM, LAYERS, HEADS, FFN, ROWS, CHUNK, WINDOW, TEXT = 256, 8, 4, 1024, 8, 3, 12, 8
STEPS, PAIRS = 4, 60


def build() -> Denoiser:
    config = Sizes(dim=DIM, ffn_dim=FFN, heads=HEADS, layers=LAYERS, text_dim=64, text_tokens=TEXT)
    model = ModelConfig(network=config, chunk_frames=CHUNK, window_frames=WINDOW, steps=1)
    network = Network(config).eval()
    initialise(network, seed=0)
    return Denoiser(model, network, ROWS, ROWS)


def bare(denoiser: Denoiser, banks: StreamBanks):
    """The matrix products, attention calls and GELUs of one step, with its weights and its bank, on fixed inputs."""
    network, bank = denoiser.network, banks.banks[0]
    g = torch.Generator().manual_seed(0)
    new = CHUNK * ROWS * ROWS
    x = torch.randn(1, new, DIM, generator=g)
    q = torch.randn(1, new, HEADS, DIM // HEADS, generator=g)
    patch = torch.randn(1, new, 64, generator=g)
    embed = network.patch_embedding.weight.flatten(1), network.patch_embedding.bias
    head = network.head.head.weight, network.head.head.bias

    def weights(*linears):
        return [(m.weight, m.bias) for m in linears]

    layers = [
        (
            [layer.fused.qkv[0], *weights(layer.self_attn.o, layer.cross_attn.q, layer.cross_attn.o)],
            weights(layer.ffn[0], layer.ffn[2]),
            ((bank.keys[i], bank.values[i]), banks.states[i]),
        )
        for i, layer in enumerate(network.blocks.values())
    ]

    def run() -> None:
        F.linear(patch, *embed)
        for square, (up, down), histories in layers:
            for pair in square:
                F.linear(x, *pair)
            for k, v in histories:
                F.scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2))
            h = F.linear(x, *up)
            F.linear(F.gelu(h, approximate="tanh", out=h), *down)
        F.linear(x, *head)

    return run


@torch.inference_mode()
def measure(pairs: int = PAIRS) -> dict[str, float]:
    """Medians over interleaved pairs, in seconds, and the median ratio."""
    torch.set_num_threads(1)
    denoiser = build()
    banks = denoiser.open()
    denoiser.set_states(banks, {"text": torch.randn(1, 4, 64)})
    x = torch.randn(1, 16, CHUNK, 2 * ROWS, 2 * ROWS)
    chunk = 20
    for i in range(chunk):
        denoiser.step(banks, 0, i, x, {})
    core = bare(denoiser, banks)

    def timed(work, times: int) -> float:
        start = time.perf_counter()
        for _ in range(times):
            work()
        return (time.perf_counter() - start) / times

    calls = 0

    def step() -> None:
        # Four steps make a chunk, as in a stream: the rotation table is new with every chunk.
        nonlocal calls
        denoiser.step(banks, 0, chunk + calls // STEPS, x, {})
        calls += 1

    for _ in range(10):
        step()
        core()

    def sample(i: int, times: int) -> tuple[float, float]:
        if i % 2:
            return timed(step, times), timed(core, times)
        return (timed(core, times), timed(step, times))[::-1]

    chunks, singles = ([sample(i, times) for i in range(pairs)] for times in (STEPS, 1))
    return {
        "step_s": statistics.median(a for a, _ in singles),
        "bare_s": statistics.median(b for _, b in singles),
        "ratio": statistics.median(a / b for a, b in singles),
        "ratio_of_whole_chunks": statistics.median(a / b for a, b in chunks),
    }


def main() -> bool:
    result = measure()
    passed = result["ratio"] <= 1.10
    measured = {"step over bare kernels": bar(round(result["ratio"], 4), "<= 1.10", passed)} | result
    configuration = {
        "dim": DIM, "layers": LAYERS, "heads": HEADS, "ffn_dim": FFN, "new_tokens": CHUNK * ROWS**2,
        "keys": WINDOW * ROWS**2, "text_tokens": TEXT, "threads": 1, "dtype": "float32", "pairs": PAIRS,
    }  # fmt: skip
    record("step", "python -m benchmarks.step", configuration, measured)
    return passed


if __name__ == "__main__":
    raise SystemExit(not main())

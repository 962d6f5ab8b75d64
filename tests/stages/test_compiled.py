"""Compiled stages give what they gave, with one compiled function for all layers, slots and chunks."""

import shutil

import pytest
import torch

from conf.errors import UserError
from stages import compiled
from stages.codec.wan.network import WanDecoder
from stages.denoise.denoiser import Denoiser
from stages.dit import fp8
from stages.weights import initialise
from tests.stages.denoise.test_graphs import stream
from tests.stages.denoise.test_s2v import TEXT, build, latents, model_of, normal

NO_COMPILER = not any(map(shutil.which, ("g++", "clang++", "c++")))


@pytest.fixture(autouse=True)
def counters():
    """What the compiler counts, from zero."""
    from torch._dynamo.utils import counters  # seconds to import, for every process of the suite

    torch._dynamo.reset()
    counters.clear()
    compiled.compiled.cache_clear()
    yield counters
    torch._dynamo.reset()


@pytest.mark.parametrize("eight", [False, True])
def test_a_stream_is_the_same_and_little_is_compiled(counters, eight):
    """Traced as for the compiler, run by torch itself: quick, and says what would be compiled how often."""
    plain, ours = (build(model_of(dim=64, heads=2) if eight else model_of()) for _ in range(2))
    if eight:
        for denoiser in (plain, ours):
            fp8.quantise(denoiser.network, "per_row")
    width = ours.model.network.dim
    compiled.compile_network(ours.network, backend="aot_eager")

    def run(denoiser: Denoiser) -> list[torch.Tensor]:
        return stream(denoiser, 7, width=width)

    for found, exact in zip(run(ours), run(plain), strict=True):
        assert torch.equal(found, exact) or (found - exact).abs().max() <= 1e-5
    # Three regions, for the tokens of a prefill and those of a chunk: however many layers, slots and chunks there are.
    assert counters["stats"]["unique_graphs"] == 6
    assert not counters["graph_break"]


@pytest.mark.long
@pytest.mark.skipif(NO_COMPILER, reason="needs a C++ compiler")
def test_compiled_is_within_1e_5(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    given, outs = {"audio": normal(1, 1, 3, 6, 48)}, []
    for make in (compiled.compile_network, lambda network: network):
        denoiser = build(model_of())
        make(denoiser.network)
        banks = denoiser.open([0])
        denoiser.set_states(banks, {"text": TEXT})
        with torch._inductor.config.patch(compile_threads=1):
            outs.append(denoiser.step(banks, 0, 0, latents(1, 3), given))
    torch.testing.assert_close(*outs, rtol=1e-5, atol=1e-5)


def test_a_compiled_decoder_is_the_same(counters):
    plain, ours = (WanDecoder(base=4, multipliers=(1, 2), blocks=1, temporal=(True,)).eval() for _ in range(2))
    for decoder in (plain, ours):
        initialise(decoder, 3)
        decoder.requires_grad_(False)
    compiled.compile_decoder(ours, backend="aot_eager")
    a, b = plain.start(), ours.start()
    for i in range(4):
        chunk = torch.randn(1, 16, 3, 4, 4, generator=torch.Generator().manual_seed(i))
        torch.testing.assert_close(ours(chunk, b), plain(chunk, a), rtol=1e-5, atol=1e-5)
    assert counters["stats"]["unique_graphs"] == 3


def test_no_compiler_is_said_at_once(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(UserError, match=r"device.compile=true: needs a C\+\+ compiler"):
        compiled.wanted("true", torch.device("cpu"))


@pytest.mark.parametrize("wish", ["auto", "true", "false"])
@pytest.mark.parametrize("triton", [False, True])
@pytest.mark.parametrize("gcc", [False, True])
@pytest.mark.parametrize("kind", ["cpu", "cuda"])
def test_auto_compiles_on_a_gpu_that_has_what_it_needs(monkeypatch, wish, triton, gcc, kind):
    monkeypatch.setattr(shutil, "which", lambda name: "/bin/x" if gcc and name else None)
    monkeypatch.setattr(compiled.importlib.util, "find_spec", lambda name: triton or None)
    can = gcc and (triton or kind == "cpu")
    if wish == "true" and not can:
        with pytest.raises(UserError, match=r"device.compile=true: needs .*; set device.compile=auto"):
            compiled.wanted(wish, torch.device(kind))
    else:
        expected = {"auto": can and kind == "cuda", "true": True, "false": False}[wish]
        assert compiled.wanted(wish, torch.device(kind)) == expected


def broken(graph, inputs):
    """A compiler that fails."""
    raise RuntimeError("no such target\nand much more")


def test_where_the_compiler_fails_a_stream_goes_on_as_it_is(caplog):
    plain, ours = build(model_of()), build(model_of())
    compiled.compile_network(ours.network, backend=broken, must=False)
    for found, exact in zip(stream(ours, 2), stream(plain, 2), strict=True):
        assert torch.equal(found, exact)
    said = [record.getMessage() for record in caplog.records if record.name == compiled.__name__]
    assert len(said) == 3  # a region each, not each layer and pass
    assert all("\n" not in line and "is not compiled: " in line and "no such target" in line for line in said)


def raising(*faults):
    """A function that raises these, one at each call; None: it adds one."""
    left = list(faults)

    def run(x):
        if (fault := left.pop(0)) is not None:
            raise fault
        return x + 1

    return run


def test_an_error_that_is_not_the_compilers_own_is_excused_as_well(monkeypatch, caplog):
    """`torch.compile` raises RuntimeError itself where another thread traces."""
    monkeypatch.setattr(torch, "compile", lambda plain, **kind: raising(RuntimeError("Detected that you"), None))
    region = compiled.Region(lambda x: -x, must=False)
    assert [region(1), region(1)] == [-1, -1]
    assert [record.getMessage().count("Detected that") for record in caplog.records] == [1]


def test_what_goes_wrong_in_the_work_is_told(monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda plain, **kind: raising(None, RuntimeError("of the work"), None))
    region = compiled.Region(lambda x: -x, must=False)
    assert region(1) == 2
    with pytest.raises(RuntimeError, match="of the work"):
        region(1)
    assert region(1) == 2


@pytest.mark.parametrize("must", [False, True])
def test_calls_of_what_is_compiled_are_one_at_a_time(monkeypatch, must):
    """Of different functions, too: torch compiles anew what two threads call at once, or refuses a call."""
    held = []

    def run(x):
        held.append(compiled._CALLING.locked())
        return x

    monkeypatch.setattr(torch, "compile", lambda plain, **kind: run)
    assert compiled.Region(lambda x: -x, must=must)(1) == 1
    assert held == [True] and not compiled._CALLING.locked()


def test_memory_that_lacks_is_no_fault_of_the_compiler(monkeypatch):
    lacks = torch.OutOfMemoryError("no memory is left")
    monkeypatch.setattr(torch, "compile", lambda plain, **kind: raising(lacks))
    with pytest.raises(torch.OutOfMemoryError):
        compiled.Region(lambda x: x, must=False)(1)


def test_a_compiler_that_must_work_is_not_excused():
    denoiser = build(model_of())
    compiled.compile_network(denoiser.network, backend=broken)
    with pytest.raises(UserError, match=r"device.compile=true: the compiler failed: .*no such target"):
        stream(denoiser, 1)

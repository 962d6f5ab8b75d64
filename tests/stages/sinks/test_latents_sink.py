"""The latents file loads after every write, holds the same bits, and grows past its reserve."""

import hashlib
import resource

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from conf.errors import UserError
from stages.sinks.latents import LatentsSink
from stages.sinks.latents_hash import LatentsHash


def chunk(seed, dtype=torch.float32, shape=(1, 4, 3, 2, 5)):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_loads_after_every_chunk_over_several_growths(tmp_path, dtype):
    path, sizes = tmp_path / "a.safetensors", set()
    sink = LatentsSink(path, reserve=200)
    assert load_file(path) == {}
    for i in range(20):
        sink.write(chunk(i, dtype))
        sizes.add(int.from_bytes(path.read_bytes()[:8], "little"))
        loaded = load_file(path)
        assert sorted(loaded) == [f"chunk.{j:06d}" for j in range(i + 1)]
        for j, tensor in enumerate(loaded.values()):
            expected = chunk(int(list(loaded)[j][-6:]), dtype)
            assert tensor.dtype == dtype and torch.equal(tensor, expected)
    sink.close()
    sink.close()
    assert sizes == {200, 400, 800, 1600} and [p.name for p in tmp_path.iterdir()] == ["a.safetensors"]


def test_chunks_may_differ_and_may_be_views(tmp_path):
    sink = LatentsSink(tmp_path / "a.safetensors")
    transposed = chunk(0).transpose(3, 4)
    sink.write(transposed)
    sink.write(chunk(1, shape=(1, 4, 1, 2, 5)).bfloat16().requires_grad_())
    loaded = load_file(tmp_path / "a.safetensors")
    assert torch.equal(loaded["chunk.000000"], transposed) and loaded["chunk.000001"].shape == (1, 4, 1, 2, 5)
    sink.close()


def test_an_old_file_is_replaced(tmp_path):
    path = tmp_path / "a.safetensors"
    path.write_bytes(b"x" * 100_000)
    sink = LatentsSink(path)
    sink.write(chunk(0))
    sink.close()
    assert torch.equal(load_file(path)["chunk.000000"], chunk(0))


def test_without_chunks_there_is_no_file(tmp_path):
    LatentsSink(tmp_path / "a.safetensors").close()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("limit", [3000, 3500])
@pytest.mark.parametrize("reserve", [200, 2000])
def test_no_space_is_one_line_and_leaves_a_valid_file(tmp_path, limit, reserve):
    path = tmp_path / "a.safetensors"
    sink = LatentsSink(path, reserve)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limits[1]))
        with pytest.raises(UserError, match=r"sink.latents=.*cannot be written \(File too large\).*the first") as error:
            for i in range(20):
                sink.write(chunk(i))
        assert "\n" not in str(error.value)
        loaded = load_file(path)
        assert len(loaded) == sink.chunks >= 2
        assert all(torch.equal(loaded[f"chunk.{i:06d}"], chunk(i)) for i in range(sink.chunks))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    sink.write(chunk(sink.chunks))  # room was made
    assert len(load_file(path)) == sink.chunks
    sink.close()
    assert [p.name for p in tmp_path.iterdir()] == ["a.safetensors"]


def test_what_a_user_can_get_wrong(tmp_path):
    (tmp_path / "file").write_text("")
    for path in ("file/a.safetensors", "."):
        with pytest.raises(UserError, match=r"sink.latents=.*: cannot be written"):
            LatentsSink(tmp_path / path)


def test_what_a_program_can_get_wrong(tmp_path):
    sink = LatentsSink(tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match=r"not torch\.int64"):
        sink.write(torch.zeros(1, dtype=torch.int64))
    sink.close()
    with pytest.raises(ValueError, match="closed"):
        sink.write(chunk(0))


def test_the_file_is_invalid_if_cut_so_the_loads_above_mean_something(tmp_path):
    sink = LatentsSink(tmp_path / "a.safetensors")
    sink.write(chunk(0))
    sink.close()
    (tmp_path / "b.safetensors").write_bytes((tmp_path / "a.safetensors").read_bytes()[:-1])
    with pytest.raises(SafetensorError):
        load_file(tmp_path / "b.safetensors")


def test_the_hash_is_over_raw_bytes_in_order():
    chunks = [chunk(i, torch.bfloat16) for i in range(3)]
    latents_hash = LatentsHash()
    for latents in chunks:
        latents_hash.add(latents)
    raw = b"".join(c.view(torch.int16).numpy().tobytes() for c in chunks)
    assert latents_hash.hexdigest == hashlib.sha256(raw).hexdigest()
    latents_hash.add(chunks[0].transpose(1, 2))
    assert latents_hash.hexdigest != hashlib.sha256(raw).hexdigest()


def digest_of(count):
    found = LatentsHash(resumable=True)
    for i in range(count):
        found.add(chunk(i))
    return found


@pytest.mark.parametrize("reserve", [200, 1 << 16])
def test_a_file_goes_on_behind_the_chunks_it_is_to_keep(tmp_path, reserve):
    path, first = tmp_path / "a.safetensors", LatentsSink(tmp_path / "a.safetensors", reserve=reserve)
    for i in range(5):
        first.write(chunk(i))
    first.close()
    sink = LatentsSink(path, first=3, digest=digest_of(3).hexdigest)
    assert sorted(load_file(path)) == [f"chunk.{i:06d}" for i in range(3)]
    for i in (3, 4, 5, 6):
        sink.write(chunk(i + 10))
    sink.close()
    loaded = load_file(path)
    assert sorted(loaded) == [f"chunk.{i:06d}" for i in range(7)]
    for i in range(7):
        assert torch.equal(loaded[f"chunk.{i:06d}"], chunk(i if i < 3 else i + 10))


@pytest.mark.parametrize("before", [b"", b"x" * 100, "shorter", "another"])
def test_a_file_that_does_not_hold_them_is_replaced_by_the_rest(tmp_path, before):
    path = tmp_path / "a.safetensors"
    if isinstance(before, bytes):
        path.write_bytes(before)
    else:
        old = LatentsSink(path)
        for i in range(2 if before == "shorter" else 4):
            old.write(chunk(i + 7))
        old.close()
    sink = LatentsSink(path, first=3, digest=digest_of(3).hexdigest)
    sink.write(chunk(3))
    sink.close()
    assert list(load_file(path)) == ["chunk.000003"]


def test_a_hash_goes_on_from_another():
    whole, second = digest_of(4), LatentsHash(progress=digest_of(2).progress)
    for i in (2, 3):
        second.add(chunk(i))
    assert second.hexdigest == whole.hexdigest

"""Precomputed conditioning: only known names, shapes checked, nothing read before it is asked for."""

import pytest
import torch
from safetensors.torch import save_file

from conf.errors import UserError
from stages.inputs import Axis, Input, inputs_of
from stages.sources.tensors import TensorsFile
from tests.helpers import config_of


def opened(path) -> TensorsFile:
    """As the model takes it that has most inputs."""
    model = config_of("model=live_avatar_14b", "model.network.text_dim=8").model
    return TensorsFile(path, "live_avatar_14b", inputs_of(model))


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "conditioning.safetensors"
    save_file(
        {
            "context": torch.full((1, 4, 8), 0.0),
            "context.000005": torch.full((1, 4, 8), 5.0),
            "context.000012": torch.full((1, 4, 8), 12.0),
            "noise.000000.step.0": torch.randn(1, 4, 3, 2, 2, dtype=torch.float32),
            "noise.000000.step.3": torch.randn(1, 4, 3, 2, 2),
            "audio_features.000001": torch.randn(1, 25, 16, 12).bfloat16(),
            "reference_latent": torch.randn(1, 4, 1, 2, 2),
            "motion_latents": torch.randn(1, 4, 19, 2, 2),
            "sink_distance": torch.arange(6).reshape(3, 2).int(),
        },
        path,
    )
    return path


def test_a_file_of_no_tensor_is_refused(tmp_path):
    save_file({}, tmp_path / "empty.safetensors")
    with pytest.raises(UserError, match="holds no tensor"):
        opened(tmp_path / "empty.safetensors")


def test_keys_are_found_or_absent(path):
    tensors = opened(str(path))
    assert tensors.has("noise") and tensors.has("noise.000000") and tensors.has("reference_latent")
    assert not tensors.has("noise.000001") and not tensors.has("nois") and not tensors.has("audio")
    assert tensors.get("noise.000001.step.0") is None
    assert tensors.get("sink_distance").tolist() == [[0, 1], [2, 3], [4, 5]]


def test_shape_and_dtype(path):
    tensors = opened(path)
    assert tensors.get("audio_features.000001", [1, 25, None, 12]).dtype == torch.bfloat16
    assert tensors.get("audio_features.000001", dtype=torch.float32).dtype == torch.float32
    assert tensors.get("sink_distance", dtype=torch.int64).dtype == torch.int64
    for expected in ([1, 4, 1, 2, 3], [1, 4, 2, 2]):
        with pytest.raises(UserError) as error:
            tensors.get("reference_latent", expected)
        text = ", ".join(map(str, expected))
        assert f"source.tensors={path}: reference_latent: expected [{text}], found [1, 4, 1, 2, 2]" in str(error.value)
    with pytest.raises(UserError, match=r"expected \[1, any\], found \[3, 2\]"):
        tensors.get("sink_distance", [1, None])
    with pytest.raises(UserError, match="not integers"):
        tensors.get("context", dtype=torch.int64)


def test_entries_of_a_whole_stream_are_read_as_they_come_and_the_last_one_holds(tmp_path):
    keys, latents = torch.arange(14.0).view(1, 7, 2), torch.randn(1, 4, 5, 2, 2)
    save_file({"keys": keys.half(), "latents": latents}, tmp_path / "a.safetensors")
    inputs = (
        Input("keys", Axis.FRAME, (12, 2), key="keys", whole=True),
        Input("latents", Axis.LATENT, (4, 3, None, None), key="latents", whole=True, latents=True),
    )
    tensors = TensorsFile(tmp_path / "a.safetensors", "a", inputs)
    assert all(map(tensors.lasts, inputs))
    for wanted in (range(3), range(2, 7), range(5, 11), range(7, 9), range(10**12, 10**12 + 3)):
        index = [min(i, 6) for i in wanted]
        assert torch.equal(tensors.entries("keys", (1, None, 2), 1, wanted), keys[:, index])
        index = [min(i, 4) for i in wanted]
        assert torch.equal(tensors.entries("latents", (1, 4, None, 2, 2), 2, wanted), latents[:, :, index])
    assert tensors.entries("other", (1, None), 1, range(3)) is None
    with pytest.raises(UserError, match=r"latents: expected \[1, 4, any, 2, 3\], found \[1, 4, 5, 2, 2\]"):
        tensors.entries("latents", (1, 4, None, 2, 3), 2, range(3))


def test_the_context_in_force(path, tmp_path):
    tensors = opened(path)
    for chunk, begins in ((0, 0), (4, 0), (5, 5), (11, 5), (12, 12), (10**9, 12)):
        assert tensors.get(tensors.in_force("context", chunk), [1, None, 8])[0, 0, 0] == begins
    assert tensors.in_force("context", 4) == "context" and tensors.in_force("context", 6) == "context.000005"
    save_file({"context.000002": torch.zeros(1, 4, 8)}, tmp_path / "late.safetensors")
    late = opened(tmp_path / "late.safetensors")
    assert late.in_force("context", 1) is None and late.in_force("context", 2) and late.has("context")


@pytest.mark.parametrize(
    ("shape", "line"),
    [
        ((1, 513, 8), "context.000007: has 513 rows, model=live_avatar_14b takes 512; cut or pad it"),
        ((1, 4, 9), "context.000007: expected [1, any, 8], found [1, 4, 9]"),
    ],
)
def test_a_context_that_does_not_fit_is_refused_before_the_stream_begins(tmp_path, shape, line):
    save_file({"context.000007": torch.zeros(shape)}, tmp_path / "late.safetensors")
    with pytest.raises(UserError) as error:
        opened(tmp_path / "late.safetensors")
    assert line in str(error.value)


@pytest.mark.parametrize(
    "key, remedy",
    [
        ("contxt", "did you mean context?"),
        ("noise.0.step.0", "did you mean noise.000000.step.0?"),
        ("noise.000004", "did you mean noise.000000.step.0?"),
        ("audio_feature.000004", "did you mean audio_features.000000?"),
        ("reference_latents", "did you mean reference_latent?"),
        ("weights", "use one of "),
    ],
)
def test_unknown_names(tmp_path, key, remedy):
    save_file({key: torch.zeros(1)}, tmp_path / "a.safetensors")
    with pytest.raises(UserError) as error:
        opened(tmp_path / "a.safetensors")
    assert f": {key}: is not a name" in str(error.value) and remedy in str(error.value)


def test_missing_and_broken_files(path, tmp_path):
    data = path.read_bytes()
    for name, content in (
        ("missing", None),
        ("empty", b""),
        ("text", b"hello " * 9),
        ("cut", data[:-1]),
        ("folder", 0),
    ):
        bad = tmp_path / name
        if content == 0:
            bad.mkdir()
        elif content is not None:
            bad.write_bytes(content)
        with pytest.raises(UserError, match=r"no such file|is no file|is no whole safetensors file") as error:
            opened(bad)
        assert str(error.value).startswith(f"source.tensors={bad}: ") and "\n" not in str(error.value)

"""Names of the Hugging Face hub are found in its cache on this machine, without the hub's library or a network."""

import pytest

from conf import hub
from conf.errors import UserError
from stages.weight_file import WeightFile
from tests.checkpoints import SMALL, random_tensors, t2v_config, t2v_shapes, write_folder
from tests.helpers import config_of

CONFIG = t2v_config(**SMALL)


@pytest.fixture
def cached(tmp_path, monkeypatch):
    """A cache with one model; returns its snapshot."""
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "hub/models--someone--a-model"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs/main").write_text("abc123")
    (folder / "snapshots/older").mkdir(parents=True)
    return write_folder(folder / "snapshots/abc123", CONFIG, random_tensors(t2v_shapes(CONFIG)))


@pytest.mark.parametrize(
    ("env", "expected"),
    [
        ({"HF_HUB_CACHE": "/a/b", "HF_HOME": "/c"}, "/a/b"),
        ({"HF_HOME": "/c"}, "/c/hub"),
        ({"XDG_CACHE_HOME": "/d"}, "/d/huggingface/hub"),
        ({"HOME": "/home/x"}, "/home/x/.cache/huggingface/hub"),
    ],
)
def test_where_the_cache_is(env, expected, monkeypatch):
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    assert str(hub.cache()) == expected


def test_a_name_is_its_snapshot(cached):
    assert hub.found("someone/a-model") == str(cached)
    file = f"{cached}/diffusion_pytorch_model.safetensors"
    assert hub.found("someone/a-model/diffusion_pytorch_model.safetensors") == file
    model = config_of("model=wan21_t2v_1_3b", "model.checkpoint=someone/a-model", "model.lora=someone/a-model").model
    assert (model.checkpoint, model.lora[0].path, model.network.dim) == (str(cached), str(cached), SMALL["dim"])


def test_without_a_main_branch_the_only_snapshot_counts(cached):
    (cached.parents[1] / "refs/main").unlink()
    assert hub.found("someone/a-model") == "someone/a-model"
    (cached.parent / "older").rmdir()
    assert hub.found("someone/a-model") == str(cached)


def test_a_path_goes_before_a_name(cached, tmp_path):
    (tmp_path / "someone/a-model").mkdir(parents=True)
    assert hub.found("someone/a-model") == "someone/a-model"


def test_what_is_not_there_says_how_to_fetch_it(cached):
    with pytest.raises(UserError) as error:
        WeightFile(hub.found("someone/other"))
    said = "no such file or folder, nor a model in the Hugging Face cache; check it, or run: hf download someone/other"
    assert str(error.value) == f"model.checkpoint=someone/other: {said}"


@pytest.mark.parametrize("path", ["weights/model.safetensors", "/no/where", "one", "./a/b", "a/b/c.pt", "hub/none"])
def test_paths_are_no_names(path, cached):
    assert hub.found(path) == path
    assert hub.missing(path) == ("no such file or folder", "check the path")

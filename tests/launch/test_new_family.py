"""A family is one folder and one YAML: what `everframe new-family` writes streams exactly, everywhere, as it stands."""

import importlib.util
import json
import os
import subprocess
import sys
from dataclasses import replace
from itertools import product
from pathlib import Path

import pytest
from omegaconf import OmegaConf
from safetensors.torch import load_file

from conf.errors import UserError
from conf.schema import ModelConfig, PlanConfig
from conf.typed import typed
from launch import new_family, plan, stream
from parallel.builders import build
from runtime.workload import describe
from tests.helpers import config_of, sampled, thorough
from tests.patience import PATIENT_S

NAME = "scaffolded"
CHUNKS = 8
"""More than the ring's three."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Where the family lies: nothing of the product's own is changed."""
    folder = tmp_path_factory.mktemp("outside")
    assert new_family.main([NAME, str(folder)]) == 0
    (folder / "keys.jsonl").write_text('{"frame": 0, "action": "left"}\n{"frame": 40, "action": "right"}\n')
    sys.path.insert(0, str(folder))
    yield folder
    sys.path.remove(str(folder))


@pytest.fixture
def run(folder, tmp_path, capsys):
    """run(*overrides) -> report; the same as a command line for other processes."""

    def told(*overrides: str) -> list[str]:
        return [
            "--config-dir", str(folder / "configs"), f"model={NAME}", "stream.prompt=hello", f"stream.chunks={CHUNKS}",
            "stream.events=[{chunk: 5, prompt: other}]", f"source.actions={folder / 'keys.jsonl'}", "sink.video=null",
            f"output_dir={tmp_path / 'out'}", *overrides,
        ]  # fmt: skip

    def run(*overrides: str) -> dict:
        code = stream.main(told(*overrides))
        assert code == 0, capsys.readouterr().err
        return json.loads((tmp_path / "out" / "report.json").read_text())

    run.told = told
    return run


PLANS = {"timestep": (), "layers": (), "layers [1,3]": ("plan=layers", "plan.layers=[1,3]"), "grid": ()}
CASES = sampled(product(("same_level", "clean"), PLANS), [("same_level", "grid"), ("clean", "layers")])


@pytest.mark.parametrize(("context", "name"), CASES)
def test_every_plan_gives_the_latents_of_one_device(run, context, name):
    base = (f"model.context={context}",)
    expected = run(*base)["latents_sha256"]
    told = PLANS[name] or (f"plan={name}",)
    report = run(*base, *told)
    assert report["latents_sha256"] == expected
    # Both inputs matter, at once and to the end.
    if name == "grid":
        assert run(*base, "stream.prompt=world")["latents_sha256"] != expected
        assert run(*base, "source.actions=null")["latents_sha256"] != expected


def test_what_workers_hold_is_what_the_plan_says(run, folder):
    report = run("plan=layers")
    yaml = OmegaConf.to_container(OmegaConf.load(folder / "configs" / "model" / f"{NAME}.yaml"))
    config = replace(config_of("sink.video=null"), model=typed(ModelConfig, yaml, "model"))
    made = build(PlanConfig("layers"), describe(config))
    assert list(report["weight_bytes"].values()) == [made.weight_bytes(m.worker, m.rank) for m in made.members]
    assert list(report["bank_bytes"].values()) == [made.bank_bytes(m.worker) for m in made.members]


def test_it_is_planned(run, capsys):
    assert plan.main(run.told("plan=auto", "cluster=cpu2")) == 0, capsys.readouterr().err
    assert "plan=" in capsys.readouterr().out


@pytest.mark.parametrize("context", ["clean", thorough("same_level")])
def test_shared_passes_are_within_rounding(run, tmp_path, context):
    files = [tmp_path / "alone.safetensors", tmp_path / "shared.safetensors"]
    run(f"model.context={context}", f"sink.latents={files[0]}")
    run(f"model.context={context}", f"sink.latents={files[1]}", "plan.sequence_parallel=2")
    one, two = map(load_file, files)
    assert max(float((one[key] - two[key]).abs().max()) for key in one) <= 1e-5


@pytest.mark.parametrize(("saves", "resumes"), [("grid", "layers"), ("sequential", "timestep")])
def test_a_saved_stream_goes_on_under_another_plan(run, tmp_path, saves, resumes):
    """Banks of the adapter and the keys that are reached back to are in the state."""
    expected = run()["latents_sha256"]
    saved = tmp_path / "saved"
    run(f"plan={saves}", "stream.chunks=5", "stream.save_every_chunks=4", f"output_dir={saved}")
    report = run(f"plan={resumes}", f"resume={saved}")
    assert (report["latents_sha256"], report["state"]["resumed_at"]) == (expected, 4)


def test_a_new_prompt_runs_the_window_again(run):
    base = ("model.context=clean", "model.prompt_switch=recache")
    expected = run(*base)["latents_sha256"]
    assert run(*base, "plan=grid")["latents_sha256"] == expected
    assert run("model.context=clean")["latents_sha256"] != expected


def test_recorded_inputs_give_the_same_stream(run, tmp_path):
    expected = run(f"sink.inputs={tmp_path / 'inputs.jsonl'}")["latents_sha256"]
    again = run("source.actions=null", "stream.events=[]", f"source.inputs={tmp_path / 'inputs.jsonl'}")
    assert again["latents_sha256"] == expected


def test_it_is_simulated_and_emulated(run):
    report = run("plan=auto", "device=emulated", "device.emulated.step_s=0.001", "cluster=cpu2")
    assert report["chunks"] == CHUNKS


@pytest.mark.parametrize("launcher", ["torchrun", thorough("ray")])
def test_every_launcher_finds_it(run, folder, launcher):
    expected = run("plan=timestep")["latents_sha256"]
    start = {"torchrun": ["-m", "torch.distributed.run", "--nproc-per-node=2"], "ray": []}[launcher]
    told = run.told("plan=timestep", f"launcher={launcher}", "plan.workers=2")
    command = [sys.executable, *start, "-m", "launch.stream", *told]
    root = Path(stream.__file__).parent.parent
    path = os.pathsep.join([str(folder), str(root)])
    done = subprocess.run(
        command, env=os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, timeout=PATIENT_S,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    report = json.loads(Path(told[-4].removeprefix("output_dir=")).joinpath("report.json").read_text())
    assert report["latents_sha256"] == expected


def test_it_is_written_as_the_product_is(folder):
    """Lint passes in a checkout that has it."""
    ruff = [sys.executable, "-m", "ruff"]
    rules = ["--config", str(Path(stream.__file__).parent.parent / "pyproject.toml"), str(folder)]
    for command in (["check"], ["format", "--check"]):
        done = subprocess.run([*ruff, *command, *rules], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout


def test_its_own_test_passes(folder):
    """What is written with it: a sample of it, in this process."""
    spec = importlib.util.spec_from_file_location("its_own", folder / f"test_{NAME}.py")
    its_own = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(its_own)
    its_own.test_every_plan_gives_the_latents_of_one_device(folder, "timestep", "same_level")


@pytest.mark.parametrize("name", ["Toy", "2d", "a-b", "", "../x", "wan", "json", "torch"])
def test_bad_names_are_refused(tmp_path, name):
    with pytest.raises(UserError):
        new_family.write(name, tmp_path)
    assert not any(tmp_path.iterdir())


def test_nothing_is_overwritten(tmp_path):
    new_family.write("toy", tmp_path)
    (tmp_path / "toy" / "network.py").write_text("mine")
    with pytest.raises(UserError, match="is there already"):
        new_family.write("toy", tmp_path)
    assert (tmp_path / "toy" / "network.py").read_text() == "mine"


def test_a_disk_that_refuses_leaves_nothing(tmp_path, monkeypatch):
    written, write = [], Path.write_text

    def refuse(path, text):
        if len(written) == 4:
            raise OSError(28, "No space left on device")
        written.append(path)
        return write(path, text)

    monkeypatch.setattr(Path, "write_text", refuse)
    with pytest.raises(UserError, match="No space left"):
        new_family.write("toy", tmp_path)
    assert not (tmp_path / "toy").exists()


@pytest.mark.parametrize(
    ("family", "said"), [("wann", "did you mean wan?"), ("no.such", "nor a package"), ("json", "has no sizes")]
)
def test_an_unknown_family_is_named(job, family, said):
    assert said in job.fails("model=nano", f"model.family={family}")

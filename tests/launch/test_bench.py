"""`launch.bench`: what it writes is what the planner reads."""

import json

import numpy as np
import pytest
import yaml

from conf.errors import UserError
from conf.schema import ClusterConfig
from launch import bench, clusters
from runtime.links import Trips, fit
from tests.patience import PATIENT_S


def measure(folder, *overrides: str) -> dict:
    assert bench.main(["model=nano", f"output_dir={folder}", "bench.chunks=2", "device=cpu", *overrides]) == 0
    return yaml.safe_load((folder / "measured.yaml").read_text()) or {}


def spread(folder) -> dict:
    """What each stage took, by stage."""
    return json.loads((folder / "measured.json").read_text())["seconds"]


def test_stage_times_of_a_model(tmp_path):
    found = measure(tmp_path, "bench.what=[stages]")["times"][0]
    assert (found["model"], found["kind"], found["basis"], found["steps"]) == ("nano", "cpu", "measured", 4)
    assert len(found["layer_s"]) == 6
    assert min(found["layer_s"]) > 0
    assert min(found[key] for key in ("encode_s", "decode_s", "output_s")) > 0
    # A difference of two medians: on a busy machine it may come out as nothing.
    assert found["prefill_s"] >= 0
    assert {"encode", "prefill", "step3", "layer5", "first", "last", "pass", "decode"} <= spread(tmp_path).keys()
    read = clusters.load(ClusterConfig(measured=[str(tmp_path / "measured.yaml")]))
    assert read.times[0].layer_s == pytest.approx(found["layer_s"])


def test_clean_context_is_committed(tmp_path):
    found = measure(tmp_path, "bench.what=[stages]", "model.context=clean", "sink.video=null")["times"][0]
    # A difference as well, of what took its time.
    assert found["commit_s"] >= 0 and spread(tmp_path)["commit"]["p50"] > 0
    assert found["decode_s"] == 0


def test_links_are_measured_between_processes(tmp_path):
    found = measure(tmp_path, "bench.what=[links]", "bench.sizes=[400000]", "bench.rounds=3")
    # A difference, too: what is beyond the two ends' own time.
    assert 0 <= found["intra"]["latency_s"] < PATIENT_S
    assert found["intra"]["bandwidth"] > 0
    read = clusters.load(ClusterConfig(measured=[str(tmp_path / "measured.yaml")]))
    assert read.intra.latency_s == found["intra"]["latency_s"]


def test_efficiency_of_a_plan(tmp_path, capsys):
    overrides = ("bench.what=[efficiency]", "plan=timestep", "device.emulated.step_s=0.005", "sink.video=null")
    measure(tmp_path, *overrides, "bench.chunks=10")
    assert "of one chunk per 5 ms, 4 workers" in capsys.readouterr().err.replace("\n", " ")


def test_a_link_is_fitted():
    trips = [Trips(n, [0.001 + n / 1e9] * 3, [0.0002] * 3) for n in (1024, 400_000, 30_000_000)]
    link, own = fit(trips)
    assert own == pytest.approx(0.0002)
    assert link.latency_s == pytest.approx(0.0008, rel=0.01)
    assert link.bandwidth == pytest.approx(1e9, rel=0.01)
    link, _ = fit(trips[:1])
    assert np.isinf(link.bandwidth)


@pytest.mark.parametrize("where", ["file", "file/deeper", "/proc/none"])
def test_a_folder_that_cannot_be_is_one_line(tmp_path, monkeypatch, capsys, where):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    assert bench.main(["model=nano", f"output_dir={where}"]) == 2
    assert capsys.readouterr().err.startswith(f"error: output_dir={where}: cannot be made (")
    assert bench.main(["model=nano", f"bench.file={where}/x.yaml", "output_dir=new"]) == 2
    assert capsys.readouterr().err.startswith(f"error: bench.file={where}/x.yaml: cannot be written (")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_what_was_measured_before_is_kept(tmp_path, monkeypatch):
    """And a measurement that fails leaves nothing."""
    found = iter([({"a": 1}, {"x": [1.0]}), ({"a": 2}, {"x": [1.0]})])
    monkeypatch.setitem(bench.MEASURES, "stages", lambda config: next(found))
    for _ in range(2):
        measure(tmp_path / "run", "bench.what=[stages]")
    names = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("measured.*"))
    assert names == [f"run/{at}measured.{kind}" for at in ("earlier.1/", "") for kind in ("json", "yaml")]
    assert yaml.safe_load((tmp_path / "run/earlier.1/measured.yaml").read_text()) == {"a": 1}

    def refuse(config):
        raise UserError("value", "rule", "remedy")

    monkeypatch.setitem(bench.MEASURES, "stages", refuse)
    assert bench.main(["model=nano", "bench.what=[stages]", f"output_dir={tmp_path}/other"]) == 2
    assert not (tmp_path / "other").exists()


def test_mistakes_are_one_line(capsys):
    assert bench.main(["bench.what=[stage]"]) == 2
    assert "error: bench.what=stage: must be one of stages, links, efficiency" in capsys.readouterr().err

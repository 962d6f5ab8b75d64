"""`everframe plan cluster=...`: what it finds, says and refuses; cluster files; `plan=auto` as launchers resolve it."""

import re
from pathlib import Path

import pytest

from conf.errors import UserError
from conf.schema import ClusterConfig
from launch import clusters, plan, planning
from parallel.builders import build
from parallel.cost import Costs
from parallel.planner import assess
from tests.helpers import config_of

NAMED = ("model=pocket_avatar", "model.name=live_avatar_14b", "stream.height=704", "stream.width=384")
"""Found in cluster files, though it is a small one."""
FILE = """
name: mine
kinds:
  fast: {memory_bytes: 1.0e+9}
devices:
  - {kind: fast, count: 2}
  - {kind: fast, speed: 0.5}
times:
  - {model: nano, kind: fast, layer_s: [0.01, 0.01, 0.01, 0.01, 0.01, 0.02], decode_s: 0.03}
"""


def told(capsys, *overrides: str) -> str:
    assert plan.main(list(overrides)) == 0
    return " ".join(capsys.readouterr().out.split())


def refused(capsys, *overrides: str) -> str:
    assert plan.main(list(overrides)) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.count("\n") == 1
    return captured.err


@pytest.fixture
def mine(tmp_path) -> Path:
    path = tmp_path / "mine.yaml"
    path.write_text(FILE)
    return path


def test_the_best_few_are_shown(capsys):
    text = told(capsys, *NAMED, "cluster=h800x5")
    assert "cluster=h800x5: 5 devices;" in text and "by objective=fps" in text
    assert "The first, as plan=timestep plan.workers=5 plan.steps=[1,1,1,1]:" in text
    assert "45.0 frames/s (2.81 x real time): a chunk every 267 ms, set by worker 0." in text
    assert "Times on h800: published (Live Avatar v1.1" in text
    assert "model=live_avatar_14b plan=timestep: 4 steps, 6 layers" in text


def test_a_named_plan_is_predicted(capsys, mine):
    text = told(capsys, "model=nano", "plan=timestep", "plan.steps=[4]", f"cluster={mine}")
    # Seven hundredths of a second a step, and decode on a worker of its own.
    assert "a chunk every 280 ms, set by worker 0" in text
    assert "worker 1 fast 1" in text and "A control shows after" in text


def test_a_file_of_ones_own(capsys, mine):
    text = told(capsys, "model=nano", f"cluster={mine}")
    assert "cluster=mine: 3 devices" in text
    cluster = planning.cluster_of(config_of("model=nano", f"cluster={mine}"))
    assert [d.speed for d in cluster.devices] == [1.0, 1.0, 0.5]


def test_the_documented_file_is_one(tmp_path):
    page = (Path(__file__).parents[2] / "docs" / "planner.md").read_text()
    path = tmp_path / "my_box.yaml"
    path.write_text(page.split("```yaml")[1].split("```")[0])
    found = clusters.load(ClusterConfig(file=str(path)))
    assert [group.kind for group in found.devices] == ["old", "new"] and found.times[0].layers(3) == [0.002] * 3


def test_what_was_measured_is_preferred(mine, tmp_path):
    measured = tmp_path / "measured.yaml"
    measured.write_text(
        "times: [{model: nano, kind: fast, basis: measured, step_s: 0.5}]\nintra: {latency_s: 0.125, bandwidth: 1e6}\n"
    )
    config = config_of("model=nano", f"cluster={mine}", f"cluster.measured=[{measured}]")
    cluster = planning.cluster_of(config)
    assert cluster.times["fast", 1].step_s == 0.5
    assert cluster.intra.seconds(1e6) == 1.125
    assert cluster.bases() == ["fast: measured"]


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (("name: mine", "nmae: mine"), "nmae: is no part of a cluster file; did you mean name?"),
        (("layer_s: [0.01, ", "layer_s: ["), "layer_s has 5 values: the model has 6 layers"),
        (("kind: fast, count", "kind: slow, count"), "must be one of fast"),
        (("model: nano", "model: mono"), "has no times of model=nano at 32x32 on fast"),
        (("decode_s: 0.03", "decode_s: -1"), "decode_s=-1"),
        (("count: 2", "count: many"), "could not be converted"),
        (("kinds:", "kinds: ["), "cannot be read as YAML"),
    ],
    ids=lambda value: value[1] if isinstance(value, tuple) else "",
)
def test_broken_files_are_refused(capsys, mine, change, line):
    mine.write_text(FILE.replace(*change))
    assert line in refused(capsys, "model=nano", f"cluster={mine}")


def test_refusals(capsys):
    assert "did you mean h100x5?" in refused(capsys, "cluster=h10x5")
    assert refused(capsys, "cluster=nowhere.yaml").startswith("error: cluster=nowhere.yaml: there is no such file")
    line = refused(capsys, "cluster=cpu2", "cluster.measured=[nowhere.yaml]")
    assert line.startswith("error: cluster.measured=[nowhere.yaml]: there is no such file")
    assert "did you mean control_latency?" in refused(capsys, "cluster=cpu2", "objective=latency")
    assert "GB too much" in refused(capsys, "model=pocket_avatar", "stream.count=50000", "cluster=rtx4090x2")
    late = ("model=pocket_world", "cluster=cpu2", "stream.max_control_latency_s=0.01")
    assert "and stream.max_control_latency_s is 0.01; use" in refused(capsys, *late)
    assert "s at worst (at most 0.01 s allowed)" in told(capsys, *late, "plan.force=true")


def test_a_plan_is_looked_for_on_the_devices_that_are_named(capsys):
    """Each process on its own of them, or two on one; a plan of so many processes is taken."""
    for devices, count in (("[1]", 1), ("[1,0]", 2), ("[0,0,1]", 3)):
        config = config_of("model=nano", "cluster=cpu2", "plan=auto", f"plan.devices={devices}")
        choice = planning.choice_of(config)
        assert choice.placement == tuple(config.plan.devices) and choice.plan.processes == count
    text = told(capsys, "model=nano", "cluster=cpu2", "plan=auto", "plan.workers=3")
    assert "plan devices fps" in text and "GPU" not in text


def test_shipped_clusters():
    names = {path.stem for path in clusters.CONF.glob("*.yaml")} - {"here"}
    assert {f"{kind}x{n}" for kind in ("h100", "h800", "a100", "l40s", "rtx4090") for n in (1, 2, 4, 5, 8)} <= names
    for name in sorted(names):
        found = clusters.load(ClusterConfig(file=str(clusters.CONF / f"{name}.yaml")))
        assert found.name == name and found.note and found.intra.bandwidth >= found.inter.bandwidth
        assert sum(group.count for group in found.devices) == (int(name.rsplit("x", 1)[-1]) if "x" in name else 2)
        if name in ("cpu2", "h100x16"):
            # Hydra follows what files build on just as well.
            by_name = config_of("model=pocket_avatar", f"cluster={name}").cluster
            assert vars(by_name) == vars(found) | {"file": None}


def test_auto_becomes_an_ordinary_plan(mine):
    config = config_of("model=nano", "plan=auto", f"cluster={mine}")
    choice, resolved = planning.choice_of(config), planning.resolve(config)
    assert resolved.plan == choice.config and resolved.plan.name in ("timestep", "layers", "grid")
    assert build(resolved.plan, planning.workload_of(resolved)) == choice.plan
    assert planning.resolve(resolved) is resolved
    other = config_of("model=nano", "plan=timestep")
    assert planning.resolve(other) is other


def test_more_workers_than_devices_share_them(capsys):
    text = told(capsys, "model=nano", "plan=timestep", "cluster=cpu2")
    assert "set by device 0, shared by workers 0, 3, 4." in text
    assert "plan=timestep plan.workers=5" in told(capsys, "model=nano", "plan=auto", "plan.workers=5", "cluster=cpu2")


@pytest.mark.parametrize("times", ["step_s=0.06", "layers_s=[0.01,0.01,0.01,0.01,0.01,0.01]"])
def test_emulated_devices_share_a_pass_in_equal_parts(times):
    config = config_of(
        "model=nano", "plan=sequential", "plan.sequence_parallel=2", "plan.workers=2", "device=emulated",
        f"device.emulated.{times}", "sink.video=null",
    )  # fmt: skip
    costs = Costs(build(config.plan, planning.workload_of(config)), planning.cluster_of(config))
    assert costs.pass_s("step", 0, 0) == pytest.approx(0.03)


def test_emulated_speeds_go_where_the_plan_puts_them():
    config = config_of(
        "model=nano", "plan=auto", "plan.workers=3", "device=emulated", "device.emulated.speeds=[0.5,1,1]",
        "device.emulated.step_s=0.05", "sink.video=null",
    )  # fmt: skip
    resolved = planning.resolve(config)
    choice = planning.choice_of(config)
    first = [choice.placement[choice.plan.group(w)[0]] for w in range(choice.plan.workers)]
    assert resolved.device.emulated.speeds == [(0.5, 1, 1)[d] for d in first]
    with pytest.raises(UserError, match=r"device=emulated: plan\.workers says how many emulated devices"):
        planning.resolve(config_of("model=nano", "plan=auto", "device=emulated"))


def test_the_machine_at_hand_is_named_here(capsys):
    text = told(capsys, "model=nano", "plan=sequential", "cluster=here", "device=cpu")
    assert "cluster=here:" in text and "Times on cpu: derived" in text


def test_what_stages_take_is_held_against_the_card(capsys, tmp_path):
    """Weights, banks and passes fit; what encode and decode take at work does not."""
    path, plans = tmp_path / "small.yaml", ("model=nano", "plan=sequential", f"cluster={tmp_path / 'small.yaml'}")
    path.write_text(FILE)
    config = config_of(*plans[:2], f"cluster.file={path}")
    cluster, demand = planning.cluster_of(config), planning.demand(config)
    held = assess(config.plan, planning.planned(config), cluster, demand).bytes[0]
    taken = planning.workload_of(config).taken
    assert held.stages == sum(one.each + one.once for one in taken) > 0
    path.write_text(FILE.replace("1.0e+9", f"{held.total - held.stages / 2:.0f}"))
    line = refused(capsys, *plans)
    assert f"stages beside them {held.stages / 1e6:.2f} MB" in line and "too much; use more devices" in line
    path.write_text(FILE.replace("1.0e+9", f"{held.total + 1:.0f}"))
    text = told(capsys, *plans)
    for name in ("encode", "decode", "output"):
        each, once = (plan.human(size) if size else "-" for size in getattr(taken, name))
        assert re.search(rf"worker 0 {name} \S+( \S+)? {each} {once} ", text + " "), name


@pytest.mark.parametrize(
    ("model", "missing"),
    [
        ("lingbot_world_fast", {"model.text.checkpoint": 2 * 5_680_910_336}),
        ("matrix_game_2", {"model.clip.checkpoint": 2 * 611_088_640}),
        ("pocket_avatar", {}),
    ],
)
def test_published_encoders_are_counted_before_their_files_are_there(tmp_path, model, missing):
    config = config_of(f"model={model}")
    assert planning.missing_encoders(config) == missing
    (given := tmp_path / "given.safetensors").touch()
    assert planning.missing_encoders(config_of(f"model={model}", f"source.tensors={given}")) == {}
    lines = plan.missing(config)
    assert [line.split(" is not set")[0] for line in lines] == list(missing)

"""The GPU benchmark, rehearsed on the processor: every row runs, and what goes wrong on a card is told in its row."""

import json
import os
import signal
import subprocess
import sys
import time
import zipfile
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from benchmarks.gpu import __main__ as gpu
from benchmarks.gpu import attention, codecs, correct, networks, order, parent, runs, speed
from benchmarks.gpu.log import ABSENT, BEGUN, ERROR, LATE, MEASURED, MISS, OK, Log, table
from benchmarks.gpu.parent import Parent
from benchmarks.gpu.rows import Absent, Bench, Row, distance, run
from benchmarks.record import bar
from launch.places import settled
from tests.double.module import KIND
from tests.patience import PATIENT_S

HALVES = {"correct": correct.ROWS, "speed": speed.ROWS}
HEAVY = ("av", "PIL", "ray", "hydra", "omegaconf", "yaml", "rich", "transformers", "diffusers", "xformers")
BLOCKED = f"""
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {HEAVY!r}:
            raise ImportError(f"{{name}} is not here")
sys.meta_path.insert(0, Block())
"""


@pytest.fixture(scope="module")
def rehearsed(tmp_path_factory):
    """Both halves, side by side, on a machine that has none of the packages that a bare GPU machine lacks: by half its
    exit code, its folder and what it printed."""
    bare = tmp_path_factory.mktemp("bare")
    (bare / "sitecustomize.py").write_text(BLOCKED)
    environ = os.environ | {"PYTHONPATH": os.pathsep.join([str(bare), str(Path.cwd())])}
    options = ["--device", "cpu", "--small", "--seconds", "3000", "--out"]
    started = {
        half: subprocess.Popen(
            [sys.executable, "-m", "benchmarks.gpu", half, *options, str(bare / half)],
            stdout=subprocess.PIPE, text=True, env=environ,
        )
        for half in HALVES
    }  # fmt: skip
    said = {half: process.communicate()[0] for half, process in started.items()}
    return {half: (process.returncode, bare / half, said[half]) for half, process in started.items()}


@pytest.mark.parametrize("half", HALVES)
def test_every_row_runs_on_a_bare_machine(half, rehearsed):
    code, folder, said = rehearsed[half]
    assert code == 0, said
    told = json.loads((folder / f"gpu-{half}-cpu.json").read_text())
    assert list(told["measured"]) == [row.name for row in HALVES[half]]
    assert {row["state"] for row in told["measured"].values()} <= {OK, MEASURED, ABSENT}
    assert told["configuration"]["torch"] == torch.__version__
    table = said[said.index("\n\n") :]
    assert all(f"\n{row.name} " in table for row in HALVES[half])


def test_wheels_that_were_carried_along_are_found(tmp_path):
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    with zipfile.ZipFile(wheels / "carried-1.0-py3-none-any.whl", "w") as file:
        file.writestr("carried/__init__.py", "")
    (path,) = gpu.unpacked(wheels, tmp_path / "out")
    assert (Path(path) / "carried" / "__init__.py").exists()
    assert gpu.unpacked(None, tmp_path / "out") == []


@pytest.fixture
def idle(monkeypatch):
    """Nothing may be started."""
    monkeypatch.setattr(Parent, "run", raises(AssertionError("was started")))


def refused(argv, capsys):
    """The one line of a refusal."""
    assert gpu.main(["correct", "--device", "cpu", "--small", *map(str, argv)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


@pytest.mark.parametrize("text", ["-5", "0", "4", "19.9", "nan", "inf", "soon"])
def test_a_time_in_which_nothing_can_be_done_is_refused(text, tmp_path, capsys, idle):
    line = refused(["--out", tmp_path, "--seconds", text], capsys)
    assert line.startswith(f"error: --seconds {text}: ")
    assert line.endswith("give at least 20")


def test_a_device_that_is_not_known_is_refused(tmp_path, capsys, idle):
    with pytest.raises(SystemExit) as ended:
        gpu.main(["correct", "--out", str(tmp_path), "--device", "tpu"])
    assert ended.value.code == 2
    assert "--device" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["file", "file/below", "/proc/gpu", "taken"])
def test_a_folder_that_cannot_be_written_is_refused(name, tmp_path, capsys, idle):
    (tmp_path / "file").touch()
    (tmp_path / "taken" / "rows.jsonl").mkdir(parents=True)
    assert "cannot be written" in refused(["--out", tmp_path / name], capsys)


def test_wheels_that_are_missing_or_broken_are_refused(tmp_path, capsys, idle):
    wheels, out = tmp_path / "wheels", tmp_path / "out"
    assert "holds no wheels" in refused(["--out", out, "--wheels", wheels], capsys)
    wheels.mkdir()
    assert "holds no wheels" in refused(["--out", out, "--wheels", wheels], capsys)
    (wheels / "broken.whl").write_text("<html>")
    assert "broken.whl: cannot be unpacked" in refused(["--out", out, "--wheels", wheels], capsys)
    assert not any(path.is_dir() for path in out.iterdir())


@pytest.mark.parametrize(
    ("states", "code", "said"),
    [
        ([OK, MEASURED, ABSENT], 0, "1 ok, 1 measured, 1 absent"),
        ([OK, OK, LATE], 3, "2 ok, 1 no time"),
        ([OK, BEGUN], 3, "1 ok, 1 begun"),
        ([OK, MISS, LATE], 1, "1 ok, 1 MISS, 1 no time"),
        ([ERROR], 1, "1 ERROR"),
    ],
)
def test_the_exit_code_and_a_line_say_whether_all_was_tried(states, code, said, tmp_path, capsys, monkeypatch):
    def found(parent):
        parent.log.add(rows=[f"row {n}" for n in range(len(states))], machine={"device": "cpu"})
        for n, state in enumerate(states):
            parent.log.add(row=f"row {n}", state=state)

    monkeypatch.setattr(Parent, "run", found)
    assert gpu.main(["correct", "--device", "cpu", "--small", "--out", str(tmp_path)]) == code
    assert said in capsys.readouterr().out.splitlines()


@pytest.mark.parametrize("number", gpu.SIGNALS)
def test_a_run_that_is_cut_before_its_first_row_is_incomplete(number, tmp_path, capsys, monkeypatch):
    before = [signal.getsignal(each) for each in gpu.SIGNALS]
    monkeypatch.setattr(Parent, "run", lambda parent: signal.raise_signal(number))
    assert gpu.main(["correct", "--device", "cpu", "--small", "--out", str(tmp_path)]) == 3
    assert "no row was begun" in capsys.readouterr().err
    assert [signal.getsignal(each) for each in gpu.SIGNALS] == before


def test_rows_have_names_of_their_own_and_times():
    for rows in HALVES.values():
        assert len({row.name for row in rows}) == len(rows)
        assert all(row.seconds > 0 for row in rows)


def test_the_processor_is_not_taken_for_a_card(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert gpu.main(["correct", "--out", str(tmp_path)]) == 2
    assert capsys.readouterr().err.startswith("error: device=cuda: no CUDA device is visible")


# -- rows -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def bench(tmp_path):
    return Bench(torch.device("cpu"), True, tmp_path, Log(tmp_path / "rows.jsonl"))


def raises(error):
    def work(bench):
        raise error

    return work


def test_what_a_row_comes_to_is_its_state(bench):
    rows = [
        Row("within", 1, lambda bench: bar(1, "<= 2", True)),
        Row("beyond", 1, lambda bench: bar(3, "<= 2", False)),
        Row("number", 1, lambda bench: {"value": 4}),
        Row("elsewhere", 1, raises(Absent("needs a card"))),
        Row("broken", 1, raises(RuntimeError("CUDA error: first line\nsecond line"))),
    ]
    run(rows, bench, time.time() + 60)
    found = bench.log.rows()
    assert [row["state"] for row in found.values()] == [OK, MISS, MEASURED, ABSENT, ERROR]
    assert found["broken"]["value"] == "RuntimeError: CUDA error: first line"
    assert found["elsewhere"]["value"] == "needs a card"


def test_a_row_without_time_is_left_out_and_a_shorter_one_is_not(bench):
    bench.small = False
    rows = [Row("long", 1000, raises(AssertionError)), Row("short", 1, lambda bench: {"value": 1})]
    run(rows, bench, time.time() + 100)
    assert [row["state"] for row in bench.log.rows().values()] == [LATE, MEASURED]


def test_another_process_goes_on_where_one_has_died(bench):
    bench.log.add(rows=["first", "second"], machine={})
    bench.log.add(row="first", state=ERROR, value="its process ended")
    run(
        [Row("first", 1, raises(AssertionError)), Row("second", 1, lambda bench: {"value": 2})], bench, time.time() + 60
    )
    assert [row["state"] for row in bench.log.rows().values()] == [ERROR, MEASURED]


def test_a_line_that_was_cut_is_not_read(bench):
    bench.log.add(rows=["one"], machine={"device": "cpu"})
    bench.log.add(row="one", state=OK, value=1, bar="1", seconds=0.5)
    with bench.log.path.open("a") as file:
        file.write('{"row": "one", "state"')
    assert bench.log.rows()["one"]["state"] == OK
    assert table(bench.log).splitlines() == ["device cpu", "one ok         0.5 s  1  (1)"]


def test_distance_is_relative_and_sees_what_is_not_finite():
    one = torch.ones(4)
    assert distance(one * 1.5, one) == pytest.approx(0.5)
    assert distance(torch.full((4,), torch.nan), one) == float("inf")


def test_a_plan_that_fails_is_told_with_the_workers_reason(bench):
    given = runs.config(bench, "nano", runs.PLANS["timestep"], bench.folder)
    given.source.actions = str(bench.folder / "missing.jsonl")
    with pytest.raises(Exception, match=r"missing\.jsonl"):
        runs.streamed(given)


def test_small_models_are_computed_on_the_card_too(bench, monkeypatch):
    """Left to itself Everframe takes the processor for them."""
    monkeypatch.setattr("devices.count", lambda: 1)
    bench.device = torch.device("cuda", 0)
    for name in ("nano", "pocket_avatar", "pocket_world"):
        given = runs.config(bench, name, runs.PLANS["timestep"], bench.folder)
        assert settled(given).device.kind == "cuda"
        assert settled(replace(given, device=replace(given.device, kind="auto"))).device.kind == "cpu"


def test_a_kernel_that_reads_behind_its_keys_is_found(bench, monkeypatch):
    def over(q, k, v, mask):
        def longer(x):  # one entry more than it was given
            return x.as_strided((1, x.shape[1] + 1, *x.shape[2:]), x.stride())

        return attention.BACKENDS["sdpa"].run(q, longer(k), longer(v), mask)

    assert attention.check("sdpa", torch.float32, bench)["passed"]
    monkeypatch.setattr(attention, "backend", lambda *which: over)
    assert not attention.check("sdpa", torch.float32, bench)["passed"]


@pytest.mark.parametrize("row", [*order.ROWS, *networks.GRAPHS[-1:], *codecs.ROWS[:1]], ids=lambda row: row.name)
def test_rows_run_on_a_device_that_is_late(twin, bench, row):
    """Uploads and times are of a device that works by itself; what is out of order fails the test."""
    bench.device = torch.device(KIND, 0)
    if row.name == "device times":
        assert "not over at once" in row.work(bench)["value"]
    else:
        assert row.work(bench)["passed"]


# -- the two processes ------------------------------------------------------------------------------------------------

CHILD = """
import faulthandler, os, signal, sys, time
from pathlib import Path
from benchmarks.gpu.log import Log
faulthandler.register(signal.SIGUSR1)
log = Log(Path(sys.argv[1]))
done = log.rows()
if not log.head():
    log.add(rows=["dies", "hangs", "works"], machine={})
for name, limit in (("dies", 60), ("hangs", 0), ("works", 60)):
    if done.get(name, {}).get("state", "no time") == "no time":
        log.add(row=name, state="begun", at=time.time(), limit_s=limit)
        if name == "dies":
            print("illegal memory access", file=sys.stderr, flush=True)
            os.abort()
        if name == "hangs":
            time.sleep(600)
        log.add(row=name, state="ok", value=1, seconds=0.0)
"""


def test_rows_whose_process_dies_or_hangs_cost_no_others(tmp_path):
    log = Log(tmp_path / "rows.jsonl")
    child = [sys.executable, "-c", CHILD, str(log.path)]
    Parent(child, log, tmp_path / "messages.txt", time.time() + PATIENT_S).run()
    found = log.rows()
    assert [row["state"] for row in found.values()] == [ERROR, ERROR, OK]
    assert found["dies"]["value"] == f"its process ended with code {-signal.SIGABRT}: illegal memory access"
    assert found["hangs"]["value"].startswith("ended after")
    assert "most recent call first" in (tmp_path / "messages.txt").read_text()


def test_when_two_rows_of_a_kind_have_hung_others_of_it_come_last(bench):
    bench.log.add(rows=["plan a", "plan b", "plan c", "codec"], machine={})
    for name in ("plan a", "plan b"):
        bench.log.add(row=name, state=ERROR, value="ended after 16 s", hung=True)
    run([Row(name, 1, lambda bench: {"value": 1}) for name in bench.log.head()["rows"]], bench, time.time() + 60)
    assert [line["row"] for line in bench.log.lines() if line.get("state") == MEASURED] == ["codec", "plan c"]


def test_a_row_that_the_end_of_the_time_cuts_has_not_failed(tmp_path, monkeypatch):
    """The time is over as soon as it has begun."""
    log = Log(tmp_path / "rows.jsonl")
    log.add(rows=["dies", "hangs"], machine={})
    log.add(row="dies", state=ERROR, value="before")
    child = [sys.executable, "-c", CHILD.replace('("hangs", 0)', '("hangs", 60)'), str(log.path)]
    clock = SimpleNamespace(time=lambda: float("hangs" in log.rows()), sleep=time.sleep)
    monkeypatch.setattr(parent, "time", clock)
    Parent(child, log, tmp_path / "messages.txt", 1.0).run()
    assert log.rows()["hangs"]["state"] == LATE


def test_a_child_that_comes_to_no_row_is_not_started_for_ever(tmp_path):
    log = Log(tmp_path / "rows.jsonl")
    parent = Parent(
        [sys.executable, "-c", "import sys; sys.exit('no torch')"], log, tmp_path / "m.txt", time.time() + 100
    )
    parent.run()
    assert not log.lines()
    assert parent.last() == "no torch"


def test_what_was_found_is_shown_when_it_is_told_to_end(tmp_path):
    command = [sys.executable, "-m", "benchmarks.gpu", "correct", "--device", "cpu", "--small", "--out", str(tmp_path)]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env=os.environ | {"PYTHONPATH": str(Path.cwd())}
    )
    first = process.stdout.readline()
    process.send_signal(signal.SIGTERM)
    rest, _ = process.communicate(timeout=PATIENT_S)
    name = correct.ROWS[0].name
    assert first.startswith(name)
    assert process.returncode == 3
    assert "cut short" in rest
    last = rest[rest.index("cut short") :]
    assert all(row.name in last for row in correct.ROWS)
    measured = json.loads((tmp_path / "gpu-correct-cpu.json").read_text())["measured"]
    assert measured[name]["state"] == OK
    assert measured[correct.ROWS[-1].name]["state"] in (LATE, BEGUN)

"""An output folder is one run's at a time, and what an earlier run has left there is kept."""

import errno
import fcntl
import json
import os
import subprocess
import sys
import threading
from contextlib import ExitStack
from dataclasses import replace
from itertools import product
from pathlib import Path

import pytest
import yaml

from conf.errors import UserError
from conf.schema.stream import fresh_folder
from launch import bench, progress, stream
from launch import folder as folders
from launch.folder import LOCK, claimed, look
from tests.helpers import config_of, sampled
from tests.patience import PATIENT_S

SINKS, PLANS = ("video", "latents", "frames", "contact_sheet", "inputs", "timeline"), ("sequential", "timestep")
NANO = ("model=nano", "stream.chunks=1", "sink.video=null")


HOLDER = """
import fcntl, sys
with open(sys.argv[1], "a") as file:
    fcntl.flock(file, fcntl.LOCK_EX)
    print(flush=True)
    sys.stdin.read()
"""


def given(folder: Path, *overrides: str):
    return config_of(*NANO, f"output_dir={folder}", *overrides)


def claim(folder: Path, *overrides: str) -> list[str]:
    """Have a folder for a moment; returns what is in it then."""
    with claimed(given(folder, *overrides)) as made:
        return sorted(path.name for path in made.iterdir())


# -- whose it is ----------------------------------------------------------------------------------------------------


def test_no_two_runs_have_the_same_folder_by_default():
    assert len({fresh_folder() for _ in range(1000)}) == 1000
    one, other = config_of("model=nano"), config_of("model=nano")
    assert one.output_dir != other.output_dir
    assert one.sink.video == f"{one.output_dir}/video.mp4" and "-nano-" in one.output_dir


@pytest.mark.long
def test_jobs_of_a_multirun_are_beside_each_other(tmp_path, monkeypatch):
    """In the folder that the multirun has by default."""
    monkeypatch.chdir(tmp_path)
    assert stream.main([*NANO, "stream.seed=1,2", "--multirun"]) == 0
    assert sorted(path.parent.name for path in tmp_path.glob("outputs/*/*-nano-*/*/report.json")) == ["0", "1"]
    assert len(list(tmp_path.glob("outputs/*/*"))) == 1


@pytest.mark.parametrize(
    ("main", "overrides", "line"),
    [
        (stream.main, ["source.audio=missing.wav"], "source.audio=missing.wav: there is no such file; "),
        (
            stream.main,
            ["sink.video=new/out.mp4"],
            "sink.video=new/out.mp4: would be written by every job of a multirun; "
            "use sink.video='${output_dir}/out.mp4'\n",
        ),
        (bench.main, ["bench.file=x.yaml"], "bench.file=x.yaml: would be written by every job"),
    ],
    ids=["source", "video", "bench"],
)
def test_a_multirun_that_cannot_be_leaves_nothing(tmp_path, monkeypatch, capsys, main, overrides, line):
    """Before its first job; options stand anywhere."""
    monkeypatch.chdir(tmp_path)
    assert main([*NANO, "--multirun", "stream.seed=1,2", *overrides]) == 2
    assert capsys.readouterr().err.startswith(f"error: {line}")
    assert not list(tmp_path.iterdir())


def test_a_folder_is_one_runs_at_a_time(tmp_path, monkeypatch):
    monkeypatch.setattr(folders, "LOCK_S", 0.0)
    config = given(tmp_path / "run")
    with claimed(config):
        for attempt in (look, lambda config: claimed(config).__enter__()):
            with pytest.raises(UserError, match=rf"output_dir=.*/run: a run is writing there \(process {os.getpid()} "):
                attempt(config)
    assert not (tmp_path / "run").exists()
    look(config)
    assert claim(tmp_path / "run") == [LOCK]


def test_the_lock_of_a_killed_run_is_free(tmp_path):
    """The kernel lets go of it; the file that is left says nothing."""
    command = [sys.executable, "-S", "-c", HOLDER, tmp_path / LOCK]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        holder.stdout.readline()
        with pytest.raises(UserError, match="a run is writing there"):
            look(given(tmp_path))
        holder.kill()
    look(given(tmp_path))
    assert claim(tmp_path) == [LOCK] and not list(tmp_path.iterdir())


def test_runs_that_wait_for_each_other_have_it_one_by_one(tmp_path, monkeypatch):
    """Also while a lock is removed by who had it."""
    monkeypatch.setattr(folders, "POLL_S", 0.0)
    monkeypatch.setattr(folders, "LOCK_S", 60.0)
    config, inside, most = given(tmp_path), [], []

    def run() -> None:
        for _ in range(20):
            with claimed(config):
                inside.append(1)
                most.append(len(inside))
                inside.pop()

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1] * 80 and not list(tmp_path.iterdir())


def test_where_nothing_can_be_locked_a_run_goes_on_with_a_warning(tmp_path, monkeypatch, caplog):
    def refuse(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refuse)
    assert claim(tmp_path / "run") == [LOCK]
    assert "locks nothing (No locks available)" in caplog.text


def test_a_lock_that_leads_elsewhere_is_not_written(tmp_path):
    (tmp_path / "precious").write_text("mine")
    (tmp_path / LOCK).symlink_to("precious")
    with pytest.raises(UserError, match=r"output_dir=.*: \.everframe\.lock cannot be written"):
        claim(tmp_path)
    assert (tmp_path / "precious").read_text() == "mine"


def test_a_run_that_comes_second_ends_before_it_loads(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(stream, "SequentialRun", None)
    with claimed(given(tmp_path / "run")):
        assert stream.main([*NANO, f"output_dir={tmp_path}/run"]) == 2
    assert capsys.readouterr().err.startswith(f"error: output_dir={tmp_path}/run: a run is writing there (process ")


# -- what cannot be written -----------------------------------------------------------------------------------------


def test_a_folder_that_cannot_be_is_refused_before_anything_loads(job, tmp_path, monkeypatch):
    monkeypatch.setattr(stream, "SequentialRun", None)
    (tmp_path / "file").write_text("")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "nowhere").symlink_to("gone")
    assert "output_dir=: names no folder" in job.fails(*NANO, "output_dir=")
    assert "cannot be made (Not a directory)" in job.fails(*NANO, f"output_dir={tmp_path}/file")
    config = given(tmp_path)
    for path, why in (
        ("file/deeper", "Not a directory"),
        ("loop/run", "Too many levels of symbolic links"),
        ("nowhere", "No such file or directory"),
        ("new/" + "x" * 300, "File name too long"),
    ):
        with pytest.raises(UserError, match=rf"output_dir={tmp_path}/{path}: cannot be made \({why}\)"):
            look(replace(config, output_dir=f"{tmp_path}/{path}"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "loop", "nowhere"]


@pytest.mark.parametrize(
    ("sink", "plan"), sampled(product(SINKS, PLANS), {("video", "timestep"), *product(SINKS, PLANS[:1])})
)
def test_a_sink_that_cannot_be_is_refused_before_weights_load(job, tmp_path, monkeypatch, sink, plan):
    monkeypatch.setattr("runtime.run.fast_denoiser", None)
    (tmp_path / "file").write_text("")
    line = job.fails(*NANO, f"plan={plan}", f"sink.{sink}={tmp_path}/file/deeper/a.mp4")
    assert line.startswith(f"sink.{sink}={tmp_path}/file/deeper/a.mp4: cannot be written (Not a directory)")


def test_a_video_of_another_kind_is_refused_before_weights_load(job, monkeypatch):
    monkeypatch.setattr("runtime.run.fast_denoiser", None)
    for given, remedy in (("${output_dir}/a.avi", "a.mp4"), ("/", "video.mp4")):
        assert f"video is written as mp4; name it {remedy}" in job.fails(*NANO, f"sink.video={given}")


def test_a_line_of_streams_that_cannot_be_written_is_told_at_the_end(tmp_path, monkeypatch, capsys):
    """The streams go on, the report is written; the exit code says that something is missing."""
    monkeypatch.setattr(progress, "STREAMS", "config.yaml/streams.jsonl")
    orders, run = tmp_path / "orders", tmp_path / "run"
    orders.write_text('{"open": "a"}\n{"open": "b"}\n')
    assert stream.main([*NANO, f"control={orders}", f"output_dir={run}"]) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and f"output_dir={run}: config.yaml/streams.jsonl cannot be written (" in errors[0]
    assert json.loads((run / "report.json").read_text())["totals"]["streams"] == 2


@pytest.mark.parametrize("control", [None, "tcp://127.0.0.1:9000/secret", "@control"])
def test_lines_of_sessions_are_the_owners_alone_and_do_not_grow(tmp_path, monkeypatch, control):
    """A server's, and those of a pipeline that has joined one."""
    monkeypatch.setattr(progress, "SESSIONS_BYTES", 1000)
    config = replace(config_of("model=nano", f"output_dir={tmp_path}"), control=control)
    ended = progress.Ended(config, served=True if control is None else None)
    for number in range(100):
        ended(number, {"stream": f"{number:020d}", "chunks": 1, "frames": 12})
    files = {path.name: path for path in tmp_path.iterdir()}
    assert set(files) == {"streams.jsonl", "streams.jsonl.1"} and ended.refused is None
    assert all(path.stat().st_mode & 0o777 == 0o600 and path.stat().st_size < 1100 for path in files.values())
    kept = files["streams.jsonl.1"].read_text() + files["streams.jsonl"].read_text()
    numbers = [int(json.loads(line)["stream"]) for line in kept.splitlines()]
    assert numbers == list(range(numbers[0], 100)) and len(numbers) > 10


def test_lines_of_streams_that_a_file_orders_are_all_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(progress, "SESSIONS_BYTES", 10)
    ended = progress.Ended(replace(config_of("model=nano", f"output_dir={tmp_path}"), control="orders"))
    for number in range(9):
        ended(number, {"stream": str(number), "chunks": 1, "frames": 12})
    assert len((tmp_path / "streams.jsonl").read_text().splitlines()) == 9 == ended.totals["streams"]


# -- what was there before ------------------------------------------------------------------------------------------


def test_an_earlier_run_is_kept_as_a_whole(job, caplog):
    sinks = ("sink.latents=${output_dir}/latents.safetensors", "stream.save_every_chunks=1")
    first = job(*NANO, *sinks)
    (job.folder / "notes.txt").write_text("mine")
    second = job(*NANO, "stream.seed=2")
    third = job(*NANO, "stream.seed=3")
    hashes = [
        json.loads((job.folder / name / "report.json").read_text())["latents_sha256"]
        for name in ("earlier.1", "earlier.2", ".")
    ]
    assert hashes == [one["latents_sha256"] for one in (first, second, third)]
    kept = ["config.yaml", "latents.safetensors", "report.json", "state", "trace.json"]
    assert sorted(path.name for path in (job.folder / "earlier.1").iterdir()) == kept
    now = ["config.yaml", "earlier.1", "earlier.2", "notes.txt", "report.json", "trace.json"]
    assert sorted(path.name for path in job.folder.iterdir()) == now
    assert [record.getMessage() for record in caplog.records if "earlier" in record.getMessage()] == [
        f"output_dir={job.folder} holds an earlier run, which is kept in {job.folder}/earlier.{n}" for n in (1, 2)
    ]


def test_only_what_a_run_leaves_is_moved(tmp_path):
    """By the names that its own configuration gave, wherever it was started and wherever the folder is now."""
    sink = {
        "video": "out/videos/v.mp4",
        "frames": "out/frames",
        "latents": "elsewhere/x",
        "inputs": "out/../i",
        "trace": 5,
    }
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({"output_dir": "out", "sink": sink}))
    left = (
        "videos/v.mp4", "videos/v.0.mp4", "videos/v.from-00000048.mp4", "frames/frame.00000000.png", "trace.3.part",
        "streams.jsonl", "streams.jsonl.1", "state/a/chunk.000004/state.json", "new.png",
    )  # fmt: skip
    own = ("speech.wav", "videos/other.mp4", "state.txt", "earlier.7/report.json", "x", "i", "video.mp4")
    for name in (*left, *own):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    claim(tmp_path, "sink.contact_sheet=${output_dir}/new.png")
    files = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    assert files == {*own, *(f"earlier.8/{name}" for name in (*left, "config.yaml"))}


def test_a_folder_that_no_run_has_used_stays_as_it_is(tmp_path):
    own = ("speech.wav", "video.mp4", "state/mine.txt", "chunk.000004/state.json")
    for name in own:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    assert claim(tmp_path) == sorted({LOCK, *(Path(name).parts[0] for name in own)})


@pytest.mark.parametrize("name", ["source.inputs", "source.audio", "control", "model.checkpoint"])
def test_what_a_run_reads_is_not_moved_from_under_it(tmp_path, monkeypatch, name):
    """Whatever it is called; the run is refused before it loads, as it is when it begins."""
    monkeypatch.chdir(tmp_path)
    Path("link").symlink_to("out")
    Path("out").mkdir()
    Path("out/config.yaml").write_text(yaml.safe_dump({"output_dir": "out", "sink": {"latents": "out/x"}}))
    Path("out/x").write_text("{}")
    config = given(Path("out"))
    part, _, key = name.rpartition(".")
    setattr(getattr(config, part) if part else config, key, "link/x")
    for attempt in (look, lambda config: claimed(config).__enter__()):
        with pytest.raises(UserError, match=rf"{name}=link/x: is of an earlier run in output_dir=out, .*another"):
            attempt(config)
    assert sorted(path.name for path in Path("out").iterdir()) == ["config.yaml", "x"]
    look(replace(config, output_dir="other"))


def test_folders_that_were_made_for_nothing_are_removed(tmp_path):
    (tmp_path / "mine").mkdir()
    assert claim(tmp_path / "mine" / "new" / "run") == [LOCK]
    assert [path.name for path in tmp_path.rglob("*")] == ["mine"]
    with claimed(given(tmp_path / "mine" / "run")) as folder:
        (folder / "report.json").write_text("{}")
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["mine", "report.json", "run"]


WRONG = ("", "[1]", "a: {b", "output_dir: 5\nsink: text", "[" * 1500, "sink: {video: [1]}", "\0", "a: 2001-99-99")


@pytest.mark.parametrize("content", WRONG, ids=range(len(WRONG)))
def test_a_configuration_that_is_none_is_kept_and_says_nothing(tmp_path, content):
    (tmp_path / "config.yaml").write_text(content)
    assert claim(tmp_path) == [LOCK, "earlier.1"]
    assert (tmp_path / "earlier.1" / "config.yaml").read_text() == content


def test_what_cannot_be_kept_is_one_line(tmp_path, monkeypatch):
    (tmp_path / "report.json").write_text("{}")

    def refuse(*_):
        raise OSError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(Path, "rename", refuse)
    with pytest.raises(UserError, match=r"earlier.N cannot be written \(Permission denied\)"):
        claim(tmp_path)
    assert (tmp_path / "report.json").exists() and not (tmp_path / LOCK).exists()


def test_a_run_from_python_has_its_folder_until_its_workers_have_left(tmp_path, monkeypatch):
    from launch import running

    monkeypatch.setattr(folders, "LOCK_S", 0.0)
    config = given(tmp_path, "plan=timestep", "plan.workers=2")
    with ExitStack() as stack:
        run = stack.enter_context(running.start(config))
        number = run.pipeline.open(config.stream, config.source, config.sink)
        run.pipeline.result(number, PATIENT_S)
        with pytest.raises(UserError, match="a run is writing there"):
            look(config)
        run.close()
        run.wait(PATIENT_S)
    look(config)
    assert not (tmp_path / LOCK).exists()

"""The batch scripts that serve, with stand-ins for SLURM's and Python's programs: what they start, and how all ends."""

import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

from conf.schema import Config
from conf.schema.serve import ServedConfig
from conf.secret import told
from launch import scripts
from launch.cli import compose
from tests.patience import PATIENT_S

ROOT = Path(__file__).parents[2]
TOOLS = {
    "scontrol": 'case "$*" in *hostnames*) env printf "n1\\nn2\\n" ;; *node*) echo "N=$4 NodeAddr=127.0.0.1 x" ;;'
    ' *) echo "JobId=7 OverSubscribe=$OVERSUBSCRIBE Requeue=0 x=y" ;; esac',
    # Only the first node's task; options up to the command are SLURM's.
    "srun": 'while [[ $1 == --* ]]; do shift; done; SLURM_NODEID=0 SLURMD_NODENAME=n1 exec "$@"',
    "ray": 'exec python ray "$@"',
}
PROGRAM = '''
"""Stands for python: keeps its arguments, and behaves as the gateway, the pipeline or Ray's node would."""
import json, os, pathlib, signal, socket, stat, sys, time

notes, args = pathlib.Path(os.environ["NOTES"]), sys.argv[1:]
if "launch.sweep" in args:
    sys.exit(0)
what = "gateway" if "launch.serve" in args else "pipeline" if "launch.stream" in args else "node"
gone, overrides = notes / "gone", dict(a.partition("=")[::2] for a in args if "=" in a)


def note(**more):
    found = {"args": args, "overrides": overrides, "pid": os.getpid(), **more}
    (notes / (what + ".json")).write_text(json.dumps(found))


def mode(path):
    return stat.S_IMODE(path.stat().st_mode)


def end(*_):
    gone.touch()
    print("drained", file=sys.stderr)
    sys.exit(int(os.environ.get("GATEWAY_CODE", 0)))


if what == "gateway":
    signal.signal(signal.SIGTERM, end)
    secrets = {n: pathlib.Path(overrides["serve." + n][1:]) for n in ("token", "join_secret")}
    note(secrets={n: p.read_text() for n, p in secrets.items()}, modes=[mode(p) for p in secrets.values()])
    print("http://127.0.0.1/#token=" + secrets["token"].read_text())
    while True:
        signal.pause()
if what == "pipeline":
    control = pathlib.Path(overrides["control"][1:])
    note(address=control.read_text(), mode=mode(control), folder=mode(control.parent))
    while not gone.exists() and not (notes / "fails").exists():
        time.sleep(0.02)
    folder = pathlib.Path(overrides["output_dir"])
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "report.json").write_text("{}")
    sys.exit(3 if (notes / "fails").exists() else 0)
note()
'''


class Job:
    """A batch script under way.

    Args:
        script: its name.
        folder: for all that it leaves.
        overrides: arguments of sbatch.
        settings: of its environment.
    """

    def __init__(self, script: str, folder: Path, *overrides: str, **settings: str):
        self.notes, self.output = folder / "notes", folder / "out" / "run"
        tools = folder / "tools"
        for made in (self.notes, tools):
            made.mkdir()
        (tools / "program.py").write_text(PROGRAM)
        for name, body in (TOOLS | {"python": f'exec {sys.executable} "{tools}/program.py" "$@"'}).items():
            (tools / name).write_text(f"#!/usr/bin/env bash\n{body}\n")
            (tools / name).chmod(0o755)
        environment = {
            "PATH": f"{tools}:{os.environ['PATH']}", "SLURM_SUBMIT_DIR": str(ROOT), "SLURM_JOB_ID": "7",
            "SLURM_JOB_NODELIST": "n[1-2]", "SLURM_NNODES": "2", "SLURM_NTASKS_PER_NODE": "2",
            "SLURM_CPUS_ON_NODE": "1", "SLURMD_NODENAME": "n1", "EVERFRAME_OUTPUT": str(self.output),
            "EVERFRAME_ENV": str(folder / "environment"), "NOTES": str(self.notes), "OVERSUBSCRIBE": "OK",
            "HOME": str(folder),
        }  # fmt: skip
        (folder / "environment").touch()
        self.process = subprocess.Popen(
            ["bash", str(ROOT / "slurm" / script), *overrides],
            env=environment | settings, start_new_session=True,
            text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip

    def note(self, what: str) -> dict:
        """What one of its programs was started with, once it was."""
        file, end = self.notes / f"{what}.json", time.monotonic() + PATIENT_S
        while not file.exists() or not file.read_text().endswith("}"):
            assert time.monotonic() < end and self.process.poll() is None, self.process.communicate()
            time.sleep(0.02)
        return json.loads(file.read_text())

    def end(self) -> tuple[int, str, str]:
        """Its exit code, and what it has said, when it has ended."""
        out, err = self.process.communicate(timeout=PATIENT_S)
        return self.process.returncode, out, err

    def kill(self) -> None:
        """End all that is left of it."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


@pytest.fixture
def begin(tmp_path):
    """begin(script, *overrides, **environment) -> Job."""
    jobs = []

    def begin(script: str, *overrides: str, **settings: str) -> Job:
        jobs.append(Job(script, tmp_path, *overrides, **settings))
        return jobs[-1]

    yield begin
    for job in jobs:
        job.kill()


@pytest.mark.parametrize("script", ["serve_torchrun.sbatch", "serve_ray.sbatch"])
@pytest.mark.parametrize("sent", [signal.SIGUSR1, signal.SIGTERM])
def test_at_the_end_of_its_time_the_gateway_drains_and_the_pipeline_follows(begin, script, sent):
    job = begin(script, "model=nano", "plan=timestep", "serve.session_s=60")
    gateway, pipeline = job.note("gateway"), job.note("pipeline")
    job.process.send_signal(sent)
    code, out, err = job.end()
    assert code == 0, err
    assert err.count("drained") == 1
    # Settings go to whom they are for.
    assert gateway["overrides"]["serve.session_s"] == "60" and "model" not in gateway["overrides"]
    assert pipeline["overrides"]["model"] == "nano" and "serve.session_s" not in pipeline["overrides"]
    # Both ends have one secret and one address, and it is said nowhere but in files of their owner's.
    secret = gateway["secrets"]["join_secret"].strip()
    port = gateway["overrides"]["serve.link_port"]
    assert pipeline["address"].strip() == f"tcp://127.0.0.1:{port}/{secret}"
    assert (gateway["modes"], pipeline["mode"], pipeline["folder"]) == ([0o600, 0o600], 0o600, 0o700)
    words = " ".join([*gateway["args"], *pipeline["args"], out, err])
    assert not any(value.strip() in words for value in gateway["secrets"].values())
    assert f"ssh -N -L {gateway['overrides']['serve.port']}:127.0.0.1:" in out
    assert not list(job.output.parent.glob("*.secrets.*"))


def test_what_is_started_takes_its_settings(begin, tmp_path):
    """Both command lines compose, and an address in a file is one."""
    job = begin("serve_torchrun.sbatch", "model=nano", "plan=timestep", "serve.queue=3")
    gateway, pipeline = job.note("gateway"), job.note("pipeline")
    served = compose("serve", ServedConfig, [a for a in gateway["args"] if "=" in a]).serve
    assert (served.join, served.queue, len(served.join_secret), len(served.token)) == (1, 3, 32, 32)
    given = pipeline["args"][pipeline["args"].index("launch.stream") + 1 :]
    config = compose("stream", Config, given)
    assert (config.launcher.name, config.sink.video, config.sink.session) == ("torchrun", None, "of-each-stream")
    assert told("control", config.control) == f"tcp://127.0.0.1:{served.link_port}/{served.join_secret}"
    assert not config.stream.save_on_stop
    job.process.send_signal(signal.SIGTERM)
    assert job.end()[0] == 0


def test_a_gateway_that_fails_is_told(begin):
    job = begin("serve_torchrun.sbatch", "model=nano", GATEWAY_CODE="5")
    gateway = job.note("gateway")
    job.note("pipeline")
    os.kill(gateway["pid"], signal.SIGTERM)
    assert job.end()[0] == 5


def test_a_pipeline_that_fails_ends_the_gateway(begin):
    job = begin("serve_torchrun.sbatch", "model=nano")
    job.note("gateway"), job.note("pipeline")
    (job.notes / "fails").touch()
    code, _, err = job.end()
    assert code == 3 and err.count("drained") == 1


def test_nodes_of_ones_own_are_rays_alone(begin):
    job = begin("serve_ray.sbatch", "model=nano", OVERSUBSCRIBE="NO")
    job.note("gateway")
    assert job.note("pipeline")["args"][:2] == ["ray", "symmetric-run"]
    job.process.send_signal(signal.SIGUSR1)
    code, _, err = job.end()
    assert code == 0, err


def test_who_says_where_to_listen_is_told_of_no_tunnel(begin):
    job = begin("serve_torchrun.sbatch", "model=nano", "serve.host=0.0.0.0")
    assert job.note("gateway")["overrides"]["serve.host"] == "0.0.0.0"
    job.note("pipeline")
    job.process.send_signal(signal.SIGTERM)
    code, out, _ = job.end()
    assert code == 0 and "ssh" not in out


def test_the_scripts_are_copied(tmp_path):
    made = scripts.copy(tmp_path)
    assert {"serve.sh", "serve_torchrun.sbatch", "serve_ray.sbatch"} <= {path.name for path in made.iterdir()}
    for script in made.iterdir():
        assert shutil.which("bash") and subprocess.run(["bash", "-n", str(script)]).returncode == 0
        assert stat.S_ISREG(script.stat().st_mode)


@pytest.mark.parametrize(
    ("overrides", "settings", "restarts"),
    [
        ((), {}, 0),
        (("launcher.recover=exact",), {}, 3),
        (("launcher.recover=exact",), {"EVERFRAME_RESTARTS": "7"}, 7),
        (("launcher.recover=off",), {"EVERFRAME_RESTARTS": "7"}, 0),
    ],
    ids=str,
)
def test_ranks_are_started_again_where_a_run_recovers(begin, overrides, settings, restarts):
    job = begin("serve_torchrun.sbatch", "model=nano", *overrides, **settings)
    job.note("gateway")
    assert f"--max-restarts={restarts}" in job.note("pipeline")["args"]
    job.process.send_signal(signal.SIGTERM)
    assert job.end()[0] == 0

"""A SLURM cluster of two nodes on this machine, for as long as it is needed: its own munge key, ports and folders."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "scontrol", "scancel")
NODES = ("n1", "n2")

CONFIG = """\
ClusterName=everframe
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
ReturnToService=2
NodeName=n1 NodeAddr=127.0.0.1 NodeHostname={host} Port={ports[1]} CPUs={cpus} State=UNKNOWN
NodeName=n2 NodeAddr=127.0.0.1 NodeHostname={host} Port={ports[2]} CPUs={cpus} State=UNKNOWN
PartitionName=all Nodes=n1,n2 Default=YES MaxTime=INFINITE State=UP
"""


def install() -> None:
    """Install SLURM and munge from Debian's packages, unless they are there."""
    if all(shutil.which(program) for program in PROGRAMS):
        return
    environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
    subprocess.run(["apt-get", "update", "-qq"], check=True, env=environment)
    subprocess.run(["apt-get", "install", "-qq", "-y", "slurm-wlm", "munge"], check=True, env=environment)


def _free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [s.getsockname()[1] for s in sockets]
    for s in sockets:
        s.close()
    return ports


class Slurm:
    """Daemons of a cluster; a context.

    Args:
        folder: short, since sockets lie in it; for configuration, logs and state.
        cpus: that each node says it has.
    """

    def __init__(self, folder: Path, cpus: int = 4):
        self.folder, self.daemons = folder, []
        for name in ("state", *(f"spool-{n}" for n in NODES)):
            (folder / name).mkdir()
        key = folder / "munge.key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o400)
        # munged wants a folder that nobody else can write to.
        folder.chmod(0o755)
        text = CONFIG.format(host=socket.gethostname().split(".")[0], folder=folder, ports=_free_ports(3), cpus=cpus)
        (folder / "slurm.conf").write_text(text)
        self.environment = os.environ | {"SLURM_CONF": str(folder / "slurm.conf")}

    def __enter__(self) -> Slurm:
        at = self.folder
        self._daemon(
            "munged", "--foreground", "--force", f"--key-file={at}/munge.key", f"--socket={at}/munge.socket",
            f"--pid-file={at}/munged.pid", f"--log-file={at}/munged.log", f"--seed-file={at}/munged.seed",
        )  # fmt: skip
        self.until(lambda: (at / "munge.socket").exists(), "munged")
        self._daemon("slurmctld", "-D")
        for name in NODES:
            self._daemon("slurmd", "-D", "-N", name)
        self.until(lambda: self("sinfo", "-h", "-o", "%D %t").split() == ["2", "idle"], "two idle nodes")
        return self

    def __exit__(self, *error: object) -> None:
        if self.daemons[1:]:
            self("scancel", "--partition=all", check=False)
            end = time.monotonic() + 60
            while self("squeue", "--noheader", check=False) and time.monotonic() < end:
                time.sleep(0.5)
        for daemon in reversed(self.daemons):
            daemon.terminate()
            try:
                daemon.wait(20)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()

    def __call__(self, *command: str, check: bool = True, cwd: Path | None = None) -> str:
        """Run one of SLURM's commands; returns what it prints."""
        return subprocess.run(
            command, check=check, cwd=cwd, env=self.environment, stdout=subprocess.PIPE, text=True
        ).stdout.strip()

    def submit(self, *arguments: str, cwd: Path) -> int:
        """Submit a job; returns its number."""
        return int(self("sbatch", "--parsable", *arguments, cwd=cwd))

    def states(self, job: int) -> set[str]:
        """States of a job, or of all tasks of an array, in SLURM's words."""
        lines = self("scontrol", "show", "job", "--oneliner", str(job)).splitlines()
        return {line.split("JobState=")[1].split()[0] for line in lines}

    def property(self, job: int, name: str) -> str:
        """What `scontrol show job` says of a job under a name."""
        return self("scontrol", "show", "job", "--oneliner", str(job)).split(f" {name}=")[1].split()[0]

    def wait(self, job: int, timeout_s: float, log: Path) -> set[str]:
        """Wait until a job has ended, all its tasks; returns their states. `log` is shown if it does not."""
        over = {"COMPLETED", "FAILED", "TIMEOUT", "CANCELLED", "NODE_FAIL", "OUT_OF_MEMORY"}
        self.until(lambda: self.states(job) <= over, f"job {job}", timeout_s, log)
        return self.states(job)

    def _daemon(self, *command: str) -> None:
        log = (self.folder / f"daemon-{len(self.daemons)}.log").open("wb")
        self.daemons.append(subprocess.Popen(command, env=self.environment, stdout=log, stderr=log))

    def until(self, true: Callable[[], bool], what: str, timeout_s: float = 30, log: Path | None = None) -> None:
        """Wait until something is true; if it does not come to be, show `log` or the daemons' own and end."""
        end = time.monotonic() + timeout_s
        while not true():
            if time.monotonic() > end or any(d.poll() is not None for d in self.daemons):
                files = [log] if log and log.exists() else sorted(self.folder.glob("*.log"))
                logs = "\n".join(f"== {p.name}\n{p.read_text()[-6000:]}" for p in files)
                raise SystemExit(f"{what}: not within {timeout_s:g} s\n{logs}")
            time.sleep(0.5)

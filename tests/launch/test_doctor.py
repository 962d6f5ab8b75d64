"""`launch.doctor` finds what is wrong, with real processes: one line each, exit code 2."""

import os
import shutil
import socket
import subprocess
import sys
import threading
from dataclasses import replace

import pytest
from torch.distributed import TCPStore

import devices
from benchmarks import namespaces
from launch import checks, doctor, meeting
from launch.checks import PACKAGES, Finding, merged
from launch.meeting import Meeting, attend, rounds
from runtime import folder
from tests.helpers import config_of
from tests.launch.test_stream import ROOT
from tests.patience import PATIENT_S

COMMAND = (sys.executable, "-m", "launch.doctor", "launcher=torchrun", "model=nano", "device=cpu")


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def start(rank: int, port: int, *overrides: str, root=ROOT, address="127.0.0.1", prefix=lambda *command: list(command)):
    """One rank of two, as torchrun starts it."""
    told = {"RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": address, "MASTER_PORT": str(port)}
    return subprocess.Popen(
        prefix(*COMMAND, "plan=timestep", *overrides),
        cwd=root, env=os.environ | told | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(root)},
        text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def failures(process: subprocess.Popen) -> list[str]:
    """Lines of what is wrong, each with single spaces."""
    out, err = process.communicate(timeout=PATIENT_S)
    assert process.returncode == 2, (out, err)
    assert "Traceback" not in err
    return [" ".join(line.split()) for line in out.splitlines() if line.startswith("FAIL")]


def test_all_is_well(capsys, tmp_path):
    assert doctor.main(["model=nano", f"output_dir={tmp_path}/run"]) == 0
    out = capsys.readouterr().out
    assert "FAIL" not in out
    assert all(what in out for what in ("device", "shared memory", "free disk", "output folder", "video encoder"))
    assert "none for 1 worker" in out
    assert all(what in out for what in ("GPU driver", "CUDA", "NCCL", "gloo network", "NCCL network", "lo 127.0.0.1"))
    assert not list(tmp_path.iterdir())


def test_a_missing_peer_is_named(tmp_path):
    found = failures(start(0, free_port(), "launcher.timeout_s=2", f"output_dir={tmp_path}"))
    assert len(found) == 1
    assert "is missing comes within 2 s" in found[0]
    assert found[0].endswith("worker 1")


@pytest.mark.long
def test_a_port_that_is_taken_is_named():
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        process = start(0, port, "launcher.timeout_s=2")
        _, err = process.communicate(timeout=PATIENT_S)
    assert process.returncode == 2
    assert err.startswith(f"error: MASTER_ADDR=127.0.0.1 MASTER_PORT={port}: this port cannot be opened here")


def test_another_version_and_a_folder_that_cannot_be_written_are_found(tmp_path):
    other = tmp_path / "other"
    for package in PACKAGES:
        shutil.copytree(
            ROOT / package, other / package, ignore=shutil.ignore_patterns("__pycache__", "assets", "slurm")
        )
    with (other / "stages" / "rate.py").open("a") as file:
        file.write("\n# changed\n")
    (tmp_path / "file").touch()
    port, more = free_port(), f"output_dir={tmp_path}/file/run"
    ranks = [start(0, port, more), start(1, port, more, root=other)]
    found = failures(ranks[0])
    ranks[1].communicate(timeout=PATIENT_S)
    assert sum("Everframe" in line and "install the same version there" in line for line in found) == 1
    assert next(line for line in found if "Everframe" in line).split(" worker ")[-1].startswith("1 on ")
    assert any(f"output folder {tmp_path}/file: Not a directory can be written" in line for line in found)
    assert len(found) == 2


@pytest.mark.skipif(not namespaces.possible(), reason="needs root and iproute2")
def test_blocked_ports_between_hosts_are_found(tmp_path):
    with namespaces.hosts(2) as hosts:
        hosts[1].block(32768, 60999)
        address, more = hosts[0].address, ("launcher.timeout_s=30", f"output_dir={tmp_path}")
        ranks = [start(r, 29500, *more, address=address, prefix=host.command) for r, host in enumerate(hosts)]
        found = failures(ranks[0])
        ranks[1].communicate(timeout=PATIENT_S)
    assert len(found) == 1
    assert f"no connection on {hosts[0].name} and {hosts[1].name}" in found[0]
    assert "worker 1 cannot reach port" in found[0] or "worker 0 cannot reach port" in found[0]
    assert found[0].endswith("workers 0 and 1")


def test_hosts_with_a_loopback_address_and_folders_of_their_own_are_found(tmp_path, monkeypatch):
    """Two workers as threads, each on what it takes for a host of its own."""
    mine, store = threading.local(), TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    for module in (meeting, folder):
        monkeypatch.setattr(module, "home", lambda namespace: mine.host)
    monkeypatch.setattr(meeting, "told_address", lambda store: "127.0.1.1" if mine.host == "first" else "10.0.0.2")
    monkeypatch.setattr(meeting, "local", lambda *args: [])
    monkeypatch.setattr(folder, "LOOK_S", 0.0)

    config = config_of("model=nano", "plan=timestep", "plan.workers=2")

    def member(index: int, host: str) -> Meeting:
        own = replace(config, output_dir=str(tmp_path / host))
        return Meeting(store.clone(), index, doctor._plan(own), own, host=host)

    def come(index: int, host: str) -> None:
        (tmp_path / host).mkdir()
        mine.host = host
        attend(member(index, host))

    threads = [threading.Thread(target=come, args=who) for who in enumerate(("first", "second"))]
    for thread in threads:
        thread.start()
    found = member(0, "first").gather()
    for thread in threads:
        thread.join()
    wrong = [(where, f) for where, f in merged(found) if not f.ok]
    assert [(where, f.what) for where, f in wrong] == [
        ("worker 0 on first", "address"),
        ("worker 1 on second", "output folder"),
    ]
    assert wrong[0][1].value == "127.0.1.1 is told to other hosts"
    assert "does not see" in wrong[1][1].value
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


@pytest.mark.parametrize("launcher", ["torchrun", "ray"])
def test_who_shares_a_gpu_is_told(launcher):
    """Five workers on three hosts, two of them on one card; on Ray each sees its own only, and has it."""
    config = config_of("model=nano", "plan=timestep", f"launcher={launcher}")
    at = Meeting(TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False), 0, doctor._plan(config), config)
    own = [("a", "a0"), ("a", "a1"), ("b", "b0"), ("b", "b0"), ("c", "c0")]
    here = {
        index: {"host": host, "cards": ["a0", "a1"] if (host, launcher) == ("a", "torchrun") else [card]}
        for index, (host, card) in enumerate(own)
    }
    assert at._cards(here) == ("GPU 0 of a", "GPU 1 of a", "GPU 0 of b", "GPU 0 of b", "GPU 0 of c")
    gpus, _ = checks.shared(at.plan, at._cards(here), "auto", ["2.27"] * 5)
    assert gpus.value == "workers 2, 3 share GPU 0 of b; workers 0, 1, 4: a GPU each"
    without = here | {2: {"host": "b", "cards": []}}
    assert at._cards(without) == ()
    (finding,) = checks.shared(at.plan, (), "auto", [""] * 5)
    assert finding.value == "none for 5 workers"


def test_how_messages_travel_is_told():
    plan = doctor._plan(config_of("model=nano", "plan=grid", "plan.grid=[2,2]", "sink.video=null"))
    large = replace(plan, workload=replace(plan.workload, hidden_bytes=1 << 22))
    apart, libraries = ("GPU 0", "GPU 1", "GPU 2", "GPU 3"), ["2.27"] * 4

    def told(cards, transport="auto"):
        return {f.what: f for f in checks.shared(large, cards, transport, libraries)}.get("transport")

    assert "hidden by NCCL" in told(apart).value and "latents through hosts" in told(apart).value
    assert "hidden through hosts or by NCCL" in told(("GPU 0", "GPU 0", "GPU 1", "GPU 2")).value
    assert "NCCL" not in told(("GPU 0",) * 4).value and told(("GPU 0",) * 4).ok
    assert "hidden through hosts" in told(apart, "host").value
    assert told(apart, None) is None and told(apart, "nccl").ok
    wrong = told(("GPU 0", "GPU 0", "GPU 1", "GPU 2"), "nccl")
    assert "are on one device (GPU 0)" in wrong.value and wrong.remedy.startswith("use launcher.transport=auto")
    # The remedy is one.
    assert told(("GPU 0", "GPU 0", "GPU 1", "GPU 2"), "auto").ok


def test_a_model_that_is_too_small_for_a_gpu_is_told(monkeypatch):
    config = config_of("model=nano")
    assert doctor._instead(config) == {}
    monkeypatch.setattr(devices, "count", lambda: 1)
    (finding,) = doctor._instead(config)["this process"]
    assert finding.ok and "device=cuda computes on a GPU" in finding.value


def test_ports_of_ray_are_tried():
    with socket.create_server(("127.0.0.1", 0)) as server:
        node = {"NodeManagerAddress": "127.0.0.1", "NodeManagerPort": server.getsockname()[1]}
        found = list(doctor._ports([node | {"ObjectManagerPort": free_port()}]))
    assert [f.ok for f in found] == [True, False]
    assert "Connection refused" in found[1].value


@pytest.mark.parametrize("count", [1, 2, 5, 8])
def test_everybody_meets_everybody_once(count):
    met = list(rounds(count))
    assert sorted(pair for pairs in met for pair in pairs) == [
        (a, b) for a in range(count) for b in range(a + 1, count)
    ]
    for pairs in met:
        busy = [worker for pair in pairs for worker in pair]
        assert len(busy) == len(set(busy))


def test_equal_findings_are_one_line():
    same, own = Finding("device", "cpu", "computes"), Finding("disk", "0 MB", "more", "make room")
    assert list(merged({"a": [same], "b": [same, own]})) == [("a, b", same), ("b", own)]


def test_the_driver_is_read_from_the_system(tmp_path):
    (path := tmp_path / "version").write_text(
        "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.65.06  Release Build  (a@b)  Sun Jul 27 2025\n"
        "GCC version:  gcc version 12.3.0 (Ubuntu 12.3.0-1ubuntu1~22.04)\n"
    )
    assert checks._driver(path).value == "580.65.06"
    assert checks._driver(tmp_path / "nowhere").value == "none"


def test_networks_are_those_that_libraries_take(monkeypatch):
    assert checks.interfaces()["lo"] == "127.0.0.1"
    there = {"lo": "127.0.0.1", "eth0": "10.0.0.5", "eth1": "10.1.0.5"}
    monkeypatch.setattr(checks, "interfaces", lambda: there)

    def found(**settings):
        for name in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
            monkeypatch.delenv(name, raising=False)
        for name, value in settings.items():
            monkeypatch.setenv(name, value)
        return [check() for check in checks._networks()]

    gloo, nccl = found()
    assert gloo.ok and gloo.value.endswith("of lo 127.0.0.1, eth0 10.0.0.5, eth1 10.1.0.5")
    assert nccl.ok and "GLOO_SOCKET_IFNAME names it" in gloo.rule and "NCCL_SOCKET_IFNAME names it" in nccl.rule
    gloo, nccl = found(GLOO_SOCKET_IFNAME="eth0", NCCL_SOCKET_IFNAME="eth")
    assert gloo.ok and gloo.value == "GLOO_SOCKET_IFNAME=eth0, of eth0 10.0.0.5"
    assert nccl.ok and nccl.value == "NCCL_SOCKET_IFNAME=eth, of eth0 10.0.0.5, eth1 10.1.0.5"
    gloo, nccl = found(GLOO_SOCKET_IFNAME="eth", NCCL_SOCKET_IFNAME="^docker")
    assert not gloo.ok and gloo.remedy == "name one of lo 127.0.0.1, eth0 10.0.0.5, eth1 10.1.0.5"
    assert nccl.ok


def test_a_gpu_that_is_not_used_is_found(monkeypatch, tmp_path):
    monkeypatch.setattr(devices, "idle_gpu", lambda: ("there is a GPU (/dev/nvidia0), and torch ...", "install one"))
    config = config_of("model=nano", f"output_dir={tmp_path}")
    found = {f.what: f for f in checks.local(config, decodes=False)}
    assert found["device"].remedy == "install one" and "there is a GPU (/dev/nvidia0)" in found["device"].value
    told = replace(config, device=replace(config.device, kind="cpu"))
    assert all(f.ok for f in checks.local(told, decodes=False) if f.what == "device")


@pytest.mark.parametrize(
    ("overrides", "value"),
    [
        (("device.graphs=always",), "device.graphs=always: CUDA graphs are for CUDA devices, not cpu"),
        (("model.attention=flash3",), "model.attention=flash3: needs a device of kind cuda, not cpu"),
        (("launcher.transport=nccl", "launcher.threads=false"), "launcher.transport=nccl: joins GPUs"),
    ],
)
def test_what_a_stream_would_refuse_the_doctor_finds(job, tmp_path, capsys, overrides, value):
    given = ("model=nano", "plan=timestep", "device=cpu", *overrides)
    assert doctor.main([*given, f"output_dir={tmp_path}"]) == 2
    assert value in capsys.readouterr().out
    assert value in job.fails(*given)

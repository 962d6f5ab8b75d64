"""Two hosts, in network namespaces of their own, under torchrun. `python -m benchmarks.hosts`, as root.

`nano`, 20 chunks, plans `timestep` and `grid` on four workers, two a host: the oracle's `latents_sha256`. Then the
cable of the second host is pulled in the middle of a stream, for 20 s: the error must name that host within
`launcher.timeout_s`, here 10 s, and both torchruns must end by themselves. And two mistakes must be found before
anything is streamed, in one line each: a first host that knows itself by a loopback address, and an output folder that
the second host does not share.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.launched import ROOT, run
from benchmarks.namespaces import Host, hosts
from benchmarks.record import bar, record

BASE = ("model=nano", "device=cpu", "stream.chunks=20", "stream.prompt=hello", "model.recalibrate_chunk=4")
PLANS = {"timestep": ("plan=timestep",), "grid": ("plan=grid",)}
PORT = 29500
TIMEOUT_S, CUT_S = 10.0, 20.0


def start(
    members: list[Host],
    module: str,
    *overrides: str,
    per_host: int = 2,
    by_name: bool = False,
    before: tuple[str, ...] = ("", ""),
) -> list[subprocess.Popen]:
    """One torchrun on every host.

    Args:
        by_name: whether hosts tell each other their names, not their addresses.
        before: what a shell does first, on every host.
    """
    torchrun = (
        sys.executable, "-m", "torch.distributed.run", f"--nnodes={len(members)}", f"--nproc-per-node={per_host}",
        "--rdzv-backend=c10d", "--rdzv-id=hosts", f"--rdzv-endpoint={members[0].address}:{PORT}",
    )  # fmt: skip
    return [
        subprocess.Popen(
            host.command(
                *("sh", "-c", f'{first or "true"} && exec "$@"', "sh"),
                *torchrun, f"--rdzv-conf=is_host={int(host is members[0])}",
                f"--local-addr={host.name if by_name else host.address}",
                "-m", module, "launcher=torchrun", *overrides,
            ),
            cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"}, text=True, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, start_new_session=True,
        )
        for host, first in zip(members, before, strict=True)
    ]  # fmt: skip


def exact(folder: Path) -> dict[str, Any]:
    """Hashes of plans on two hosts, against the oracle's."""
    expected = run("sequential", 1, folder / "oracle", *BASE, "sink.video=null")["latents_sha256"]
    found = {}
    for name, plan in PLANS.items():
        with hosts(2) as members:
            processes = start(members, "launch.stream", *BASE, *plan, f"output_dir={folder / name}")
            said = [process.communicate(timeout=300)[1] for process in processes]
        if any(process.returncode for process in processes):
            raise SystemExit("\n".join(said))
        report = json.loads((folder / name / "report.json").read_text())
        same = report["latents_sha256"] == expected and set(report["nodes"].values()) == {0, 1}
        found[f"{name} on two hosts"] = bar(report["latents_sha256"][:12], expected[:12], same)
    return found


def cut(folder: Path) -> dict[str, Any]:
    """A host whose cable is pulled."""
    with hosts(2) as members:
        output = folder / "cut"
        overrides = ("model=nano", "device=cpu", "plan=timestep", f"launcher.timeout_s={TIMEOUT_S:g}")
        processes = start(members, "launch.stream", *overrides, f"output_dir={output}")
        until = time.monotonic() + 120
        while not ((output / "video.mp4").exists() and (output / "video.mp4").stat().st_size > 30_000):
            if time.monotonic() > until or any(p.poll() is not None for p in processes):
                raise SystemExit("the stream did not begin")
            time.sleep(0.1)
        pulled = time.monotonic()
        members[1].plug("down")
        named, line = None, ""
        for text in processes[0].stderr:
            if text.startswith("error: "):
                named, line = time.monotonic() - pulled, text.strip()
                break
        time.sleep(max(0.0, CUT_S - (time.monotonic() - pulled)))
        members[1].plug("up")
        codes = []
        for process in processes:
            try:
                process.communicate(timeout=90)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, 9)
            codes.append(process.wait())
    within = named is not None and named <= TIMEOUT_S
    return {
        "cut off: named": bar(line, f"names {members[1].name}", members[1].name in line),
        "cut off: seconds until it is named": bar(named and round(named, 1), f"{TIMEOUT_S:g} s", within),
        "cut off: exit codes": bar(codes, "not 0, and not killed", all(code > 0 for code in codes)),
    }


def mistakes(folder: Path) -> dict[str, Any]:
    """Hosts that were set up wrongly."""
    found = {}
    unshared = folder / "unshared"
    unshared.mkdir()
    cases = {
        # As Debian has it in /etc/hosts.
        "loopback address": ("the others would connect with themselves", {"by_name": True}),
        # What is mounted in a host's namespace is seen there alone.
        "folder not shared": ("does not see", {"before": ("", f"mount -t tmpfs none {unshared}")}),
    }
    for name, (words, how) in cases.items():
        with hosts(2) as members:
            if "by_name" in how:
                members[0].knows(members[0].name, "127.0.1.1")
            output = f"output_dir={unshared / name.split()[0]}"
            processes = start(members, "launch.stream", *BASE, "plan=timestep", output, **how)
            said = [process.communicate(timeout=300)[1] for process in processes]
        lines = [line for text in said for line in text.splitlines() if line.startswith("error: ")]
        right = len(lines) == 1 and words in lines[0] and not any((unshared / name.split()[0]).glob("*.mp4"))
        found[name] = bar(lines, f"one line: {words}", right)
    return found


def main() -> bool:
    with tempfile.TemporaryDirectory() as temporary:
        measured = exact(Path(temporary)) | cut(Path(temporary)) | mistakes(Path(temporary))
    record("hosts", "python -m benchmarks.hosts", {"base": BASE, "timeout_s": TIMEOUT_S, "cut_s": CUT_S}, measured)
    return all(m["passed"] for m in measured.values())


if __name__ == "__main__":
    sys.exit(not main())

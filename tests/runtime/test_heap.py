"""What threads leave behind in a worker's heap."""

from __future__ import annotations

import subprocess
import sys

GROWS = """
import sys, threading, re
from pathlib import Path
from runtime.heap import few_arenas
if sys.argv[1] == "few":
    few_arenas()
def work():
    held = [bytearray(60_000) for _ in range(400)]
threads = [threading.Thread(target=work) for _ in range(16)]
gates = [thread.start() for thread in threads] + [thread.join() for thread in threads]
maps = Path("/proc/self/maps").read_text()
# glibc's arenas begin at multiples of 64 MiB.
print(len({begin for begin in re.findall(r"^([0-9a-f]+)-[0-9a-f]+ rw", maps, re.M) if int(begin, 16) % (1 << 26) == 0}))
"""


def arenas(kind: str) -> int:
    """Heaps that are there after many threads have come and gone."""
    done = subprocess.run([sys.executable, "-c", GROWS, kind], capture_output=True, text=True, check=True)
    return int(done.stdout)


def test_threads_share_few_heaps():
    assert arenas("few") <= 2

"""How many threads help another one: as many as the process was told, and the same bits from each."""

import os
import subprocess
import sys

PRODUCTS = """
import threading, torch, devices
torch.set_num_threads(1)
draw = torch.Generator().manual_seed(0)
a, b = torch.randn(300, 6144, generator=draw), torch.randn(6144, 64, generator=draw)
own, found, device = a @ b, [], devices.of("cpu")
def first():
    device.use()
    found.append(a @ b)
thread = threading.Thread(target=first)
thread.start()
thread.join()
queue = device.queue()
queue.give(lambda: found.append(a @ b)).wait()
queue.close()
print([torch.equal(one, own) for one in found])
"""


def test_a_new_thread_multiplies_as_the_first_one_does():
    """With what a user has: nothing in the environment says how many."""
    environment = {name: value for name, value in os.environ.items() if not name.endswith("_NUM_THREADS")}
    done = subprocess.run([sys.executable, "-c", PRODUCTS], env=environment, capture_output=True, text=True)
    assert done.stdout.strip() == "[True, True]", done.stderr

"""What a run has held of processes that left it is given back: it may change its plan for weeks."""

import threading
from contextlib import suppress
from pathlib import Path

import psutil

from launch.running import start
from runtime.pipeline import run_all
from tests.helpers import config_of
from tests.launch.losing import EXACT
from tests.launch.started import alive
from tests.launch.test_recovery import Streaming, keys, until
from tests.patience import PATIENT_S


def test_changes_of_plan_leave_no_pipes_and_no_zombies(tmp_path):
    config = config_of(
        "model=nano", "device=cpu", "plan=timestep", "plan.workers=2", "launcher=local", "launcher.threads=false",
        *EXACT, f"launcher.cuts={tmp_path}", "source.actions=-", "sink.video=null", "sink.trace=none",
        f"output_dir={tmp_path}/run",
    )  # fmt: skip

    def pipes() -> int:
        found = 0
        for one in Path("/proc/self/fd").iterdir():
            with suppress(FileNotFoundError):  # that of the listing itself
                found += str(one.readlink()).startswith("pipe:")
        return found

    with keys() as (stdin, press), start(config, stdin=stdin, first=lambda pipeline: run_all(pipeline, config)) as run:
        one, over = Streaming(run), threading.Event()

        def pressing() -> None:
            while not over.wait(0.1):
                press("forward")

        threading.Thread(target=pressing, daemon=True).start()
        one.more()
        held = None
        for workers in (3, 2, 3):
            one.change(workers=workers)
            until(lambda n=workers: len(run.left) == n, lambda: run.over)
            held = held or pipes()
        # A third process has come with every second change: what the one before it held is given back then.
        until(lambda: pipes() <= held)
        over.set()
        zombies = [child for child in psutil.Process().children() if child.is_running() and not alive(child)]
        run.pipeline.stop(0)
        press("none")
        run.wait(PATIENT_S)
    assert len(zombies) <= 1

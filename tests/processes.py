"""Real processes for tests: forked from one that has imported torch, each with a store that all share."""

from __future__ import annotations

import multiprocessing
import traceback
from collections.abc import Callable
from contextlib import contextmanager
from datetime import timedelta

import torch
from torch.distributed import TCPStore

from tests.patience import PATIENT_S

# One process imports torch, and every worker is forked from it before it has any thread.
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["torch", "torch.distributed", "runtime.group"])


def store_at(port: int) -> TCPStore:
    return TCPStore("127.0.0.1", port, is_master=False, timeout=timedelta(seconds=PATIENT_S))


def _child(work: Callable, me: int, port: int, pipe, args: tuple) -> None:
    torch.set_num_threads(1)
    try:
        pipe.send(("result", work(me, store_at(port), *args)))
    except BaseException:
        pipe.send(("error", traceback.format_exc()))


@contextmanager
def workers(work: Callable, indices: range, *args):
    """Runs `work(me, store, *args)` in a process each; gives (port of the store, processes, join -> results)."""
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    pipes, processes = [], []
    for me in indices:
        ours, theirs = PROCESSES.Pipe()
        process = PROCESSES.Process(target=_child, args=(work, me, store.port, theirs, args), daemon=True)
        process.start()
        theirs.close()
        pipes.append(ours)
        processes.append(process)

    def join() -> list:
        results = []
        for me, pipe, process in zip(indices, pipes, processes, strict=True):
            assert pipe.poll(PATIENT_S), f"worker {me} hangs"
            state, value = pipe.recv()
            assert state == "result", f"worker {me}:\n{value}"
            process.join(PATIENT_S)
            assert process.exitcode == 0, f"worker {me} ended with {process.exitcode}"
            results.append(value)
        return results

    try:
        yield store.port, processes, join
    finally:
        for process in processes:
            if process.is_alive():
                process.kill()
            process.join()

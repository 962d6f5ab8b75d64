"""The Ray cluster of a run: one that is there and answers in time, or one of its own, which nobody else commands."""

from __future__ import annotations

import contextlib
import os
import secrets
import socket
import time
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import ray
import ray.exceptions
from ray._private import worker as driver
from ray._private.services import canonicalize_bootstrap_address
from ray._private.state import available_resources_per_node

from conf.errors import UserError
from conf.schema import Config
from launch.signals import signals_kept
from runtime.running import POLL_S

AUTHENTICATION = ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")
"""What tells Ray who may command a cluster."""
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes((0, 0, 0, 4, 0, 0, 0, 0, 0))
"""How a client of HTTP/2 begins: with a line, and an empty frame of settings. Ray's server answers with its own."""
REACH_S = 0.5
"""Longest wait for a node that is asked whether it is there."""
SETTINGS = 4
"""The kind of such a frame, in its fourth byte."""


@contextlib.contextmanager
def cluster(config: Config) -> Iterator[str]:
    """Ray with all its nodes, attached to or started, while the context is open; gives this machine's address.

    Raises:
        UserError: there is none at the address given, it does not start here, or too few nodes come.
    """
    shown = driver._worker_logs_enabled
    # Who is lost is said here, in a line; of every process that ends Ray would say many, on standard output.
    driver._worker_logs_enabled = False
    try:
        _start(config)
        yield ray.util.get_node_ip_address()
    finally:
        ray.shutdown()
        driver._worker_logs_enabled = shown


def _start(config: Config) -> None:
    """Attach to a running cluster, or start one on this machine with room for every worker."""
    quiet = {"configure_logging": True, "logging_level": "ERROR", "log_to_driver": False}
    # Workers import this very checkout, whatever their working folder is.
    paths = os.pathsep.join(p for p in (str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH")) if p)
    environment = {"env_vars": {"PYTHONPATH": paths, "OMP_NUM_THREADS": str(config.device.threads)}}
    with signals_kept():
        _connect(config, environment, quiet)
    _all_here(config)


def _connect(config: Config, environment: dict, quiet: dict) -> None:
    if not config.launcher.address:
        # Without "local" it would join whatever cluster was started on this machine last, a batch job's maybe.
        with own_token():
            try:
                ray.init(address="local", include_dashboard=False, runtime_env=environment, **quiet)
            except Exception as error:  # Ray's own, where its processes are not up within half a minute
                rule = f"Ray does not start on this machine ({_first_line(error)})"
                raise UserError(
                    "launcher=ray", rule, "try again when the machine is less busy, or launcher=local"
                ) from error
        return
    value, limit_s = f"launcher.address={config.launcher.address}", config.launcher.timeout_s
    start = "start one with `ray start --head`, or leave launcher.address out"
    try:
        address = canonicalize_bootstrap_address(config.launcher.address)
    except (ConnectionError, ValueError) as error:
        raise UserError(value, "there is no Ray cluster", start) from error
    if address and not address.rpartition(":")[2].isdecimal():
        raise UserError(value, "has no port", "give HOST:PORT, as `ray start --head` prints it")
    # Ray itself would ask for many minutes.
    if address and not answers(address, limit_s):
        raise UserError(value, f"no Ray cluster answers there within {limit_s:g} s", start)
    try:
        ray.init(address=config.launcher.address, runtime_env=environment, **quiet)
    except (ConnectionError, RuntimeError, ray.exceptions.RayError) as error:
        raise UserError(
            value,
            f"the cluster does not take this run ({_first_line(error)})",
            "give its port (6379, not the dashboard's), use its version of Ray and its RAY_AUTH_TOKEN",
        ) from error


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0][:160]


@cache
def _token() -> str:
    """Of every cluster that this process starts, since Ray stays with the first that it was given."""
    return secrets.token_hex(32)


@contextlib.contextmanager
def own_token() -> Iterator[None]:
    """A cluster that is started while the context is open takes commands only from who has its token: this process, and
    Ray's own, in whose environment alone it stays. Where the environment says how Ray is to do it, that holds.
    """
    if any(name in os.environ for name in AUTHENTICATION):
        yield
        return
    os.environ["RAY_AUTH_TOKEN"] = _token()
    try:
        yield
    finally:
        for name in AUTHENTICATION:
            os.environ.pop(name, None)


def answers(address: str, timeout_s: float) -> bool:
    """Whether a server that speaks HTTP/2, as Ray's does, answers at an address in time.

    Args:
        address: HOST:PORT.
    """
    host, _, port = address.rpartition(":")
    end, secured = time.monotonic() + timeout_s, os.environ.get("RAY_USE_TLS", "0").lower() in ("1", "true")
    while (left := end - time.monotonic()) > 0:
        with contextlib.suppress(OSError), socket.create_connection((host.strip("[]"), int(port)), left) as connection:
            if secured:
                return True
            connection.sendall(PREFACE)
            return connection.recv(4)[3:] == bytes((SETTINGS,))
        time.sleep(POLL_S)
    return False


def nodes() -> list[dict[str, Any]]:
    """Nodes of the cluster that are alive, as Ray describes them."""
    return [node for node in ray.nodes() if node["Alive"]]


def answering() -> dict[str, float]:
    """Nodes of the cluster that can be reached, by their ids, with their processors. Ray itself takes a while to notice
    that one is lost."""
    found = {}
    for node in nodes():
        with contextlib.suppress(OSError):
            socket.create_connection((node["NodeManagerAddress"], node["NodeManagerPort"]), REACH_S).close()
            found[node["NodeID"]] = node["Resources"].get("CPU", 0.0)
    return found


def free() -> dict[str, dict[str, float]]:
    """What nobody has of every node's resources, by their ids."""
    return available_resources_per_node()


def _all_here(config: Config) -> None:
    """Wait for the nodes that were announced.

    Raises:
        UserError: fewer came in time.
    """
    wanted, end = config.launcher.nodes or 1, time.monotonic() + config.launcher.nodes_s
    while len(nodes()) < wanted:
        if time.monotonic() > end:
            there = ", ".join(node["NodeManagerHostname"] for node in nodes())
            raise UserError(
                f"launcher.nodes={wanted}",
                f"the Ray cluster has {len(nodes())} after {config.launcher.nodes_s:g} s ({there})",
                "start Ray on the others (ray start --address=...), or wait longer (launcher.nodes_s)",
            )
        time.sleep(POLL_S)

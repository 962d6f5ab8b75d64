"""Processes that share a worker's passes: the numbers of one process, the memory of a part, and noticed deaths."""

from __future__ import annotations

import os
import queue
import signal
import threading
import time

import pytest
import torch

from conf.schema import ModelConfig, PlanConfig
from parallel.builders import build
from parallel.channels import ChannelError
from parallel.plan import Plan, Workload
from runtime.block import Block
from runtime.board import PeerLost
from runtime.group import Group, join_group, local_groups
from runtime.trace import Trace
from stages.denoise.denoiser import Denoiser
from stages.models.pocket.network import Network
from stages.models.pocket.sizes import AudioConfig, Sizes
from stages.weights import initialise
from tests.patience import PATIENT_S
from tests.processes import store_at, workers

ROWS, COLUMNS, CHUNKS, STEPS = 2, 4, 10, 2
CPU = torch.device("cpu")
NETWORK = Sizes(
    dim=48, ffn_dim=96, heads=4, layers=2, in_channels=4, out_channels=4, text_dim=16, token_types=True,
    actions=["left", "right"], audio=AudioConfig(layers=[1], dim=8),
)  # fmt: skip
MODELS = {
    "same_level": {"sink_frames": 3, "positions": "slot"},
    "clean": {"context": "clean", "positions": "abs"},
}


def plan_of(degree: int) -> Plan:
    return build(PlanConfig("sequential", sequence_parallel=degree), Workload(STEPS, 2))


def random(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def block_of(name: str, group: Group) -> Block:
    """The whole network as a block, ready for its part."""
    model = ModelConfig(network=NETWORK, window_frames=9, steps=STEPS, reference=True, **MODELS[name])
    network = Network(model.network).eval()
    initialise(network, seed=3)
    denoiser = Denoiser(model, network, ROWS, COLUMNS)
    group.share({0: denoiser})
    return Block(denoiser, tuple(range(STEPS)))


def chunk_of(block: Block, index: int) -> torch.Tensor:
    """One chunk as a worker makes it: every pass that it takes, the output of each the input of the next."""
    sampler, denoiser = block.denoiser.sampler, block.denoiser
    epoch = index // 6
    if index == 0:
        block.open(0)
    if index % 6 == 0:
        block.set_states(0, epoch, {"text": random(epoch, 1, 5, 16)})
    if index == 0:
        for level in block.pool.levels:
            block.prefill(0, level, 0, 0, {"reference": random(2, 1, 4, 1, 2 * ROWS, 2 * COLUMNS)})
    given = {"audio": random(3 + index, 1, 3, 4, 8), "actions": random(30 + index, 1, 3, 8)}
    x = random(60 + index, 1, 4, 3, 2 * ROWS, 2 * COLUMNS)
    for step in range(STEPS):
        x = sampler.update(step, x, block.step(0, index, step, epoch, x, given, 5))
    if denoiser.schedule.commits(index):
        for level in block.pool.levels:
            block.commit(0, level, index, x, 5)
    return x


def alone(name: str) -> list[torch.Tensor]:
    block = block_of(name, Group(plan_of(1).members[0]))
    return [chunk_of(block, i) for i in range(CHUNKS)]


def member(rank: int, store, name: str, degree: int) -> tuple:
    """A process of the group; returns the leader's latents, or the streams a follower held before and after."""
    inbox, plan = queue.Queue(), plan_of(degree)
    group = join_group(plan, rank, store, CPU, inbox, PATIENT_S)
    block = block_of(name, group)
    if rank:
        group.follow({0: block}, inbox, Trace())
        result = len(block.streams), block.denoiser.stream_bytes
    else:
        led = group.lead({0: block})[0]
        result = [chunk_of(led, i).numpy() for i in range(CHUNKS)], block.denoiser.stream_bytes
        led.close(0)
    group.close()
    return result


@pytest.mark.parametrize(("degree", "name"), [(2, "same_level"), (2, "clean"), (4, "same_level")])
def test_processes_give_the_numbers_of_one(degree, name):
    expected = alone(name)
    with workers(member, range(degree), name, degree) as (_, _, join):
        (found, part), *followers = join()
    for a, b in zip(expected, found, strict=True):
        assert (a - torch.from_numpy(b)).abs().max() <= 1e-5
    # What the leader closed is gone everywhere; while it was there, each held its part.
    assert followers == [(0, part)] * (degree - 1)
    whole = block_of(name, Group(plan_of(1).members[0]))
    whole.open(0)
    assert part * degree == sum(bank.bank.nbytes for bank in whole.streams[0].banks.values())


def test_threads_give_the_numbers_of_one():
    plan = plan_of(2)
    inboxes = [queue.Queue() for _ in plan.members]
    leader, follower = local_groups(plan, inboxes, PATIENT_S)
    blocks = [block_of("same_level", group) for group in (leader, follower)]
    thread = threading.Thread(target=follower.follow, args=({0: blocks[1]}, inboxes[1], Trace()))
    thread.start()
    led = leader.lead({0: blocks[0]})[0]
    found = [chunk_of(led, i) for i in range(CHUNKS)]
    leader.close()
    thread.join(PATIENT_S)
    assert not thread.is_alive()
    assert all((a - b).abs().max() <= 1e-5 for a, b in zip(alone("same_level"), found, strict=True))


def dying(rank: int, store, victim: int, idle: bool) -> None:
    """A group in which `victim` dies, between passes or within one; the other tells the store what it was told."""
    inbox, plan = queue.Queue(), plan_of(2)
    group = join_group(plan, rank, store, CPU, inbox, PATIENT_S)
    block = block_of("same_level", group)
    if rank == victim:
        die = threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGKILL))
        if idle:
            die.start()
        else:
            block.denoiser.core = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
    try:
        if rank:
            group.follow({0: block}, inbox, Trace())
        else:
            chunk_of(group.lead({0: block})[0], 0)
            raise PeerLost(str(inbox.get().error))
    except (PeerLost, ChannelError) as lost:
        store.set("told", str(lost))
    group.close()


@pytest.mark.parametrize("idle", [True, False], ids=["between passes", "within a pass"])
@pytest.mark.parametrize("victim", [0, 1], ids=["the leader", "a follower"])
def test_a_death_is_told_to_the_others(victim, idle):
    with workers(dying, range(2), victim, idle) as (port, processes, _):
        processes[victim].join(PATIENT_S)
        died = time.monotonic()
        assert processes[victim].exitcode == -signal.SIGKILL
        told = store_at(port).get("told").decode()
        assert time.monotonic() - died < PATIENT_S / 2, "not only when the time was up"
        assert "the process died or gave up" in told
        assert told.startswith("worker 0")
        processes[1 - victim].join(PATIENT_S)
        assert processes[1 - victim].exitcode == 0

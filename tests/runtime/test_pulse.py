"""Slow or stuck: what a worker's pulse tells."""

import torch.distributed as dist

from runtime.board import Board
from runtime.pulse import Watch, key


def watch_of(now):
    board = Board(dist.HashStore(), 0, 2)
    return board, Watch(board, [0, 1], 60.0, lambda: now[0])


def beat(board, process, beats, at_s, busy=True):
    board.tell(key(process), {"beats": beats, "at": "decode of chunk 3", "at_s": at_s, "moved_s": at_s, "busy": busy})


def test_a_worker_that_is_long_at_a_pass_is_slow_as_long_as_it_beats():
    now = [100.0]
    board, watch = watch_of(now)
    beat(board, 1, 1, at_s=40.0)
    assert watch.slow() == {1: ("decode of chunk 3", 40.0)}
    now[0] = 130.0
    assert watch.slow() == {1: ("decode of chunk 3", 70.0)}
    now[0] = 161.0
    assert watch.slow() == {}, "its pulse has stopped"
    beat(board, 1, 2, at_s=101.0)
    assert watch.slow() == {1: ("decode of chunk 3", 101.0)}


def test_whoever_waits_or_has_just_begun_is_not_slow():
    board, watch = watch_of([0.0])
    assert watch.slow() == {}
    beat(board, 0, 1, at_s=50.0, busy=False)
    beat(board, 1, 1, at_s=5.0)
    assert watch.slow() == {}


def test_a_slow_pass_is_news_once():
    now = [0.0]
    board, watch = watch_of(now)
    beat(board, 1, 1, at_s=40.0)
    assert watch.news(watch.slow()) == {1: ("decode of chunk 3", 40.0)}
    beat(board, 1, 2, at_s=41.0)
    assert watch.news(watch.slow()) == {}

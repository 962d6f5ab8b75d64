"""Slow or stuck: what a worker's pulse tells."""

import torch.distributed as dist

from runtime.board import Board
from runtime.pulse import Watch, key


def watch_of(now):
    board = Board(dist.HashStore(), 0, 2)
    return board, Watch(board, [0, 1], 60.0, lambda: now[0])


def beat(board, process, beats, at_s, busy=True, streams=None):
    told = {"beats": beats, "at": "decode of chunk 3", "at_s": at_s, "moved_s": at_s, "busy": busy}
    board.tell(key(process), told | {"streams": streams or {}})


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


def test_a_stream_moves_where_anything_was_done_for_it():
    """Whatever is done for others meanwhile; and no longer once nobody says so any more."""
    now = [100.0]
    board, watch = watch_of(now)
    beat(board, 0, 1, at_s=1.0, streams={7: 90.0, 8: 1.0})
    beat(board, 1, 1, at_s=1.0, streams={7: 50.0})
    assert watch.moves(7) and watch.moves(8) and not watch.moves(9)
    now[0] = 111.0
    assert not watch.moves(7) and watch.moves(8)
    beat(board, 0, 2, at_s=1.0, streams={7: 101.0, 8: 61.0})
    assert not watch.moves(8)


def test_a_slow_pass_is_news_once():
    now = [0.0]
    board, watch = watch_of(now)
    beat(board, 1, 1, at_s=40.0)
    assert watch.news(watch.slow()) == {1: ("decode of chunk 3", 40.0)}
    beat(board, 1, 2, at_s=41.0)
    assert watch.news(watch.slow()) == {}

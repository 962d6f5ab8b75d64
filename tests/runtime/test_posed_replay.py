"""A stream that is seen through a camera and opened again, anywhere and by anyone, sees what it would have seen."""

from __future__ import annotations

import json
import os
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings

from conf.schema import SinkConfig, SourceConfig, StreamConfig
from runtime.conditioning import Conditioning
from runtime.encoders import Encoders, frames_of
from stages.sources.live import Stop
from stages.views import where
from tests import posed
from tests.patience import PATIENT_S
from tests.runtime.replaying import CHUNKS, Around, Cut, equal, turns
from tests.stages.sources.test_poses import MOVES, posing

ACTIONS = ("none", "forward", "left", "up")
POSES = posing(5, 4 * CHUNKS)


@pytest.fixture(scope="module")
def encoders(tmp_path_factory) -> Encoders:
    posed.write(folder := tmp_path_factory.mktemp("posed"))
    sys.path.insert(0, str(folder))
    yield Encoders(posed.config().model, torch.device("cpu"))
    sys.path.remove(str(folder))


class World(Around):
    """What is around a stream, and outlives its processes: a pipe or a file, and the folder of cuts.

    Args:
        kind: `keys` or `poses` through a pipe, stamped or not, or poses in a `file`.
    """

    def __init__(self, folder, kind: str, encoders: Encoders):
        self.folder, self.kind, self.encoders, self.fed = folder, kind, encoders, 0
        self.sink = SinkConfig(video=None, inputs=str(folder / "inputs"))
        self.path, self.pipe = folder / "said", None
        if kind == "file":
            self.path.write_text("".join(map(self.said, range(CHUNKS))))
        else:
            os.mkfifo(self.path)
            self.pipe = os.open(self.path, os.O_RDWR)
        said = {"actions" if kind == "keys" else "camera": str(self.path)}
        self.source = SourceConfig(**said, pace="free", intrinsics=[500, 500, 416, 240])

    def said(self, chunk: int) -> str:
        """What is known by the end of a chunk; every second one stands in its middle."""
        start, end = (frames_of(self.encoders.model, n)[0] for n in (chunk, chunk + 1))
        if self.kind == "keys":
            lines = [{"frame": start + 2, "action": ACTIONS[chunk % 4]}, {"frame": end, "action": ACTIONS[-chunk % 4]}]
        elif self.kind == "now":
            lines = [{"pose": POSES[chunk].tolist()}] if chunk % 3 != 1 else []
        else:
            at = [start + 3, end] if chunk % 2 else [end + 2]
            lines = [{"frame": n, "pose": POSES[4 * chunk + i].tolist()} for i, n in enumerate(at)]
        return "".join(json.dumps(line) + "\n" for line in lines)

    def feed(self, chunk: int, conditioning: Conditioning) -> None:
        if self.pipe and chunk == self.fed < CHUNKS:
            self.fed += 1
            os.write(self.pipe, self.said(chunk).encode())
        if self.kind == "now":  # nobody waits for it
            live = getattr(conditioning.poses, "source", conditioning.poses)._bytes
            total = sum(len(self.said(n)) for n in range(self.fed))
            with live._changed:
                assert live._changed.wait_for(lambda: live._read_so_far >= total, PATIENT_S)

    def open(self, state=None, journal=None, ends=None) -> Conditioning:
        stream = StreamConfig(chunks=CHUNKS)
        model, encoders = self.encoders.model, self.encoders
        return Conditioning(model, stream, self.source, encoders, None, Stop(), state, self.sink, None, journal, ends)

    def made(self, conditioning: Conditioning, chunk: int) -> dict | None:
        made = conditioning.chunk(chunk)
        return None if made is None else made | {"at": torch.from_numpy(np.array(conditioning._pose))}

    def gone_on(self, conditioning: Conditioning, found: list, chunk: int, at: int) -> None:
        seen = [[n, [], where(found[n]["at"].numpy())] for n in range(chunk, at)]
        assert conditioning.replay.told() == {"chunk": at, "sampled": seen}

    def play(self, happens, journaled: bool = False) -> list:
        found = super().play(happens, journaled)
        if self.pipe:
            os.close(self.pipe)
        return found


@pytest.mark.parametrize("kind", ["keys", "poses", "now", "file"])
def test_a_camera_goes_on_bit_for_bit(tmp_path_factory, kind, encoders):
    @settings(max_examples=8)
    @given(turns())
    def check(happens):
        folder = tmp_path_factory.mktemp(kind)
        found = []
        for name, what in (("alone", []), ("turned", happens)):
            (folder / name).mkdir()
            found.append(World(folder / name, kind, encoders).play(what, journaled=name == "turned"))
        assert all(equal(a, b) for a, b in zip(*found, strict=True))
        assert (folder / "turned" / "inputs").read_bytes() == (folder / "alone" / "inputs").read_bytes()
        again = World(folder, "file", encoders)
        again.source = SourceConfig(inputs=str(folder / "alone" / "inputs"), intrinsics=[500, 500, 416, 240])
        again.folder.joinpath("said").unlink()
        assert all(equal(a, b) for a, b in zip(found[0], again.play([]), strict=True))

    check()


def test_a_latent_is_seen_from_its_last_video_frame(tmp_path, encoders):
    """Latent L from frame 4 L, relative to the one before; the first has not moved, and its row is that of frame 0."""
    world = World(tmp_path, "keys", encoders)
    told = "".join(map(world.said, range(CHUNKS)))
    made = torch.cat([chunk["camera"] for chunk in world.play([])], 1)[0]
    row, poses, rows, changes = 0, [np.eye(4)], [], {}
    for line in map(json.loads, told.splitlines()):
        changes[line["frame"]] = ACTIONS.index(line["action"])
    for frame in range(4 * len(made)):
        row = changes.get(frame, row)
        rows.append(row)
        poses.append(MOVES(poses[-1], row))
    seen = np.stack(poses[: 4 * len(made) : 4])
    steps = np.linalg.inv(np.concatenate([seen[:1], seen[:-1]])) @ seen
    assert torch.equal(made[:, :12], torch.from_numpy(steps[:, :3].reshape(-1, 12)).float())
    assert torch.equal(made[0, :12], torch.eye(4)[:3].flatten())
    assert (made[:, 12:16] == torch.tensor([500 / 832, 500 / 480, 0.5, 0.5])).all()
    assert made[:, 16].tolist() == rows[::4]


def test_one_stream_goes_on_in_another_way(tmp_path, encoders):
    """Whoever takes the keys goes on from where a file had led."""
    world = World(tmp_path, "file", encoders)
    first = world.open()
    made = [first.chunk(chunk) for chunk in range(3)]
    state = Cut(3, first.progress(3))
    first.close()
    world.source = SourceConfig()
    second = world.open(state)
    views = second.poses.take(33, 12, [0] * 12)
    assert np.array_equal(views.poses[0], first._pose) and np.array_equal(views.poses[12], first._pose)
    second.close()
    assert len(made) == 3


def test_every_stream_has_a_camera_of_its_own(tmp_path, encoders):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    one, two = World(tmp_path / "one", "keys", encoders), World(tmp_path / "two", "keys", encoders)
    two.said = lambda chunk: "" if chunk else '{"frame": 0, "action": "left"}\n{"frame": 9999, "action": "up"}\n'
    alone = World(tmp_path, "keys", encoders).play([])
    both = one.open(), two.open()
    for chunk in range(CHUNKS):
        for world, conditioning in zip((one, two), both, strict=True):
            world.feed(chunk, conditioning)
        made = [conditioning.chunk(chunk) for conditioning in both]
        assert torch.equal(made[0]["camera"], alone[chunk]["camera"])
        assert not torch.equal(made[0]["camera"], made[1]["camera"])
    for world, conditioning in zip((one, two), both, strict=True):
        conditioning.close()
        os.close(world.pipe)

"""Poses: what is between two of them, what a pipe, a file and keys give, and what is none."""

import io
import json
import os

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from conf.errors import UserError
from conf.schema import SourceConfig
from stages.inputs import Axis, Input
from stages.sources.pose_lines import LivePoses, PoseFile
from stages.sources.poses import DrivenPoses, npy_poses, recorded_poses, tensor_poses
from stages.sources.tensors import TensorsFile
from stages.views import NINETY, misfit, scaled, where
from tests import posed
from tests.stages.sources.blocked import settle

WIDE = scaled(NINETY)
FAMILY: dict = {}
exec(posed.FILES["inputs.py"], FAMILY)  # as the family's own module
MOVES = FAMILY["moves"]


def posing(seed: int, count: int = 1) -> np.ndarray:
    """Poses [count, 4, 4]."""
    draws = np.random.default_rng(seed)
    found = np.tile(np.eye(4), (count, 1, 1))
    turns = np.linalg.qr(draws.normal(size=(count, 3, 3)))[0]
    found[:, :3, :3] = turns * np.linalg.det(turns)[:, None, None]
    found[:, :3, 3] = draws.normal(size=(count, 3))
    return found


def between(a: np.ndarray, b: np.ndarray, share: float) -> np.ndarray:
    """The straight way, by the exponential of a share of the rotation's logarithm."""
    turn = a[:3, :3].T @ b[:3, :3]
    skew = (turn - turn.T) / 2
    angle = np.arctan2(np.linalg.norm(skew) / np.sqrt(2), (np.trace(turn) - 1) / 2)
    log = torch.from_numpy(skew * (share * angle / np.sin(angle)))
    found = (1 - share) * a + share * b
    found[:3, :3] = a[:3, :3] @ torch.linalg.matrix_exp(log).numpy()
    return found


def line(pose: np.ndarray, frame: int | None = None, **more) -> str:
    return json.dumps({"pose": pose.tolist()} | ({} if frame is None else {"frame": frame}) | more) + "\n"


def taken(source, chunks) -> tuple[np.ndarray, np.ndarray]:
    """Poses and intrinsics of consecutive chunks; each is given the frame before it as well."""
    poses, seen, start = [], [], 0
    for count in chunks:
        views = source.take(start, count, [0] * count)
        assert views.poses.shape == (1 + count, 4, 4) and views.intrinsics.shape == (1 + count, 4)
        assert views.poses.dtype == views.intrinsics.dtype == np.float64
        assert np.array_equal(views.poses[0], poses[-1] if poses else views.poses[1])
        poses += list(views.poses[1:])
        seen += list(views.intrinsics[1:])
        start += count
    return np.stack(poses), np.stack(seen)


CHUNKS = st.lists(st.integers(1, 13), min_size=1, max_size=6)
FRAMES = st.lists(st.integers(0, 50), min_size=2, max_size=9, unique=True).map(sorted)


@settings(max_examples=25)
@given(frames=FRAMES, chunks=CHUNKS, seed=st.integers(0, 99))
def test_between_two_lines_positions_are_linear_and_rotations_slerp(tmp_path_factory, frames, chunks, seed):
    """A pose is given as it was said, the last one holds, and a pipe gives what a file gives."""
    said = posing(seed, len(frames))
    path = tmp_path_factory.mktemp("poses") / "poses.jsonl"
    path.write_text("".join(map(line, said, frames)))
    file, live = PoseFile(path, WIDE), LivePoses(io.BytesIO(path.read_bytes()), WIDE)
    poses, seen = taken(file, chunks)
    assert misfit(poses) is None and (seen == WIDE).all()
    for frame, pose in enumerate(poses):
        after = np.searchsorted(frames, frame)
        if frame in frames or after in (0, len(frames)):
            assert np.array_equal(pose, said[min(after, len(frames) - 1)])
        else:
            share = (frame - frames[after - 1]) / (frames[after] - frames[after - 1])
            assert np.abs(pose - between(said[after - 1], said[after], share)).max() < 1e-9
    assert all(np.array_equal(*pair) for pair in zip(taken(live, chunks), (poses, seen), strict=True))
    assert file.ended == live.ended == (len(poses) > frames[-1])
    file.close()
    live.close()


@settings(max_examples=25)
@given(rows=st.lists(st.integers(0, 3), min_size=1, max_size=60), cuts=st.data())
def test_where_keys_lead_does_not_depend_on_how_they_come(rows, cuts):
    """Row k moves frame k to k + 1, however rows are dealt to chunks, and whoever goes on in between: bit for bit."""
    expected, source, at = [np.eye(4)], DrivenPoses(MOVES, WIDE), 0
    for row in rows:
        expected.append(MOVES(expected[-1], row))
    while at < len(rows):
        count = cuts.draw(st.integers(1, len(rows) - at))
        if cuts.draw(st.booleans()):
            told, source = json.loads(json.dumps(source.progress)), DrivenPoses(MOVES, WIDE)
            source.resume(told)
        views = source.take(at, count, rows[at : at + count])
        assert np.array_equal(views.poses, np.stack([expected[max(0, at - 1)], *expected[at : at + count]]))
        assert views.rows == rows[at : at + count] and (views.intrinsics == WIDE).all()
        at += count


def test_a_line_of_now_is_where_the_camera_arrives_with_the_chunk():
    """It does not leap there, and what was announced for later comes in its time."""
    a, b, c = posing(1, 3)
    reading, writing = os.pipe()
    with os.fdopen(reading, "rb", buffering=0) as stream, os.fdopen(writing, "wb", buffering=0) as pipe:
        source, said = LivePoses(stream, WIDE), 0

        def say(*lines: str) -> None:
            nonlocal said
            said += len(text := "".join(lines))
            pipe.write(text.encode())
            settle(source._bytes, said - source._bytes.position)

        say(line(b), line(a))  # the last one wins
        first = source.take(0, 9, [])
        assert (first.poses == a).all() and source.accepted is not None and source.fresh
        assert (source.take(9, 12, []).poses == a).all() and source.accepted is None and not source.ended
        told = json.loads(json.dumps(source.progress))
        say(line(b, intrinsics=[208, 416, 416, 240]))
        views = source.take(21, 12, [])
        assert np.array_equal(views.poses[0], a) and np.array_equal(views.poses[12], b)
        assert np.abs(views.poses[3] - between(a, b, 0.25)).max() < 1e-9
        assert views.intrinsics[12, 0] == 0.25 and views.intrinsics[6, 0] == 0.375
        say(line(c, 31), line(c, 32), line(c, 44))  # too late, too late, in time
        views = source.take(33, 12, [])
        assert np.array_equal(views.poses[0], b) and np.array_equal(views.poses[12], c)
        assert np.abs(views.poses[3] - between(b, c, 0.25)).max() < 1e-9
        other = LivePoses(io.BytesIO(line(b, intrinsics=[208, 416, 416, 240]).encode()), WIDE)
        other.resume(told)
        assert np.abs(other.take(21, 12, []).poses[3] - between(a, b, 0.25)).max() < 1e-9
        source.close()


def test_wrong_live_lines_are_skipped_and_a_pipe_may_be_silent(caplog):
    text = "nonsense\n" + line(posing(1)[0] * 2, 0) + line(posing(2)[0], 0)
    source = LivePoses(io.BytesIO(text.encode()), WIDE)
    assert (source.take(0, 3, []).poses == posing(2)[0]).all() and source.ended and not source.silent
    assert sum("skipped" in record.getMessage() for record in caplog.records) == 2
    source = LivePoses(io.BytesIO(b"\n"), WIDE)
    assert (source.take(0, 3, []).poses == np.eye(4)).all() and source.silent


def test_arrays(tmp_path):
    """Of every frame, whatever kind of number they are; the first stands for the one before it, the last holds."""
    poses, own = posing(3, 20), np.array([500.0, 500, 400, 200])
    np.save(tmp_path / "poses.npy", poses.astype(np.float32))
    given = {"camera_poses": torch.from_numpy(poses).float(), "intrinsics": torch.from_numpy(np.tile(own, (20, 1)))}
    save_file(given, tmp_path / "given.safetensors")
    camera = Input("camera", Axis.LATENT, (3, 17), "camera")
    tensors = TensorsFile(tmp_path / "given.safetensors", "any", (camera,))
    np.save(tmp_path / "intrinsics.npy", own)
    for source in (npy_poses(tmp_path / "poses.npy", WIDE), tensor_poses(tensors, WIDE)):
        found, seen = taken(source, [9, 12])
        expected = poses[[*range(20), 19]].astype(np.float32).astype(np.float64)
        assert np.array_equal(found, expected) and source.ended and source.fresh
        assert (seen == own / [832, 480, 832, 480]).all()
        assert (source.take(100, 4, []).poses == expected[-1]).all() and not source.fresh
    (tmp_path / "intrinsics.npy").unlink()
    assert (taken(npy_poses(tmp_path / "poses.npy", WIDE), [9])[1] == [0.5, 416 / 480, 0.5, 0.5]).all()


@pytest.mark.parametrize("said", [True, False])
def test_who_leads_a_camera_that_was_driven_finds_it_where_it_was(said):
    a, b = posing(2, 2)
    source = LivePoses(io.BytesIO(line(b).encode() if said else b""), WIDE)
    source.resume({"last": a.tolist(), "next": a.tolist()})
    views = source.take(12, 12, [])
    assert np.array_equal(views.poses[0], a) and np.array_equal(views.poses[12], b if said else a)
    assert np.allclose(views.poses[6], between(a, b, 0.5) if said else a)


MIRRORED, SHEARED = np.diag([-1.0, 1, 1, 1]), np.eye(4) + np.eye(4, k=1) * 0.1
LINES = {
    "": "holds no line; give an .npy",
    "[]\n": "line 1: has no pose",
    '{"frame": 0}\n': "line 1: has no pose",
    line(np.eye(4), 0, intrinsic=[1, 1, 1, 1]): "is nothing that a line says; did you mean intrinsics?",
    line(np.eye(4)): "line 1: has no frame; say of which frame it is",
    line(np.eye(4), 3) + line(np.eye(4), 3): "line 2: frame=3: comes after frame 3",
    line(np.eye(4), -1): "frame=-1: a frame is an integer from 0 on",
    line(MIRRORED, 0): "line 1: pose: is mirrored",
    line(SHEARED, 0): "line 1: pose: does not turn",
    line(np.full((4, 4), np.nan), 0): "line 1: pose: holds a number that is not finite",
    line(np.eye(4) + 2e9 * np.eye(4, k=3), 0): "line 1: pose: is further than 1e+09 from the world's origin",
    line(np.eye(4)[[0, 1, 3, 2]], 0): "line 1: pose: has another last row",
    line(np.eye(4)[:2], 0): "line 1: pose: is no matrix of 4 x 4 numbers",
    '{"frame": 0, "pose": [[1], [1, 2]]}\n': "line 1: pose: is no matrix",
    '{"frame": 0, "pose": "up"}\n': "line 1: pose: is no matrix",
    line(np.eye(4), 0, intrinsics=[1, 2, 3]): "line 1: intrinsics: are no four numbers",
    line(np.eye(4), 0, intrinsics=[0, 1, 2, 3]): "line 1: intrinsics=[0.0, 1.0, 2.0, 3.0]: are four numbers in pixels",
    line(np.eye(4), 0, intrinsics=[1, 1e-30, 2, 3]): "are four numbers in pixels of 832 x 480, up to 1e+06, the first",
    line(np.eye(4), 0, intrinsics=[1, 1, 2, -1e300]): "are four numbers in pixels",
    "x" * 5000: "line 1: is longer than 4096 bytes; one pose a line",
}


@pytest.mark.parametrize("text", LINES)
def test_a_wrong_line_in_a_file(tmp_path, text):
    path = tmp_path / "poses.jsonl"
    path.write_text(text)
    with pytest.raises(UserError) as error:
        PoseFile(path, WIDE)
    said = str(error.value)
    assert said.startswith(f"source.camera={path}") and LINES[text] in said and "\n" not in said


def test_what_is_no_array_of_poses(tmp_path):
    path = tmp_path / "poses.npy"
    for array, said in (
        (np.eye(4), "is [4, 4] of float64, not [frames, 4, 4]"),
        (np.zeros((0, 4, 4)), "is [0, 4, 4] of float64"),
        (np.eye(4)[None] + 0j, "of complex128"),
        (np.stack([np.eye(4)] * 5000 + [MIRRORED]), "pose of frame 5000: is mirrored"),
    ):
        np.save(path, array)
        with pytest.raises(UserError, match=r"source\.camera=") as error:
            npy_poses(path, WIDE)
        assert said in str(error.value)
    np.save(path, posing(0, 2))
    for array, said in ((np.ones(3), "is [3] of float64, not [4] or [2, 4]"), (np.zeros(4), "intrinsics of frame 0=")):
        np.save(tmp_path / "intrinsics.npy", array)
        with pytest.raises(UserError) as error:
            npy_poses(path, WIDE)
        assert said in str(error.value)
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(UserError, match="is cut off"):
        npy_poses(path, WIDE)
    with pytest.raises(UserError, match="no such file"):
        npy_poses(tmp_path / "none.npy", WIDE)


HEADERS = ("'shape': (10**9,", "'shape': (1000000000000000000, 4, 4)", "'shape': (-5, 4, 4)", "'''", "(" * 9000)


@pytest.mark.parametrize("header", [*HEADERS, None])
def test_a_file_that_breaks_its_library_is_a_line(tmp_path, header):
    """Headers that tokenizers, multiplications and mappings do not expect; and an archive where an array is to be."""
    text = f"{{'descr': '<f8', 'fortran_order': False, {header}, }}\n".encode()
    content = b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text
    (path := tmp_path / "poses.npy").write_bytes(b"PK\x03\x04" if header is None else content)
    with pytest.raises(UserError, match=r"is no \.npy of numbers, or is cut off"):
        npy_poses(path, WIDE)


def test_poses_that_were_recorded_are_looked_at_as_others_are():
    poses, seen = posing(0, 3), np.tile(scaled([1, 1e6, -1e6, 240]), (3, 1))
    assert np.array_equal(recorded_poses("a", poses, seen).take(0, 3, []).intrinsics[1:], seen)
    for bad, lenses, said in (
        (np.stack([*poses[:2], MIRRORED]), seen, "a: pose of frame 2: is mirrored"),
        (poses, seen[:2], "a: has 3 poses and 2 intrinsics"),
        (poses, seen * (1, 1, 1, 0) * (0, 1, 1, 1), "a: intrinsics of frame 0="),
    ):
        with pytest.raises(UserError, match=said):
            recorded_poses("a", bad, lenses)


def test_people_are_told_where_a_camera_looks():
    assert str(where(np.eye(4))) == "[0.0, 0.0, 0.0, 0.0, 0.0]", "people read no -0.0"
    pose = np.eye(4)
    pose[:3, :3] = FAMILY["turn"](1, 30.0) @ FAMILY["turn"](0, 20.0)
    pose[:3, 3] = 1, 2, 3
    assert where(pose) == [1, 2, 3, 30, 20]
    ahead = pose[:3, 2]
    assert ahead[0] > 0 and ahead[1] < 0 and ahead[2] > 0  # to the right, up, and on


def test_what_is_said_of_a_camera_in_a_configuration():
    assert SourceConfig(intrinsics=[416, 416, 416, 240]).intrinsics and SourceConfig(camera="-").live
    for said in ({"camera": "a", "actions": "b"}, {"camera": "-", "audio": "-"}, {"intrinsics": [1.0, 1, 1, np.inf]}):
        with pytest.raises(UserError):
            SourceConfig(**said)
    with pytest.raises(UserError, match=r"source\.camera=a: source\.session brings"):
        SourceConfig(camera="a", session="tcp://h:1/t")

"""Keys that are held together and a mouse reach a network from every source, the same from each, and come again."""

from __future__ import annotations

import io
import json
import os
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from conf.errors import UserError
from conf.schema import ModelConfig, SourceConfig, StreamConfig
from launch import stream
from runtime.conditioning import Conditioning
from runtime.encoders import Encoders
from runtime.ends import LiveEnds
from runtime.inputs import Inputs, InputsSink
from runtime.journal import Journal
from runtime.offer import offer_of
from stages.controls import Controls
from stages.sources.actions import ActionFile, LiveActions
from stages.sources.live import Stop
from stages.sources.session_parts import SessionActions
from tests.helpers import config_of
from tests.launch.test_bare_family import FILES
from tests.runtime.replaying import Cut, equal
from tests.runtime.test_session_replay import taken
from tests.serve.core_ends import End

CONTROLS = Controls(("forward", "back", "left", "right"), axes=("pitch", "yaw"))
FAMILY = FILES | {
    "inputs.py": """
import torch

from stages.controls import Controls
from stages.inputs import Axis, Input

CONTROLS = Controls(("forward", "back", "left", "right"), axes=("pitch", "yaw"))


def inputs(model):
    frames = 4 * model.chunk_frames
    return (
        Input("keys", Axis.FRAME, (frames, 4), "actions", controls=CONTROLS,
              rows=lambda rows: torch.from_numpy(rows[None, :, :4]).float()),
        Input("mouse", Axis.FRAME, (4 + frames, 2), "actions", controls=CONTROLS, reach=4,
              rows=lambda rows: torch.from_numpy(rows[None, :, 4:]).float()),
    )
""",
    "network.py": FILES["network.py"]
    .replace("self.patch, self.head", "self.pressed = nn.Linear(32, d)\n        self.patch, self.head")
    .replace("assert states is None and not given", "assert states is None")
    .replace(
        "return embed(x, self.patch) if self.first else x",
        """if not self.first:
            return x
        windows = [given["keys"].unflatten(1, (-1, 4)).flatten(2), given["mouse"].unfold(1, 8, 4).flatten(2)]
        tokens = embed(x, self.patch)
        pressed = self.pressed(torch.cat(windows, -1))
        return tokens + pressed.repeat_interleave(tokens.shape[1] // pressed.shape[1], 1)""",
    ),
}
MODEL = {"name": "keyed", "family": "keyedfamily", "window_frames": 9, "height": 32, "width": 32}
NETWORK = {"dim": 24, "heads": 2, "layers": 4}
LINES = [
    {"frame": 0, "keys": ["forward"]},
    {"frame": 14, "keys": ["left", "forward"], "mouse": [0.0, 0.5]},
    {"frame": 30, "mouse": [-0.25, 0.125]},
    {"frame": 41, "action": "back"},
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("keyed")
    (folder / "keyedfamily").mkdir()
    for name, text in FAMILY.items():
        (folder / "keyedfamily" / name).write_text(text)
    (folder / "conf" / "model").mkdir(parents=True)
    yaml = MODEL | {"network": NETWORK, "codec": {"kind": "small"}}
    (folder / "conf" / "model" / "keyed.yaml").write_text(json.dumps(yaml))
    sys.path.insert(0, str(folder))
    yield folder
    sys.path.remove(str(folder))


@pytest.fixture
def run(folder, tmp_path, capsys):
    """run(lines, *overrides) -> the hash of a stream of six chunks; what it complains of, if it does."""

    def run(lines: list[dict] | None, *overrides: str) -> str:
        told = ["--config-dir", str(folder / "conf"), "model=keyed", "stream.chunks=6", "sink.video=null"]
        if lines is not None:
            (path := tmp_path / "keys.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
            told.append(f"source.actions={path}")
        code = stream.main([*told, f"output_dir={tmp_path / 'out'}", *overrides])
        captured = capsys.readouterr()
        if code:
            return captured.err.strip()
        return json.loads((tmp_path / "out" / "report.json").read_text())["latents_sha256"]

    return run


def test_two_keys_at_once_and_a_mouse_reach_the_network_and_are_recorded(run, tmp_path):
    expected = run(LINES, f"sink.inputs={tmp_path / 'inputs.jsonl'}")
    recorded = [json.loads(line) for line in (tmp_path / "inputs.jsonl").read_text().splitlines()]
    assert recorded[1]["actions"][:4] == [[1, 0, 0, 0, 0, 0]] * 2 + [[1, 0, 1, 0, 0, 0.5]] * 2
    again = f"source.inputs={tmp_path / 'inputs.jsonl'}"
    assert run(None, again, "plan=grid") == expected
    without = [run([LINES[0], LINES[1] | one, *LINES[2:]]) for one in ({"keys": ["forward"]}, {"mouse": [0, 0]})]
    assert len({expected, run(None), *without}) == 4


def test_a_saved_stream_goes_on_with_what_is_held_and_what_was_turned(run, tmp_path):
    expected = run(LINES)
    run(LINES, "stream.chunks=3", "stream.save_every_chunks=2", f"output_dir={tmp_path / 'saved'}")
    assert run(LINES, f"resume={tmp_path / 'saved'}", "plan=timestep") == expected


def test_people_are_told_what_can_be_pressed(run):
    config = config_of("model=nano")
    assert offer_of(config)["controls"] == {"keys": offer_of(config)["actions"], "one": True, "axes": []}
    config.model = model()
    told = offer_of(config)
    assert told["actions"] == ["none", *CONTROLS.keys]
    assert told["controls"] == {"keys": list(CONTROLS.keys), "one": False, "axes": ["pitch", "yaw"]}
    config = config_of("model=wan21_t2v_1_3b")
    assert offer_of(config)["controls"] == {"keys": [], "one": True, "axes": []}


ENTRIES = st.one_of(
    st.fixed_dictionaries({"action": st.sampled_from(CONTROLS.actions)}),
    st.fixed_dictionaries(
        {"keys": st.lists(st.sampled_from(CONTROLS.keys), max_size=4)},
        optional={"mouse": st.tuples(st.floats(-10, 10), st.floats(-10, 10)).map(list)},
    ),
)


@settings(max_examples=40)
@given(st.lists(ENTRIES, min_size=1, max_size=5))
def test_every_source_gives_the_same_rows(tmp_path_factory, entries):
    """Of what is said once before each chunk: lines of a file and of a pipe, a session's events, a recording."""
    folder = tmp_path_factory.mktemp("rows")
    frames = [(0, 9), *((9 + 12 * i, 12) for i in range(len(entries) - 1))]
    lines = "".join(
        json.dumps({"frame": frame} | entry) + "\n" for (frame, _), entry in zip(frames, entries, strict=True)
    )
    (folder / "lines").write_text(lines)
    file, pipe = ActionFile(folder / "lines", CONTROLS), LiveActions(io.BytesIO(lines.encode()), CONTROLS)
    session, sink = SessionActions(CONTROLS), InputsSink(folder / "inputs")
    given = []
    for chunk, ((first, count), entry) in enumerate(zip(frames, entries, strict=True)):
        session.begin([(CONTROLS.parse(entry, ""), None)])
        given.append([source.take(first, count) for source in (file, pipe, session)])
        sink.chunk(chunk, None, None, given[-1][0])
    for source in (file, sink):
        source.close()
    recorded = Inputs(folder / "inputs").actions(CONTROLS)
    for (first, count), of_sources in zip(frames, given, strict=True):
        rows = recorded.take(first, count)
        assert of_sources == [rows] * 3 and len(rows) == count
        assert all(type(row) is tuple and len(row) == 6 for row in rows)


def model() -> ModelConfig:
    return ModelConfig(**MODEL, network=dict(NETWORK))


def opened(source: SourceConfig, folder, ends: LiveEnds, stdin=None, state=None, chunks=None) -> Conditioning:
    made = Encoders(model(), torch.device("cpu"))
    return Conditioning(
        made.model, StreamConfig(chunks=chunks), source, made, stdin, Stop(), state, journal=Journal(folder), ends=ends
    )


@pytest.mark.parametrize("cut", [None, 2])
@pytest.mark.parametrize("survives", [True, False])
def test_what_was_pressed_comes_again_where_a_worker_is_lost(run, tmp_path, survives, cut):
    reading, writing = os.pipe()
    with os.fdopen(reading, "rb", buffering=0) as stdin, os.fdopen(writing, "wb", buffering=0) as pipe:
        source, ends = SourceConfig(actions="-", pace="free"), LiveEnds()
        pipe.write("".join(json.dumps(line) + "\n" for line in LINES).encode())
        first, made, state = opened(source, tmp_path, ends, stdin), [], None
        for chunk in range(3):
            state = Cut(chunk, first.progress(chunk)) if chunk == cut else state
            made.append(first.chunk(chunk))
        assert made[1]["keys"].any() and made[2]["mouse"].any()
        first.turn()
        if not survives:
            ends.leave()
            ends = LiveEnds()
        again = opened(source, tmp_path, ends, stdin, state)
        calls, take = [], again.actions.take
        again.actions.take = lambda first_frame, count: (calls.append(first_frame), take(first_frame, count))[1]
        assert all(equal(again.chunk(chunk), made[chunk]) for chunk in range(cut or 0, 3))
        pipe.write(b'{"frame": 60, "keys": ["right"], "mouse": [1, 1]}\n')
        alone = again.chunk(3)
        assert len(calls) == len(set(calls)), "rows are taken once, for both inputs"
        again.close()
    (tmp_path / "lines").write_text("".join(json.dumps(line) + "\n" for line in LINES))
    whole = opened(SourceConfig(actions=str(tmp_path / "lines")), tmp_path / "whole", LiveEnds(), chunks=9)
    assert all(equal(whole.chunk(chunk), one) for chunk, one in enumerate([*made, alone]))
    whole.close()


def test_a_session_s_keys_and_mouse_are_sampled_and_told_of(run, tmp_path):
    with End() as end:
        one = opened(SourceConfig(session=end.address, pace="free"), tmp_path, LiveEnds())
        for id, event in {
            "a": {"keys": ["forward", "left"]},
            "b": {"keys": ["forward"], "mouse": [0.0, 2.0]},
            "bad": {"keys": ["fly"]},
            "c": {"keys": ["forward"]},
        }.items():
            end.say("event", id=id, event={"type": "action", **event})
        taken(one, end)
        assert one.chunk(0) is not None and one.chunk(1) is not None
        assert end.hear("sampled")[0]["events"] == ["a", "b", "c"]
        end.say("event", id="d", event={"type": "action", "mouse": [1.0, 0.0]})
        end.say("event", id="e", event={"type": "action", "mouse": [0.0, 0.0]})
        taken(one, end)
        made = one.chunk(2)
        assert end.hear("sampled")[0]["events"] == [] and end.hear("sampled")[0]["events"] == ["d", "e"]
        assert made["mouse"][0, 4:].tolist() == [[1, 0]] * 4 + [[0, 0]] * 8 and not made["keys"].any()
        one.turn()
        lines = Journal(tmp_path).lines(0)
        shown = [(1, 0, 1, 0, 0, 0), (1, 0, 0, 0, 0, 2), (1, 0, 0, 0, 0, 0)]
        assert lines[0].actions == [row for row in shown for _ in range(4)]
        one.close()


WRONG = [
    ("actions", {"frame": 0, "keys": ["jump"]}, "line 1: keys=jump: the model does not know it; use one of forward"),
    ("actions", {"frame": 0, "mouse": [1]}, r"line 1: mouse=\[1\]: is a list of pitch, yaw"),
    ("inputs", {"chunk": 0, "actions": [0, 1, 2]}, "holds actions of another model"),
    ("inputs", {"chunk": 0, "actions": [[0.0] * 5]}, "holds actions of another model"),
]


@pytest.mark.parametrize(("name", "line", "said"), WRONG)
def test_what_the_model_does_not_take_is_one_line(run, tmp_path, name, line, said):
    (tmp_path / "lines").write_text(json.dumps(line) + "\n")
    with pytest.raises(UserError, match=said):
        opened(SourceConfig(**{name: str(tmp_path / "lines")}), tmp_path, LiveEnds())

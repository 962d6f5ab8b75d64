"""What a server's sessions cannot be is refused before anything loads."""

import pytest

from conf.errors import UserError
from conf.schema.serve import ServedConfig
from launch import of_sessions, serve
from launch.cli import compose


@pytest.mark.parametrize("given", [
    "source.audio=a.wav", "source.actions=a.jsonl", "source.inputs=a.jsonl", "source.image=missing.png",
    "source.session=tcp://a:1/0123", "sink.session=null", "sink.session=tcp://a:1/0123", "sink.reader=tcp://a:1/0123",
    "stream.chunks=3", "stream.seconds=3", "stream.count=2", "stream.events=[{chunk: 1, prompt: a}]",
    "control=tcp://a:1/0123", "resume=states",
])  # fmt: skip
def test_what_would_break_every_session_is_refused(given):
    config = compose("serve", ServedConfig, ["model=nano", given])
    with pytest.raises(UserError) as caught:
        of_sessions.check(config)
    said = str(caught.value)
    assert said.startswith(given.partition("=")[0] + "=") and "0123" not in said


def test_what_is_said_of_all_sessions_is_taken():
    of_sessions.check(compose("serve", ServedConfig, ["model=nano", "sink.video=a.mp4", "stream.prompt=a"]))


def test_a_server_is_no_sweep(capsys):
    assert serve.main(["model=nano", "stream.seed=1,2", "--multirun"]) == 2
    assert capsys.readouterr().err.startswith("error: --multirun: everframe serve is one run")
    assert serve.main(["--help"]) == 0
    assert "--multirun" not in capsys.readouterr().out

"""Orders of a gateway over a connection: `control=tcp://HOST:PORT/TOKEN`."""

import json
import logging
import socket
from dataclasses import replace

import pytest

from conf.errors import UserError
from launch import control
from launch.lines import Conversation
from launch.remote import Remote, called
from launch.vitals import Vitals
from runtime.board import PeerLost
from runtime.orders import Close, Open, Prompt, Stop
from runtime.pulse import key
from tests.helpers import config_of
from tests.launch.gateway import TOKEN, Gateway
from tests.launch.started import report_of, start
from tests.patience import PATIENT_S
from tests.runtime.driven import Driven

SINKS = ("sink.video=null", "sink.trace=none")


@pytest.fixture
def gateway():
    with Gateway() as gateway:
        yield gateway


@pytest.fixture
def driven():
    with Driven() as driven:
        yield driven


@pytest.fixture
def joined(gateway, driven):
    """A pipeline without workers that has joined the gateway."""
    called(driven.pipeline, driven.config, gateway.address)
    return gateway


def test_a_run_says_what_it_is(joined, driven):
    hello = joined.until(lambda told: "hello" in told)["hello"]
    assert joined.token == TOKEN
    assert (hello["protocol"], hello["workers"], hello["launcher"]) == (3, 2, "local")
    assert hello["offer"]["id"] == "nano" and hello["offer"]["actions"] and hello["plan"].startswith("timestep")


def test_orders_are_given_and_answered(joined, driven):
    assert joined.ask({"open": "a", "seed": 3, "sink": {"latents": "l.bin"}})["stream"] == 0
    assert joined.ask({"open": "b"})["stream"] == 1
    assert "error" not in joined.ask({"prompt": "hello", "stream": "a"})
    assert set(joined.ask({"status": True})["status"]["streams"]) == {"a", "b"}
    assert "error" not in joined.ask({"stop": "a"})
    a, b, prompt, stop = driven.orders()
    assert (a.config.id, a.config.seed, a.sink.latents, b.config.id) == ("a", 3, "l.bin", "b")
    assert isinstance(prompt, Prompt) and isinstance(stop, Stop) and stop.stream == 0


def test_the_end_of_a_stream_is_told_with_its_report(joined, driven):
    joined.ask({"open": "a"})
    assert len(driven.orders()) == 1  # workers have heard of it
    driven.end(0, latents_sha256="abc")
    told = joined.until(lambda told: "ended" in told)["ended"]
    assert told == {"stream": 0, "name": "a", "report": {"stream": "a", "latents_sha256": "abc"}}


@pytest.mark.parametrize(
    ("order", "value"),
    [
        ({"open": "../a"}, "stream.id="),
        ({"open": "a", "sedonds": 1}, "stream.sedonds"),
        ({"stop": "nobody"}, "stream="),
        ({"wait": "a"}, "order "),
        ({}, "order "),
        ({"close": True, "now": True}, "close: "),
    ],
)
def test_a_mistake_is_answered_with_its_parts(joined, driven, order, value):
    error = joined.ask(order)["error"]
    assert error["user"] and error["parts"][0].startswith(value) and error["line"].startswith(value)
    assert not driven.orders()


def test_lines_that_are_no_orders_are_skipped(joined, driven, caplog):
    joined._connection.sendall(b"garbage\n[1]\n\n\xff\xfe\n")
    assert joined.ask({"open": "a"})["stream"] == 0
    assert len([r for r in caplog.records if "is skipped" in r.message]) == 3


def test_closing_is_told_and_then_nothing_is_opened(joined):
    joined.ask({"close": True})
    assert "the pipeline is closed" in joined.ask({"open": "a"})["error"]["line"]
    assert {"closed": True} in joined.told


def test_a_gateway_that_goes_ends_the_run(joined, driven, caplog):
    joined.ask({"open": "a"})
    with caplog.at_level(logging.WARNING):
        joined.vanish()
        driven.pipeline.until(lambda: driven.pipeline.closed and driven.pipeline.ended(0), PATIENT_S)
    assert [type(order) for order in driven.orders()] == [Open, Close, Stop]
    (line,) = [record.message for record in caplog.records if "has gone" in record.message]
    assert line.startswith("control=tcp://127.0.0.1:") and TOKEN not in line


def test_a_gateway_that_says_nothing_is_gone(gateway, driven):
    connection, other = socket.socketpair()
    with other:
        other.sendall(b'{"welcome": true}\n')
        Remote(driven.pipeline, driven.config, connection, "tcp://it:1", silent_s=0.3).start()
        assert driven.pipeline.until(lambda: driven.pipeline.closed, PATIENT_S)


def test_the_loss_of_workers_is_the_last_word(joined, driven):
    driven.pipeline.lost(PeerLost("worker 1 is lost (its process ended)"))
    joined.ended()
    assert joined.told[-1] == {"lost": "PeerLost: worker 1 is lost (its process ended)"}


@pytest.mark.parametrize(
    ("answer", "complaint"),
    [
        ({"refused": "model=nano has joined already"}, "the gateway refuses this run: model=nano has joined already"),
        (None, "does not let this run in"),
        ({"hello": 1}, "is no gateway"),
    ],
)
def test_who_is_not_let_in_is_told_why(driven, answer, complaint):
    with Gateway(answer) as gateway, pytest.raises(UserError, match=complaint) as caught:
        called(driven.pipeline, driven.config, gateway.address)
    assert TOKEN not in str(caught.value)


def nobody() -> str:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return f"tcp://127.0.0.1:{server.getsockname()[1]}/{TOKEN}"


def test_nobody_at_the_address_is_one_line(job):
    line = job.fails("model=nano", f"control={nobody()}", "launcher.timeout_s=0.1", *SINKS)
    assert "nobody answers there" in line and "within 0.1 s" in line and TOKEN not in line


@pytest.mark.parametrize("address", ["tcp://host/token", "tcp://host:1", "tls://:1/token", "tcp://a@b:1/token"])
def test_what_is_no_address_is_refused(address):
    with pytest.raises(UserError, match="is no address; give tcp://HOST:PORT/TOKEN") as caught:
        config_of(f"control={address}")
    assert "token" not in str(caught.value).split(";")[0]


def test_an_address_may_stand_in_a_file(gateway, driven, tmp_path):
    (file := tmp_path / "address").write_text(f"{gateway.address}\n")
    control.begin(driven.pipeline, replace(driven.config, control=f"@{file}"))
    assert gateway.until(lambda told: "hello" in told)


@pytest.mark.parametrize(("text", "rule"), [("", "must hold one line"), ("a\nb", "one line"), ("orders", "no address")])
def test_a_file_that_holds_no_address_is_refused(driven, tmp_path, text, rule):
    (file := tmp_path / "address").write_text(text)
    with pytest.raises(UserError, match=rule):
        control.begin(driven.pipeline, replace(driven.config, control=f"@{file}"))
    with pytest.raises(UserError, match="cannot be read"):
        control.begin(driven.pipeline, replace(driven.config, control=f"@{tmp_path}/nowhere"))


def test_health_is_what_pulses_tell(driven):
    now = 100.0
    vitals = Vitals(driven.pipeline.board, driven.pipeline.plan, 5.0, lambda: now)
    assert [(one["loaded"], one["at"]) for one in vitals()] == [(False, "nothing yet")] * 2
    pulse = {"beats": 1, "at": "step0 of chunk 4", "at_s": 0.5, "moved_s": 0.25}
    driven.boards[0].tell(key(0), pulse)
    driven.boards[0].tell("loaded/0")
    first, second = vitals()
    assert (first["alive"], first["loaded"], first["at_s"], second["loaded"]) == (True, True, 0.5, False)
    now = 103.0
    assert (vitals()[0]["moved_s"], vitals()[0]["alive"]) == (3.25, True)
    now = 106.0
    driven.boards[1].tell(key(1), pulse)
    assert [one["alive"] for one in vitals()] == [False, True]
    driven.boards[1].first("failed", {"process": 1, "line": "out of memory", "kind": "Lost"})
    assert [one["lost"] for one in vitals()] == [None, "out of memory"]


def test_what_is_said_leaves_before_the_end():
    connection, other = socket.socketpair()
    gone = []
    line = Conversation(connection, lambda line: None, gone.append)
    line.start()
    message = {"text": "x" * 100_000}
    for _ in range(3):
        line.say(message)
    with other, other.makefile("rb") as file:
        assert [json.loads(file.readline()) for _ in range(2)] == [message] * 2
        line.close()
        assert [json.loads(found) for found in file] == [message]
    assert gone == [""]


def opened_and_ended(gateway: Gateway) -> dict[str, str]:
    """Have two streams opened at once; returns their hashes."""
    gateway.ask({"open": "a", "chunks": 4})
    gateway.ask({"open": "b", "chunks": 3, "seed": 3, "prompt": "hello"})
    while len(reports := [told["ended"]["report"] for told in gateway.told if "ended" in told]) < 2:
        gateway.until(lambda told: "ended" in told)
    return {report["stream"]: report["latents_sha256"] for report in reports}


def joins(nano, folder, launcher: str, workers: int, *overrides: str) -> None:
    """A run of real processes that joins, makes the oracle's latents, and ends in good order when the gateway goes."""
    kept = [one for one in overrides if one.startswith("plan.sequence")]
    alone = {
        "a": nano("stream.id=a", "stream.chunks=4", *kept),
        "b": nano("stream.id=b", "stream.chunks=3", "stream.seed=3", "stream.prompt=hello", *kept),
    }
    with Gateway() as gateway:
        (file := folder / "address").write_text(gateway.address)
        process = start(
            launcher, workers, "model=nano", f"output_dir={folder}/run", f"control=@{file}", *SINKS, *overrides
        )
        hello = gateway.until(lambda told: "hello" in told)["hello"]
        assert (hello["workers"], hello["launcher"]) == (workers, launcher)
        assert opened_and_ended(gateway) == alone
        health = gateway.until(lambda told: "health" in told)["health"]
        assert len(health) == workers and all(one["alive"] and one["loaded"] for one in health)
        gateway.ask({"open": "endless"})
        gateway.until(lambda told: told.get("progress"))
        gateway.vanish()
        _, err = process.communicate(timeout=PATIENT_S)
    assert process.returncode == 0, err
    assert err.count("the gateway has gone") == 1 and TOKEN not in err
    assert {s["stream"] for s in report_of(folder / "run")["streams"]} == {"a", "b", "endless"}


def test_a_torchrun_joins(tmp_path, nano):
    joins(nano, tmp_path, "torchrun", 2, "plan=timestep", "plan.workers=2")


@pytest.mark.long
def test_threads_that_share_passes_join(tmp_path, nano):
    joins(nano, tmp_path, "local", 2, "plan.sequence_parallel=2")

"""A pipeline as its driver holds it: what may be opened, what is remembered, what is known once workers are gone."""

import threading
from dataclasses import replace

import pytest

from conf.errors import UserError
from runtime.board import PeerLost
from runtime.identity import identity
from runtime.orders import Cancel, Open, Prompt
from runtime.pipeline import RESULTS, results
from runtime.reasons import Reason, StreamFailed
from runtime.state import Keep
from tests.patience import PATIENT_S
from tests.runtime.driven import Driven


@pytest.fixture
def driven():
    with Driven("sink.video=null") as driven:
        yield driven


def opened(driven: Driven, name: str, source=None, sink=None, **changes) -> int:
    config = driven.config
    source, sink = ({} if changed is None else changed for changed in (source, sink))
    return driven.pipeline.open(
        replace(config.stream, id=name, **changes), replace(config.source, **source), replace(config.sink, **sink)
    )


# -- what may be opened ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("parts", "complaint"),
    [
        ({"name": "a"}, "stream.id=a: a stream of that name is open"),
        ({"height": 512, "width": 512}, "stream.height=512 stream.width=512: this run makes pictures of"),
        ({"height": 33}, "stream.height=33: must be a multiple of"),
        ({"source": {"actions": "-"}}, "source=-: standard input is read already"),
        ({"sink": {"latents": "out/../x.bin"}}, "sink.latents=.*x.bin: stream a writes it"),
        ({"prompt": 5}, "stream.prompt=5: must be text"),
        ({"seed": True}, "stream.seed=true: must be a whole number"),
        ({"events": ["x"]}, r'stream.events\[0\]="x": must be an object'),
        ({"source": {"image": 5}}, "source.image=5: must be text"),
    ],
)
def test_what_cannot_run_here_is_refused_before_anybody_hears_of_it(driven, parts, complaint, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    opened(driven, "a", source={"audio": "-"}, sink={"latents": "x.bin"})
    changes = {"name": "b", "source": {}, "sink": {}} | parts
    stream = {key: value for key, value in changes.items() if key not in ("name", "source", "sink")}
    made = [replace(part) for part in (driven.config.stream, driven.config.source, driven.config.sink)]
    for part, values in zip(made, ({"id": changes["name"]} | stream, changes["source"], changes["sink"]), strict=True):
        vars(part).update(values)  # past the rules that are checked when one is made
    with pytest.raises(UserError, match=complaint):
        driven.pipeline.open(*made)
    assert len(driven.orders()) == 1
    assert opened(driven, "c") == 1  # no number was used up


def test_standard_input_is_given_once(driven):
    """What has been read of it by a stream that has ended is gone."""
    first = opened(driven, "a", source={"audio": "-"})
    driven.pipeline.stop(first)
    driven.pipeline.wait(first, PATIENT_S)
    with pytest.raises(UserError, match="standard input is read already"):
        opened(driven, "b", source={"audio": "-"})


@pytest.mark.parametrize("resume", [None, "state"], ids=["new", "resumed"])
@pytest.mark.parametrize("name", ["video", "frames", "contact_sheet"])
def test_pictures_are_refused_where_there_is_no_decoder(driven, tmp_path, name, resume):
    """The stream would end well without them, and the file that it names would be gone."""
    config, old = driven.config, tmp_path / "old.mp4"
    old.write_bytes(b"kept")
    keep = Keep(str(tmp_path), identity(config, config.stream), resume=resume, first=4 if resume else 0)
    with pytest.raises(UserError, match=f"sink.{name}={old}: this run was started without a decoder; start the run"):
        driven.pipeline.open(config.stream, config.source, replace(config.sink, **{name: str(old)}), keep)
    assert not driven.pipeline.known and old.read_bytes() == b"kept"


def test_a_stream_needs_the_bytes_that_a_worker_has_not(driven):
    """One fits into what was pooled at load, one more into what is free, a third nowhere, until one has ended."""
    driven.boards[0].tell("room/0", {"stream_bytes": 10, "free_bytes": 1000, "pooled": 0, "memory": "here"})
    driven.boards[1].tell("room/1", {"stream_bytes": 1500, "free_bytes": 2000, "pooled": 1, "memory": "there"})
    first = opened(driven, "a")
    opened(driven, "b")
    with pytest.raises(UserError, match=r"stream\.id=c: worker 1 lacks 1,000 bytes for 3 streams at once"):
        opened(driven, "c")
    driven.pipeline.stop(first)
    driven.pipeline.wait(first, PATIENT_S)
    opened(driven, "c")


def test_streams_that_came_before_the_room_was_known_leave_if_there_is_none(driven):
    """The latest go; those that fit stay."""
    numbers = [opened(driven, name) for name in "abcd"]
    driven.boards[0].tell("room/0", {"stream_bytes": 1500, "free_bytes": 2000, "pooled": 1, "memory": "here"})
    driven.pipeline.check_room()
    for number, streams in ((numbers[3], 4), (numbers[2], 3)):
        driven.pipeline.wait(number, PATIENT_S)
        reason = driven.boards[0].refused(number)
        assert reason is None or f"for {streams} streams at once" in reason.line
    assert not any(map(driven.pipeline.ended, numbers[:2]))


def test_nothing_is_opened_once_the_pipeline_is_closed(driven):
    driven.pipeline.close()
    with pytest.raises(UserError, match="the pipeline is closed"):
        opened(driven, "a")


def test_how_a_state_is_kept_travels_with_the_order(driven):
    config = driven.config
    keep = Keep("/states/a", identity(config, config.stream), every=4, resume=None)
    driven.pipeline.open(config.stream, config.source, config.sink, keep)
    (order,) = driven.orders()
    assert order == Open(0, config.stream, config.source, config.sink, keep, number=0)


# -- steering -------------------------------------------------------------------------------------------------------


def test_a_prompt_is_text_of_some_length(driven):
    stream = opened(driven, "a")
    for wrong, complaint in ((5, "prompt=5: must be text"), ("x" * 100_001, "has 100001 characters")):
        with pytest.raises(UserError, match=complaint):
            driven.pipeline.prompt(stream, wrong)
    driven.pipeline.prompt(stream, "${hello}")
    _, prompt = driven.orders()
    assert isinstance(prompt, Prompt) and (prompt.prompt, prompt.number) == ("${hello}", 1)


def test_a_worker_that_gives_up_a_stream_cancels_it_everywhere(driven):
    """By the driver, so that all workers hear it at the same place among the orders."""
    stream = opened(driven, "a")
    driven.boards[1].refuse(stream, Reason.of(ValueError("no"), "worker 1, opening"))
    driven.pipeline.wait(stream, PATIENT_S)  # the stand-in ends what is cancelled
    assert Cancel(stream, number=1) in driven.orders()


# -- the end of a stream --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "raised", "said"),
    [
        (UserError("a", "b", "c"), UserError, "^a: b; c$"),
        (ValueError("no"), StreamFailed, "^worker 1, decode of chunk 3: ValueError: no$"),
    ],
)
def test_a_stream_that_failed_costs_no_report_but_its_own(driven, error, raised, said):
    """Whoever asks for it gets what ended it; the others' reports are whole."""
    heard = []
    driven.pipeline.observers += [lambda *_: 1 / 0, lambda *told: heard.append(told)]
    streams = [opened(driven, name) for name in "abc"]
    driven.orders()
    driven.end(streams[1], error=Reason.of(error, "worker 1, decode of chunk 3").to_dict())
    driven.end(streams[0], chunks=3)
    driven.end(streams[2], chunks=5)
    assert driven.pipeline.result(streams[2], PATIENT_S)["chunks"] == 5
    with pytest.raises(raised, match=said):
        driven.pipeline.result(streams[1])
    driven.pipeline.leave()
    found = results(driven.pipeline)
    assert [entry["stream"] for entry in found] == ["a", "b", "c"]
    assert ["error" in entry for entry in found] == [False, True, False]
    assert heard == [(1, found[1]), (0, found[0]), (2, found[2])]


def test_nothing_grows_with_the_streams_that_have_ended(driven):
    """Their keys go, and of their results the last 256 stay; the last to end, not the last to be opened."""
    pipeline, board = driven.pipeline, driven.boards[0]
    long = opened(driven, "long")
    driven.orders()
    before = pipeline.board.keys()
    for number in range(RESULTS + 10):
        stream = opened(driven, "brief")
        board.tell(f"progress/{stream}", {"chunks": number})
        board.refuse(stream, Reason.of(ValueError("no")))
        pipeline.wait(stream, PATIENT_S)  # it is cancelled, and the stand-in ends it
        assert pipeline.progress(stream) == {"chunks": number}
        board.refuse(stream, Reason.of(ValueError("too late")))
    pipeline.stop(long)
    pipeline.wait(long, PATIENT_S)
    pipeline.status()
    assert pipeline.board.keys() == before
    assert len(pipeline.known) == RESULTS
    assert pipeline.result(long)["stream"] == "long"
    with pytest.raises(KeyError):
        pipeline.result(1)


# -- the end of the workers -----------------------------------------------------------------------------------------


def test_whoever_waits_hears_that_the_workers_are_gone(driven):
    """At once and without a time limit: for a result, for how they stand, and for whatever is asked later."""
    done, endless = opened(driven, "done"), opened(driven, "endless")
    driven.orders()
    driven.end(done)
    waiting, heard = threading.Barrier(2), []

    def wait():
        waiting.wait()
        try:
            driven.pipeline.result(endless)
        except PeerLost as error:
            heard.append(error)

    thread = threading.Thread(target=wait)
    thread.start()
    waiting.wait()
    lost = PeerLost("worker 1 is lost")
    driven.pipeline.lost(lost)
    driven.pipeline.lost(ValueError("a consequence"))
    thread.join(PATIENT_S)
    assert heard == [lost]
    assert driven.pipeline.result(done)["stream"] == "done"
    later = (lambda: opened(driven, "b"), lambda: driven.pipeline.prompt(endless, "x"), driven.pipeline.status,
             lambda: driven.pipeline.wait(endless), lambda: results(driven.pipeline))  # fmt: skip
    for ask in later:
        with pytest.raises(PeerLost, match="worker 1 is lost"):
            ask()
    driven.pipeline.close()


def test_a_result_that_takes_longer_than_one_waits(driven):
    with pytest.raises(TimeoutError, match="stream 0 has not ended within 0 s"):
        driven.pipeline.result(opened(driven, "a"), timeout_s=0.0)

"""The gateway's side of a pipeline that has joined it."""

import asyncio
import datetime
import json
import ssl
from contextlib import asynccontextmanager

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from conf.errors import UserError
from conf.schema.serve import ServeConfig
from launch.remote import called
from runtime.admission import Full
from runtime.board import PeerLost
from runtime.offer import offer_of
from runtime.orders import Cancel, Close, Open
from serve.joined import Joined, Joins, command
from serve.lines import LONGEST_LINE
from serve.link import Link
from serve.resources import Memory
from tests.helpers import config_of
from tests.launch.gateway import TOKEN
from tests.patience import PATIENT_S
from tests.runtime.driven import Driven

HELLO = {
    "protocol": 3,
    "offer": {"id": "nano", "fps": 16, "sees": False},
    "plan": "timestep",
    "workers": 2,
    "streams": 64,
}


class Remembering(Joins):
    """Remembers everyone who was let in, in order."""

    def __init__(self, *args: object):
        super().__init__(*args)
        self.joined: list[Joined] = []
        self.came = asyncio.Event()

    def _let_in(self, *args: object) -> Joined | str:
        made = super()._let_in(*args)
        if isinstance(made, Joined):
            self.joined.append(made)
            self.came.set()
        return made


class Place:
    """Where pipelines join, on a port of its own; a context.

    Attributes:
        joins: who came.
        ready: those that have loaded.
    """

    def __init__(self, most: int = 1, silent_s: float = 10.0, link: Link | None = None):
        self.ready: asyncio.Queue[Joined] = asyncio.Queue()
        self.joins = Remembering(most, self.ready.put_nowait, silent_s)
        self.joined, self.came = self.joins.joined, self.joins.came
        self._link = link or Link("127.0.0.1")

    async def __aenter__(self) -> "Place":
        await self._link.open()
        self.address, self.port = self._link.expect(self.joins.take, TOKEN, once=False), self._link.port
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._link.close()

    @asynccontextmanager
    async def pipeline(self, hello: dict | None = HELLO):
        """(what comes, to whom to write) of a pipeline that is written by hand."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port, limit=1 << 22)
        writer.write(TOKEN.encode())
        if hello is not None:
            say(writer, {"hello": hello})
        try:
            yield reader, writer
        finally:
            writer.close()


def say(writer, message: dict) -> None:
    writer.write(json.dumps(message).encode() + b"\n")


async def heard(reader) -> dict:
    """The next that is no sign of life; empty at the end."""
    while (told := json.loads(await reader.readline() or b"{}")) == {"beat": True}:
        pass
    return told


def runs(work):
    """A test that is a coroutine."""

    def test():
        asyncio.run(asyncio.wait_for(work(), PATIENT_S))

    test.__name__, test.__doc__ = work.__name__, work.__doc__
    return test


@asynccontextmanager
async def one():
    """(a pipeline that has joined, what it hears, how it talks)."""
    async with Place() as place, place.pipeline() as (reader, writer):
        assert await heard(reader) == {"welcome": True}
        yield place.joined[0], reader, writer


@runs
async def test_both_ends_understand_each_other():
    """A real pipeline without workers joins over a real connection."""
    async with Place() as place:
        with Driven() as driven:
            await asyncio.to_thread(called, driven.pipeline, driven.config, place.address)
            await place.came.wait()
            (joined,) = place.joined
            assert joined.offer == offer_of(driven.config)
            ends, lost = asyncio.Queue(), asyncio.Queue()
            joined.on_ended = lambda number, report: ends.put_nowait((number, report["stream"]))
            joined.on_lost = lost.put_nowait
            numbers = [await joined.open(name, {"seed": 1, "sink": {"video": None}}) for name in "ab"]
            with pytest.raises(UserError, match="a stream of that name is open") as caught:
                await joined.open("a", {})
            assert caught.value.value == "stream.id=a"
            await joined.stop(numbers[0])
            assert await ends.get() == (numbers[0], "a")
            await joined.stop(numbers[0])  # it has ended: nothing is asked
            await joined.cancel(numbers[1])
            assert await ends.get() == (numbers[1], "b")
            assert place.joins.missing == 0
            await asyncio.to_thread(driven.pipeline.lost, PeerLost("worker 1 is lost"))
            assert "worker 1 is lost" in await lost.get()
        with pytest.raises(RuntimeError, match="worker 1 is lost"):
            await joined.open("c", {})
        await joined.close()


@pytest.fixture(scope="module")
def encrypted(tmp_path_factory) -> tuple[ssl.SSLContext, str]:
    """What a gateway speaks TLS with, and the digest of its certificate."""
    key, name = ec.generate_private_key(ec.SECP256R1()), x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "it")])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key()).serial_number(1)
        .not_valid_before(now).not_valid_after(now + datetime.timedelta(days=1)).sign(key, hashes.SHA256())
    )  # fmt: skip
    secret = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    file = tmp_path_factory.mktemp("tls") / "both.pem"
    file.write_bytes(secret + made.public_bytes(serialization.Encoding.PEM))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(file)
    return context, made.fingerprint(hashes.SHA256()).hex()


def test_lines_go_encrypted_both_ways(encrypted):
    """Long ones too, while others come."""

    @runs
    async def joins():
        context, digest = encrypted
        async with Place(link=Link("127.0.0.1", context=context, digest=digest)) as place:
            with Driven() as driven:
                assert place.address.startswith("tls://") and place.address.endswith(f"#{digest}")
                await asyncio.to_thread(called, driven.pipeline, driven.config, place.address)
                await place.came.wait()
                (joined,) = place.joined
                ends = asyncio.Queue()
                joined.on_ended = lambda number, report: ends.put_nowait(report)
                prompts = [letter * 90_000 for letter in "abcd"]
                numbers = await asyncio.gather(*(joined.open(p[0], {"prompt": p}) for p in prompts))
                opened = [o.config.prompt for o in await asyncio.to_thread(driven.orders) if isinstance(o, Open)]
                for number, prompt in zip(numbers, prompts, strict=True):
                    driven.end(number, prompt=prompt)
                assert [(await ends.get())["prompt"] for _ in prompts] == prompts
                assert sorted(opened) == prompts

    joins()


def test_another_certificate_is_not_talked_to(encrypted):
    @runs
    async def refused():
        context, digest = encrypted
        async with Place(link=Link("127.0.0.1", context=context, digest=digest)) as place:
            with Driven("launcher.timeout_s=0.1") as driven, pytest.raises(UserError, match="certificate is another"):
                address = place.address.replace(digest, "0" * 64)
                await asyncio.to_thread(called, driven.pipeline, driven.config, address)
            assert not place.joined

    refused()


@runs
async def test_one_is_there_once_all_its_workers_have_loaded():
    async with Place() as place, place.pipeline() as (reader, writer):
        assert await heard(reader) == {"welcome": True}
        one = {"worker": "0", "alive": True, "loaded": True, "at": "x", "at_s": 0.0, "moved_s": 0.0, "lost": None}
        (joined,) = place.joined
        for told in ([], [one, one | {"loaded": False}]):
            say(writer, {"health": told})
        say(writer, {"progress": {"0": {}}})
        while joined.progress(0) is None:  # all before it has been taken in
            await asyncio.sleep(0)
        assert not joined.loaded.is_set() and place.ready.empty()
        say(writer, {"health": [one, one]})
        assert await place.ready.get() is joined


@runs
async def test_one_model_joins_once_and_no_more_than_are_waited_for():
    async with Place(most=2) as place, place.pipeline() as (reader, _):
        assert await heard(reader) == {"welcome": True}
        async with place.pipeline() as (twice, _):
            assert "has joined already" in (await heard(twice))["refused"]
            assert await twice.read() == b""
        other = HELLO | {"offer": {"id": "other"}}
        async with place.pipeline(other) as (second, _):
            assert await heard(second) == {"welcome": True}
            async with place.pipeline(HELLO | {"offer": {"id": "third"}}) as (third, _):
                assert (await heard(third))["refused"].startswith("serve.join=2")
        assert [one.offer["id"] for one in place.joined] == ["nano", "other"]


@runs
async def test_who_has_gone_may_come_back():
    async with Place() as place:
        for turn in range(2):
            async with place.pipeline() as (reader, _):
                assert await heard(reader) == {"welcome": True}
                gone = asyncio.Event()
                place.joined[turn].on_lost = lambda why, gone=gone: gone.set()
            await gone.wait()
            while not place.joins.missing:
                await asyncio.sleep(0)


@pytest.mark.parametrize(
    ("hello", "why"),
    [
        (HELLO | {"protocol": 1}, "speaks protocol 1"),
        ({"protocol": 3}, "nothing that is understood"),
        ([], "nothing that is understood"),
        (HELLO | {"offer": []}, "nothing that is understood"),
        (HELLO | {"workers": "two"}, "does not say how many workers"),
        ({name: told for name, told in HELLO.items() if name != "streams"}, "how many streams it opens"),
    ],
)
def test_who_does_not_say_what_it_is_is_refused(hello, why):
    @runs
    async def refused():
        async with Place() as place, place.pipeline(hello) as (reader, _):
            assert why in (await heard(reader))["refused"]
            assert not place.joined and place.joins.missing == 1

    refused()


@runs
async def test_a_stranger_that_says_nothing_is_sent_away():
    async with Place(silent_s=0.05) as place, place.pipeline(None) as (reader, _):
        assert "refused" in await heard(reader)


@pytest.mark.parametrize("first", ["ended", "answer"])
def test_a_stream_that_ends_at_once_is_told_behind_its_number(first):
    asyncio.run(asyncio.wait_for(ends_at_once(first), PATIENT_S))


async def ends_at_once(first: str):
    async with one() as (joined, reader, writer):
        happened, over = [], asyncio.Event()
        joined.on_ended = lambda number, report: (happened.append(("ended", number)), over.set())

        async def opens() -> None:
            happened.append(("open", await joined.open("a", {"chunks": 1})))

        opening = asyncio.ensure_future(opens())
        order = await heard(reader)
        assert order == {"open": "a", "chunks": 1, "question": order["question"]}
        strangers = {"ended": {"stream": 4, "name": "other", "report": {}}}
        ended = {"ended": {"stream": 5, "name": "a", "report": {}}}
        answer = {"answer": order["question"], "stream": 5}
        # All in one packet: both are there before anybody is woken.
        told = [strangers, ended, answer] if first == "ended" else [strangers, answer, ended]
        writer.write("".join(json.dumps(one) + "\n" for one in told).encode())
        await over.wait()
        await opening
        assert happened == [("open", 5), ("ended", 5)]


@runs
async def test_what_nobody_waits_for_any_more_is_cancelled():
    async with one() as (joined, reader, writer):
        opening = asyncio.ensure_future(joined.open("a", {}))
        order = await heard(reader)
        opening.cancel()
        await asyncio.wait([opening])
        say(writer, {"answer": order["question"], "stream": 0})
        assert await heard(reader) == {"cancel": "a"}


@pytest.mark.parametrize(
    "line",
    [
        b"garbage\n",
        b"5\n",
        b'{"answer": 99}\n',
        b'{"ended": 5}\n',
        b'{"health": [5]}\n',
        b'{"health": [], "rooms": [5]}\n',
        b"x" * (LONGEST_LINE + 9),
    ],
    ids=lambda line: line[:12].decode().strip(),
)
def test_who_talks_nonsense_is_gone(line):
    @runs
    async def gone():
        async with one() as (joined, reader, writer):
            lost = asyncio.Queue()
            joined.on_lost = lost.put_nowait
            asking = asyncio.ensure_future(joined.open("a", {}))
            await heard(reader)
            writer.write(line)
            assert await lost.get()
            with pytest.raises(RuntimeError):
                await asking
            assert joined.closed and lost.empty()

    gone()


@runs
async def test_a_fault_of_the_pipelines_is_no_mistake_of_the_callers():
    async with one() as (joined, reader, writer):
        asking = asyncio.ensure_future(joined.open("a", {}))
        order = await heard(reader)
        say(writer, {"answer": order["question"], "error": {"line": "OSError: x", "user": False, "parts": []}})
        with pytest.raises(RuntimeError, match="OSError: x"):
            await asking


@runs
async def test_what_its_memory_holds_is_told_and_who_finds_no_room_may_come_again():
    """By a real pipeline without workers, for which a test tells what they would."""
    async with Place() as place:
        with Driven() as driven:
            for worker in range(driven.pipeline.plan.workers):
                room = {"stream_bytes": 10, "pooled": 0, "memory": f"m{worker}", "free_bytes": 15}
                driven.boards[worker].tell(f"room/{worker}", room)
            await asyncio.to_thread(called, driven.pipeline, driven.config, place.address)
            await place.came.wait()
            (joined,) = place.joined
            assert joined.workers == driven.pipeline.plan.workers and joined.most == 64
            await joined.open("a", {})
            with pytest.raises(Full, match="lacks 5 bytes"):
                await joined.open("b", {})
            while not joined.memory:  # told once a second
                await asyncio.sleep(0.01)
            assert joined.memory == [Memory(f"m{worker}", 10, 0, 15) for worker in range(driven.pipeline.plan.workers)]
            await asyncio.to_thread(driven.pipeline.lost, PeerLost("gone"))


@runs
async def test_closing_ends_streams_and_pipeline():
    async with Place() as place:
        with Driven() as driven:
            await asyncio.to_thread(called, driven.pipeline, driven.config, place.address)
            await place.came.wait()
            (joined,) = place.joined
            await joined.open("a", {})
            closing = asyncio.ensure_future(joined.close())
            await asyncio.to_thread(driven.pipeline.until, lambda: driven.pipeline.closed and driven.pipeline.ended(0))
            assert not closing.done()
            with pytest.raises(RuntimeError):
                while True:  # until it was told
                    await joined.open("b", {})
            await asyncio.to_thread(driven.pipeline.leave)
            await closing
            assert [type(order) for order in driven.heard()][-2:] == [Close, Cancel]


@runs
async def test_silence_is_an_end():
    async with Place(silent_s=0.2) as place, place.pipeline() as (reader, _):
        await heard(reader)
        lost = asyncio.Queue()
        place.joined[0].on_lost = lost.put_nowait
        assert "nothing was heard" in await lost.get()


@runs
async def test_health_and_progress_are_what_was_told_last():
    async with one() as (joined, _, writer):
        assert joined.health() == [] and joined.progress(0) is None
        told = {"worker": "0", "alive": True, "loaded": True, "at": "x", "at_s": 1.0, "moved_s": 0.5, "lost": None}
        say(writer, {"health": [told]})
        say(writer, {"progress": {"0": {"chunks": 3}}})
        while joined.progress(0) is None:
            await asyncio.sleep(0)
        (health,) = joined.health()
        assert health["alive"] and health["at_s"] >= 1.0 and joined.progress(0) == {"chunks": 3}
        lost = asyncio.Queue()
        joined.on_lost = lost.put_nowait
        say(writer, {"lost": "the workers have left"})
        assert await lost.get() == "the workers have left"
        assert [(one["alive"], one["lost"]) for one in joined.health()] == [(False, "the workers have left")]


def test_the_command_line_is_one_that_the_run_takes():
    address = f"tcp://127.0.0.1:1/{TOKEN}"
    words = command("nano", "timestep", address).split()
    config = config_of(*words[2:])
    assert (words[:2], config.control, config.sink.session) == (["everframe", "stream"], address, "of-each-stream")
    assert (config.model.name, config.plan.name) == ("nano", "timestep")


def test_an_offer_says_what_a_model_takes():
    config = config_of("model=nano", "post=upscale", "stream.prompt=a maze")
    found = offer_of(config)
    plain = offer_of(config_of("model=nano"))
    assert found["width"] == config.post.factor * plain["width"] > plain["width"]
    assert found["presets"] == [{"name": "a maze", "prompt": "a maze"}]
    assert plain["hears"] and plain["prompts"] and plain["picture"] and plain["actions"][0] == "none"
    assert plain["chunk_s"] * plain["fps"] == 12
    json.dumps(plain)


def test_secrets_come_from_files_and_are_none_that_can_be_guessed(tmp_path):
    (file := tmp_path / "secret").write_text(f"{TOKEN}\n")
    assert ServeConfig(join=1, join_secret=f"@{file}", token=f"@{file}").join_secret == TOKEN
    file.write_text("short")
    with pytest.raises(UserError, match=r"serve\.token: has fewer than 16 characters"):
        ServeConfig(token=f"@{file}")
    for letter in "+/=# é:":
        file.write_text(f"{TOKEN}{letter}{TOKEN}\n")
        for given in (f"@{file}", f"{TOKEN}{letter}{TOKEN}"):
            with pytest.raises(UserError, match=r"serve\.token: may have letters, .*openssl rand -hex 16") as caught:
                ServeConfig(token=given)
            assert TOKEN not in str(caught.value)
    assert ServeConfig(token="Az09._~-" * 2).token == "Az09._~-" * 2
    with pytest.raises(UserError, match=r"serve\.join_secret: is 32 hexadecimal digits"):
        ServeConfig(join_secret=f"@{file}")
    for wrong in (-1, 65):
        with pytest.raises(UserError, match="is a number of pipelines"):
            ServeConfig(join=wrong)


@runs
async def test_what_is_told_of_generations_comes_through_and_a_plan_goes_back():
    async with Place() as place:
        with Driven("launcher.recover=exact") as driven:
            await asyncio.to_thread(called, driven.pipeline, driven.config, place.address)
            await place.came.wait()
            (joined,) = place.joined
            assert joined.recovers and joined.frozen is None
            told: asyncio.Queue = asyncio.Queue()
            joined.on_frozen = lambda *given: told.put_nowait(given)
            joined.on_planned = lambda *given: told.put_nowait(given)
            (changer,) = driven.pipeline.changers
            changer({"frozen": True, "number": 1, "why": "worker 1 is lost"})
            assert await told.get() == (True, "worker 1 is lost") and joined.frozen == "worker 1 is lost"
            changer({"frozen": False, "number": 1, "frozen_s": 0.5, "speed": 0.5})
            assert (await told.get(), await told.get()) == ((False, ""), (0.5, None)) and joined.frozen is None
            orders = []
            driven.pipeline.change = lambda plan: orders.append(plan) or 7
            assert await joined.change({"workers": 1}) == 7
            (order,) = orders
            assert (order["name"], order["workers"]) == ("timestep", 1)

            def refused(plan):
                raise UserError("plan.workers=9", "has no devices", "use fewer")

            driven.pipeline.change = refused
            with pytest.raises(UserError, match="has no devices"):
                await joined.change({"workers": 2})


@runs
async def test_a_pipeline_that_says_nothing_of_it_does_not_recover():
    async with one() as (joined, _, _):
        assert not joined.recovers

"""What `everframe doctor` says of serving: a port, a certificate, encoders, STUN servers, files."""

import socket
import struct
import threading
from contextlib import contextmanager

import av
import pytest

from conf.errors import UserError
from conf.schema.serve import ServeConfig
from launch import doctor, serving
from launch.checks import Finding
from launch.stun import MAGIC, MAPPED, SUCCESS, XOR_MAPPED, Server, answer, mapped, server_of
from tests.patience import PATIENT_S

LOCAL = bytes([127, 0, 0, 1])


def found(**settings) -> dict:
    """Findings by what was looked at."""
    return {f.what: f for f in serving.serving(ServeConfig(**{"port": 0} | settings))}


@pytest.fixture(autouse=True)
def no_encoders(request, monkeypatch):
    """They are tried where they are what is tested."""
    if "encoder" not in request.node.name:
        monkeypatch.setattr(serving, "_tried", lambda name: None)


def test_all_that_serving_needs_is_here():
    assert all(f.ok for f in found().values())
    assert {"serving", "serve.port", "certificate", "encoder libx264", "open files"} <= found().keys()


def test_who_has_the_port_is_named():
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        for setting in ("port", "link_port"):
            told = found(**{setting: port})[f"serve.{setting}"]
            assert not told.ok and "(python" in told.value and f"use serve.{setting}=0" in told.remedy
    assert found(port=port)["serve.port"].ok


def test_an_address_of_another_machine_is_refused():
    told = found(host="192.0.2.77", port=8081, token="x" * 16)["serve.port"]
    assert not told.ok and "address of this machine" in told.remedy


def test_what_nobody_asked_for_is_no_mistake(monkeypatch):
    taken = Finding("serve.port", "another process has it", "is free", "end that")
    monkeypatch.setattr(serving, "_port", lambda *_: taken)
    assert not found()["serve.port"].ok
    told = {f.what: f for f in serving.serving(ServeConfig())}["serve.port"]
    assert told.ok and told.value == "another process has it (end that)" and told.rule.endswith("for everframe serve")


def test_without_the_extra_it_says_what_to_install(monkeypatch):
    there = serving.find_spec
    monkeypatch.setattr(serving, "find_spec", lambda name: None if name == "aiortc" else there(name))
    for tls in ("off", "auto"):
        told = found(tls=tls)
        assert told["serving"].value == "not installed: aiortc"
        assert told["serving"].remedy == 'pip install "everframe[serve]"'
        assert told["certificate"].ok == (tls == "off")


def test_every_encoder_is_tried():
    told = found()
    assert all(told[f"encoder {name}"].value == "works" for name in serving.NEEDED)
    assert told["encoder h264_nvenc"].ok


def test_an_encoder_that_is_missing_is_found(monkeypatch):
    def tried(name: str) -> None:
        raise av.codec.codec.UnknownCodecError(name)

    monkeypatch.setattr(serving, "_tried", tried)
    told = found()
    assert [told[f"encoder {name}"].ok for name in serving.ENCODERS] == [False, True, False, False]


def test_the_limit_of_files_is_reckoned_with(monkeypatch):
    monkeypatch.setattr(serving.resource, "getrlimit", lambda what: (1024, 4096))
    assert found(max_sessions="40")["open files"].ok
    told = found(max_sessions="40", models=["a", "b"])["open files"]
    assert not told.ok and told.remedy.startswith("ulimit -n 1536")


def test_the_command_tells_of_it(capsys, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert doctor.main(["model=nano", f"output_dir={tmp_path}/run", f"serve.port={port}"]) == 2
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("FAIL")]
    assert f"127.0.0.1:{port}" in line and line.rstrip().endswith("the gateway")


# -- STUN -------------------------------------------------------------------------------------------------------------


def response(number: bytes, *attributes: tuple[int, bytes], kind: int = SUCCESS, magic: int = MAGIC) -> bytes:
    body = b"".join(struct.pack("!HH", what, len(v)) + v + bytes(-len(v) % 4) for what, v in attributes)
    return struct.pack("!HHI12s", kind, len(body), magic, number) + body


def hidden(address: bytes, number: bytes) -> bytes:
    """An address as XOR-MAPPED-ADDRESS has it."""
    mask = struct.pack("!I", MAGIC) + number
    family = {4: 1, 16: 2}[len(address)]
    return bytes([0, family, 0, 0]) + bytes(a ^ b for a, b in zip(address, mask, strict=False))


def test_a_binding_response_is_read():
    """The sample of RFC 5769, 2.2: 192.0.2.1 behind a SOFTWARE attribute; and IPv6 of 2.3."""
    number = bytes.fromhex("b7e7a701bc34d686fa87dfae")
    sample = response(number, (0x8022, b"test vector"), (XOR_MAPPED, bytes.fromhex("0001a147e112a643")))
    assert mapped(sample, number) == "192.0.2.1"
    six = bytes.fromhex("0002a1470113a9faa5d3f179bc25f4b5bed2b9d9")
    assert mapped(response(number, (XOR_MAPPED, six)), number) == "2001:db8:1234:5678:11:2233:4455:6677"
    assert mapped(response(number, (MAPPED, bytes([0, 1, 0, 9]) + LOCAL)), number) == "127.0.0.1"


@pytest.mark.parametrize("size", range(0, 32))
def test_a_response_that_is_cut_is_none(size):
    number = bytes(12)
    assert mapped(response(number, (XOR_MAPPED, hidden(LOCAL, number)))[:size], number) is None


def test_what_is_no_response_to_this_request_is_none():
    number = bytes(12)
    good = (XOR_MAPPED, hidden(LOCAL, number))
    for packet in (
        response(b"x" * 12, good),
        response(number, good, kind=0x0111),
        response(number, good, magic=1),
        b"\x00" * 20,
    ):
        assert mapped(packet, number) is None


@contextmanager
def server(*replies):
    """A STUN server whose replies are made of the request's number; None: it keeps silent."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as listening:
        listening.bind(("127.0.0.1", 0))

        def serve() -> None:
            for reply in replies:
                packet, where = listening.recvfrom(2048)
                assert packet[:8] == struct.pack("!HHI", 1, 0, MAGIC)
                if reply:
                    listening.sendto(reply(packet[8:20]), where)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield listening.getsockname()[1]
        thread.join(PATIENT_S)
        assert not thread.is_alive()


def good(number: bytes) -> bytes:
    return response(number, (XOR_MAPPED, hidden(LOCAL, number)))


def test_a_server_that_answers_is_told_and_one_lost_packet_is_no_end():
    with server(None, good) as port:
        told = found(ice_servers=[f"stun:127.0.0.1:{port}"])["ICE server"]
    assert told.ok and told.value.endswith("answers, and sees this machine as 127.0.0.1")


def test_one_that_does_not_answer_is_found():
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as silent:
        silent.bind(("127.0.0.1", 0))
        with pytest.raises(TimeoutError, match=r"no answer within 0\.1 s"):
            answer(Server("stun", "127.0.0.1", silent.getsockname()[1], False), 0.1)
        port = silent.getsockname()[1]
    told = found(ice_servers=[f"turn:127.0.0.1:{port}"], turn_secret="s")["ICE server"]
    assert not told.ok and "refused" in told.value
    told = found(ice_servers=["stun:a:65536"])["ICE server"]
    assert not told.ok and "is no address" in told.value


def test_a_turn_server_over_tcp_is_connected_with():
    with socket.create_server(("127.0.0.1", 0)) as listening:
        url = f"turn:127.0.0.1:{listening.getsockname()[1]}?transport=tcp"
        assert found(ice_servers=[url], turn_secret="s")["ICE server"].ok
    assert not found(ice_servers=[url], turn_secret="s")["ICE server"].ok


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("stun:a.example", Server("stun", "a.example", 3478, False)),
        ("turn:a.example:9?transport=tcp", Server("turn", "a.example", 9, True)),
        ("turns:a.example", Server("turns", "a.example", 5349, True)),
        ("turn:[2001:db8::1]:3478?transport=udp", Server("turn", "2001:db8::1", 3478, False)),
    ],
)
def test_addresses_are_read(url, expected):
    assert server_of(url) == expected


@pytest.mark.parametrize(
    "url", ["", "stun:", "http://a", "stun:a:0", "stun:a:65536", "turn:a?transport=sctp", "stun:u@a"]
)
def test_what_is_no_address_is_refused(url):
    with pytest.raises(UserError, match="is no address"):
        server_of(url)


def test_a_certificate_is_looked_at(tmp_path):
    assert "one can be made" in found(tls="auto")["certificate"].value
    told = found(tls={"cert": f"{tmp_path}/nowhere.pem", "key": f"{tmp_path}/key.pem"})["certificate"]
    assert not told.ok and "nowhere.pem: cannot be read" in told.value

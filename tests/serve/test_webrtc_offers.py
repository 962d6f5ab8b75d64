"""Offers, candidates and what is refused of them."""

from __future__ import annotations

import asyncio
import random

import pytest
from aioice import Connection
from aiortc import RTCPeerConnection

from conf.schema.serve import ServeConfig
from serve import taps, webrtc
from serve.candidates import Reach
from serve.description import MOST_BYTES, read
from serve.problems import Problem
from tests.serve.browser import Browser, Room, until

HERE, PUBLIC = Reach(private=True, loopback=True), Reach(private=False, loopback=False)
LAN = Reach(private=True, loopback=False)


@pytest.fixture(scope="module")
def sdp() -> str:
    """A peer's offer of pictures, sound and data, without candidates."""

    async def run():
        browser = Browser()
        offer = (await browser.connection.createOffer()).sdp
        await browser.close()
        return offer

    return asyncio.run(run())


def line(host: str, port: str = "5000", kind: str = "host", transport: str = "udp", component: str = "1") -> str:
    return f"a=candidate:1 {component} {transport} 2113937151 {host} {port} typ {kind}"


@pytest.mark.parametrize(
    ("host", "here", "lan", "public"),
    [
        ("8.8.8.8", 1, 1, 1),
        ("2a00:1450:4001::1", 1, 1, 1),
        ("::ffff:8.8.8.8", 1, 1, 1),
        ("127.0.0.1", 1, 0, 0),
        ("127.9.9.9", 1, 0, 0),
        ("::1", 1, 0, 0),
        ("::ffff:127.0.0.1", 1, 0, 0),
        ("::127.0.0.1", 1, 0, 0),
        ("64:ff9b::7f00:1", 1, 0, 0),
        ("2002:7f00:1::", 1, 0, 0),
        ("10.1.2.3", 1, 1, 0),
        ("172.16.0.9", 1, 1, 0),
        ("192.168.0.9", 1, 1, 0),
        ("100.64.0.9", 1, 1, 0),
        ("::ffff:192.168.0.9", 1, 1, 0),
        ("fd12::9", 1, 1, 0),
        ("4f6b1d0e-3c55-4b7b-9d4f-0a2b.local", 1, 1, 0),
        ("169.254.169.254", 0, 0, 0),
        ("::ffff:169.254.169.254", 0, 0, 0),
        ("169.254.0.1", 0, 0, 0),
        ("fd00:ec2::254", 0, 0, 0),
        ("100.100.100.200", 0, 0, 0),
        ("168.63.129.16", 0, 0, 0),
        ("fe80::1", 0, 0, 0),
        ("fe80::1%eth0", 0, 0, 0),
        ("2a00:1450:4001::1%1", 0, 0, 0),
        ("224.0.0.251", 0, 0, 0),
        ("ff02::fb", 0, 0, 0),
        ("0.0.0.0", 0, 0, 0),
        ("0.1.2.3", 0, 0, 0),
        ("::", 0, 0, 0),
        ("::ffff:0.0.0.0", 0, 0, 0),
        ("255.255.255.255", 0, 0, 0),
        ("240.0.0.1", 0, 0, 0),
        ("example.org", 0, 0, 0),
        ("a.b.local", 0, 0, 0),
        ("127.1", 0, 0, 0),
        ("0x7f.0.0.1", 0, 0, 0),
        ("0177.0.0.1", 0, 0, 0),
    ],
)
def test_addresses(host, here, lan, public):
    found = [reach.candidate(line(host)) is not None for reach in (HERE, LAN, PUBLIC)]
    assert found == [bool(here), bool(lan), bool(public)]


@pytest.mark.parametrize(
    "text",
    [
        line("8.8.8.8", port="0"),
        line("8.8.8.8", port="53"),
        line("8.8.8.8", port="65536"),
        line("8.8.8.8", port="-5000"),
        line("8.8.8.8", port="9" * 5000),
        line("8.8.8.8", port="٥٠٠٠"),
        line("8.8.8.8", transport="tcp"),
        line("8.8.8.8", component="2"),
        line("8.8.8.8", kind="prflx"),
        "a=candidate:1 1 udp 1 8.8.8.8 5000",
        "a=candidate:",
    ],
)
def test_candidates_of_no_use(text):
    assert HERE.candidate(text) is None


@pytest.mark.parametrize(
    ("settings", "reach"),
    [
        ({}, HERE),
        ({"private_peers": "false"}, Reach(private=False, loopback=False)),
        ({"host": "10.0.0.5", "token": "x" * 16}, LAN),
        ({"host": "0.0.0.0", "token": "x" * 16}, PUBLIC),
        ({"host": "0.0.0.0", "token": "x" * 16, "private_peers": "true"}, LAN),
        ({"host": "example.org", "token": "x" * 16}, PUBLIC),
    ],
)
def test_reach_of_a_server(settings, reach):
    assert Reach.of(ServeConfig(**settings)) == reach


def test_candidates_are_taken_out_of_the_offer(sdp):
    given = "\r\n".join([line("8.8.8.8"), line("127.0.0.1"), line("8.8.8.8"), "a=end-of-candidates", ""])
    offered = read(sdp + given, PUBLIC, sound=True)
    assert [candidate.ip for candidate in offered.candidates] == ["8.8.8.8"]
    assert "candidate" not in offered.sdp
    many = "".join(line("8.8.8.8", port=str(5000 + number)) + "\r\n" for number in range(21))
    with pytest.raises(Problem, match="more than 20"):
        read(sdp + many, PUBLIC, sound=True)


def test_an_exotic_line_end_hides_no_candidate(sdp):
    """The library splits lines at more places than line ends."""
    for end in ("\x0b", "\x0c", "\x1c", "\x85", "\u2028"):
        offered = read(f"{sdp}a=x{end}{line('127.0.0.1')}{end}", PUBLIC, sound=True)
        assert "127.0.0.1" not in offered.sdp


def changed(sdp: str, old: str, new: str) -> str:
    assert old in sdp
    return sdp.replace(old, new)


@pytest.mark.parametrize(
    ("change", "type"),
    [
        (lambda sdp: "", "unprocessable"),
        (lambda sdp: None, "bad_request"),
        (lambda sdp: sdp + "\0", "bad_request"),
        (lambda sdp: sdp + "a=x\r\n" * 2000, "too_large"),
        (lambda sdp: sdp + "a=" + "x" * MOST_BYTES, "too_large"),
        (lambda sdp: sdp + "m=video 9 UDP/TLS/RTP/SAVPF 97\r\n" * 9, "unprocessable"),
        (lambda sdp: changed(sdp, "m=video", "m=text"), "unprocessable"),
        (lambda sdp: changed(sdp, "m=audio", "m=video"), "unprocessable"),
        (lambda sdp: changed(sdp, "a=rtcp-mux", "a=rtcp-mix"), "unprocessable"),
        (lambda sdp: changed(sdp, "a=group:BUNDLE 0", "a=group:BUNDLE 7"), "unprocessable"),
        (lambda sdp: changed(sdp, "a=group:BUNDLE", "a=group:LS"), "unprocessable"),
        (lambda sdp: changed(sdp, "a=mid:1", "a=mid:0"), "unprocessable"),
        (lambda sdp: changed(sdp, "a=mid:1", "a=mad:1"), "unprocessable"),
        (lambda sdp: changed(sdp, "a=fingerprint:", "a=fingerprints:"), "unprocessable"),
        (lambda sdp: changed(sdp, "a=fingerprint:sha-", "a=fingerprint:md-"), "unprocessable"),
        (lambda sdp: changed(sdp, "a=setup:actpass", "a=setup:holdconn"), "bad_request"),
        (lambda sdp: changed(sdp, "a=setup:actpass", "a=set"), "unprocessable"),
        (lambda sdp: changed(sdp, "a=ice-ufrag:", "a=ice-ufrag:x y"), "unprocessable"),
        (lambda sdp: changed(sdp, "a=ice-pwd:", "a=pwd:"), "unprocessable"),
        (lambda sdp: changed(sdp, "a=sctp-port", "a=port"), "unprocessable"),
        (lambda sdp: changed(sdp, "a=recvonly", "a=sendonly"), "unprocessable"),
        (lambda sdp: changed(sdp, "a=recvonly", "a=inactive"), "unprocessable"),
        (lambda sdp: changed(sdp, "opus/48000", "opal/48000"), "unprocessable"),
        (lambda sdp: changed(changed(sdp, "H264/90000", "H266/90000"), "VP8/90000", "AV1/90000"), "unprocessable"),
    ],
)
def test_offers_that_are_refused(sdp, change, type):
    with pytest.raises(Problem) as problem:
        read(change(sdp), PUBLIC, sound=True)
    assert problem.value.type == type
    assert "\n" not in problem.value.detail


def test_codec_of_pictures(sdp):
    assert read(sdp, PUBLIC, True).codec == "h264"
    assert read(sdp, PUBLIC, True).picture[0].parameters["profile-level-id"] == "42e01f"
    assert read(changed(sdp, "H264/90000", "H266/90000"), PUBLIC, True).codec == "vp8"
    assert read(changed(sdp, "packetization-mode=1", "packetization-mode=0"), PUBLIC, True).codec == "vp8"
    assert read(changed(sdp, "opus/48000", "opal/48000"), PUBLIC, sound=False).codec == "h264"
    assert read(changed(sdp, "a=recvonly\r\n", ""), PUBLIC, True).sdp.count("a=sendrecv") == 2


def test_a_strange_offer_is_refused_and_never_breaks(sdp, monkeypatch):
    """Whatever is done to an offer: it is answered, or refused with a problem; and nothing is left of it."""
    monkeypatch.setattr("aioice.ice.get_host_addresses", lambda use_ipv4, use_ipv6: [])
    choice = random.Random(20)

    def mutated() -> str:
        lines = (sdp + line("8.8.8.8") + "\r\n").split("\r\n")
        for _ in range(choice.choice((1, 1, 1, 2, 3, 8))):
            at, other = choice.randrange(len(lines)), choice.randrange(len(lines))
            kind = choice.randrange(7)
            if kind == 0:
                del lines[at]
            elif kind == 1:
                lines.insert(at, lines[other])
            elif kind == 2:
                lines[at], lines[other] = lines[other], lines[at]
            elif kind == 3:
                lines[at] = lines[at][: choice.randrange(len(lines[at]) + 1)]
            elif kind == 4:
                lines[at] = lines[at].replace(choice.choice("0123456789:=/ "), choice.choice(["", "-1", "é", "=", ":"]))
            elif kind == 5:
                lines[at] += choice.choice([" 4294967296", ";x", "/", "=1", "\x00", "\ud800", " " * 50])
            else:
                lines[at] = lines[at].split(":")[0]
        return "\r\n".join(lines)

    async def run():
        ends = {}
        for _ in range(200):
            room = Room()
            try:
                sdp, kind = await webrtc.answer(room, mutated(), ServeConfig())
                assert kind == "answer"
                assert "m=video" in sdp
                end = "answered"
            except Problem as problem:
                end = problem.type
            room.state = "ended"
            ends[end] = ends.get(end, 0) + 1
        await until(lambda: len(asyncio.all_tasks()) == 1)
        return ends

    ends = asyncio.run(run())
    assert set(ends) <= {"answered", "bad_request", "unprocessable", "too_large"}
    assert ends["answered"] > 20
    assert ends["unprocessable"] > 20


def test_what_only_the_library_refuses_is_a_problem_too(sdp, monkeypatch):
    async def refuse(self, description):
        raise AssertionError

    monkeypatch.setattr(RTCPeerConnection, "setRemoteDescription", refuse)

    async def run():
        with pytest.raises(Problem) as problem:
            await webrtc.answer(Room(), sdp, ServeConfig())
        await until(lambda: len(asyncio.all_tasks()) == 1)
        return problem.value.type

    assert asyncio.run(run()) == "unprocessable"


@pytest.mark.parametrize(
    ("found", "added"),
    [("192.168.0.7", ["192.168.0.7"]), ("127.0.0.1", []), ("169.254.169.254", []), (None, [])],
)
def test_what_a_name_turns_out_to_be_is_looked_at_too(monkeypatch, found, added):
    class Network:
        async def resolve(self, name):
            assert name == "4f6b.local"
            return found

    async def network(subscriber):
        return Network()

    monkeypatch.setattr(taps, "get_or_create_mdns_protocol", network)

    async def run():
        connection = Connection(ice_controlling=False)
        await taps.resolve(connection, LAN.candidate(line("4f6b.local")), LAN)
        return [candidate.host for candidate in connection.remote_candidates]

    assert asyncio.run(run()) == added


def test_without_multicast_a_name_is_passed_over(monkeypatch):
    async def network(subscriber):
        raise OSError

    monkeypatch.setattr(taps, "get_or_create_mdns_protocol", network)
    asyncio.run(taps.resolve(Connection(ice_controlling=False), LAN.candidate(line("4f6b.local")), LAN))

"""Buckets, crowds, callers and TURN's credentials, without a port."""

import base64
import hashlib
import hmac
import random

import pytest

from conf.errors import UserError
from conf.schema.serve import ServeConfig
from serve import ice
from serve.limits import Buckets, Crowd, Limit, caller, site
from serve.problems import Problem


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


def test_no_more_than_a_minutes_worth_in_any_minute_and_no_fewer_in_the_long_run():
    clock, chance = Clock(), random.Random(1)
    buckets, let = Buckets(30, clock=clock), []
    for _ in range(20_000):
        clock.now += chance.random() * 0.5
        try:
            buckets.take("session", "a")
            let.append(clock.now)
        except Problem as problem:
            assert problem.type == "too_many"
            wait = problem.retry_after_s
            assert 0 < wait <= 2
    assert len(let) == pytest.approx(clock.now / 2 + 30, abs=2)
    for at in let[:: len(let) // 50]:
        assert sum(at <= one < at + 60 for one in let) <= 61


def test_a_limit_does_not_pile_up_and_counts_what_is_over_it():
    clock = Clock()
    limit = Limit(2, 5, clock)
    clock.now += 100
    assert [limit.wait_s() for _ in range(7)] == [0] * 5 + [0.5] * 2
    assert limit.over == 2
    with pytest.raises(Problem) as refused:
        limit.check()
    assert (refused.value.type, refused.value.retry_after_s, limit.over) == ("too_many", 1.0, 3)
    clock.now += 0.5
    limit.check()
    assert limit.over == 0


def test_who_comes_when_told_is_let_in():
    clock = Clock()
    buckets = Buckets(7, clock=clock)
    for _ in range(50):
        try:
            buckets.take("session", "a")
        except Problem as problem:
            clock.now += problem.retry_after_s + 1e-9
            buckets.take("session", "a")
    assert clock.now > 60


def test_callers_and_kinds_are_told_apart_and_sites_are_not():
    buckets = Buckets(1, clock=Clock())
    for kind, address in (
        ("session", "10.0.0.1"),
        ("session", "10.0.0.2"),
        ("upload", "10.0.0.1"),
        ("session", "2001:db8::1"),
    ):
        buckets.take(kind, address)
    for address in ("10.0.0.1", "::ffff:10.0.0.1", "2001:db8::ffff"):
        with pytest.raises(Problem):
            buckets.take("session", address)


def test_what_is_remembered_is_bounded_and_who_came_last_stays():
    buckets = Buckets(1, most=100, clock=Clock())
    buckets.take("session", "old")
    for number in range(1000):
        buckets.take("session", str(number))
        assert len(buckets) <= 100
    with pytest.raises(Problem):
        buckets.take("session", "999")
    buckets.take("session", "old")


def test_a_crowd_is_what_came_and_has_not_left():
    crowd, chance, inside = Crowd(20, 6, lambda address: address == "proxy"), random.Random(2), []
    for _ in range(5000):
        if inside and chance.random() < 0.45:
            address, leave = inside.pop(chance.randrange(len(inside)))
            leave()
            leave()  # as often as you like
        else:
            address = chance.choice(["a", "b", "c", "proxy"])
            there = sum(one == address for one, _ in inside)
            room = len(inside) < 20 and (there < 6 or address == "proxy")
            leave = crowd.enter(address)
            assert (leave is not None) == room
            if leave:
                inside.append((address, leave))
        assert len(crowd) == len(inside)


@pytest.mark.parametrize("address, expected", [
    ("10.1.2.3", "10.1.2.3"), ("::ffff:10.1.2.3", "10.1.2.3"), ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
    ("fe80::1%eth0", "fe80::/64"), ("a name", "a name"), ("", ""),
])  # fmt: skip
def test_what_counts_as_one_caller(address, expected):
    assert site(address) == expected


@pytest.mark.parametrize("peer, forwarded, names, expected", [
    ("127.0.0.1", "9.9.9.9", ["x"], "9.9.9.9"), ("::1", "1.1.1.1, 9.9.9.9", ["x"], "9.9.9.9"),
    ("::ffff:127.0.0.1", "9.9.9.9", ["x"], "9.9.9.9"), ("127.0.0.1", "9.9.9.9", [], "127.0.0.1"),
    ("8.8.8.8", "9.9.9.9", ["x"], "8.8.8.8"), ("127.0.0.1", "9.9.9.9:80", ["x"], "127.0.0.1"),
    ("127.0.0.1", None, ["x"], "127.0.0.1"), ("127.0.0.1", "9.9.9.9, unknown", ["x"], "127.0.0.1"),
    ("", "9.9.9.9", ["x"], ""), ("127.0.0.1", "2001:DB8::1", ["x"], "2001:db8::1"),
])  # fmt: skip
def test_whom_a_proxy_speaks_for(peer, forwarded, names, expected):
    assert caller(peer, forwarded, ServeConfig(names=names)) == expected


# --- ICE

TURN = ServeConfig(
    ice_servers=["stun:a.example", "turn:b.example:3478?transport=tcp", "turns:[::1]:5349"], turn_secret="s" * 20
)


def test_credentials_are_what_the_turn_server_computes():
    stun, turn = ice.ice_servers(TURN, now=1_000_000.0)
    assert stun == {"urls": ["stun:a.example"]}
    assert turn["urls"] == ["turn:b.example:3478?transport=tcp", "turns:[::1]:5349"]
    expiry, _, name = turn["username"].partition(":")
    assert int(expiry) >= 1_000_000 + TURN.session_s and name
    expected = hmac.digest(b"s" * 20, turn["username"].encode(), hashlib.sha1)
    assert base64.b64decode(turn["credential"]) == expected
    assert ice.ice_servers(TURN, now=1_000_000.0)[1]["username"] != turn["username"]


def test_what_is_not_shared_is_not_told():
    assert ice.ice_servers(ServeConfig()) == []
    assert "s" * 20 not in str(ice.ice_servers(TURN))


@pytest.mark.parametrize("address, secret, words", [
    ("turn:b.example", None, "serve.turn_secret"), ("b.example", "s", "no address"), ("stun:", "s", "no address"),
    ("stun:a b", "s", "no address"), ("turn:b.example?transport=sctp", "s", "no address"), ("http://x", "s", "no addr"),
])  # fmt: skip
def test_addresses_that_no_browser_takes_are_refused_at_the_start(address, secret, words):
    with pytest.raises(UserError, match=words):
        ServeConfig(ice_servers=[address], turn_secret=secret)


@pytest.mark.parametrize("settings, words", [
    ({"origins": ["foo"]}, "serve.origins=\"foo\": is no origin"), ({"origins": ["https://a.example/x"]}, "no origin"),
    ({"names": ["a b"]}, "serve.names=\"a b\": is no name"), ({"names": ["http://a.example"]}, "no name"),
    ({"host": "[::1]"}, "use serve.host=::1"),
])  # fmt: skip
def test_addresses_that_nobody_can_mean_are_refused_at_the_start(settings, words):
    with pytest.raises(UserError) as caught:
        ServeConfig(**settings)
    assert words in str(caught.value)


def test_those_that_can_be_are_taken():
    ServeConfig(
        origins=["https://a.example", "http://127.0.0.1:8000/"], names=["a.example:81", "::1", "[::1]:80"], host="::1"
    )

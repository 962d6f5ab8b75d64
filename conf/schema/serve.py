"""How sessions are served: where, to whom, how many, for how long."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass, field, fields
from typing import Any

from conf.errors import UserError, not_negative, positive
from conf.schema import Config
from conf.secret import told
from conf.settings import check_choices, one_of
from conf.typed import shown

TLS = ("auto", "off")
AUTO = "auto"
PEERS = ("auto", "true", "false")
LOGS = ("text", "json")
SECRETS = ("token", "turn_secret", "join_secret")
LEAST_TOKEN = 16
"""Characters of a token that is not guessed."""
ICE = re.compile(r"(stuns?|turns?):(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(:\d{1,5})?(\?transport=(udp|tcp))?")
"""A STUN or TURN server (RFC 7064 and RFC 7065)."""
HOST_PORT = r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(:\d{1,5})?"
ORIGIN, NAME = re.compile(rf"https?://{HOST_PORT}/?", re.I), re.compile(rf"{HOST_PORT}|[0-9A-Fa-f:.]+")
MOST_JOINED = 64
"""Pipelines behind one gateway."""


@dataclass
class ServeConfig:
    """The gateway: one port for people and programs, one for stages."""

    host: str = "127.0.0.1"
    """The address that people and programs connect to; any but a loopback address wants `serve.token`."""
    port: int = 8080
    """Of HTTP and WebSockets; 0: a free one."""
    token: str | None = None
    """Who knows it may open sessions; `everframe serve` prints an address that carries it: letters, digits and `. _ ~
    -`. `@FILE`: what is in that file."""
    tls: Any = "off"
    """`auto` makes a certificate of its own, which browsers ask about once; `off`: plain HTTP, for this machine or
    behind a proxy; `{cert: FILE, key: FILE}`: yours, in PEM."""
    models: list[str] = field(default_factory=list)
    """Models to be served on one port, each as `model=NAME` would be; empty: the one of `model`."""
    max_sessions: str = AUTO
    """Sessions of each model at once; `auto`: as many as its plan keeps in time, as measured at the start."""
    sessions_per_caller: int = 8
    """Sessions that one address may have at once."""
    posts_per_minute: int = 30
    """Sessions that one address may open, and uploads that it may send, in a minute."""
    queue: int = 16
    """Sessions that may wait for a place, each told its position; 0: who finds no place is refused."""
    session_s: float = 1800.0
    """Longest session."""
    lease_s: float = 30.0
    """How long a session without a viewer is kept for one that comes back."""
    idle_s: float = 300.0
    """How long a session goes on in which nothing is said, shown, pressed or typed."""
    drain_s: float = 30.0
    """How long sessions under way may go on once the server was told to end."""
    margin_s: float = 0.12
    """How long before its frames are due a chunk is to be there: what its way may vary by."""
    headroom: float = 0.4
    """Share of the measured rate that is kept free of sessions."""
    origins: list[str] = field(default_factory=list)
    """Other sites whose pages may talk to the server, `https://example.org`."""
    names: list[str] = field(default_factory=list)
    """Names and addresses by which it is reached, beside its own, such as a proxy's."""
    ice_servers: list[str] = field(default_factory=list)
    """STUN and TURN servers, `turn:turn.example.org:3478?transport=tcp`."""
    turn_secret: str | None = None
    """What TURN servers and this one share (coturn's static-auth-secret): credentials are made of it for each session.
    `@FILE`: what is in that file."""
    private_peers: str = one_of(PEERS, "auto")
    """Whether media may go to private addresses; `auto`: where `serve.host` is loopback or private."""
    link_host: str | None = None
    """The address of this machine that stages connect to; null: the one by which their machines know this one."""
    link_port: int = 0
    """Likewise; 0: a free one."""
    join: int = 0
    """Pipelines that run elsewhere (torchrun, a batch system) and join with `control=ADDRESS`; 0: the server runs its
    own."""
    join_secret: str | None = None
    """What they show, 32 hexadecimal digits; null: one is made, and printed with the command line that starts them.
    `@FILE`: what is in that file."""
    logs: str = one_of(LOGS, "text")
    """How the log is written, to standard error."""

    def __post_init__(self):
        self.max_sessions = str(self.max_sessions).lower()
        self.private_peers = str(self.private_peers).lower()
        self.tls = "off" if self.tls is False else self.tls
        check_choices(self, "serve.")
        for name in SECRETS:
            setattr(self, name, told(f"serve.{name}", getattr(self, name)))
        self._check_tls()
        self._check_addresses()
        for name in ("port", "link_port"):
            if not 0 <= getattr(self, name) <= 65535:
                raise UserError(
                    f"serve.{name}={getattr(self, name)}", "is no port", "use 1 to 65535, or 0 for a free one"
                )
        for name in ("sessions_per_caller", "posts_per_minute"):
            positive(f"serve.{name}", getattr(self, name), most=1_000_000)
        for name in ("session_s", "lease_s", "idle_s", "drain_s"):
            positive(f"serve.{name}", getattr(self, name), most=10_000_000)
        not_negative("serve.margin_s", self.margin_s)
        if not 0 <= self.queue <= 10_000:
            raise UserError(f"serve.queue={self.queue}", "is a number of sessions from 0 to 10000", "use 16")
        if not 0 <= self.headroom < 1:
            raise UserError(f"serve.headroom={self.headroom}", "is a share from 0 to below 1", "use 0.4")
        if self.max_sessions != AUTO and not (self.max_sessions.isdigit() and 0 < int(self.max_sessions) <= 10_000):
            raise UserError(f"serve.max_sessions={shown(self.max_sessions)}", "is auto or a number from 1", "use auto")
        if self.token is not None and len(self.token) < LEAST_TOKEN:
            raise UserError("serve.token", f"has fewer than {LEAST_TOKEN} characters", "openssl rand -hex 16 makes one")
        if self.token is not None and not re.fullmatch("[A-Za-z0-9._~-]+", self.token):
            rule = "may have letters, digits and . _ ~ - alone, which an address carries as they are"
            raise UserError("serve.token", rule, "openssl rand -hex 16 makes one")
        if self.join_secret is not None and not re.fullmatch("[0-9a-f]{32}", self.join_secret):
            raise UserError("serve.join_secret", "is 32 hexadecimal digits", "openssl rand -hex 16 makes one")
        if not 0 <= self.join <= MOST_JOINED:
            raise UserError(f"serve.join={self.join}", f"is a number of pipelines up to {MOST_JOINED}", "use 1")
        if not self.local and self.token is None:
            rule = "can be reached by others, and nothing is asked of them"
            raise UserError(f"serve.host={self.host}", rule, "give serve.token=$(openssl rand -hex 16)")
        if self.link_host in ("0.0.0.0", "::", ""):
            rule = "is no address that stages can connect to"
            raise UserError(f"serve.link_host={self.link_host}", rule, "name this machine as the others know it")

    def _check_tls(self) -> None:
        if isinstance(self.tls, str) and self.tls in TLS:
            return
        given = self.tls if isinstance(self.tls, dict) else {}
        if set(given) != {"cert", "key"} or not all(isinstance(path, str) for path in given.values()):
            rule = "is auto, off, or names two files"
            raise UserError(f"serve.tls={shown(self.tls)}", rule, "use {cert: cert.pem, key: key.pem}")

    def _check_addresses(self) -> None:
        if self.host.startswith("["):
            bare = self.host.strip("[]")
            raise UserError(f"serve.host={self.host}", "is written without brackets", f"use serve.host={bare}")
        for origin in self.origins:
            if not ORIGIN.fullmatch(origin.strip()):
                rule = "is no origin of pages"
                raise UserError(f"serve.origins={shown(origin)}", rule, "use https://HOST or https://HOST:PORT")
        for name in self.names:
            if not NAME.fullmatch(name.strip()):
                raise UserError(f"serve.names={shown(name)}", "is no name of a server", "use HOST or HOST:PORT")
        for address in self.ice_servers:
            name = f"serve.ice_servers={shown(address)}"
            if not ICE.fullmatch(address):
                rule = "is no address of a STUN or TURN server"
                raise UserError(name, rule, "use stun:HOST[:PORT] or turn:HOST[:PORT][?transport=tcp]")
            if address.startswith("turn") and not self.turn_secret:
                rule = "is a TURN server, which wants a name and a password"
                raise UserError(name, rule, "give serve.turn_secret, the server's static-auth-secret")

    @property
    def local(self) -> bool:
        """Whether only this machine can reach it."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False

    @property
    def most(self) -> int | None:
        """Sessions of each model at once; None: as many as are kept in time."""
        return None if self.max_sessions == AUTO else int(self.max_sessions)


@dataclass
class ServedConfig(Config):
    """One model of `launch.serve`."""

    serve: ServeConfig = field(default_factory=ServeConfig)

    @property
    def run(self) -> Config:
        """What its workers are told: they know of no gateway."""
        return Config(**{one.name: getattr(self, one.name) for one in fields(Config)})

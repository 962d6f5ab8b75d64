"""The certificate of `serve.tls`: yours, or one that is made here, which browsers ask about once.

One that is made is signed by nobody else, so a browser cannot know it; people compare its fingerprint with the one that
is printed. It is kept, so that they are asked once and not at every start.
"""

from __future__ import annotations

import datetime
import ipaddress
import os
import socket
import ssl
import tempfile
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from conf.errors import UserError
from conf.schema.serve import AUTO, ServeConfig

DAYS, SPARE_DAYS = 365, 7
"""Days that a certificate of ours is good for, and how many are left when another one is made."""
NAME_LENGTH = 64
"""Characters of a common name (RFC 5280, A.1)."""


@dataclass(frozen=True)
class Certificate:
    """A certificate and its key.

    Attributes:
        cert, key: PEM files; the same one where both are in it.
        fingerprint: SHA-256 as browsers show it: pairs of hexadecimal digits with colons between.
    """

    cert: Path
    key: Path
    fingerprint: str

    def context(self) -> ssl.SSLContext:
        """What a server speaks TLS 1.2 and 1.3 with."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.load_cert_chain(self.cert, self.key, password=_no_password)
        context.set_alpn_protocols(["http/1.1"])
        return context


def certificate(
    serve: ServeConfig, folder: Path | None = None, now: datetime.datetime | None = None
) -> Certificate | None:
    """What `serve.tls` asks for; None: plain HTTP.

    Args:
        serve: the settings.
        folder: where a certificate of ours is kept; None: in the user's cache.
        now: with its time zone.

    Raises:
        UserError: a file of `serve.tls` cannot be used, or a certificate of ours cannot be kept.
    """
    now = now or datetime.datetime.now(datetime.UTC)
    if serve.tls == AUTO:
        return _own(folder or _cache(), _names(serve), now)
    if isinstance(serve.tls, dict):
        return _given(Path(serve.tls["cert"]).expanduser(), Path(serve.tls["key"]).expanduser(), now)
    return None


def _given(cert: Path, key: Path, now: datetime.datetime) -> Certificate:
    """A pair of files that is there, fits and is in force.

    Raises:
        UserError: it is not.
    """
    for which, path in (("cert", cert), ("key", key)):
        try:
            path.read_bytes()
        except OSError as error:
            rule = f"cannot be read ({error.strerror})"
            raise UserError(f"serve.tls.{which}={path}", rule, "name a file in PEM, or use serve.tls=auto") from error
    try:
        read = x509.load_pem_x509_certificate(cert.read_bytes())
    except ValueError as error:
        raise UserError(f"serve.tls.cert={cert}", "is no certificate in PEM", "name the file of the chain") from error
    found = Certificate(cert, key, _fingerprint(read))
    try:
        found.context()
    except (ssl.SSLError, ValueError) as error:
        rule = "is no key in PEM that fits the certificate, or it has a password"
        raise UserError(f"serve.tls.key={key}", rule, "name the key that the certificate was made with") from error
    if not read.not_valid_before_utc <= now < read.not_valid_after_utc:
        first, last = (f"{day:%Y-%m-%d}" for day in (read.not_valid_before_utc, read.not_valid_after_utc))
        raise UserError(f"serve.tls.cert={cert}", f"is in force from {first} to {last} only", "get a new one")
    return found


def _own(folder: Path, names: tuple[str, ...], now: datetime.datetime) -> Certificate:
    """The certificate that was made before, if it is good for these names and a while yet, or a new one.

    Raises:
        UserError: it cannot be kept.
    """
    file = folder / "serve.pem"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if (kept := _kept(file, names, now)) is not None:
            return kept
        made, data = _made(names, now)
        _write(file, data)
    except OSError as error:
        rule = f"cannot be kept in {folder} ({error.strerror})"
        raise UserError("serve.tls=auto: a certificate", rule, "set XDG_CACHE_HOME to a folder of yours") from error
    return Certificate(file, file, _fingerprint(made))


def _kept(file: Path, names: tuple[str, ...], now: datetime.datetime) -> Certificate | None:
    try:
        if file.stat().st_mode & 0o077 or file.stat().st_uid != os.getuid():  # others may know its key
            return None
        read = x509.load_pem_x509_certificate(file.read_bytes())
        known = read.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        found = Certificate(file, file, _fingerprint(read))
        found.context()
    except (FileNotFoundError, ValueError, x509.ExtensionNotFound, ssl.SSLError):
        return None
    until = read.not_valid_after_utc - datetime.timedelta(days=SPARE_DAYS)
    good = read.not_valid_before_utc <= now < until and set(_general(names)) <= set(known)
    return found if good else None


def _made(names: tuple[str, ...], now: datetime.datetime) -> tuple[x509.Certificate, bytes]:
    """A certificate that its own key has signed, for TLS servers only, and both in PEM."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"everframe {names[0]}"[:NAME_LENGTH])])
    made = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(days=DAYS))
        .add_extension(x509.SubjectAlternativeName(_general(names)), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .sign(key, hashes.SHA256())
    )
    plain = serialization.NoEncryption()
    secret = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, plain)
    return made, secret + made.public_bytes(serialization.Encoding.PEM)


def _write(file: Path, data: bytes) -> None:
    """All at once: another server that starts now reads the old file or the new one."""
    handle, name = tempfile.mkstemp(dir=file.parent)  # of mode 600
    try:
        with os.fdopen(handle, "wb") as part:
            part.write(data)
        Path(name).replace(file)
    except OSError:
        Path(name).unlink(missing_ok=True)
        raise


def _names(serve: ServeConfig) -> tuple[str, ...]:
    """By what a browser may ask for it, each once."""
    found = [serve.host, *(_without_port(name) for name in serve.names)]
    found += ["localhost", "127.0.0.1", "::1", socket.gethostname()]
    wild = {"0.0.0.0", "::", ""}
    return tuple(dict.fromkeys(name.lower() for name in found if name not in wild))


def _without_port(name: str) -> str:
    name = name.strip()
    if name.startswith("["):
        return name[1:].partition("]")[0]
    return name.partition(":")[0] if name.count(":") == 1 else name


def _general(names: Iterable[str]) -> list[x509.GeneralName]:
    found: list[x509.GeneralName] = []
    for name in names:
        with suppress(UnicodeError):  # a host's idea of its name may be none
            try:
                found.append(x509.IPAddress(ipaddress.ip_address(name)))
            except ValueError:
                found.append(x509.DNSName(name.encode("idna").decode()))
    return found


def _fingerprint(read: x509.Certificate) -> str:
    return read.fingerprint(hashes.SHA256()).hex(":").upper()


def _cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "everframe"


def _no_password() -> str:
    """For a key with a password nobody is asked at the terminal: there may be none."""
    return ""

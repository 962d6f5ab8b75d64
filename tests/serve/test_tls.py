"""Certificates: made once and used again, or yours, looked at before anything starts."""

import datetime
import ssl

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization

from conf.errors import UserError
from conf.schema.serve import ServeConfig
from serve import tls
from serve.tls import DAYS, SPARE_DAYS, certificate

NOW = datetime.datetime.now(datetime.UTC)
AUTO = ServeConfig(tls="auto", names=["Live.Example:8443", "192.168.7.7", "[2001:db8::1]:80"])


def days(number: float) -> datetime.datetime:
    return NOW + datetime.timedelta(days=number)


def parts(found) -> x509.Certificate:
    return x509.load_pem_x509_certificate(found.cert.read_bytes())


def test_nothing_is_made_where_nothing_is_wanted(tmp_path):
    assert certificate(ServeConfig(), tmp_path / "kept", NOW) is None
    assert not (tmp_path / "kept").exists()


def test_it_is_for_all_names_of_the_server_and_for_nobody_else(tmp_path):
    found = certificate(AUTO, tmp_path / "kept", NOW)
    names = parts(found).extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert {"localhost", "live.example"} <= set(names.get_values_for_type(x509.DNSName))
    assert {"127.0.0.1", "::1", "192.168.7.7", "2001:db8::1"} <= set(
        map(str, names.get_values_for_type(x509.IPAddress))
    )
    assert found.cert.stat().st_mode & 0o777 == 0o600 and found.cert.parent.stat().st_mode & 0o777 == 0o700
    assert [path.name for path in found.cert.parent.iterdir()] == ["serve.pem"]


def test_a_browser_that_trusts_it_connects_and_another_does_not(tmp_path):
    found = certificate(AUTO, tmp_path, NOW)
    for trusting, name, good in ((True, "localhost", True), (True, "evil.example", False), (False, "localhost", False)):
        client = ssl.create_default_context(cafile=found.cert if trusting else None)
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        ours = client.wrap_bio(incoming, outgoing, server_hostname=name)
        theirs = found.context().wrap_bio(outgoing, incoming, server_side=True)
        assert shaken(ours, theirs) is good, name
        if good:
            assert ours.version() == "TLSv1.3"
            fingerprint = x509.load_der_x509_certificate(ours.getpeercert(True)).fingerprint(tls.hashes.SHA256())
            assert found.fingerprint == fingerprint.hex(":").upper()


def shaken(*ends) -> bool:
    """Whether a handshake between two ends comes to its end."""
    for _ in range(6):
        for end in ends:
            try:
                end.do_handshake()
            except ssl.SSLWantReadError:
                continue
            except ssl.SSLError:
                return False
    return True


def test_it_is_used_again_until_a_week_before_its_end(tmp_path):
    first = certificate(AUTO, tmp_path, NOW)
    assert certificate(AUTO, tmp_path, days(DAYS - SPARE_DAYS - 1)) == first
    second = certificate(AUTO, tmp_path, days(DAYS - SPARE_DAYS + 1))
    assert second.fingerprint != first.fingerprint
    assert certificate(AUTO, tmp_path, days(DAYS)) == second


def test_another_is_made_for_other_names_or_where_its_key_may_be_known(tmp_path):
    first = certificate(ServeConfig(tls="auto"), tmp_path, NOW)
    second = certificate(AUTO, tmp_path, NOW)
    assert second.fingerprint != first.fingerprint
    assert certificate(ServeConfig(tls="auto"), tmp_path, NOW) == second  # it has these names, too
    second.cert.chmod(0o644)
    third = certificate(AUTO, tmp_path, NOW)
    assert third.fingerprint != second.fingerprint and third.cert.stat().st_mode & 0o077 == 0
    third.cert.write_text("damaged")
    assert certificate(AUTO, tmp_path, NOW).fingerprint != third.fingerprint


def test_where_it_cannot_be_kept_it_says_so(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="XDG_CACHE_HOME"):
        certificate(AUTO, tmp_path / "file" / "kept", NOW)


@pytest.fixture
def pair(tmp_path):
    """cert.pem and key.pem; and key2.pem, of another."""
    for suffix, folder in (("", "a"), ("2", "b")):
        found = certificate(AUTO, tmp_path / folder, NOW)
        text = found.cert.read_text()
        at = text.index("-----BEGIN CERT")
        (tmp_path / f"key{suffix}.pem").write_text(text[:at])
        (tmp_path / f"cert{suffix}.pem").write_text(text[at:])
    key = serialization.load_pem_private_key((tmp_path / "key.pem").read_bytes(), None)
    locked = serialization.BestAvailableEncryption(b"word")
    secret = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, locked)
    (tmp_path / "locked.pem").write_bytes(secret)
    (tmp_path / "nothing.pem").write_text("nothing")
    return tmp_path


def test_yours_is_used_as_it_is(pair):
    given = ServeConfig(tls={"cert": str(pair / "cert.pem"), "key": str(pair / "key.pem")})
    found = certificate(given, now=NOW)
    assert (found.cert, found.key) == (pair / "cert.pem", pair / "key.pem")
    assert found.context() is not None


@pytest.mark.parametrize("cert, key, day, words", [
    ("none.pem", "key.pem", 0, "serve.tls.cert=.*none.pem.*cannot be read"),
    ("cert.pem", "none.pem", 0, "serve.tls.key=.*none.pem.*cannot be read"),
    (".", "key.pem", 0, "cannot be read"), ("nothing.pem", "key.pem", 0, "no certificate in PEM"),
    ("key.pem", "key.pem", 0, "no certificate in PEM"), ("cert.pem", "nothing.pem", 0, "no key in PEM"),
    ("cert.pem", "cert.pem", 0, "no key in PEM"), ("cert.pem", "key2.pem", 0, "fits the certificate"),
    ("cert.pem", "locked.pem", 0, "password"), ("cert.pem", "key.pem", DAYS + 1, "in force from"),
    ("cert.pem", "key.pem", -1, "in force from"),
])  # fmt: skip
def test_yours_is_refused_in_one_line(pair, cert, key, day, words):
    given = ServeConfig(tls={"cert": str(pair / cert), "key": str(pair / key)})
    with pytest.raises(UserError, match=words) as caught:
        certificate(given, now=days(day))
    assert "\n" not in str(caught.value)

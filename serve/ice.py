"""What browsers need to get through: STUN and TURN servers, with credentials that end by themselves.

TURN servers that share a secret with this one (coturn's `use-auth-secret`, draft-uberti-behave-turn-rest) take a user
name `EXPIRY:NAME` with base64(HMAC-SHA1(secret, user name)) as its password, so nothing is stored and no
lasting password is in a page.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import secrets
import time
from typing import Any

from conf.schema.serve import ServeConfig

SPARE_S = 600.0
"""How long credentials outlive the longest session."""


def credentials(secret: str, name: str, expires_at: int) -> tuple[str, str]:
    """A user name and its password.

    Args:
        secret: shared with the TURN server.
        name: of whoever will use them, for the TURN server's log.
        expires_at: seconds since 1970.
    """
    user = f"{expires_at}:{name}"
    digest = hmac.new(secret.encode(), user.encode(), hashlib.sha1).digest()
    return user, base64.b64encode(digest).decode()


def ice_servers(serve: ServeConfig, now: float | None = None) -> list[dict[str, Any]]:
    """`iceServers` of an RTCConfiguration; each call makes credentials of its own.

    Args:
        now: seconds since 1970.
    """
    plain = [address for address in serve.ice_servers if not _relays(address)]
    relays = [address for address in serve.ice_servers if _relays(address)]
    found: list[dict[str, Any]] = [{"urls": plain}] if plain else []
    if relays and serve.turn_secret:
        expires_at = int((time.time() if now is None else now) + serve.session_s + SPARE_S)
        user, password = credentials(serve.turn_secret, secrets.token_hex(8), expires_at)
        found.append({"urls": relays, "username": user, "credential": password})
    return found


def _relays(address: str) -> bool:
    return address.startswith("turn")

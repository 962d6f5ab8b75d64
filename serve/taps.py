"""Where the WebRTC library (aiortc) is taken in hand: what it keeps to itself, and a session has to know or decide.

All of it is private to the library; tests say when a version of it has moved something.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
import struct
from collections.abc import Callable
from typing import Any

from aioice import Connection
from aioice.ice import get_or_create_mdns_protocol
from aiortc import RTCIceCandidate, RTCIceServer, RTCRtpSender, RTCSctpTransport
from aiortc.rtcdtlstransport import RTCDtlsTransport
from aiortc.rtcicetransport import candidate_to_aioice, parse_stun_turn_uri
from aiortc.rtp import RTCP_PSFB_APP, RtcpPsfbPacket, RtcpRrPacket, RtcpSrPacket, unpack_remb_fci

from serve.candidates import Reach

log = logging.getLogger(__name__)

LOOPBACK = "127.0.0.1"


def listen(
    sender: RTCRtpSender,
    key_frame: Callable[[], None],
    estimate: Callable[[float], None],
    lost: Callable[[float], None],
) -> None:
    """Hear what a viewer says of its pictures: the library would tell its own encoder, which has nothing to do here.

    Args:
        key_frame: called for each request for one (PLI, RFC 4585 section 6.3.1).
        estimate: called with bits per second that get through (REMB), not cut to what the encoder likes.
        lost: called with the share of packets lost, 0 to 1, from receiver reports.
    """
    handle = sender._handle_rtcp_packet

    async def heard(packet: Any) -> None:
        if isinstance(packet, RtcpRrPacket | RtcpSrPacket):
            for report in packet.reports:
                if report.ssrc == sender._ssrc:
                    lost(report.fraction_lost / 256)
        elif isinstance(packet, RtcpPsfbPacket) and packet.fmt == RTCP_PSFB_APP:
            with contextlib.suppress(ValueError, struct.error):
                bits_per_second, sources = unpack_remb_fci(packet.fci)
                if sender._ssrc in sources:
                    estimate(float(bits_per_second))
        await handle(packet)

    sender._send_keyframe, sender._handle_rtcp_packet = key_frame, heard


def guard(transport: RTCDtlsTransport, data: RTCSctpTransport | None, wrong: Callable[[], None]) -> None:
    """Call `wrong` for packets that the library stumbles over, or is filled up with, instead of a broken task.

    Args:
        data: of data channels, if there are any.
    """
    _guard(transport, "_handle_rtcp_data", wrong)
    _guard(transport, "_handle_rtp_data", wrong)
    if data is not None:
        _guard(data, "_handle_data", wrong, lambda: data._advertised_rwnd < 0)


def _guard(owner: Any, name: str, wrong: Callable[[], None], full: Callable[[], bool] = lambda: False) -> None:
    """`full`: whether more came than the other side was allowed to send before it is read."""
    handle = getattr(owner, name)

    async def guarded(*args: Any, **options: Any) -> None:
        try:
            await handle(*args, **options)
        except ConnectionError:
            raise
        except Exception as error:  # whatever a stranger's packet makes it do
            log.info("a viewer's packet cannot be read (%s)", type(error).__name__)
            wrong()
        if full():
            wrong()

    setattr(owner, name, guarded)


def servers(given: list[dict[str, Any]]) -> list[RTCIceServer]:
    """STUN and TURN servers for this side, as `serve.ice.ice_servers` lists them; never the library's own default.

    An address that the library cannot read, such as one with an IPv6 address in it, is left to the browser.
    """
    found = []
    for server in given:
        for url in server["urls"]:
            with contextlib.suppress(ValueError):
                parse_stun_turn_uri(url)
                found.append(RTCIceServer(url, server.get("username"), server.get("credential")))
    return found


def gather_loopback(connection: Connection) -> None:
    """Let the loopback address be among those that a viewer is told: the library leaves it out."""
    gather = connection.get_component_candidates

    async def with_loopback(component: int, addresses: list[str], timeout: int = 5) -> list:
        return await gather(component=component, addresses=[*addresses, LOOPBACK], timeout=timeout)

    connection.get_component_candidates = with_loopback


async def resolve(connection: Connection, candidate: RTCIceCandidate, reach: Reach) -> None:
    """Add a candidate that hides behind a name of the local network, if what it turns out to be is believed.

    The library looks such names up while the offer waits, and believes what it is told.
    """
    with contextlib.suppress(OSError):  # no multicast here
        protocol = await get_or_create_mdns_protocol(connection)  # which `connection.close` lets go of
        address = await protocol.resolve(candidate.ip)
        if address is not None and reach.allows(address):
            found = dataclasses.replace(candidate, ip=address)
            await connection.add_remote_candidate(candidate_to_aioice(found))


async def cancelled(tasks: set[asyncio.Task]) -> None:
    """Cancel tasks, and wait until they are gone."""
    for task in tasks:
        task.cancel()
    if tasks:
        await asyncio.wait(tasks)

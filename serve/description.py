"""A viewer's offer, read with care: nothing in it reaches the WebRTC library that was not looked at here.

It is a stranger's text (SDP, RFC 8866; what browsers write into it: RFC 9429), and the library trusts it.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from aiortc import RTCIceCandidate, RTCRtpCodecCapability, RTCRtpSender
from aiortc.codecs import CODECS
from aiortc.rtcdtlstransport import X509_DIGEST_ALGORITHMS
from aiortc.rtcpeerconnection import find_common_codecs
from aiortc.sdp import DIRECTIONS, MediaDescription, SessionDescription

from serve.candidates import MOST, Reach
from serve.problems import Problem

MOST_BYTES, MOST_LINES, MOST_FORMATS = 65536, 1500, 128
"""Of an offer, and of one section's codecs."""
KINDS = ("audio", "video", "application")
"""Of sections; each once."""
PICTURES = (("h264", "video/h264", "42e01f"), ("h264", "video/h264", "42001f"), ("vp8", "video/vp8", None))
"""Codecs of pictures, the preferred first: our name, the type, the profile."""
_TOKEN = re.compile(r"[!-~]{1,64}")
_UFRAG, _PASSWORD = re.compile(r"[A-Za-z0-9+/]{4,256}"), re.compile(r"[A-Za-z0-9+/]{22,256}")


class Offered(NamedTuple):
    """What a viewer offers.

    Attributes:
        sdp: the text without candidates, which are added one by one.
        candidates: those that are believed.
        codec: of the pictures it is sent.
        picture: the same as the library has it.
        heard: whether it has a section for sound.
        talks: whether it has one for data channels.
    """

    sdp: str
    candidates: tuple[RTCIceCandidate, ...]
    codec: str
    picture: tuple[RTCRtpCodecCapability, ...]
    heard: bool
    talks: bool


def read(sdp: object, reach: Reach, sound: bool) -> Offered:
    """Look at an offer.

    Args:
        reach: where media may go.
        sound: whether the model is heard, so that a section for sound is to have Opus.

    Raises:
        Problem: `bad_request`, `too_large` or `unprocessable`, with what is wrong.
    """
    if not isinstance(sdp, str) or "\0" in sdp:
        raise Problem("bad_request", "sdp: is no text, send the offer's SDP")
    if len(sdp.encode(errors="replace")) > MOST_BYTES:
        raise Problem("too_large", f"sdp: has more than {MOST_BYTES // 1024} KiB, offer fewer codecs")
    lines = sdp.splitlines()  # as the library does it: at more places than line ends
    if len(lines) > MOST_LINES:
        raise Problem("too_large", f"sdp: has more than {MOST_LINES} lines, offer fewer codecs")
    head, *sections = _sections(lines)
    if len(sections) > len(KINDS):
        rule = "has more than one section each for sound, pictures and data"
        raise Problem("unprocessable", f"sdp: {rule}, offer max-bundle with one of each")
    candidates = _candidates(sections, reach)
    text = "\r\n".join([*head, *(line for section in sections for line in _kept(section))]) + "\r\n"
    media = _parsed(text)
    _check(media)
    by_kind = {section.kind: section for section in media}
    if sound and "audio" in by_kind and not _common(by_kind["audio"], "audio/opus"):
        raise Problem("unprocessable", "sdp: its sound has no Opus, offer opus/48000/2")
    codec, picture = _picture(by_kind["video"])
    return Offered(text, candidates, codec, picture, "audio" in by_kind, "application" in by_kind)


def _sections(lines: list[str]) -> list[list[str]]:
    """The lines before the first section, and those of each."""
    found: list[list[str]] = [[]]
    for line in lines:
        if line.startswith("m="):
            found.append([])
        found[-1].append(line)
    return found


def _kept(section: list[str]) -> list[str]:
    """Its lines without candidates; a direction that is not said is both (RFC 8866 section 6.7)."""
    kept = [line for line in section if not line.startswith(("a=candidate:", "a=end-of-candidates"))]
    said = any(line.removeprefix("a=") in DIRECTIONS for line in kept)
    return kept if said or not section[0].startswith(("m=audio", "m=video")) else [*kept, "a=sendrecv"]


def _candidates(sections: list[list[str]], reach: Reach) -> tuple[RTCIceCandidate, ...]:
    """Those that are believed, each once. Sections of a bundle name the same places, or some that are not used."""
    found = {}
    for line in (line for section in sections for line in section if line.startswith("a=candidate:")):
        candidate = reach.candidate(line)
        if candidate is not None:
            found.setdefault((candidate.ip, candidate.port), candidate)
    if len(found) > MOST:
        raise Problem("unprocessable", f"sdp: names more than {MOST} candidates, offer with bundlePolicy max-bundle")
    return tuple(found.values())


def _parsed(text: str) -> list[MediaDescription]:
    try:
        description = SessionDescription.parse(text)
        groups = [group.items for group in description.group if group.semantic == "BUNDLE"]
    except Exception as error:  # the parser asserts and indexes: whatever it stumbles over is the text's fault
        raise Problem("bad_request", "sdp: cannot be read, send an offer as createOffer makes it") from error
    mids = [media.rtp.muxId for media in description.media]
    if not all(isinstance(mid, str) and _TOKEN.fullmatch(mid) for mid in mids) or len(set(mids)) != len(mids):
        raise Problem("unprocessable", "sdp: its sections have no names of their own, give each an a=mid")
    if len(groups) != 1 or sorted(groups[0]) != sorted(mids):
        raise Problem("unprocessable", "sdp: its sections are not one bundle, offer with bundlePolicy max-bundle")
    return description.media


def _check(media: list[MediaDescription]) -> None:
    """What the library needs and does not ask for.

    Raises:
        Problem: something is missing.
    """
    kinds = [section.kind for section in media]
    if len(set(kinds)) != len(kinds) or not set(kinds) <= set(KINDS) or "video" not in kinds:
        rule = "does not have one section for pictures, and at most one each for sound and data"
        raise Problem("unprocessable", f"sdp: {rule}, offer those")
    for section in media:
        if len(section.rtp.codecs) > MOST_FORMATS:
            raise Problem("unprocessable", f"sdp: has more than {MOST_FORMATS} codecs, offer fewer")
        if section.kind != "application" and not section.rtcp_mux:
            raise Problem("unprocessable", "sdp: does not share one port for RTP and RTCP, offer a=rtcp-mux")
        if section.kind == "application" and section.sctp_port is None and section.profile != "DTLS/SCTP":
            raise Problem("unprocessable", "sdp: its data section has no port, offer a=sctp-port")
        if section.kind == "video" and section.direction not in ("recvonly", "sendrecv"):
            raise Problem("unprocessable", "sdp: does not want pictures, offer video as recvonly")
        ice, dtls = section.ice, section.dtls
        if not _UFRAG.fullmatch(ice.usernameFragment or "") or not _PASSWORD.fullmatch(ice.password or ""):
            raise Problem("unprocessable", "sdp: has no ICE credentials, offer a=ice-ufrag and a=ice-pwd")
        if dtls is None or not any(f.algorithm.lower() in X509_DIGEST_ALGORITHMS for f in dtls.fingerprints):
            raise Problem("unprocessable", "sdp: has no certificate, offer a=setup and a=fingerprint with sha-256")


def _picture(section: MediaDescription) -> tuple[str, tuple[RTCRtpCodecCapability, ...]]:
    """The codec of pictures, and what the library is to prefer: it alone, and its retransmissions.

    Raises:
        Problem: there is none in common.
    """
    offered = RTCRtpSender.getCapabilities("video").codecs
    again = [codec for codec in offered if codec.mimeType == "video/rtx"]
    for name, kind, profile in PICTURES:
        for common in _common(section, kind, profile):
            same = [c for c in offered if c.mimeType == common.mimeType and c.parameters == common.parameters]
            return name, (*same[:1], *again)
    raise Problem("unprocessable", "sdp: has neither H.264 (packetization-mode=1, baseline) nor VP8, offer one")


def _common(section: MediaDescription, kind: str, profile: str | None = None) -> list:
    """Codecs of a type that both sides have."""
    try:
        common = find_common_codecs(CODECS[section.kind], section.rtp.codecs)
    except Exception as error:  # parameters of the wrong type, which the library converts as they come
        raise Problem("bad_request", "sdp: has a codec whose parameters cannot be read, offer common ones") from error
    found = [codec for codec in common if codec.mimeType.lower() == kind]
    return [codec for codec in found if profile is None or codec.parameters.get("profile-level-id") == profile]

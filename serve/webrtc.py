"""A viewer over WebRTC: pictures and sound as they were coded, the microphone, data channels.

All that is due comes to `Peer.packet` the moment it is due, and leaves at once: there is no queue of its own here.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import secrets
import time
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from aiortc import RTCConfiguration, RTCDataChannel, RTCPeerConnection, RTCRtpSender, RTCSessionDescription
from aiortc.exceptions import InvalidStateError

from conf.schema.serve import ServeConfig
from serve import taps
from serve.bitrate import Rate
from serve.candidates import Reach, is_name
from serve.channels import Control, Keys
from serve.description import Offered, read
from serve.ice import ice_servers
from serve.limits import Limit
from serve.media import VIDEO_RATE, Packet, Shown, Viewer
from serve.microphone import Microphone
from serve.problems import Problem
from serve.tracks import CodedTrack

if TYPE_CHECKING:
    from serve.session import Session

log = logging.getLogger(__name__)

CONNECT_S, BEAT_S = 10.0, 5.0
"""How long a viewer may take to connect, and may say nothing on `control` once that is open."""
TICK_S, FIGURES_S = 0.25, 1.0
NOTICED = 0.02
"""By how much what a line takes changes before the session is told."""
SAID_S = 0.5
"""How long the last words to a viewer may take."""
MOST_UNSAID, MOST_UNSENT = 32, 262_144
"""Messages kept until `control` opens, and bytes on their way on it: over that a message is dropped."""
FLOOD_PER_SECOND = 100
"""Messages, on both channels, after which a viewer is shown out."""
MOST_CHANNELS, MOST_PEERS = 8, 4
"""Data channels of a connection, and connections of a session, those that are still being made among them."""
_ending: set[asyncio.Task] = set()
"""Held here, because a loop holds its tasks weakly."""


async def answer(
    session: Session, sdp: str, serve: ServeConfig, clock: Callable[[], float] = time.monotonic
) -> tuple[str, str]:
    """Take a viewer's offer; it is attached to the session as soon as it is connected, and detached when it is gone.

    Args:
        sdp: of the offer, untrusted.
        clock: seconds.

    Returns:
        The answer, with all candidates in it, and its type, `answer`.

    Raises:
        Problem: what is wrong with the offer.
    """
    if session.state == "ended":
        raise Problem("ended", "session: has ended, open another")
    if len(session.peers) >= MOST_PEERS:
        raise Problem("too_many", f"session: has {MOST_PEERS} connections; close one of them, or wait", CONNECT_S)
    peer = Peer(session, read(sdp, Reach.of(serve), session.served.offer["hears"]), serve, clock)
    return await peer.answer(), "answer"


class Peer(Viewer):
    """One connection.

    Args:
        session: what it sees and hears, and talks to.
        offered: what it offered.
        clock: seconds.

    Attributes:
        rate: what its line takes.
        closed: set once nothing of it is left.
    """

    def __init__(self, session: Session, offered: Offered, serve: ServeConfig, clock: Callable[[], float]):
        self.id, self.codec = secrets.token_urlsafe(6), offered.codec
        self._session, self._offered, self._reach, self._clock = session, offered, Reach.of(serve), clock
        self._connection = RTCPeerConnection(RTCConfiguration(taps.servers(ice_servers(serve))))
        self._sound = session.served.offer["hears"] and offered.heard
        self._tracks = {"video": CodedTrack("video", lambda: session.key_frame("queue"))}
        if self._sound:
            self._tracks["sound"] = CodedTrack("audio", lambda: None)
        self.rate = Rate(clock)
        self._followed: tuple[int, int] | None = None
        self._names: set[asyncio.Task] = set()
        self._microphone: Microphone | None = None
        self._control: RTCDataChannel | None = None
        self._channels = 0
        self._commands, self._keys = Control(session, self.notice, clock), Keys(session, self.notice)
        self._flood = Limit(FLOOD_PER_SECOND, FLOOD_PER_SECOND, clock)
        self._unsaid: list[dict[str, Any]] = []
        self._begun_at = self._heard_at = self._figures_at = clock()
        self._attached = False
        self._end: asyncio.Task | None = None
        self._tick: asyncio.TimerHandle | None = None
        self.closed = asyncio.Event()
        session.peers.add(self)

    async def answer(self) -> str:
        """The answer's SDP.

        Raises:
            Problem: the library finds something wrong that `serve.description` did not.
        """
        self._connection.on("connectionstatechange", self._changed)
        self._connection.on("datachannel", self._opened)
        try:
            self._offer_tracks()
            await self._connection.setRemoteDescription(RTCSessionDescription(self._offered.sdp, "offer"))
            await self._take_in_hand()
            await self._connection.setLocalDescription(await self._connection.createAnswer())
        except BaseException as error:  # the library asserts and indexes; also where the caller has hung up
            self.close("failed")
            if not isinstance(error, Exception):
                raise
            raise Problem("unprocessable", "sdp: cannot be answered, offer what createOffer makes") from error
        self._begun_at = self._clock()
        self._look()
        return self._connection.localDescription.sdp

    def packet(self, packet: Packet) -> None:
        """Send it on; a picture in the other codec is not for this viewer."""
        track = self._tracks.get(packet.kind)
        if track is None or (packet.kind == "video" and packet.codec != self.codec):
            return
        if packet.kind == "video":
            self.rate.sent(len(packet.data))
        track.put(packet)

    def shown(self, shown: Shown) -> None:
        """Tell on `control` what begins."""
        told = shown.told | {"pts_s": shown.pts / VIDEO_RATE}
        told |= {"audio_held_s": round(self._session.speech_held_s, 3)}
        self.notice({"type": "video.chunk_metadata"} | told)

    def notice(self, message: dict[str, Any]) -> None:
        """Say it on `control`; before that is open it is kept."""
        if self._control is None:
            if self._offered.talks and len(self._unsaid) < MOST_UNSAID:
                self._unsaid.append(message)
        elif self._control.readyState == "open" and self._control.bufferedAmount < MOST_UNSENT:
            with contextlib.suppress(InvalidStateError, ValueError):  # it takes no message of this size, or none now
                self._control.send(json.dumps(message))

    def close(self, reason: str) -> None:
        """Let the viewer go; may be called more than once."""
        if self._end is None:
            log.info("viewer %s: closed (%s)", self.id, reason)
            self._end = asyncio.ensure_future(self._let_go(reason))
            _ending.add(self._end)
            self._end.add_done_callback(_ending.discard)

    def _offer_tracks(self) -> None:
        """Before the offer is set: later, preferences are not listened to. The offer's sections take these by kind."""
        video = self._connection.addTransceiver(self._tracks["video"], "sendonly")
        video.setCodecPreferences(list(self._offered.picture))
        if self._sound:
            sound = self._connection.addTransceiver(self._tracks["sound"], "sendrecv")
            offered = RTCRtpSender.getCapabilities("audio").codecs
            sound.setCodecPreferences([codec for codec in offered if codec.mimeType == "audio/opus"])
        elif self._offered.heard:
            self._connection.addTransceiver("audio", "inactive")

    async def _take_in_hand(self) -> None:
        """After the offer is set, when one transport is left; before anything is gathered or received."""
        by_kind = {transceiver.kind: transceiver for transceiver in self._connection.getTransceivers()}
        sender, transport = by_kind["video"].sender, by_kind["video"].sender.transport
        reports = [partial(self._reported, take) for take in (self.rate.estimate, self.rate.lost)]
        taps.listen(sender, partial(self._session.key_frame, "loss"), *reports)
        taps.guard(transport, self._connection.sctp, partial(self.close, "failed"))
        connection = transport.transport._connection
        if self._reach.loopback:
            taps.gather_loopback(connection)
        for candidate in self._offered.candidates:
            if is_name(candidate.ip):
                self._names.add(asyncio.ensure_future(taps.resolve(connection, candidate, self._reach)))
            else:
                await transport.transport.addRemoteCandidate(candidate)
        if self._sound and by_kind["audio"].receiver.track is not None:
            hear = partial(self._session.sound, by=self)
            self._microphone = Microphone(by_kind["audio"].receiver, hear, self._clock)

    def _changed(self) -> None:
        """The connection has got somewhere, or has gone."""
        state = self._connection.connectionState
        if state == "connected" and not self._attached and self._end is None:
            self._attached, self._heard_at = True, self._clock()
            try:
                self._session.attach(self)
            except Problem as problem:
                self._attached = False
                self.notice(problem.message)
                self.close("failed")
            else:
                self._follow()
        elif state in ("failed", "closed"):
            self.close("vanished")

    def _opened(self, channel: RTCDataChannel) -> None:
        self._channels += 1
        if self._channels > MOST_CHANNELS:
            self.close("limit")
        elif channel.label == "control" and self._control is None:
            self._control, self._heard_at = channel, self._clock()
            channel.on("message", partial(self._hear, self._commands.take))
            unsaid, self._unsaid = self._unsaid, []
            for message in unsaid:
                self.notice(message)
        elif channel.label == "keys":
            channel.on("message", partial(self._hear, self._keys.take))
        else:
            channel.close()

    def _hear(self, take: Callable[[str | bytes], None], text: str | bytes) -> None:
        """A message of a data channel."""
        if self._end is not None:
            return
        self._heard_at = self._clock()
        if self._flood.wait_s():
            self.close("limit")
            return
        try:
            take(text)
        except Exception:  # ours, not the viewer's: it is told, and the library's tasks are spared
            log.exception("viewer %s: a message could not be done", self.id)
            self.notice(Problem("failed", "message: could not be done, try again").message)

    def _look(self) -> None:
        """Now and then: whether the viewer is still there."""
        now = self._clock()
        if self._session.state == "ended":
            self.close(self._session.reason or "stopped")
        late = not self._attached and now - self._begun_at > CONNECT_S
        if late or (self._control is not None and now - self._heard_at > BEAT_S):
            self.close("vanished")
        if self._end is None:
            if self._control is not None:
                self._tell(now)
            self._tick = asyncio.get_running_loop().call_later(TICK_S, self._look)

    def _tell(self, now: float) -> None:
        """How the session stands, each second."""
        if now - self._figures_at >= FIGURES_S:
            self._figures_at = now
            self.notice({"type": "session.figures"} | self._session.figures())

    def _reported(self, take: Callable[[float], None], value: float) -> None:
        take(value)
        self._follow()

    def _follow(self) -> None:
        """Tell the session what the line takes, where that has changed."""
        told, wanted = self._followed, (self.rate.bits_per_second, self.rate.every)
        if self._attached and (told is None or told[1] != wanted[1] or abs(wanted[0] / told[0] - 1) > NOTICED):
            self._followed = wanted
            self._session.follow(self, *wanted)

    async def _let_go(self, reason: str) -> None:
        if self._tick is not None:
            self._tick.cancel()
        if self._attached:
            self._session.detach(self)
        if self._session.state == "ended":
            figures = self._session.figures()
            known = {name: figures[name] for name in ("chunks", "frames", "latents_sha256") if name in figures}
            self.notice({"type": "session.done", "reason": reason} | known)
        else:
            self.notice(Problem.of_viewer(reason).message)
        try:
            await self._said()
            if self._microphone is not None:
                await self._microphone.close()
            await taps.cancelled(self._names)
            await self._connection.close()
        finally:
            for track in self._tracks.values():
                track.stop()
            self._session.peers.discard(self)
            self.closed.set()

    async def _said(self) -> None:
        """Wait until the viewer has the last words, but not for long."""
        loop, data = asyncio.get_running_loop(), self._connection.sctp
        until = loop.time() + SAID_S
        while data is not None and self._connection.connectionState == "connected" and loop.time() < until:
            if not (data._data_channel_queue or data._outbound_queue or data._sent_queue):
                return
            await asyncio.sleep(SAID_S / 25)

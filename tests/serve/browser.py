"""A viewer's side of WebRTC in the same process, over the loopback address alone, and a session that it looks at."""

from __future__ import annotations

import asyncio
import json
from fractions import Fraction
from types import SimpleNamespace

import av
import numpy as np
from aiortc import RTCBundlePolicy, RTCConfiguration, RTCPeerConnection, RTCRtpSender, RTCSessionDescription

from conf.schema.serve import ServeConfig
from serve import taps, webrtc
from serve.media import Packet
from serve.problems import Problem
from tests.patience import PATIENT_S

CODECS = {"h264": "libx264", "vp8": "libvpx"}


class Room:
    """What a viewer does to a session, written down."""

    def __init__(self, hears: bool = True, actions=("none", "forward", "back", "left")):
        self.served = SimpleNamespace(offer={"hears": hears, "actions": list(actions)})
        self.state, self.reason, self.speech_held_s = "running", "", 1.5
        self.viewers, self.keys, self.follows, self.events, self.sounds, self.stops = [], [], [], [], [], []
        self.peers = set()
        self.attached, self.detached = asyncio.Event(), asyncio.Event()

    def attach(self, viewer):
        self.viewers.append(viewer)
        self.attached.set()

    def detach(self, viewer):
        self.viewers.remove(viewer)
        self.detached.set()

    def key_frame(self, cause):
        self.keys.append(cause)

    def follow(self, viewer, bits_per_second, every=1):
        self.follows.append((bits_per_second, every))

    def event(self, id, event):
        if event.get("type") == "image":
            raise Problem("not_while_running", "image: not now, start anew")
        self.events.append((id, event))

    def sound(self, pcm, at, by):
        self.sounds.append((at, len(pcm) // 2))

    def stop(self, reason):
        self.stops.append(reason)

    def figures(self):
        return {"chunks": 3}


class Browser:
    """A peer of the library, as a page would set it up.

    Args:
        codecs: of pictures, MIME types; empty: as the library has them.
        microphone: track, or None: sound is only received.
    """

    def __init__(self, codecs=(), microphone=None, sound=True, data=True):
        self.connection = RTCPeerConnection(RTCConfiguration([], bundlePolicy=RTCBundlePolicy.MAX_BUNDLE))
        self.tracks, self.messages, self.come = {}, [], asyncio.Event()
        self.connection.on("track", lambda track: self.tracks.setdefault(track.kind, track))
        self.video = self.connection.addTransceiver("video", "recvonly")
        if codecs:
            known = RTCRtpSender.getCapabilities("video").codecs
            self.video.setCodecPreferences([codec for codec in known if codec.mimeType in codecs])
        if sound:
            self.connection.addTransceiver(microphone or "audio", "sendrecv" if microphone else "recvonly")
        self.opened = asyncio.Event()
        self.control = self.keys = None
        if data:
            self.control = self.connection.createDataChannel("control")
            self.keys = self.connection.createDataChannel("keys", ordered=False, maxRetransmits=0)
            self.control.on("open", self.opened.set)
            self.control.on("message", self._message)

    def _message(self, text):
        self.messages.append(json.loads(text))
        self.come.set()

    async def offer(self) -> str:
        taps.gather_loopback(self.video.receiver.transport.transport._connection)
        await self.connection.setLocalDescription(await self.connection.createOffer())
        return self.connection.localDescription.sdp

    async def call(self, room, serve=None, **options):
        """Connect to a session; the peer that serves it."""
        sdp, kind = await webrtc.answer(room, await self.offer(), serve or ServeConfig(), **options)
        assert kind == "answer"
        await self.connection.setRemoteDescription(RTCSessionDescription(sdp, kind))
        await soon(room.attached.wait())
        if self.control is not None:
            await soon(self.opened.wait())
        return room.viewers[-1]

    def say(self, message) -> None:
        self.control.send(message if isinstance(message, str | bytes) else json.dumps(message))

    async def told(self, kind: str) -> dict:
        """The first message of a type, taken out."""
        while True:
            for message in self.messages:
                if message["type"] == kind:
                    self.messages.remove(message)
                    return message
            self.come.clear()
            await soon(self.come.wait())

    async def close(self):
        await self.connection.close()


def soon(awaitable):
    return asyncio.wait_for(awaitable, PATIENT_S)


async def until(true):
    """Let the loop run until something is so."""
    async with asyncio.timeout(PATIENT_S):
        while not true():
            await asyncio.sleep(0.005)


def pictures(codec: str, count: int = 12, size: int = 64) -> list[Packet]:
    """Coded pictures at 25 a second, the first a key frame; each is grey, 16 brighter than the one before."""
    context = av.CodecContext.create(CODECS[codec], "w")
    context.width = context.height = size
    context.pix_fmt, context.time_base, context.framerate, context.bit_rate = "yuv420p", Fraction(1, 90000), 25, 300_000
    zero = {"preset": "superfast", "tune": "zerolatency", "threads": "1"}
    context.options = zero if codec == "h264" else {"deadline": "realtime", "lag-in-frames": "0", "cpu-used": "8"}
    context.gop_size, context.max_b_frames = 1000, 0
    if codec == "h264":
        context.profile = "Baseline"
    found = []
    for index in range(count):
        frame = av.VideoFrame.from_ndarray(np.full((size, size, 3), 32 + 16 * (index % 12), np.uint8), format="rgb24")
        frame = frame.reformat(format="yuv420p")
        frame.pts, frame.time_base = index * 3600, context.time_base
        found += [Packet("video", codec, bytes(p), p.pts, p.is_keyframe, index // 12) for p in context.encode(frame)]
    return found


def sound(count: int = 25) -> list[Packet]:
    """Opus packets of a tone."""
    return [Packet("sound", "opus", data, index * 960, True, 0) for index, data in enumerate(opus(count))]


def opus(count: int) -> list[bytes]:
    context = av.CodecContext.create("libopus", "w")
    context.sample_rate, context.layout, context.format, context.bit_rate = 48000, "mono", "s16", 48000
    time = np.arange(count * 960) / 48000
    samples = (np.sin(2 * np.pi * 440 * time) * 12000).astype(np.int16)
    found = []
    for index in range(count):
        frame = av.AudioFrame.from_ndarray(samples[None, index * 960 : (index + 1) * 960], format="s16", layout="mono")
        frame.sample_rate, frame.pts = 48000, index * 960
        found += [bytes(packet) for packet in context.encode(frame)]
    return found

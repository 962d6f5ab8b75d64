"""Segments of one stream's video to one file, without encoding anything again.

A run that goes on where another left off writes a file of its own beside the first one's, named after the frame that it
begins with: `video.mp4`, `video.from-00000240.mp4`, ... Where one begins, the one before it ends, however long it is:
a run may be killed some frames after the point that the next one goes on from.
"""

from __future__ import annotations

import logging
import re
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import av

from conf import disk
from conf.errors import UserError
from conf.paths import is_file, is_folder
from stages.rate import frame_rate
from stages.sinks.video import FRAGMENTED, REFUSED, mark_of, set_mark

log = logging.getLogger(__name__)


def segment(video: str | Path, frame: int) -> Path:
    """The file for the part of a video that begins with frame `frame`."""
    video = Path(video)
    return video.with_name(f"{video.stem}.from-{frame:08d}{video.suffix}")


def segments(video: str | Path) -> list[tuple[int, Path]]:
    """(first frame, file) of the segments beside a video, in order; none where its folder is not there yet.

    Raises:
        UserError: its folder cannot be read.
    """
    video = Path(video)
    if not is_folder(video.parent):
        return []
    pattern = re.compile(rf"{re.escape(video.stem)}\.from-(\d+){re.escape(video.suffix)}")
    with disk.writing(f"sink.video={video}"):
        beside = list(video.parent.iterdir())
    found = ((pattern.fullmatch(path.name), path) for path in beside)
    return sorted((int(match[1]), path) for match, path in found if match)


def join(video: str | Path) -> int:
    """Append the segments beside a video to it, and remove them; returns how many there were. Segments of other streams
    stay where they are, with a warning, as does one that nothing can be read of.

    Frames keep their times. Sound goes over from one segment to the next within two AAC packets (43 ms): each was
    encoded on its own. The video is
    replaced once the joined file is whole: whatever happens before, all parts are still there.

    Raises:
        UserError: there is no such video, a part lacks frames, or they were not encoded alike.
    """
    video = Path(video)
    if not is_file(video):
        raise UserError(f"video={video}", "there is no such file", "give the first segment, e.g. outputs/run/video.mp4")
    try:
        whose = mark_of(video)
        found = [(frame, path) for frame, path in segments(video) if path.stat().st_size and is_of(path, whose)]
        if not found:
            return 0
        with disk.replacing(video) as aside:
            _write([(0, video), *found], aside, whose)
    except (ValueError, *REFUSED) as error:
        rule = f"its parts cannot be joined ({getattr(error, 'strerror', None) or error})"
        raise UserError(f"video={video}", rule, "the parts are left as they are") from error
    for _, path in found:
        path.unlink()
    return len(found)


def is_of(video: Path, mark: str | None) -> bool:
    """Whether a video is of the stream with that mark; where it is not, or cannot be read, that is said."""
    try:
        if mark_of(video) == mark:
            return True
        why = "is of another stream"
    except REFUSED as error:
        why = f"cannot be read ({getattr(error, 'strerror', None) or error})"
    log.warning("%s %s: it is left as it is, and nothing is joined to it", video, why)
    return False


def _write(parts: list[tuple[int, Path]], target: Path, mark: str | None) -> None:
    """All parts, (first frame, file), to one file."""
    tracks: dict[str, av.stream.Stream] = {}
    with av.open(f"file:{target}", "w", format="mp4", options=FRAGMENTED) as joined:
        set_mark(joined, mark)
        for this, following in pairwise([*parts, None]):
            first, path = this
            with av.open(f"file:{path}") as part:
                for stream in part.streams:
                    if stream.type not in tracks:
                        tracks[stream.type] = joined.add_stream_from_template(stream)
                    elif tracks[stream.type].codec_context.extradata != stream.codec_context.extradata:
                        raise ValueError(f"{path.name} was encoded in another way")
                frames = None if following is None else following[0] - first
                for packet in _packets(part, first, frames, following and following[1]):
                    packet.stream = tracks[packet.stream.type]
                    joined.mux(packet)


def _packets(part: av.container.InputContainer, first: int, frames: int | None, following: Path | None):
    """A part's packets at their times in the whole video: of `frames` frames, and the sound that ends with them."""
    second = frame_rate(float(part.streams.video[0].average_rate))
    begins = Fraction(first) / second
    ends = None if following is None else frames / second + _sound_begins(following)
    shown = 0
    for packet in part.demux():
        if packet.dts is None:
            continue  # the demuxer's sign that a track has ended
        if packet.stream.type == "video":
            shown += 1
            if frames is not None and shown > frames:
                continue
        elif ends is not None and (packet.pts + packet.duration) * packet.time_base > ends:
            continue
        offset = round(begins / packet.time_base)
        packet.pts, packet.dts = packet.pts + offset, packet.dts + offset
        yield packet
    if frames is not None and shown < frames:
        raise ValueError(f"{Path(part.name).name} holds {shown} of {frames} frames")


def _sound_begins(path: Path) -> Fraction:
    """When a part's first sound packet is heard, in seconds of the part: before 0, by the encoder's delay."""
    with av.open(f"file:{path}") as part:
        if not part.streams.audio:
            return Fraction(0)
        packet = next(part.demux(part.streams.audio[0]))
        return packet.pts * packet.time_base

"""A stream's sources, opened: sound, actions, poses, picture, video, given tensors."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, BinaryIO, NamedTuple

from torch import Tensor

from conf.errors import UserError
from conf.paths import is_live, is_stream
from conf.schema import ModelConfig, SinkConfig, SourceConfig
from conf.schema.stream import GREY
from runtime.encoders import Encoders, Picture, pictures_of
from runtime.ends import Gone, LiveEnds, NoFrames, Noted, NotedActions, NotedFrames, NotedPoses
from runtime.filmed import NotedCamera
from runtime.inputs import Inputs, InputsSink, Tap
from runtime.pace import Pace
from runtime.prompts import Prompts
from runtime.replay import Replay
from runtime.sound import Sound
from runtime.source_rules import asked, check_video, refuse_unused
from runtime.video import Video
from stages.controls import Controls
from stages.inputs import Input, Views, controls_of, inputs_of, made_of
from stages.sources.actions import ActionFile, LiveActions
from stages.sources.ahead import Ahead
from stages.sources.audio import LivePcm, Silence
from stages.sources.backlog import Backlog
from stages.sources.film import Grey
from stages.sources.fitting import Fit
from stages.sources.live import live_stream
from stages.sources.pose_lines import LivePoses, PoseFile
from stages.sources.poses import DrivenPoses, Poses, npy_poses, tensor_poses
from stages.sources.raw_video import LiveFrames
from stages.sources.session import SessionSource
from stages.sources.tensors import POSES, TensorsFile
from stages.views import NINETY, scaled


@dataclass
class Sources:
    """What drives a stream.

    Attributes:
        tensors: conditioning that was computed elsewhere; None: none was given.
        inputs: a recording of another stream's inputs, in place of sound and actions; None likewise.
        sound: None for a model that does not listen.
        actions: None for a model without actions, and where none are given.
        poses: None for a model without a camera.
        image: the reference picture, float32 [3, H, W] in [-1, 1]; None: there is none.
        live: whether one of them may have to be waited for.
        video: what chunks begin with beside noise; None: they begin with noise alone.
        sink: where what is sampled is recorded; None: nowhere.
        session: whose sound and actions they are; None: nobody's.
        ends: those that are kept from one generation of the run to the next.
        private: whether what is said is nobody else's.
        sent: whether the picture is a visitor's own.
    """

    tensors: TensorsFile | None
    inputs: Inputs | None
    sound: Sound | None
    actions: Any
    image: Tensor | None
    live: bool
    poses: Poses | NotedPoses | None = None
    video: Video | None = None
    sink: InputsSink | None = None
    session: SessionSource | None = None
    ends: LiveEnds | None = None
    private: bool = False
    sent: bool = False

    @property
    def endless_sound(self) -> bool:
        """Whether the sound is silence that stands for no source at all."""
        return self.sound is not None and isinstance(_bare(self.sound.source), Silence)

    def heard(self) -> Any:
        """Samples read since the last call, float32 [n], where they are recorded; None for a silent model."""
        return self.sound.source.taken() if self.sound else None

    def seen(self) -> Any:
        """What the latest chunk showed of a session's camera, where that is recorded; None: there is none."""
        return getattr(self.video.source, "shots", None) if self.video else None

    def looked(self, views: Views | None) -> Views | None:
        """Of what a chunk saw from, what is recorded."""
        return views if self.poses and self.poses.recorded else None

    def close(self) -> None:
        """Let go of all of them."""
        self.turn()
        if self.ends:
            self.ends.close()
        elif self.session:
            self.session.close()

    def turn(self) -> None:
        """Let go of all but those that are kept."""
        kept = self.ends.sources if self.ends else ()
        opened = (self.sound and self.sound.source, self.actions, self.poses, self.video and self.video.source)
        for source in (*opened, self.sink):
            if source and _bare(source) not in kept:
                source.close()


SAMPLED = {"sound": "sound", "actions": "actions", "poses": "views", "video": "frames"}
"""Live sources by their names among the ends, and what a journal's line says where there is one."""


class Live(NamedTuple):
    """Live sources, where they are kept, and what is sampled again before them; None: they are not."""

    ends: LiveEnds | None = None
    replay: Replay | None = None

    def flows(self, name: str, path: str | None) -> bool:
        """Whether a source comes live: a pipe that is gone was one, if it was read before."""
        if is_live(path) or (self.ends is not None and getattr(self.ends, name) is not None):
            return True
        last = self.replay.last if self.replay and self.replay.end else None
        return last is not None and getattr(last, SAMPLED[name]) is not None

    def backlog(self, name: str) -> Backlog | None:
        """Where what is read ahead of a live source is kept; None: nowhere."""
        return self.replay.backlog(name, self.replay.read(name)) if self.replay else None

    def source(
        self, name: str, make: Callable[[], Any], noted: Callable[[Any], Any], gone: Callable[[], Any] = Gone
    ) -> Any:
        """A live source: the one that is kept, or a new one.

        Args:
            name: among the ends.
            make: a new one.
            noted: what keeps it, from the source.
            gone: what stands for it where the stream had ended.
        """
        if not self.ends:
            return make()
        if getattr(self.ends, name) is None:
            setattr(self.ends, name, noted(gone() if self.replay.end else make()))
        return getattr(self.ends, name)


OPENED = Live()


def open_sources(
    model: ModelConfig,
    source: SourceConfig,
    sink: SinkConfig,
    picture: Picture,
    encoders: Encoders,
    stdin: BinaryIO | None,
    stop: threading.Event,
    prompts: Prompts,
    pace: Pace | None,
    first: int = 0,
    live: Live = OPENED,
) -> Sources:
    """Open what a stream is driven by.

    Args:
        model, source, sink, picture: of the stream.
        encoders: what hears the sound.
        stdin: where `-` reads; None: standard input.
        stop: releases whoever waits for a live source, when set.
        prompts, pace: of the stream, for a session that steers them.
        first: the chunk the stream goes on with; 0: it begins.
        live: where live sources are kept, and taken from if they are there.

    Raises:
        UserError: a source is missing, broken or of no use to the model. What was opened so far is closed.
    """
    declared = inputs_of(model)
    anew = model.noise_scale is not None
    tensors = TensorsFile(source.tensors, model.name, declared, anew) if source.tensors else None
    refuse_unused(model, source, declared, tensors)
    inputs = Inputs(source.inputs) if source.inputs else None
    if anew:
        check_video(model, source, sink, tensors, inputs)
    waits = source.live or bool(live.ends and live.ends.sources)
    opened = Sources(tensors, inputs, None, None, None, waits, ends=live.ends)
    heard, camera = made_of(declared, "audio"), made_of(declared, "camera")
    controls = controls_of(asked(declared, tensors))
    try:
        if source.session:
            opened.private = True
            opened.session = _session(source, controls, stop, prompts, pace, live)
        if heard:
            pcm, whole_file = _pcm(heard, source, inputs, opened.session, stdin, stop, live)
            features = encoders.listen(heard, whole_file)
            opened.sound = Sound(Tap(pcm) if sink.inputs else pcm, model.fps, features)
        if controls:
            opened.actions = _actions(controls, source, inputs, opened.session, stdin, stop, live)
        if camera:
            opened.poses = _poses(camera, source, opened, stdin, stop, live)
        if anew:
            frames = _frames(model, source, picture, inputs, opened.session, stdin, stop, live)
            try:
                opened.video = Video(model, picture, encoders, frames, tensors)
            except BaseException:
                if frames:
                    frames.close()
                raise
        if live.ends:
            live.ends.open(stop, partial(_said, prompts), pace, _slack(pace))
        opened.image, opened.sent = _image(source, opened.session, picture, live)
        if sink.inputs:
            opened.sink = InputsSink(sink.inputs, first, opened.private, _fit(source, picture))
    except BaseException:
        opened.close()
        raise
    return opened


def _said(prompts: Prompts, prompt: str, accepted: float, number: int) -> None:
    """A session's numbers are its own: orders have others."""
    prompts.say(prompt, accepted)


def _slack(pace: Pace | None) -> Callable[[float, float], None]:
    return pace.slack if pace else _nobody


def _nobody(seconds: float, late_s: float) -> None:
    """Of a stream that is sampled as fast as stages allow, nobody asks how early its chunks are."""


def _session(
    source: SourceConfig, known: Controls | None, stop: threading.Event, prompts: Prompts, pace: Pace | None, kept: Live
) -> SessionSource | None:
    """One that is kept, or a new one; None where the stream's had ended."""
    ends, replay = kept
    if ends and (ends.session or replay.end):
        return ends.session
    resume = replay.told() if replay and replay.again else None
    session = SessionSource(source.session, known or (), stop, partial(_said, prompts), _slack(pace), resume=resume)
    if ends:
        ends.session = session
    return session


def _image(
    source: SourceConfig, session: SessionSource | None, picture: Picture, live: Live
) -> tuple[Tensor | None, bool]:
    """What a person sent wins over the configuration's; and whether it is that."""
    sent = session.picture if session else None
    if live.replay:
        sent = live.replay.picture(sent)
    if not source.image and not sent:
        return None, False
    from stages.sources import image  # not above: Pillow is needed where there is a picture

    if sent:
        return image.sent_image("source.session", sent, picture.height, picture.width), True
    return image.load_image(source.image, picture.height, picture.width), False


def _pcm(
    heard: Input,
    source: SourceConfig,
    inputs: Inputs | None,
    session: SessionSource | None,
    stdin: BinaryIO | None,
    stop: threading.Event,
    live: Live,
) -> tuple[Any, bool]:
    """Where sound comes from, and whether that is a whole file."""
    if (source.session or is_stream(source.audio)) and heard.ear.whole:
        raise UserError(f"{heard.ear.whole}=true", "live sound has no end to wait for", "set it to false")
    name, path, whole_file = f"source.audio={source.audio}", source.audio, False
    if source.session:
        pcm = live.source("sound", lambda: session.sound, Noted)
    elif inputs is not None:
        pcm = inputs.sound or Silence()
    elif is_stream(source.audio):
        pcm = live.source(
            "sound",
            lambda: LivePcm(
                live_stream("source.audio", path, stdin), stop, name, path != "-", backlog=live.backlog("audio")
            ),
            Noted,
        )
    elif path:
        from stages.sources.audio_file import AudioFile  # not above: FFmpeg is needed where there is a file

        if live.ends and live.flows("sound", path):
            of = live.replay
            pcm = live.source(
                "sound",
                lambda: Ahead(partial(AudioFile, path), stop, name, of.backlog("audio", 0), of.read("audio")),
                Noted,
            )
        else:
            pcm = AudioFile(path, stop)
        whole_file = True
    else:
        pcm = Silence()
    return pcm, whole_file


def _actions(
    controls: Controls,
    source: SourceConfig,
    inputs: Inputs | None,
    session: SessionSource | None,
    stdin: BinaryIO | None,
    stop: threading.Event,
    live: Live,
) -> Any:
    if source.session:
        return live.source("actions", lambda: session.actions, NotedActions, partial(Gone, controls.rest))
    if inputs is not None:
        return inputs.actions(controls)
    if not source.actions:
        return None
    if live.flows("actions", source.actions):
        name, path = f"source.actions={source.actions}", source.actions
        return live.source(
            "actions",
            lambda: LiveActions(
                live_stream("source.actions", path, stdin), controls, stop, name, path != "-", live.backlog("actions")
            ),
            NotedActions,
            partial(Gone, controls.rest),
        )
    return ActionFile(source.actions, controls)


def _poses(
    camera: Input, source: SourceConfig, opened: Sources, stdin: BinaryIO | None, stop: threading.Event, live: Live
) -> Poses | NotedPoses:
    """Where a camera is: as a source says, or where it is driven."""
    intrinsics = scaled(NINETY if source.intrinsics is None else source.intrinsics)
    if given := opened.tensors and tensor_poses(opened.tensors, intrinsics):
        others = {f"source.{name}={getattr(source, name)}": getattr(source, name) for name in ("camera", "actions")}
        others["source.session"] = source.session
        if other := next((name for name, value in others.items() if value), None):
            raise UserError(other, f"source.tensors gives `{POSES}`", "give one of the two")
        return given
    if opened.inputs and opened.inputs.poses:
        return opened.inputs.poses
    if not source.camera:
        return DrivenPoses(camera.moves, intrinsics)
    if live.flows("poses", source.camera):
        name, path = f"source.camera={source.camera}", source.camera
        return live.source(
            "poses",
            lambda: LivePoses(
                live_stream("source.camera", path, stdin), intrinsics, stop, name, path != "-", live.backlog("camera")
            ),
            NotedPoses,
        )
    return (npy_poses if source.camera.endswith(".npy") else PoseFile)(source.camera, intrinsics)


def _frames(
    model: ModelConfig,
    source: SourceConfig,
    picture: Picture,
    inputs: Inputs | None,
    session: SessionSource | None,
    stdin: BinaryIO | None,
    stop: threading.Event,
    live: Live,
) -> Any:
    """Where pictures come from; None where `source.tensors` brings them."""
    name, path = f"source.video={source.video}", source.video
    fit = _fit(source, picture)
    if source.session:
        return live.source("video", lambda: session.film(model.fps, fit), partial(NotedCamera, fit=fit), NoFrames)
    if inputs is not None and inputs.sees:
        return inputs.frames(fit)
    if not path:
        return None
    if path == GREY:
        return Grey(fit)
    if live.flows("video", path):
        most = max(pictures_of(model, chunk) for chunk in (0, 1))
        return live.source(
            "video",
            lambda: LiveFrames(
                live_stream("source.video", path, stdin), picture.height, picture.width, most,
                source.pace == "free", stop, name, path != "-", live.backlog("video"),
            ),
            NotedFrames,
            NoFrames,
        )  # fmt: skip
    from stages.sources.video import VideoFile  # not above: FFmpeg is needed where there is a file

    return VideoFile(path, model.fps, fit, stop)


def _fit(source: SourceConfig, picture: Picture) -> Fit:
    return Fit(picture.height, picture.width, source.fit)


def _bare(source: Any) -> Any:
    return source.source if isinstance(source, Tap) else source

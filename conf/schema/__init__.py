"""The types behind the YAML groups. Every rule is checked when an object is made, before anything loads."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from conf.errors import UserError
from conf.paths import live
from conf.schema.cluster import ClusterConfig
from conf.schema.codec import CodecConfig
from conf.schema.conditioning import ClipConfig, TextConfig, Wav2VecConfig
from conf.schema.lora import LoraConfig
from conf.schema.model import ModelConfig, SinkShift
from conf.schema.network import Adapter, NetworkConfig
from conf.schema.stream import (
    OBJECTIVES,
    DeviceConfig,
    EmulatedConfig,
    Event,
    LauncherConfig,
    LoggingConfig,
    PlanConfig,
    PostConfig,
    SinkConfig,
    SourceConfig,
    StreamConfig,
    check_folder,
    fresh_folder,
)
from conf.secret import is_address, unsaid
from conf.settings import check_choices, one_of

__all__ = [
    "Adapter",
    "ClipConfig",
    "ClusterConfig",
    "CodecConfig",
    "Config",
    "DeviceConfig",
    "EmulatedConfig",
    "Event",
    "LauncherConfig",
    "LoggingConfig",
    "LoraConfig",
    "ModelConfig",
    "NetworkConfig",
    "PlanConfig",
    "PostConfig",
    "SinkConfig",
    "SinkShift",
    "SourceConfig",
    "StreamConfig",
    "TextConfig",
    "Wav2VecConfig",
]


@dataclass
class Config:
    """One run of `launch.stream`."""

    model: ModelConfig = field(default_factory=ModelConfig)
    plan: PlanConfig = field(default_factory=PlanConfig)
    cluster: ClusterConfig = field(default_factory=ClusterConfig)
    objective: str = one_of(OBJECTIVES, "fps")
    """What `plan=auto` looks for."""
    capacity: float | None = None
    """Of `everframe plan`: share of frames on time with which it asks how many streams a cluster can serve."""
    launcher: LauncherConfig = field(default_factory=LauncherConfig)
    device: DeviceConfig = field(default_factory=DeviceConfig)
    stream: StreamConfig = field(default_factory=StreamConfig)
    source: SourceConfig = field(default_factory=SourceConfig)
    sink: SinkConfig = field(default_factory=SinkConfig)
    post: PostConfig = field(default_factory=PostConfig)
    logging: LoggingConfig = field(default_factory=LoggingConfig)
    output_dir: str = field(default_factory=fresh_folder)
    """The folder of the run's video, report, trace and states; made when everything is loaded. By default a new one
    below `outputs/`."""
    resume: str | None = None
    """Go on from a saved state: its folder, or the output folder of a run that saved one (then the newest)."""
    control: str | None = None
    """Who gives orders to the running pipeline; then only those streams run that they open: a file or named pipe, `-`,
    or a gateway that listens at `tcp://HOST:PORT/TOKEN` (`tls://HOST:PORT/TOKEN#FINGERPRINT`); `@FILE`: the address in
    that file."""

    def __post_init__(self):
        self.control = live(self.control)
        check_folder(self.output_dir)
        check_choices(self, "")
        if is_address(self.control) and not re.fullmatch(r"\w+://[^/@]+:\d+/[^/]+", self.control):
            raise UserError(f"control={unsaid(self.control)}", "is no address", "give tcp://HOST:PORT/TOKEN")
        if self.capacity is not None and not 0 < self.capacity <= 1:
            raise UserError(f"capacity={self.capacity}", "is a share of frames, above 0 and up to 1", "use 0.999")
        if self.source.reads_stdin and self.control == "-":
            raise UserError("control=-", "a source reads standard input too", "give one of the two as a named pipe")
        if self.source.reads_stdin and self.stream.count > 1:
            raise UserError(
                f"stream.count={self.stream.count}",
                "one stream alone can read standard input",
                "give the source as a file",
            )
        saves = self.stream.save_every_chunks or self.stream.save_on_stop
        if self.device.kind == "emulated" and (self.resume or saves):
            raise UserError("device=emulated", "has no state to save or to resume", "use another device")
        if self.resume and self.control:
            raise UserError(
                f"resume={self.resume}",
                f"control={unsaid(self.control)} opens its streams",
                'say {"open": ..., "resume": DIR}',
            )

"""The types behind the YAML groups. Every rule is checked when an object is made, before anything loads."""

from __future__ import annotations

from dataclasses import dataclass, field

from conf.schema.model import (
    AudioConfig,
    CodecConfig,
    ModelConfig,
    NetworkConfig,
    SinkShift,
    TextConfig,
)
from conf.schema.stream import (
    DeviceConfig,
    Event,
    LauncherConfig,
    LoggingConfig,
    PlanConfig,
    SinkConfig,
    SourceConfig,
    StreamConfig,
)

__all__ = [
    "AudioConfig",
    "CodecConfig",
    "Config",
    "DeviceConfig",
    "Event",
    "LauncherConfig",
    "LoggingConfig",
    "ModelConfig",
    "NetworkConfig",
    "PlanConfig",
    "SinkConfig",
    "SinkShift",
    "SourceConfig",
    "StreamConfig",
    "TextConfig",
]


@dataclass
class Config:
    """One run of `launch.stream`."""

    model: ModelConfig = field(default_factory=ModelConfig)
    plan: PlanConfig = field(default_factory=PlanConfig)
    launcher: LauncherConfig = field(default_factory=LauncherConfig)
    device: DeviceConfig = field(default_factory=DeviceConfig)
    stream: StreamConfig = field(default_factory=StreamConfig)
    source: SourceConfig = field(default_factory=SourceConfig)
    sink: SinkConfig = field(default_factory=SinkConfig)
    logging: LoggingConfig = field(default_factory=LoggingConfig)
    output_dir: str = "outputs"

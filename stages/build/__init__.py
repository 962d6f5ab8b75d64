"""Parts of a model, made from its configuration: only the parts asked for, on the device asked for.

Weights come from the model's checkpoint where one is named, else they are random and seeded.
"""

from stages.build.checkpoint import Checkpoint, audio_encoder, text_encoder, whole
from stages.build.codec import (
    SPATIAL_STRIDE,
    TEMPORAL_STRIDE,
    build_decoder,
    build_encoder,
    video_frames,
    wan_width,
)
from stages.build.device import choose_device, torch_dtype
from stages.build.encoders import build_audio_encoder, build_text_encoder, build_wav2vec
from stages.build.network import build_network

__all__ = [
    "SPATIAL_STRIDE",
    "TEMPORAL_STRIDE",
    "Checkpoint",
    "audio_encoder",
    "build_audio_encoder",
    "build_decoder",
    "build_encoder",
    "build_network",
    "build_text_encoder",
    "build_wav2vec",
    "choose_device",
    "text_encoder",
    "torch_dtype",
    "video_frames",
    "wan_width",
    "whole",
]

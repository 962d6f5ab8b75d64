"""Parts of a model, made from its configuration: only the parts asked for, on the device asked for.

Weights come from the model's checkpoint where one is named, else they are random and seeded.
"""

from stages.build.checkpoint import Checkpoint, encoders_in_file, network_class, rename_of, whole
from stages.build.codec import build_decoder, build_encoder, decoder_of, encoder_of, video_frames
from stages.build.dtype import torch_dtype
from stages.build.encoders import build_image_encoder, build_input_encoder, build_text_encoder, build_wav2vec
from stages.build.network import build_network
from stages.codec.base import SPATIAL_STRIDE, TEMPORAL_STRIDE

__all__ = [
    "SPATIAL_STRIDE",
    "TEMPORAL_STRIDE",
    "Checkpoint",
    "build_decoder",
    "build_encoder",
    "build_image_encoder",
    "build_input_encoder",
    "build_network",
    "build_text_encoder",
    "build_wav2vec",
    "decoder_of",
    "encoder_of",
    "encoders_in_file",
    "network_class",
    "rename_of",
    "torch_dtype",
    "video_frames",
    "whole",
]

"""What conditions the model: a prompt, a picture, what was before it, sound, a pose."""

from __future__ import annotations

import torch

from conf.schema import ModelConfig, Wav2VecConfig
from stages.encode.wav2vec import Listening, Wav2Vec, WholeFile, parameter_count
from stages.inputs import FRAMES_PER_LATENT, Axis, Ear, Encoder, Input, per_frame, reference, text
from stages.models.live_avatar.audio import CausalAudioEncoder

WHOLE = "model.network.audio.wav2vec.whole_file"


def inputs(model: ModelConfig) -> tuple[Input, ...]:
    """Motion frames and a pose are latents; without a pose the network takes that there is none."""
    sizes, audio, c = model.network, model.network.audio, model.chunk_frames
    heard, channels = audio.wav2vec, sizes.in_channels

    def features(load, whole: bool):
        if whole and heard.whole_file:
            return WholeFile(load, heard, model.fps)
        return Listening(load, heard, model.fps, audio.lookahead_s)

    return (
        text(sizes.text_tokens, sizes.text_dim),
        *reference(model),
        Input(
            "motion", Axis.SINK, (channels, None, None, None), "image", "motion_latents", latents=True,
            primes=True,
        ),
        Input(
            "audio", Axis.LATENT, (c, audio.tokens, sizes.dim), "audio", "audio_features",
            given=(heard.layers, heard.dim, FRAMES_PER_LATENT * c), rows=per_frame(heard.layers, heard.dim),
            encoder=Encoder(
                lambda: CausalAudioEncoder(heard.layers, heard.dim, sizes.dim, heard.tokens), "casual_audio_encoder."
            ),
            ear=Ear(
                features, lambda model, device: _build(model, heard, device), parameter_count(heard),
                WHOLE if heard.whole_file else "",
            ),
            narrow=True,
        ),
        Input("pose", Axis.LATENT, (channels, c, None, None), key="pose_latents", latents=True),
    )  # fmt: skip


def _build(model: ModelConfig, config: Wav2VecConfig, device: torch.device) -> Wav2Vec:
    from stages.build.encoders import build_wav2vec  # reads this family's inputs

    return build_wav2vec(model, config, device)

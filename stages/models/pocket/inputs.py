"""What conditions the models: words, a picture, sound, actions."""

from __future__ import annotations

from conf.schema import ModelConfig
from stages.controls import Controls
from stages.encode.audio_features import LogMel
from stages.inputs import FRAMES_PER_LATENT, Axis, Ear, Encoder, Input, per_frame, reference, text
from stages.models.pocket.actions import one_hot
from stages.models.pocket.audio import AudioEncoder


def inputs(model: ModelConfig) -> tuple[Input, ...]:
    """Those that the sizes ask for."""
    sizes, c = model.network, model.chunk_frames
    found = [text(sizes.text_tokens, sizes.text_dim), *reference(model)]
    if audio := sizes.audio:
        found.append(
            Input(
                "audio", Axis.LATENT, (c, FRAMES_PER_LATENT, audio.dim), "audio", "audio_features",
                given=(1, audio.features, FRAMES_PER_LATENT * c), rows=per_frame(1, audio.features),
                encoder=Encoder(lambda: AudioEncoder(audio), "audio_encoder."),
                ear=Ear(lambda load, whole: LogMel(
                    model.fps, audio.rows_per_frame, audio.bands, lookahead_s=audio.lookahead_s)),
                narrow=True,
            )
        )  # fmt: skip
    if classes := tuple(sizes.actions):
        shape = (c, FRAMES_PER_LATENT * len(classes))
        found.append(
            Input(
                "actions", Axis.LATENT, shape, "actions", controls=Controls(classes, one=True),
                rows=lambda taken: one_hot(taken.tolist(), len(classes)),
            )
        )  # fmt: skip
    return tuple(found)

"""What conditions the model: a prompt."""

from __future__ import annotations

from conf.schema import ModelConfig
from stages.inputs import Input, reference, text


def inputs(model: ModelConfig) -> tuple[Input, ...]:
    """Text rows; and a picture, for students that were trained with one."""
    return text(model.network.text_tokens, model.network.text_dim), *reference(model)

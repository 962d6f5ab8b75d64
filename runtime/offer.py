"""What a run offers to people: the pictures, and what may be said, shown and pressed. Plain values, from settings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from conf.paths import is_file
from conf.schema import Config
from runtime.encoders import Picture, frames_of
from stages.controls import Controls
from stages.inputs import Input, controls_of, inputs_of, made_of
from stages.sources.tensors import TensorsFile

PROTOCOL = 3
"""Of what a gateway and a run that joins it say to each other."""
PICTURE = "image"


def offer_of(config: Config) -> dict[str, Any]:
    """The part of an entry of `GET /v1/models` that the configuration decides.

    Returns:
        id, object; fps, chunk_s (seconds of a chunk), width, height (pixels, as they are shown); hears: whether sound
        drives it; sees: whether it draws anew what a camera sees; poses: whether it is a world with a camera of its
        own, so that chunks say where that is and a stream may say what its lens is; actions: names, that of no action
        first; controls: `{keys, one, axes}`, what can be pressed and turned (`stages.controls`); prompts, picture:
        whether it takes them; words: all that its prompts may be made of, none: any; presets: `{name, prompt}` of those
        worth trying; trained: whether its weights are more than random.
    """
    model = config.model
    inputs, picture = inputs_of(model), Picture.of(model, config.stream)
    controls, prompt = controls_of(inputs) or Controls.of(()), made_of(inputs, "prompt")
    words = [str(word) for word in model.text.words] if prompt else []
    return {
        "id": model.name,
        "object": "model",
        "fps": model.fps,
        "chunk_s": frames_of(model, 1)[1] / model.fps,
        "width": picture.width * config.post.factor,
        "height": picture.height * config.post.factor,
        "hears": made_of(inputs, "audio") is not None,
        "sees": model.noise_scale is not None,
        "poses": made_of(inputs, "camera") is not None,
        "actions": list(controls.actions),
        "controls": {"keys": list(controls.keys), "one": controls.one, "axes": list(controls.axes)},
        "prompts": prompt is not None,
        "picture": _pictured(config, inputs),
        "words": words,
        "presets": presets_of(config),
        "trained": model.checkpoint is not None,
    }


def _pictured(config: Config, inputs: Sequence[Input]) -> bool:
    """Whether a stream may begin with a picture of its own: what `source.tensors` gives of a picture is of one alone.
    The file may be on the workers' machines only; then nothing is known of it here."""
    made, path = [one for one in inputs if one.source == PICTURE], config.source.tensors
    if not made or not path or not is_file(path):
        return bool(made)
    given = TensorsFile(path, config.model.name, inputs, config.model.noise_scale is not None)
    return not any(one.key and given.has(one.key) for one in made)


def presets_of(config: Config) -> list[dict[str, str]]:
    """Prompts of the configuration: the one a stream begins with, those that follow it, and the model's examples."""
    told = [config.stream.prompt, *(event.prompt for event in config.stream.events)]
    prompts = dict.fromkeys([*told, *config.model.text.examples] if config.model.text else told)
    return [{"name": prompt[:40], "prompt": prompt} for prompt in prompts if prompt]

"""Which sources of a stream go together, and with its model."""

from __future__ import annotations

from conf.errors import UserError
from conf.paths import is_live
from conf.schema import ModelConfig, SinkConfig, SourceConfig
from runtime.inputs import Inputs
from runtime.video import LATENTS, PICTURES
from stages.inputs import Input, controls_of, made_of
from stages.sources.tensors import TensorsFile


def check_video(
    model: ModelConfig, source: SourceConfig, sink: SinkConfig, tensors: TensorsFile | None, inputs: Inputs | None
) -> None:
    """A model that draws a video anew has one, and only one.

    Raises:
        UserError: it has none, or two, or one that cannot be recorded as it is asked.
    """
    given = [key for key in (LATENTS, PICTURES) if tensors and key in tensors.keys]
    if source.video and given:
        raise UserError(f"source.video={source.video}", f"source.tensors gives `{given[0]}`", "give one of the two")
    filmed = "source.session" if source.session else "source.inputs" if inputs is not None and inputs.sees else None
    if filmed and (source.video or given):
        name = f"source.video={source.video}" if source.video else f"source.tensors={source.tensors}"
        raise UserError(name, f"{filmed} brings pictures of its own", "give one of the two")
    if not filmed and not source.video and not given:
        raise UserError(
            f"model.noise_scale={model.noise_scale}",
            f"model={model.name} draws a video anew, and has none",
            f"give source.video, or `{LATENTS}` in source.tensors; or set model.noise_scale=null",
        )
    if sink.inputs and is_live(source.video):
        raise UserError(
            f"sink.inputs={sink.inputs}", "live pictures are too many to be recorded", "give source.video as a file"
        )


def asked(declared: tuple[Input, ...], tensors: TensorsFile | None) -> tuple[Input, ...]:
    """Inputs that are not given for all of the stream, so that their sources are asked."""
    return tuple(one for one in declared if tensors is None or not tensors.lasts(one))


def refuse_unused(
    model: ModelConfig, source: SourceConfig, declared: tuple[Input, ...], tensors: TensorsFile | None
) -> None:
    """Nothing is given that the model has no use for, or that something else gives already.

    Raises:
        UserError: it is.
    """
    if source.video and model.noise_scale is None:
        rule = f"model={model.name} takes no video, since model.noise_scale=null"
        raise UserError(f"source.video={source.video}", rule, "set source.video=null, or give model.noise_scale")
    if source.intrinsics is not None and made_of(declared, "camera") is None:
        rule = f"model={model.name} takes no camera"
        raise UserError(f"source.intrinsics={source.intrinsics}", rule, "set source.intrinsics=null")
    for name in ("image", "audio", "actions", "camera"):
        value = getattr(source, name)
        if value and (controls_of(declared) if name == "actions" else made_of(declared, name)) is None:
            raise UserError(f"source.{name}={value}", f"model={model.name} takes no {name}", f"set source.{name}=null")
        if value and name == "actions" and controls_of(asked(declared, tensors)) is None:
            given = " and ".join(f"`{one.key}`" for one in declared if one.controls)
            rule = f"source.tensors gives {given} for all of the stream"
            raise UserError(f"source.{name}={value}", rule, "give one of the two")
        if value and source.inputs and name != "image":
            raise UserError(f"source.{name}={value}", "source.inputs brings its own", f"set source.{name}=null")

"""What people type arrives as they typed it, and what is wrong is named."""

import json
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import given
from hypothesis import strategies as st

from conf.errors import UserError
from conf.schema import Config
from conf.settings import by_name
from launch.arguments import read
from launch.sweep import jobs
from tests.helpers import config_of

PROMPTS = json.loads(Path(__file__).with_name("prompts.json").read_text())
"""As people write them: twelve languages, emoji, quotes of all kinds, and what shells and parsers trip on."""
TEXT = st.text(st.characters(blacklist_categories=("Cs",), blacklist_characters="\0"), max_size=40)


def arrives(prompt):
    """What the configuration's text is when a person has typed a prompt."""
    return read([f"stream.prompt={prompt}"], Config).texts["stream.prompt"]


@pytest.mark.parametrize("prompt", PROMPTS)
def test_every_prompt_arrives_letter_by_letter(prompt):
    assert arrives(prompt) == prompt


@pytest.mark.parametrize("prompt", ['it\'s = ("fun"), ${x} \\${y} \\', "\u7a7f\u7ea2\U0001f600\n\t", "???"])
def test_a_prompt_arrives_through_the_whole_configuration(prompt):
    assert config_of("model=nano", f"stream.prompt={prompt}").stream.prompt == prompt


def test_there_are_two_hundred_prompts_and_no_two_are_alike():
    assert len(set(PROMPTS)) == len(PROMPTS) == 200


@given(prompt=TEXT | st.text("\\${}'\"=,[](): \n", max_size=12))
def test_no_sign_of_a_prompt_is_lost(prompt):
    assert arrives(prompt) == prompt


@pytest.mark.parametrize(
    "name",
    ["face (1).png", "epoch=9-step=8.png", "it's me, [now].png", "M\u00fcller \u7ae0.png", " ", "a\\b.png", "null "],
)
def test_a_path_is_taken_as_typed(name):
    (override,) = read([f"source.image=/proc/nowhere/{name}"], Config).overrides
    assert OverridesParser.create().parse_override(override).value() == f"/proc/nowhere/{name}"


def test_a_path_may_name_another_setting():
    sink = config_of("model=nano", "output_dir=there", "sink.latents=${output_dir}/x.safetensors").sink
    assert sink.latents == "there/x.safetensors"


def test_a_group_that_may_be_unset_may_be_null():
    assert read(["experiment=null", "cluster=null", "model=nano"], Config).overrides == ["model=nano"]


def test_null_is_nothing_where_a_setting_may_be_nothing_and_a_word_to_a_prompt():
    assert config_of("model=nano", "source.image=null").source.image is None
    assert config_of("model=nano", "stream.prompt=null").stream.prompt == "null"


def test_a_lora_is_a_path_or_an_object(tmp_path):
    lora = "[tag] my, style=2.safetensors"
    assert read([f"model.lora={lora}"], Config).overrides == [f"model.lora='{lora}'"]
    assert read(["model.lora={path: a, scale: 0.5}"], Config).overrides == ["model.lora={path: a, scale: 0.5}"]


def test_a_multirun_has_hydras_commas():
    given = ["--multirun", "stream.seed=1,2", "stream.prompt=a cat (black)", "stream.id=a,b"]
    found = read(given, Config)
    assert found.overrides == ["--multirun", "stream.seed=1,2", "stream.id=a,b"]
    assert found.texts == {"stream.prompt": "a cat (black)"}


def test_a_batch_systems_jobs_are_as_typed():
    found = jobs(["stream.seed=1,2", "stream.prompt=it's = fun (really)", "stream.id=a,'b c'"])
    assert found[0] == ["stream.seed=1", "stream.prompt=it's = fun (really)", "stream.id=a"]
    assert found[3] == ["stream.seed=2", "stream.prompt=it's = fun (really)", "stream.id=b c"]


@pytest.mark.parametrize(
    ("argument", "line"),
    [
        (
            "stream.chunks=1,2",
            "must be a whole number of chunks or null; for example stream.chunks=4",
        ),
        ("stream.chunks=(", "stream.chunks=(: must be a whole number of chunks or null"),
        ("+prompt=hello", "+prompt=hello: there is no such key; did you mean stream.prompt?"),
        ("++model.lora_strength=2", "++model.lora_strength=2: there is no such key; did you mean model.lora?"),
        ("stream.chunks", "stream.chunks: has no value; write stream.chunks=VALUE"),
        ("video.mp4", "video.mp4: is no setting; write KEY=VALUE"),
        (
            "stream=5",
            "holds other settings; set one of them, stream.chunks or stream.seconds",
        ),
        ("logging=[1,2]", "logging=[1,2]: there is no logging of that name; use one of none, wandb"),
        ("plan=timestep,layers", "plan=timestep,layers: there is no plan of that name"),
        ("stream.events=[{chunk: 1, prompt: A cat, running}]", 'for example stream.events=[{chunk: 0, prompt: "..."}]'),
    ],
)
def test_a_complaint_names_the_argument_that_is_wrong(argument, line):
    with pytest.raises(UserError) as error:
        read(["stream.seed=1", argument, "stream.prompt=fine (really)"], Config)
    assert line in str(error.value)


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        (["stream.chunks=2", "stream.chunks=1e3"], "stream.chunks=1e3: must be a whole number of chunks"),
        (["stream.seconds=soon"], "stream.seconds=soon: must be a number of seconds or null; for example"),
        (["plan.force=perhaps"], "plan.force=perhaps: must be true or false"),
        (
            ["device.emulated.post_s=1" + "0" * 400],
            "must be a number of seconds; for example device.emulated.post_s=0.0",
        ),
        (["stream.seed=1" + "0" * 30], "must be a whole number; for example stream.seed=0"),
        (
            ["plan.layers=[[1]]"],
            "plan.layers=[[1]]: must be a list of whole numbers or null; for example plan.layers=[2,1,1]",
        ),
        (["device.emulated.speeds=[fast]"], "device.emulated.speeds=[fast]: must be a list of numbers; for example"),
        (["stream.events=[{chunk: x}]"], "stream.events=[{chunk: x}]: must be a list"),
        (["sink.video=${nobody}/x.mp4"], "sink.video=${nobody}/x.mp4"),
    ],
)
def test_a_value_of_another_kind_is_told_in_words(overrides, line):
    with pytest.raises(UserError) as error:
        config_of("model=nano", *overrides)
    assert line in str(error.value)


@pytest.mark.parametrize(
    "typed",
    ["+cluster.kinds.mine.flops=8e10", "+hydra.job.env_set.X=1", "hydra/launcher=basic", "model.network.dim=8"],
)
def test_what_the_schema_does_not_know_is_hydras(typed):
    assert read([typed], Config).overrides == [typed]


def test_a_setting_without_a_meaning_is_no_setting():
    silent = [name for name, setting in by_name(Config).items() if len(setting.text) < 8]
    assert not silent

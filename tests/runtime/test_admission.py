"""What streams must leave to each other, under whatever name it is given."""

import os
import sys
from dataclasses import replace

import pytest

from conf.errors import UserError
from conf.schema import Config, LoraConfig, SinkConfig, SourceConfig, StreamConfig
from runtime.admission import of_run, own
from runtime.orders import Open
from tests.helpers import config_of


def order(name: str, source: dict | None = None, **sink) -> Open:
    given = {key: str(path) for key, path in (source or {}).items()}
    paths = {key: str(path) for key, path in ({"video": ""} | sink).items()}
    return Open(0, StreamConfig(id=name), SourceConfig(**given), SinkConfig(**paths))


@pytest.fixture
def linked(tmp_path):
    """(a folder, another name of it)"""
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    return tmp_path / "real", tmp_path / "link"


def test_a_file_has_one_writer_under_all_its_names(linked):
    real, link = linked
    held = own(order("a", video=real / "a.mp4", latents=real / "a.safetensors"), {})
    with pytest.raises(UserError, match=r"sink.inputs=.*: stream a writes it; give a file of its own"):
        own(order("b", inputs=link / "a.mp4"), held)
    with pytest.raises(UserError, match=r"sink.inputs=.*: sink.latents writes it; "):
        own(order("b", latents=real / "x", inputs=link / "x"), held)
    with pytest.raises(UserError, match=r"sink.timeline=.*: sink.contact_sheet writes it; "):
        own(order("b", contact_sheet=real / "x.png", timeline=link / "x.png"), held)
    assert own(order("b", video=real / "b.mp4"), held)


def test_streams_of_a_run_share_its_timeline(tmp_path):
    held = own(order("a", timeline=tmp_path / "t.png", latents=tmp_path / "a"), {})
    assert own(order("b", timeline=tmp_path / "t.png", latents=tmp_path / "b"), held)


def test_a_pipe_has_one_reader_and_a_file_has_many(linked):
    real, link = linked
    os.mkfifo(real / "pipe")
    (real / "file").write_text("")
    held = own(order("a", {"audio": real / "pipe", "actions": real / "file"}), {})
    with pytest.raises(UserError, match=r"source.actions=.*: stream a reads it; give a pipe of its own"):
        own(order("b", {"actions": link / "pipe"}), held)
    with pytest.raises(UserError, match=r"source.actions=.*: source.audio reads it; "):
        own(order("b", {"audio": real / "pipe", "actions": link / "pipe"}), {})
    own(order("b", {"actions": link / "file"}), held)


def test_nobody_writes_what_is_read(linked):
    """Under another name, in another spelling, by another link."""
    real, link = linked
    (real / "speech.wav").write_text("")
    os.link(real / "speech.wav", real / "twin.wav")
    for path in (real / "speech.wav", link / "speech.wav", real / ".." / "real" / "speech.wav", real / "twin.wav"):
        with pytest.raises(UserError, match=r"sink.latents=.*: source.audio reads it; give a file of its own"):
            own(order("a", {"audio": real / "speech.wav"}, latents=path), {})
        with pytest.raises(UserError, match=r"sink.latents=.*: stream a reads it; "):
            own(order("b", latents=path), own(order("a", {"audio": real / "speech.wav"}), {}))


def test_nobody_writes_what_is_the_runs_own(linked):
    real, link = linked
    (real / "w.safetensors").write_text("")
    config = replace(config_of("model=nano", f"output_dir={real}"))
    taken = of_run(replace(config, model=replace(config.model, checkpoint=str(real / "w.safetensors"))))
    for name, who in (("report.json", "the run writes"), ("w.safetensors", "the model reads")):
        with pytest.raises(UserError, match=rf"sink.inputs=.*{name}: {who} it; give a file of its own"):
            own(order("a", inputs=link / name), taken)
    assert own(order("a", video=real / "video.mp4"), taken)


def test_files_of_a_models_folders_and_adapters_are_the_models(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    kept = (
        "m/config.json", "m/model.safetensors.index.json", "m/a.safetensors", "m/google/umt5-xxl/spiece.model",
        "style.safetensors", "adapter_config.json", "pair/adapter_model.safetensors",
    )  # fmt: skip
    free = ("m/notes.json", "m/old/a.safetensors", "nano/latents.safetensors")
    for name in (*kept, *free):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("{}")
    (tmp_path / kept[1]).write_text('{"weight_map": {"w": "a.safetensors"}}')
    config = config_of("model=nano")
    lora = [LoraConfig("style.safetensors"), LoraConfig("pair")]
    taken = of_run(replace(config, model=replace(config.model, checkpoint="m/a.safetensors", lora=lora)))
    config.model.checkpoint = "m"
    taken |= of_run(config)
    for name in kept:
        with pytest.raises(UserError, match=rf"sink.latents={name}: the model reads it; give a file of its own"):
            own(order("a", latents=name), taken)
    for name in free:  # the last is in a folder that has the model's name
        assert own(order("a", latents=name), taken)


def test_standard_input_by_another_name_is_standard_input(tmp_path, monkeypatch):
    os.mkfifo(pipe := tmp_path / "pipe")
    (file := tmp_path / "file").write_text("")
    with os.fdopen(os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)) as stdin, file.open() as redirected:
        monkeypatch.setattr(sys, "stdin", stdin)
        source = SourceConfig(audio=str(pipe), actions=str(file))
        assert (source.audio, source.actions, source.reads_stdin) == ("-", str(file), True)
        assert Config(control=str(pipe)).control == "-"
        with pytest.raises(UserError, match="standard input"):
            SourceConfig(audio=str(pipe), actions="-")
        monkeypatch.setattr(sys, "stdin", redirected)
        assert SourceConfig(actions=str(file)).actions == str(file)  # each reads it from its beginning
        monkeypatch.setattr(sys, "stdin", None)
        assert SourceConfig(audio=str(pipe)).audio == str(pipe)

"""What commands say of themselves."""

import importlib
import shlex
from pathlib import Path

import pytest

from conf.schema import Config
from conf.settings import by_name
from launch import __main__ as everframe
from launch import reference
from launch.arguments import is_option, read
from launch.command import examples, version

COMMANDS = {name: importlib.import_module(f"launch.{name.replace('-', '_')}") for name in everframe.COMMANDS}


@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize("option", ["--help", "-h"])
def test_every_command_has_help(name, option, capsys):
    assert COMMANDS[name].main([option]) == 0
    said = capsys.readouterr().out
    assert said.startswith(f"usage: everframe {name} ")
    assert len(examples(name)) == 3
    assert all(line in said for line in examples(name))


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_a_version(name, capsys):
    assert COMMANDS[name].main(["--version"]) == 0
    assert capsys.readouterr().out == f"everframe {version()}\n"


def test_help_tells_of_every_setting(capsys):
    COMMANDS["stream"].main(["--help"])
    said = " ".join(capsys.readouterr().out.split())
    for name, setting in by_name(Config).items():
        assert f" {name} (" in said
        assert setting.text in said


def test_help_tells_of_a_part(capsys):
    assert COMMANDS["stream"].main(["--help", "sink"]) == 0
    said = capsys.readouterr().out
    assert "sink.latents" in said
    assert "stream.chunks" not in said
    assert COMMANDS["stream"].main(["--help", "snik"]) == 2
    assert "--help snik: there is no such key; did you mean sink?" in capsys.readouterr().err


@pytest.mark.parametrize("name", [name for name, module in COMMANDS.items() if module.COMMAND.schema])
def test_examples_can_be_read(name):
    command = COMMANDS[name].COMMAND
    for line in examples(name):
        words = shlex.split(line)
        settings = [w for w in words if "=" in w and not is_option(w)]
        assert settings == [] or read(settings, command.schema).overrides


def test_the_page_of_settings_is_up_to_date():
    page = Path(reference.__file__).parents[1] / "docs" / "configuration.md"
    assert page.read_text() == "\n".join(reference.page()) + "\n"


@pytest.mark.parametrize("arguments", [["--help"], ["-h"], ["--version"]])
def test_everframe_itself(arguments, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["everframe", *arguments])
    assert everframe.main() == 0
    said = capsys.readouterr().out
    assert all(name in said for name in COMMANDS) or "version" in arguments[0]


def test_what_is_a_commands_alone_comes_first(capsys):
    COMMANDS["serve"].main(["--help"])
    said = capsys.readouterr().out
    assert said.index("\n  serve.host  (") < said.index("\n  output_dir  (")

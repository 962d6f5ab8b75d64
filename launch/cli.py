"""The command line's frame: Hydra composes, types check, and a user's mistake is one line and exit code 2."""

from __future__ import annotations

import errno
import os
import re
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import hydra
import yaml
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.types import Quote, QuotedString
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from conf.errors import UserError, nearest
from conf.paths import inside
from conf.schema.stream import SINKS
from launch.arguments import CONF, FREE, MULTIRUN, VALUED, is_option, options, read, refused, with_texts
from launch.command import Command
from launch.console import lasting

EXIT_USER_ERROR = 2


def _explain(error: Exception, given: Sequence[str], schema: type) -> UserError:
    """Hydra's or OmegaConf's complaint as value, rule and remedy; `arguments.read` finds most mistakes before."""
    chain: list[BaseException] = [error]
    while not isinstance(chain[-1], UserError) and chain[-1].__cause__ is not None:
        chain.append(chain[-1].__cause__)
    if isinstance(chain[-1], UserError):
        return chain[-1]
    text = " ".join(str(error).split())
    if found := re.search(r"Could not find '(\w+)/([^']*)'", text):
        group, name = found.groups()
        return UserError(f"{group}={name}", f"there is no {group} of that name", nearest(name, options(group)))
    key = next((k for cause in chain if (k := getattr(cause, "full_key", None))), "")
    if any("is not in struct" in str(cause) for cause in chain) and (found := _below(given)):
        argument, group, field = found
        return UserError(argument, f"{group} has no {field} here, or is null", f"write {group}={{{field}: ...}}")
    if key:
        reason = next(str(cause).splitlines()[0] for cause in chain if getattr(cause, "full_key", None))
        return refused(given, key, schema, reason)
    typed = [a for a in given if not is_option(a)]
    return UserError(" ".join(typed) or "configuration", text, "see --help")


def _below(given: Sequence[str]) -> tuple[str, str, str] | None:
    """(argument, group, field) of the first that sets something in a group of names that the schema does not know."""
    keys = ((argument, argument.lstrip("+").partition("=")[0]) for argument in given)
    below = ((a, name, k.removeprefix(f"{name}.")) for a, k in keys for name in FREE if k.startswith(f"{name}."))
    return next(below, None)


def _store(name: str, schema: type) -> None:
    """Make a schema known to Hydra. Keys of a network are its family's, who checks them when the model is made."""
    node = OmegaConf.structured(schema)
    if "model" in node:
        node.model.network = OmegaConf.create({}, flags={"struct": False})
    ConfigStore.instance().store(f"{name}_schema", node)


def _composed(name: str, schema: type, overrides: list[str]) -> DictConfig:
    """The configuration that overrides give, as Hydra takes them."""
    _store(name, schema)
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        return hydra.compose(name, overrides)


def compose(name: str, schema: type, given: Sequence[str]) -> Any:
    """The typed configuration that a command line gives, for those who are not the command line.

    Args:
        name: the primary configuration, `conf/<name>.yaml`.
        schema: its dataclass.
        given: `key=value`, as a person types it.

    Raises:
        UserError: names the argument that is wrong.
    """
    try:
        line = read(given, schema)
        return with_texts(OmegaConf.to_object(_composed(name, schema, line.overrides)), line.texts)
    except (HydraException, OmegaConfBaseException) as error:
        raise _explain(error, given, schema) from error


def written(config: Any) -> str:
    """A typed configuration as YAML, nothing in which refers to anything else."""
    return yaml.safe_dump(_plain(asdict(config)), sort_keys=False, allow_unicode=True, width=1000)


def _plain(value: Any) -> Any:
    """A value of the kinds that YAML has."""
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    return [_plain(inner) for inner in value] if isinstance(value, list | tuple) else value


def _job_folder(config: DictConfig) -> None:
    """Give every job of a multirun a folder of its own.

    Raises:
        UserError: jobs would have a file, or the ranks of a torchrun, in common.
    """
    if HydraConfig.get().mode != RunMode.MULTIRUN or "output_dir" not in config:
        return
    if OmegaConf.select(config, "launcher.name") == "torchrun":
        rule = "has the ranks of one run, and a multirun has several runs"
        raise UserError("launcher=torchrun", rule, "start a torchrun for each job (python -m launch.sweep lists them)")
    config.output_dir = f"{config.output_dir}/{HydraConfig.get().job.num}"
    for setting in (*(f"sink.{name}" for name in SINKS), "bench.file"):
        if (path := OmegaConf.select(config, setting)) and inside(path, config.output_dir) is None:
            rule = "would be written by every job of a multirun"
            raise UserError(f"{setting}={path}", rule, f"use {setting}='${{output_dir}}/{Path(path).name}'")


@contextmanager
def _for_hydra(given: Sequence[str]) -> Iterator[list[str]]:
    """Arguments as Hydra's own entry takes them, options first. Its sweeper writes to a folder that nobody sees: jobs
    have theirs, once they begin."""
    options: list[str] = []
    overrides: list[str] = []
    for before, argument in zip(("", *given), given, strict=False):
        (options if is_option(argument) or before in VALUED else overrides).append(argument)
    with TemporaryDirectory() as folder:
        place = QuotedString(text=folder, quote=Quote.single).with_quotes()
        yield [*options, f"hydra.sweep.dir={place}", *overrides]


def run(
    command: Command,
    job: Callable[[Any, str], None],
    argv: Sequence[str] | None = None,
    config: str = "stream",
    prepare: Callable[[DictConfig], None] = lambda config: None,
    speaks: bool = True,
) -> int:
    """Compose `conf/<config>.yaml` with the command line and run `job(configuration, yaml)`.

    Args:
        command: what is run; its schema is stored as `<config>_schema`.
        job: gets the typed configuration and its resolved YAML.
        argv: arguments; None: the process's.
        config: the primary configuration.
        prepare: may change the composed configuration before it is resolved.
        speaks: whether mistakes are printed by this process (one of several that all make the same).

    Returns:
        The exit code: 0, 2 with one line on standard error for a user's mistake, or 130 where Ctrl-C ended it.
    """
    given = sys.argv[1:] if argv is None else list(argv)
    # Hydra would print its own, longer, account of an error and exit with 1.
    os.environ["HYDRA_FULL_ERROR"] = "1"

    def refuse(error: Exception) -> int:
        if speaks:
            print(f"error: {_explain(error, given, command.schema)}", file=sys.stderr)
        return EXIT_USER_ERROR

    def typed(composed: DictConfig, first: Callable[[DictConfig], None] = lambda config: None) -> None:
        try:
            first(composed)
            prepare(composed)
            made = with_texts(OmegaConf.to_object(composed), texts)
            job(made, written(made))
        except (OmegaConfBaseException, UserError) as error:
            # Not an exception to Hydra, which would announce it in words of its own.
            raise SystemExit(refuse(error)) from None

    def hydras(composed: DictConfig) -> None:
        sys.argv = [program[0], *given]
        typed(composed, _job_folder)

    program, texts = sys.argv, {}
    sys.argv = [program[0], *given]  # as it was typed, for whoever writes it down
    with lasting(errno.EPIPE):
        try:
            if command.answers(given):
                return 0
            if not command.sweeps and (more := next((a for a in given if a in MULTIRUN), None)):
                rule = f"everframe {command.name} is one run, which does not end by itself"
                raise UserError(more, rule, "leave it out")
            line = read(given, command.schema)
            overrides, texts = line.overrides, line.texts
            if any(is_option(a) or a.startswith("hydra") for a in overrides):
                _store(config, command.schema)
                with _for_hydra(overrides) as told:
                    sys.argv = [program[0], *told]
                    hydra.main(version_base="1.3", config_path=str(CONF), config_name=config)(hydras)()
            else:  # Hydra's own command line composes twice
                typed(_composed(config, command.schema, overrides))
        except (HydraException, OmegaConfBaseException, UserError) as error:
            return refuse(error)
        except SystemExit as end:
            return end.code or 0
        except KeyboardInterrupt:
            return 128 + signal.SIGINT
        finally:
            sys.argv = program
    return 0


def alone(command: Command, job: Callable[[list[str]], None], argv: Sequence[str] | None = None) -> int:
    """Run a command without settings: `job(arguments)`. Returns the exit code, as `run` does."""
    arguments = sys.argv[1:] if argv is None else list(argv)
    with lasting(errno.EPIPE):
        try:
            if not command.answers(arguments):
                job(arguments)
        except UserError as error:
            print(f"error: {error}", file=sys.stderr)
            return EXIT_USER_ERROR
        except KeyboardInterrupt:
            return 128 + signal.SIGINT
    return 0

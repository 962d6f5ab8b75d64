"""The command line's frame: Hydra composes, types check, and a user's mistake is one line and exit code 2."""

from __future__ import annotations

import os
import re
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, get_args, get_type_hints

import hydra
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException, ValidationError

import conf
from conf.errors import UserError, nearest
from launch import clusters

CONF = Path(conf.__file__).parent
EXIT_USER_ERROR = 2


def keys(schema: type, prefix: str = "") -> Iterator[str]:
    """Every dotted key of a configuration type, groups included."""
    hints = get_type_hints(schema)
    for field in fields(schema):
        name = prefix + field.name
        yield name
        for kind in (hints[field.name], *get_args(hints[field.name])):
            if is_dataclass(kind):
                yield from keys(kind, name + ".")


def groups(schema: type) -> list[str]:
    """Keys that choose a YAML file (`model=NAME`)."""
    names = [f.name for f in fields(schema)] + ["experiment"]
    return [name for name in names if (CONF / name).is_dir()]


def _explain(error: Exception, overrides: list[str], schema: type) -> UserError:
    """Hydra's or OmegaConf's complaint as value, rule and remedy."""
    chain: list[BaseException] = [error]
    while not isinstance(chain[-1], UserError) and chain[-1].__cause__ is not None:
        chain.append(chain[-1].__cause__)
    if isinstance(chain[-1], UserError):
        return chain[-1]
    text = " ".join(str(error).split())
    known = [*keys(schema), *groups(schema)]

    def given(key: str) -> str:
        pattern = re.compile(rf"^[+~]*{re.escape(key)}(=|$)")
        return next((o for o in overrides if pattern.match(o)), key)

    if found := re.search(r"Could not find '(\w+)/([^']*)'", text):
        group, name = found.groups()
        options = sorted(p.stem for p in (CONF / group).glob("*.yaml"))
        return UserError(f"{group}={name}", f"there is no {group} of that name", nearest(name, options))
    if found := re.search(r"Could not override '([^']+)'", text) or re.search(r"Key '([^']+)' (is )?not in", text):
        full = [getattr(c, "full_key", None) for c in chain]
        key = next((k for k in full if k), found[1])
        if key in groups(schema) and "=" in given(key):
            return UserError(given(key), "cannot be set that way", f"use {key}=NAME")
        return UserError(given(key), "there is no such key", nearest(key, known))
    for cause in chain:
        if isinstance(cause, ValidationError) and cause.full_key:
            reason = str(cause).splitlines()[0]
            wanted = re.search(r"converted to (\w+)", reason)
            article = "an" if wanted and wanted[1][0] in "AEIOU" else "a"
            rule = f"must be {article} {wanted[1].lower()}" if wanted else reason
            return UserError(given(cause.full_key), rule, f"give {rule.removeprefix('must be ')}")
    if any(sign in text for sign in ("missing EQUAL", "LexerNoViableAlt", "no viable alternative", "mismatched input")):
        broken = next((o for o in overrides if o in str(error)), overrides[0] if overrides else "")
        return UserError(broken, "is no override", "write key=value (quote values with spaces or commas)")
    return UserError("configuration", text, "see --help")


def _store(name: str, schema: type) -> None:
    """Make a schema known to Hydra. Keys of a network are its family's, who checks them when the model is made."""
    node = OmegaConf.structured(schema)
    if "model" in node:
        node.model.network = OmegaConf.create({}, flags={"struct": False})
    ConfigStore.instance().store(f"{name}_schema", node)


def composed(name: str, schema: type, overrides: list[str]) -> DictConfig:
    """The configuration that a command line of `overrides` gives."""
    _store(name, schema)
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        return hydra.compose(name, clusters.arguments(overrides))


def compose(name: str, schema: type, overrides: list[str]) -> Any:
    """The same as typed data, for those who are not the command line."""
    return OmegaConf.to_object(composed(name, schema, overrides))


def _job_folder(config: DictConfig) -> None:
    """Give every job of a multirun a folder of its own."""
    if HydraConfig.get().mode == RunMode.MULTIRUN:
        config.output_dir = f"{config.output_dir}/{HydraConfig.get().job.num}"


def run(
    name: str,
    schema: type,
    job: Callable[[Any, str], None],
    argv: list[str] | None = None,
    prepare: Callable[[DictConfig], None] = lambda config: None,
    speaks: bool = True,
) -> int:
    """Compose `conf/<name>.yaml` with the command line and run `job(config, yaml)`.

    Args:
        name: the primary configuration.
        schema: its dataclass, stored as `<name>_schema`.
        job: gets the typed configuration and its resolved YAML.
        argv: arguments; None: the process's.
        prepare: may change the composed configuration before it is resolved.
        speaks: whether mistakes are printed by this process (one of several that all make the same).

    Returns:
        The exit code: 0, 2 with one line on standard error for a user's mistake, or 130 where Ctrl-C ended it.
    """
    arguments = clusters.arguments(sys.argv[1:] if argv is None else argv)
    # Hydra would print its own, longer, account of an error and exit with 1.
    os.environ["HYDRA_FULL_ERROR"] = "1"

    def refuse(error: Exception) -> int:
        if speaks:
            print(f"error: {_explain(error, arguments, schema)}", file=sys.stderr)
        return EXIT_USER_ERROR

    def typed(config: DictConfig) -> None:
        try:
            prepare(config)
            job(OmegaConf.to_object(config), OmegaConf.to_yaml(config, resolve=True))
        except (OmegaConfBaseException, UserError) as error:
            # Not an exception to Hydra, which would announce it in words of its own.
            raise SystemExit(refuse(error)) from None

    def hydras(config: DictConfig) -> None:
        _job_folder(config)
        typed(config)

    program, sys.argv = sys.argv, [sys.argv[0], *arguments]
    try:
        if any(a.startswith(("-", "hydra")) for a in arguments):
            _store(name, schema)
            hydra.main(version_base="1.3", config_path=str(CONF), config_name=name)(hydras)()
        else:  # Hydra's own command line composes twice
            typed(composed(name, schema, arguments))
    except (HydraException, OmegaConfBaseException) as error:
        return refuse(error)
    except SystemExit as end:
        return end.code or 0
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    finally:
        sys.argv = program
    return 0

"""The output folder of a run: one run at a time has it, and what an earlier run has left there is kept.

A run that names a used folder moves what is in its way to `earlier.1/`, `earlier.2/`, ... of that folder, unless it
goes on from a state in it. Whether a folder is in use is asked of the kernel, which lets go of a lock when its holder
dies.
"""

from __future__ import annotations

import fcntl
import logging
import os
import platform
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from glob import escape
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from conf import disk
from conf.errors import UserError
from conf.paths import inside, is_there
from conf.schema import Config
from conf.schema.stream import SINKS, SOURCES
from launch import restarting
from runtime.admission import CONFIG, RESULTS, model_files
from runtime.state import FOLDER, candidates, states

log = logging.getLogger(__name__)

FILES = (*RESULTS, "trace.*.part")
"""What every run leaves, as globs; its configuration says the rest."""
LOCK = ".everframe.lock"
LOCK_S, POLL_S = 1.0, 0.05
"""Longest wait for a lock, which others hold for a moment when they look whether it is free."""


def look(config: Config, leaves: Sequence[str] = ()) -> None:
    """Look, before anything loads, whether the run may have its output folder and what is the run's own elsewhere;
    leaves nothing there. Arguments and errors are those of `claimed`.
    """
    folder = Path(config.output_dir)
    with _making(folder):
        disk.look(folder)
    if timeline := config.sink.timeline:
        with disk.writing(f"sink.timeline={timeline}"):
            disk.look_file(timeline)
    with suppress(OSError):  # nobody has ever locked it, or `claimed` says why it cannot be
        file = os.open(folder / LOCK, os.O_RDWR | os.O_NOFOLLOW)
        try:
            if not _locks(file, fcntl.LOCK_SH):
                raise _in_use(folder, file)
        finally:
            os.close(file)
    _in_the_way(folder, config, leaves)


@contextmanager
def claimed(config: Config, leaves: Sequence[str] = ()) -> Iterator[Path]:
    """The run's output folder, made, and this run's alone while the context is open. What is in its way has been moved.
    Folders that were made for nothing are removed at the end.

    Args:
        config: the run.
        leaves: what else it leaves there, as globs.

    Raises:
        UserError: it cannot be made or written, another run is writing there, or this one reads what would be moved.
    """
    folder = Path(config.output_dir)
    new = [path for path in (folder, *folder.parents) if not is_there(path)]
    try:
        with _making(folder):
            disk.folder(folder)
        with _locked(folder):
            if found := _in_the_way(folder, config, leaves):
                with disk.writing(f"output_dir={folder}", f"{disk.EARLIER}.N"):
                    aside = disk.keep_aside(folder, found)
                log.warning("output_dir=%s holds an earlier run, which is kept in %s", folder, aside)
            yield folder
    finally:
        with suppress(OSError):  # something is in it
            for path in new:
                path.rmdir()


def _making(folder: Path) -> Any:
    return disk.writing(f"output_dir={folder}", rule="cannot be made", remedy="give a folder you may write to")


# -- one run at a time --------------------------------------------------------------------------------------------


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    path = folder / LOCK
    file = _lock(folder, path)
    try:
        yield
    finally:
        with suppress(OSError):
            path.unlink()
        os.close(file)


def _lock(folder: Path, path: Path) -> int:
    """The descriptor of a folder's lock, held."""
    end = time.monotonic() + LOCK_S
    while True:
        with disk.writing(f"output_dir={folder}", path.name):
            file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
        if not _locks(file):
            if time.monotonic() > end:
                refused = _in_use(folder, file)
                os.close(file)
                raise refused
        elif _is_at(file, path):
            with suppress(OSError):  # who it is matters less than that it is held
                os.ftruncate(file, 0)
                os.write(file, f"process {os.getpid()} on {platform.node()}".encode())
            return file
        # Else its holder has just ended, and removed it.
        os.close(file)
        time.sleep(POLL_S)


def _locks(file: int, how: int = fcntl.LOCK_EX) -> bool:
    """Lock a file, unless another has it locked; where nobody can, that is said, and nothing keeps others out."""
    try:
        fcntl.flock(file, how | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        log.warning("this file system locks nothing (%s): see to it that no other run writes there", error.strerror)
    return True


def _is_at(file: int, path: Path) -> bool:
    with suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(file), path.lstat())
    return False


def _in_use(folder: Path, file: int) -> UserError:
    who = "another"
    with suppress(OSError):
        who = os.pread(file, 200, 0).decode(errors="replace") or who
    return UserError(
        f"output_dir={folder}",
        f"a run is writing there ({who})",
        "give a folder of its own, or wait until it has ended",
    )


# -- what an earlier run has left -----------------------------------------------------------------------------------


def _goes_on_in(folder: Path, config: Config) -> bool:
    """Whether a run resumes from a state that is in its output folder."""
    if restarting.goes_on(config):
        return True
    if config.resume is None:
        return False
    newest = candidates(config.resume, "0" if config.stream.count > 1 else None)[0].folder
    return (folder / FOLDER).resolve() in newest.resolve().parents


def _in_the_way(folder: Path, config: Config, leaves: Sequence[str]) -> list[Path]:
    """What is to be moved before a run begins in a folder.

    Raises:
        UserError: the run reads some of it.
    """
    found = [] if _goes_on_in(folder, config) else _left(folder, config, leaves)
    moved = {Path(os.path.realpath(path)) for path in found}
    for setting, path in _read_by(config) if moved else ():
        real = Path(os.path.realpath(path))
        if not moved.isdisjoint((real, *real.parents)):
            raise UserError(
                f"{setting}={path}",
                f"is of an earlier run in output_dir={folder}, whose results are put aside there when this one begins",
                "give another output_dir",
            )
    return found


def _read_by(config: Config) -> Iterator[tuple[str, str | Path]]:
    """Files that a run reads, and the settings that name them."""
    given = {f"source.{name}": getattr(config.source, name) for name in SOURCES} | {"control": config.control}
    yield from ((setting, path) for setting, path in given.items() if path and is_there(path))
    yield from model_files(config)


def _left(folder: Path, config: Config, leaves: Sequence[str]) -> list[Path]:
    """What an earlier run has left in a folder, and what else this one would replace. All else is somebody's own."""
    before = _read(folder / CONFIG)
    patterns = [*FILES, *leaves, *_patterns(before.get("output_dir"), before.get("sink"))]
    patterns += _patterns(config.output_dir, vars(config.sink))
    found: set[Path] = set()
    for pattern in patterns:
        with suppress(OSError, ValueError):  # a name that no file can have
            found.update(folder.glob(pattern))
    if any(states(root) for root in (folder / FOLDER, *folder.glob(f"{FOLDER}/*"))):
        found.add(folder / FOLDER)
    taken = found | {*disk.earlier(folder)}
    whole = [path for path in found - {*disk.earlier(folder)} if taken.isdisjoint(path.parents)]
    # The configuration says what the rest is: it goes last.
    return sorted(whole, key=lambda path: (path.name == CONFIG, path))


def _read(path: Path) -> Mapping[str, Any]:
    """A run's configuration; empty where it is none."""
    try:
        content = OmegaConf.to_container(OmegaConf.load(path)) if path.is_file() else {}
    except (OSError, ValueError, RecursionError, YAMLError, OmegaConfBaseException):
        return {}
    return content if isinstance(content, dict) else {}


def _patterns(output_dir: Any, sink: Any) -> Iterator[str]:
    """Globs, as seen from the output folder, of what sinks have written in it: under their own name, with that of one
    of several streams, or in parts."""
    given = [sink.get(name) for name in SINKS] if isinstance(sink, Mapping) else []
    if not isinstance(output_dir, str):
        return
    for path in (path for path in given if isinstance(path, str) and path):
        with suppress(ValueError):  # a name that no file can have
            found = inside(path, output_dir)
            if found and found.name:
                yield escape(str(found))
                yield f"{escape(str(found.with_suffix('')))}.*{escape(found.suffix)}"
            elif found:
                yield "frame.*.png"

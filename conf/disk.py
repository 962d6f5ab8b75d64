"""Files that a user named: what the system refuses there is the user's to mend, and told in one line."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path

from conf.errors import UserError

REMEDY = "write to a folder that you may write to and that has room"


def unwritable(value: str, error: Exception, file: str = "", remedy: str = REMEDY) -> UserError:
    """What the system said of a file, as a user's error.

    Args:
        value: the setting that names the file, `sink.video=PATH`.
        error: the system's, or a library's.
        file: which file, where the setting names its folder.
        remedy: what to do now.
    """
    said = getattr(error, "strerror", None) or error
    return UserError(value, f"{file} cannot be written ({said})".strip(), remedy)


@contextlib.contextmanager
def writing(
    value: str, file: str = "", kinds: tuple[type[Exception], ...] = (OSError,), remedy: str = REMEDY
) -> Iterator[None]:
    """Every exception of `kinds` in the enclosed work is raised as `unwritable`. Other arguments as there.

    Raises:
        UserError: the disk refused.
    """
    try:
        yield
    except kinds as error:
        raise unwritable(value, error, file, remedy) from error


def folder(path: str | Path) -> Path:
    """Make a folder, and those that it is in.

    Raises:
        OSError: it cannot be made.
    """
    path = Path(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        # "File exists" would be said of something that is in the folder's place.
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR)) from None
    return path


def prepare(path: str | Path) -> Path:
    """Make the folder of a file that will be written, and look now whether it can be: some are written at the end.

    Raises:
        OSError: the folder cannot be made or written, or a folder has the file's name.
    """
    path = Path(path)
    folder(path.parent)
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    return path


def remove(path: str | Path) -> None:
    """Remove a file that is of no use, if the system lets it go; never a device, a pipe or a folder."""
    with contextlib.suppress(OSError):
        if Path(path).is_file():
            Path(path).unlink()


@contextlib.contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """A file beside `path` to write to, which then takes its place: `path` is written whole or not at all.

    Raises:
        OSError: it cannot be put in place.
    """
    path = Path(path)
    aside = path.with_name(f"{path.name}.part")
    try:
        yield aside
        aside.replace(path)
    except BaseException:
        remove(aside)
        raise


def write_text(value: str, path: Path, content: str) -> None:
    """Write a file whole or not at all, in a folder that `value` names (`output_dir=FOLDER`).

    Raises:
        UserError: the disk refused.
    """
    with writing(value, path.name), replacing(path) as aside:
        aside.write_text(content)

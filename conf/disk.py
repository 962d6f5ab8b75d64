"""Files that a user named: what the system refuses there is the user's to mend, and told in one line."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

from conf.errors import UserError
from conf.paths import is_folder

REMEDY = "write to a folder that you may write to and that has room"


EARLIER = "earlier"
"""The folder `earlier.N` of what was in a new one's way."""
ROOM = 1 << 16
"""Bytes that are tried for: less room than that is none."""
KINDS = {stat.S_IFREG: "file", stat.S_IFDIR: "folder", stat.S_IFIFO: "pipe", stat.S_IFSOCK: "socket"}


def kind(path: str | Path) -> str:
    """What has a name on disk: one of `KINDS`, else a device.

    Raises:
        OSError: nothing has, or it cannot be looked at.
    """
    return KINDS.get(stat.S_IFMT(Path(path).stat().st_mode), "device")


def readable(value: str, path: str | Path, remedy: str, kinds: tuple[str, ...] = ("file",)) -> str:
    """Look at what a source will be read from, before it is opened: a pipe that nobody writes would hold whoever opens
    it, and a device may have no end. Returns which of `kinds` it is.

    Raises:
        UserError: nothing is there, it cannot be looked at, or it is of another kind.
    """
    try:
        found = kind(path)
    except FileNotFoundError as error:
        raise UserError(value, "there is no such file", remedy) from error
    except OSError as error:
        raise UserError(value, f"cannot be read ({error.strerror})", remedy) from error
    if found not in kinds:
        raise UserError(value, f"is no file but a {found}", remedy)
    return found


def unwritable(
    value: str, error: Exception, file: str = "", remedy: str = REMEDY, rule: str = "cannot be written"
) -> UserError:
    """What the system said of a file, as a user's error.

    Args:
        value: the setting that names the file, `sink.video=PATH`.
        error: the system's, or a library's.
        file: which file, where the setting names its folder.
        remedy: what to do now.
        rule: what the system would not do.
    """
    said = getattr(error, "strerror", None) or error
    return UserError(value, f"{file} {rule} ({said})".strip(), remedy)


@contextlib.contextmanager
def writing(
    value: str,
    file: str = "",
    kinds: tuple[type[Exception], ...] = (OSError,),
    remedy: str = REMEDY,
    rule: str = "cannot be written",
) -> Iterator[None]:
    """Every exception of `kinds` in the enclosed work is raised as `unwritable`. Other arguments as there.

    Raises:
        UserError: the disk refused.
    """
    try:
        yield
    except kinds as error:
        raise unwritable(value, error, file, remedy, rule) from error


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


def look(path: str | Path) -> None:
    """Look whether a folder can be made and written, and leave nothing there: others may be making the same ones.

    Raises:
        OSError: it cannot be.
    """
    path = Path(path).absolute()
    there = next(each for each in (path, *path.parents) if os.path.lexists(each))
    if not stat.S_ISDIR(there.stat().st_mode):
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
    longest = os.pathconf(there, "PC_NAME_MAX")
    if any(len(os.fsencode(name)) > longest for name in path.relative_to(there).parts):
        raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG))
    with tempfile.TemporaryFile(dir=there) as file:
        file.write(bytes(ROOM))


def look_file(path: str | Path) -> None:
    """The same of a file that will be written.

    Raises:
        OSError: it cannot be, or what has its name is no file.
    """
    path = Path(path)
    look(path.parent)
    if path.exists():
        _refuse_unwritable(path)


def prepare(path: str | Path) -> Path:
    """Make the folder of a file that will be written, and look now whether it can be: some are written at the end.

    Raises:
        OSError: the folder cannot be made or written, or what has the file's name is no file: opening a pipe would
            wait for its reader, and a device would be replaced.
    """
    path = Path(path)
    folder(path.parent)
    _refuse_unwritable(path)
    return path


def _refuse_unwritable(path: Path) -> None:
    _refuse_no_file(path)
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))


def _refuse_no_file(path: Path) -> None:
    if path.exists() and (found := kind(path)) != "file":
        raise OSError(errno.EINVAL, f"it is no file but a {found}")


def earlier(folder: Path) -> list[Path]:
    """Folders in which `keep_aside` has put what was in a folder, the latest first."""
    if not is_folder(folder):
        return []
    numbers = [path.suffix[1:] for path in folder.glob(f"{EARLIER}.*") if path.suffix[1:].isdecimal()]
    return [folder / f"{EARLIER}.{number}" for number in sorted(numbers, key=int, reverse=True)]


def keep_aside(folder: Path, paths: Iterable[Path]) -> Path:
    """Move what is somewhere in a folder to a new `earlier.N` of it, each to its place there; returns that.

    Raises:
        OSError: something cannot be moved.
    """
    last = next(iter(earlier(folder)), Path(f"{EARLIER}.0"))
    aside = folder / f"{EARLIER}.{int(last.suffix[1:]) + 1}"
    aside.mkdir()
    for path in paths:
        target = aside / path.relative_to(folder)
        target.parent.mkdir(parents=True, exist_ok=True)
        path.rename(target)
    return aside


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
    _refuse_no_file(aside)
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

"""The files of a run: written so that a kill or a full disk, at any moment, leaves the old or the new one, whole."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

TEMPORARY, LOCK = ".tmp", ".lock"
WINDOWS = os.name == "nt"
PAUSES = (0.05, 0.2, 1.0)  # seconds before a rename is tried again


class FileError(OSError):
    """A file that cannot be written, or a folder that is in use; the message is one line that names it."""


def check_new(path: Path, given: str) -> None:
    """Raises FileError, which begins with what was ``given``, where there is such a file, or there can be none."""
    try:
        os.lstat(path)
    except FileNotFoundError:
        return
    except OSError as error:  # as of a name that is too long
        raise FileError(f"{given}: {error.strerror or error}") from None
    raise FileError(f"{given}: exists already and would be overwritten; give a new file")


def write(path: Path, data: bytes | str) -> None:
    """Replaces the file, or makes it; a string is written as UTF-8.

    Raises:
        FileError: where that cannot be done, as on a full disk; what was there before stays.
    """
    temporary = path.with_name(path.name + TEMPORARY)
    try:
        with temporary.open("wb") as file:
            file.write(data.encode() if isinstance(data, str) else data)
            file.flush()
            os.fsync(file.fileno())  # else a loss of power could leave an empty file under the new name
        _replace(temporary, path)
        _sync_folder(path.parent)
    except OSError as error:
        raise FileError(f"{path} cannot be written: {error.strerror or error}") from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def write_new(path: Path, data: bytes | str) -> None:
    """As ``write``; raises FileError where there already is such a file."""
    with new_file(path) as temporary:
        write(temporary, data)


@contextlib.contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """A temporary file's path, with the ending of ``path``, to be written by others; in the end it gets that name.

    Raises:
        FileError: where it cannot be written, or there already is such a file.
    """
    temporary = path.with_name(f"{path.stem}{TEMPORARY}{path.suffix}")
    with _renamed(temporary, path):
        yield temporary


@contextlib.contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A temporary folder, to be filled by others; in the end it gets the name ``path``. Raises as ``new_file``."""
    temporary = path.with_name(path.name + TEMPORARY)
    with _renamed(temporary, path):
        shutil.rmtree(temporary, ignore_errors=True)  # of a process that was killed
        temporary.mkdir()
        yield temporary


@contextlib.contextmanager
def _renamed(temporary: Path, path: Path) -> Iterator[None]:
    """Gives what was made the name ``path``, or deletes it; raises as ``new_file``."""
    try:
        yield
        if path.exists():
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))
        _replace(temporary, path)
    except OSError as error:
        why = error.__cause__ if isinstance(error, FileError) else error  # that of the temporary is of no interest
        raise FileError(f"{path} cannot be written: {getattr(why, 'strerror', None) or why}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def _replace(temporary: Path, path: Path) -> None:
    for pause in PAUSES:
        try:
            return os.replace(temporary, path)
        except PermissionError:
            if not WINDOWS:
                raise
            time.sleep(pause)  # Windows: somebody has it open, to read it or to look for viruses
    os.replace(temporary, path)


def _sync_folder(folder: Path) -> None:
    """Makes a rename last through a loss of power, where the system can."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


@contextlib.contextmanager
def held(folder: Path) -> Iterator[None]:
    """Makes the folder where there is none, and holds it for this process; the lock of a process that died is none.

    A folder that is still empty in the end goes again, and those around it that were made with it.

    Raises:
        FileError: where another process holds the folder, or it cannot be made.
    """
    made = [one for one in (folder, *folder.parents) if one == folder or not os.path.exists(one)]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / LOCK, timeout=0)
        lock.acquire()
    except Timeout:
        raise FileError(f"{folder}: another process is training in it") from None
    except OSError as error:
        _remove_empty(made)
        raise FileError(f"{folder} cannot be used: {error.strerror or error}") from error
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            (folder / LOCK).unlink()  # while it is held; who waits for it sees that it is gone
        lock.release()
        _remove_empty(made)


def _remove_empty(folders: list[Path]) -> None:
    """Removes the folders, innermost first, as far as they are empty."""
    with contextlib.suppress(OSError):
        for folder in folders:
            if os.path.exists(folder):
                folder.rmdir()


def left_over(path: Path) -> bool:
    """Whether a file is only what a process that was killed left of its work."""
    return path.name.endswith(TEMPORARY) or path.name == LOCK

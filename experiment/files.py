"""The files of a run: written so that a kill or a full disk, at any moment, leaves the old or the new one, whole."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

TEMPORARY, LOCK = ".tmp", ".lock"
WINDOWS = os.name == "nt"
PAUSES = (0.05, 0.2, 1.0)  # seconds before a rename is tried again


class FileError(OSError):
    """A file that cannot be written, or a folder that is in use; the message is one line that names it."""


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
    try:
        path.open("xb").close()
    except OSError as error:
        raise FileError(f"{path} cannot be written: {error.strerror or error}") from error
    try:
        write(path, data)
    except BaseException:
        path.unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """A temporary file's path, with the ending of ``path``, to be written by others; in the end it gets that name.

    Raises:
        FileError: where it cannot be written, or there already is such a file.
    """
    temporary = path.with_name(f"{path.stem}{TEMPORARY}{path.suffix}")
    try:
        yield temporary
        if path.exists():
            raise FileError(f"{path} cannot be written: File exists")
        _replace(temporary, path)
    except OSError as error:
        raise FileError(f"{path} cannot be written: {error.strerror or error}") from error
    finally:
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

    A folder that is still empty in the end goes again.

    Raises:
        FileError: where another process holds the folder, or it cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / LOCK, timeout=0)
        lock.acquire()
    except Timeout:
        raise FileError(f"{folder}: another process is training in it") from None
    except OSError as error:
        raise FileError(f"{folder} cannot be used: {error.strerror or error}") from error
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            (folder / LOCK).unlink()  # while it is held; who waits for it sees that it is gone
        lock.release()
        with contextlib.suppress(OSError):
            folder.rmdir()


def left_over(path: Path) -> bool:
    """Whether a file is only what a process that was killed left of its work."""
    return path.name.endswith(TEMPORARY) or path.name == LOCK

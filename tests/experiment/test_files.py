"""Files that are whole at every moment, and a folder that one process holds."""

import contextlib
import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from experiment import files
from experiment.files import FileError, held, left_over, write, write_new

ROOT = Path(__file__).parents[2]


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_file_is_replaced(tmp_path):
    for data in (b"\0one", b"\1two"):
        write(tmp_path / "file", data)
        assert contents(tmp_path) == {"file": data}
    write(tmp_path / "file", "ä\n")
    assert (tmp_path / "file").read_bytes() == "ä\n".encode()


@pytest.mark.parametrize("name", ["os.fsync", "os.replace"])
@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
def test_what_was_there_stays_where_writing_fails(tmp_path, monkeypatch, name, error):
    """A full disk, and a second Ctrl-C: the old file stays, no temporary does, and the message names the file."""
    write(tmp_path / "file", "old")

    def fail(*_):
        raise error

    monkeypatch.setattr(name, fail)
    expected = FileError if isinstance(error, OSError) else KeyboardInterrupt
    with pytest.raises(expected) as raised:
        write(tmp_path / "file", "new")
    if expected is FileError:
        assert str(raised.value) == f"{tmp_path / 'file'} cannot be written: No space left on device"
    assert contents(tmp_path) == {"file": b"old"}
    with pytest.raises(expected):
        write_new(tmp_path / "other", "new")
    assert contents(tmp_path) == {"file": b"old"}


def test_a_new_file_replaces_none(tmp_path):
    write_new(tmp_path / "file", "old")
    with pytest.raises(FileError, match="file cannot be written: File exists"):
        write_new(tmp_path / "file", "new")
    assert contents(tmp_path) == {"file": b"old"}
    with pytest.raises(FileError, match="nowhere/file cannot be written: No such file or directory"):
        write(tmp_path / "nowhere" / "file", "new")


@pytest.mark.parametrize("make", [files.new_file, files.new_folder])
def test_what_others_make_is_whole_or_not_there(tmp_path, make):
    """Whatever ends them; and what they made replaces nothing that has come meanwhile."""

    def fill(place, text):
        (place if make is files.new_file else place / "part").write_text(text)

    (tmp_path / "a.tmp").mkdir()  # of a process that was killed
    for error in (OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()):
        with contextlib.suppress(FileError, KeyboardInterrupt), make(tmp_path / "a") as place:
            fill(place, "half")
            raise error
        assert not (tmp_path / "a").exists()
    with make(tmp_path / "a") as place:
        fill(place, "whole")
        assert not (tmp_path / "a").exists()
    with pytest.raises(FileError, match=r"/a cannot be written: File exists$"), make(tmp_path / "a") as place:
        fill(place, "other")
    made = tmp_path / "a" if make is files.new_file else tmp_path / "a" / "part"
    assert made.read_text() == "whole"
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


LONG = "n" * 300


def test_names_that_are_too_long(tmp_path):
    """Kind: an error of the system where a path is only looked at. Folders around one that cannot be go again."""
    with pytest.raises(FileError, match=r"^what was given: File name too long$"):
        files.check_new(tmp_path / LONG, "what was given")
    for path in (tmp_path / "new" / LONG, tmp_path / LONG / "below"):
        with pytest.raises(FileError, match="cannot be used: File name too long"), held(path):
            pass
    assert list(tmp_path.iterdir()) == []


def test_windows_may_have_to_try_again(tmp_path, monkeypatch):
    """A file that somebody reads cannot be replaced there."""
    tried, replace = [], os.replace

    def busy(source, target):
        tried.append(source)
        if len(tried) < 3:
            raise PermissionError(errno.EACCES, "Permission denied")
        replace(source, target)

    monkeypatch.setattr(files, "PAUSES", (0, 0, 0))
    monkeypatch.setattr("os.replace", busy)
    with pytest.raises(FileError, match="Permission denied"):
        write(tmp_path / "file", "new")
    assert len(tried) == 1
    monkeypatch.setattr(files, "WINDOWS", True)
    write(tmp_path / "file", "new")
    assert len(tried) == 3


def test_a_folder_is_held_by_one(tmp_path):
    folder = tmp_path / "a" / "b"
    with held(folder):
        write(folder / "file", "mine")
        with pytest.raises(FileError, match="b: another process is training in it"), held(folder):
            pass
        assert (folder / "file").read_text() == "mine"
    assert contents(folder) == {"file": b"mine"}
    with held(folder):
        assert {path.name for path in folder.iterdir() if not left_over(path)} == {"file"}


def test_a_folder_that_stays_empty_goes(tmp_path):
    with pytest.raises(ValueError, match="refused"), held(tmp_path / "empty"):
        raise ValueError("refused")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(FileError, match="file cannot be used: File exists"), held(tmp_path / "file"):
        pass
    with pytest.raises(FileError, match="below cannot be used: Not a directory"), held(tmp_path / "file" / "below"):
        pass


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="there is no SIGKILL")
def test_the_lock_of_a_process_that_died_is_none(tmp_path):
    holds = "import time\nwith held(Path(sys.argv[1])):\n    print('held', flush=True)\n    time.sleep(60)"
    code = f"import sys\nfrom pathlib import Path\nfrom experiment.files import held\n{holds}"
    process = subprocess.Popen([sys.executable, "-c", code, tmp_path], stdout=subprocess.PIPE, text=True, cwd=ROOT)
    try:
        assert process.stdout.readline() == "held\n"
        with pytest.raises(FileError, match="another process is training in it"), held(tmp_path):
            pass
    finally:
        process.kill()
        process.communicate()
    with held(tmp_path):
        pass

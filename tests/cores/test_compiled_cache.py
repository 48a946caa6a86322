"""What numba compiled is found again, where it is still what would be compiled, and else made anew."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

numba = pytest.importorskip("numba")

import numpy as np  # noqa: E402  (numba is an extra)

from fbrl.cores import compiled_cache  # noqa: E402  (numba is an extra)
from fbrl.cores.compiled_cache import cached  # noqa: E402  (numba is an extra)
from tests.test_floors import imports_of, modules  # noqa: E402  (numba is an extra)


@pytest.fixture(autouse=True)
def folder(monkeypatch, tmp_path):
    """An empty cache of this test's own."""
    monkeypatch.setenv(compiled_cache.FOLDER, str(tmp_path / "cache"))
    monkeypatch.setattr(compiled_cache, "_told", set())
    return tmp_path / "cache"


def double():
    """A new function each time, as in a new process."""

    @cached
    @numba.njit
    def twice(x):
        return 2 * x

    return twice


def run(function) -> bool:
    """Calls the function; gives whether it was compiled, and not found."""
    assert np.array_equal(function(np.array([1.5, 2.5])), [3, 5])
    return sum(function.stats.cache_misses.values()) > 0


def test_is_found_again(folder):
    assert run(double())
    assert not run(double())
    assert len(list(folder.iterdir())) == 1


def test_says_once_that_it_compiles(capsys):
    run(double())
    run(double())
    assert capsys.readouterr().err.count("compiling the scan for float64") == 1
    run(double())
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(("module", "name"), [("numba", "__version__"), ("llvmlite", "__version__")])
def test_another_version_compiles_anew(monkeypatch, module, name):
    assert run(double())
    monkeypatch.setattr(sys.modules[module], name, "99.9")
    assert run(double())
    monkeypatch.undo()


def test_another_source_compiles_anew(monkeypatch, tmp_path):
    assert run(double())
    source = tmp_path / "compiled_forward.py"
    source.write_text("changed")
    monkeypatch.setattr(compiled_cache, "SOURCES", [*compiled_cache.SOURCES[:-1], source])
    assert run(double())


def test_all_that_the_kernels_are_made_of_is_in_the_key():
    """The modules that the kernels import, and what these import, but for the cache and what is not compiled."""
    files, found = modules("fbrl"), set()
    todo = {"fbrl.cores.compiled_forward", "fbrl.cores.compiled_backward"}
    while todo:
        found |= todo
        todo = set().union(*(imports_of(name, files[name]) & files.keys() for name in todo)) - found
    compiled = {name for name in found if name.startswith("fbrl.cores.compiled_")} - {"fbrl.cores.compiled_cache"}
    assert compiled == {f"fbrl.cores.{source.stem}" for source in compiled_cache.SOURCES}


@pytest.mark.parametrize("content", [b"", b"not a pickle", b"\x80\x04]\x94."])
def test_a_broken_file_is_made_anew(folder, content):
    run(double())
    (file,) = folder.iterdir()
    file.write_bytes(content)
    assert run(double())
    assert not run(double())


def test_a_folder_that_cannot_be_made(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv(compiled_cache.FOLDER, str(tmp_path / "file" / "cache"))
    assert run(double())
    assert run(double())


def test_a_folder_that_can_only_be_read(monkeypatch, folder):
    """As for a user without rights there: writing fails, whoever runs this test."""
    assert run(double())
    monkeypatch.setattr(compiled_cache.tempfile, "NamedTemporaryFile", refuse)
    assert not run(double())
    next(folder.iterdir()).unlink()
    assert run(double())
    assert list(folder.iterdir()) == []


def refuse(*args, **kwargs):
    raise PermissionError(13, "Permission denied")


def test_without_a_home(monkeypatch):
    for name in (compiled_cache.FOLDER, "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(Path, "home", lambda: (_ for _ in ()).throw(RuntimeError("no home")))
    assert compiled_cache.folder() is None
    assert run(double())


PROGRAM = """
import numba, numpy
from fbrl.cores.compiled_cache import cached
@cached
@numba.njit
def twice(x):
    return 2 * x
assert twice(numpy.ones(3)).tolist() == [2, 2, 2]
"""


@pytest.mark.slow
def test_two_processes_at_the_same_time(folder):
    root = Path(__file__).parents[2]
    command = [sys.executable, "-c", PROGRAM]
    both = [subprocess.Popen(command, cwd=root, env=os.environ, stderr=subprocess.PIPE) for _ in range(2)]
    for process in both:
        _, err = process.communicate()
        assert process.returncode == 0, err
    assert len(list(folder.iterdir())) == 1

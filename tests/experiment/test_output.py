"""How a script ends, and output that nobody reads any more."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from experiment.output import EXPLAINED, reporting
from fbrl.vec_env import TaskError

ROOT = Path(__file__).parents[2]


def ended(error):
    with pytest.raises(SystemExit) as end, reporting():
        raise error
    return end.value.code


@pytest.mark.parametrize("kind", EXPLAINED)
def test_bad_input_is_one_line(kind, capsys):
    error = kind("a\n b")
    error.add_note("saved;\nso")
    assert ended(error) == 2
    assert capsys.readouterr().err == "error: a b; saved; so\n"


@pytest.mark.parametrize("kind", [ValueError, OSError, FloatingPointError, RuntimeError])
def test_what_others_raise_is_one_line_and_the_traceback(kind, capsys):
    """Kind: an error of the user's own code that looks like bad input."""
    error = kind("a\n b")
    error.add_note("saved")
    assert ended(error) == 1
    first, *trace = capsys.readouterr().err.splitlines()
    assert first == f"error: {kind.__name__}: a b; saved"
    assert trace[0] == "Traceback (most recent call last):"
    assert any("in ended" in line for line in trace)
    assert "saved" not in "".join(trace)


def test_of_a_task_that_fails_only_its_own_traceback_is_shown(capsys):
    def fail():
        try:
            raise KeyError("mine")
        except KeyError as error:
            raise TaskError("environment 1 (Task), step 3 of its episode: KeyError: 'mine'") from error

    with pytest.raises(SystemExit) as end, reporting():
        fail()
    assert end.value.code == 1
    first, *trace = capsys.readouterr().err.splitlines()
    assert first == "error: environment 1 (Task), step 3 of its episode: KeyError: 'mine'"
    assert trace[-1] == "KeyError: 'mine'"
    assert "TaskError" not in "".join(trace)


def test_an_interrupt_says_nothing(capsys):
    assert ended(KeyboardInterrupt()) == 130
    assert capsys.readouterr().err == ""


SAYS = """
import sys, time
from experiment.output import reporting
with reporting():
    for _ in range(40):
        print("to nobody" * 99, flush=True)
        print("to nobody" * 99, file=sys.stderr, flush=True)
    open(sys.argv[1], "w").write("to the end")
"""


@pytest.mark.slow
def test_a_dead_reader_does_not_end_a_script(tmp_path):
    """Kind: a dead ``| tee``, on stdout and stderr."""
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run([sys.executable, "-c", SAYS, tmp_path / "out"], stdout=write, stderr=write, cwd=ROOT)
    os.close(write)
    assert done.returncode == 0
    assert (tmp_path / "out").read_text() == "to the end"


class Closed:
    """A terminal that was closed."""

    def write(self, text):
        raise OSError(errno.EIO, "Input/output error")

    flush = isatty = lambda self: self.write("")


def test_a_closed_terminal(monkeypatch):
    monkeypatch.setattr(sys, "stdout", Closed())
    monkeypatch.setattr(sys, "stderr", Closed())
    with reporting():
        print("a")
        sys.stderr.flush()
    assert ended(ValueError("a")) == 1
    assert type(sys.stdout) is Closed

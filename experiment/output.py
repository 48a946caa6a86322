"""What a script says, and how it ends: on output that nobody reads any more, on bad input, on errors of others."""

from __future__ import annotations

import contextlib
import os
import sys
import traceback
from collections.abc import Iterator
from typing import Any

from envs.start_states import StartStatesError
from experiment.distributed import ProcessLost
from experiment.files import FileError
from experiment.parsing import fail, one_line
from experiment.settings import SettingsError
from fbrl.arguments import MaskError
from fbrl.evaluation import AgentError
from fbrl.finite import NotFiniteError
from fbrl.novelty import NoveltyError
from fbrl.vec_env import TaskError

# errors of our own, whose message is all that there is to say
EXPLAINED = (
    SettingsError,
    AgentError,
    FileError,
    MaskError,
    NotFiniteError,
    NoveltyError,
    ProcessLost,
    StartStatesError,
)


@contextlib.contextmanager
def reporting() -> Iterator[None]:
    """Around a script: bad input ends it with one line and exit code 2, whatever else with one and the traceback."""
    with _unbreakable():
        try:
            yield
        except EXPLAINED as error:
            fail(error)
        except KeyboardInterrupt:
            raise SystemExit(130) from None
        except Exception as error:
            name = "" if isinstance(error, TaskError) else f"{type(error).__name__}: "
            line = [f"{name}{error}", *error.__dict__.pop("__notes__", [])]
            print(f"error: {'; '.join(map(one_line, line))}", file=sys.stderr)
            traceback.print_exception(error.__cause__ if isinstance(error, TaskError) else error)
            raise SystemExit(1) from None


class _Unbreakable:
    """A stream that swallows what cannot be written: a closed terminal or a dead ``tee`` is no reason to end."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Writes, or does not."""
        try:
            self._stream.write(text)
        except OSError:
            self._mute()
        return len(text)

    def flush(self) -> None:
        """Hands on what was written, or does not."""
        try:
            self._stream.flush()
        except OSError:
            self._mute()

    def _mute(self) -> None:
        """Lets what is still to be written go nowhere, so that Python does not complain of it in the end."""
        with contextlib.suppress(OSError, AttributeError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())
            os.close(nowhere)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextlib.contextmanager
def _unbreakable() -> Iterator[None]:
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = _Unbreakable(before[0]), _Unbreakable(before[1])
    try:
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        sys.stdout, sys.stderr = before

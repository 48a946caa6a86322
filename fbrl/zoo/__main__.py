"""``python -m fbrl.zoo train|enjoy ...``: the RL Zoo's own scripts, with their own arguments, and ``memory_ppo``."""

from __future__ import annotations

import argparse
import sys
import traceback
from typing import NoReturn

from fbrl.zoo import ALGO, HYPERPARAMETERS, register

USAGE = f"""\
usage: python -m fbrl.zoo train|enjoy --algo {ALGO} --env ID ...

The RL Zoo's train and enjoy, which take all other arguments: python -m fbrl.zoo train --help
"""
REFUSES = ("fbrl", "rl_zoo3")
UNKNOWN = "__init__() got an unexpected keyword argument"  # of a hyperparameter that the algorithm does not have


def main() -> None:
    """Runs the zoo's script that the first argument names, with the others."""
    name, arguments = (sys.argv[1] if len(sys.argv) > 1 else ""), sys.argv[2:]
    if name in ("-h", "--help"):
        print(USAGE, end="")
        return
    if name not in ("train", "enjoy"):
        fail(f"the first argument must be train or enjoy, got {name or 'nothing'}")
    try:
        register()
    except ModuleNotFoundError as error:
        if error.name != "rl_zoo3":
            raise
        fail("rl-zoo3 is not installed: pip install fbrl[zoo]")
    if name == "train":
        from rl_zoo3.train import train as script

        arguments = with_hyperparameters(arguments)
    else:
        from rl_zoo3.enjoy import enjoy as script
    sys.argv = [f"fbrl.zoo {name}", *arguments]
    try:
        script()
    except (AssertionError, FileNotFoundError, KeyError, ModuleNotFoundError, TypeError, ValueError) as error:
        if isinstance(error, ModuleNotFoundError) and error.name in sys.argv:
            fail(f"--gym-packages: there is no module {error.name}")
        if isinstance(error, ModuleNotFoundError) and error.name == "minigrid":
            fail("MiniGrid is not installed: pip install fbrl[minigrid]")
        if isinstance(error, KeyError) and error.args[0] in sys.argv:
            fail(f"--env: no environment is called {error.args[0]}; --gym-packages names the package that registers it")
        if isinstance(error, KeyError) or (isinstance(error, TypeError) and UNKNOWN not in str(error)):
            raise
        if not is_refusal(error):
            raise
        fail(" ".join(str(error).split()))


def with_hyperparameters(arguments: list[str]) -> list[str]:
    """The arguments of ``train``, with this package's hyperparameters where they are asked for and none are given."""
    parser = argparse.ArgumentParser(add_help=False, exit_on_error=False)
    parser.add_argument("--algo")
    parser.add_argument("-conf", "--conf-file")
    try:
        known, _ = parser.parse_known_args(arguments)
    except argparse.ArgumentError:  # the zoo's parser will say what is wrong
        return arguments
    if known.algo != ALGO or known.conf_file is not None:
        return arguments
    return [*arguments, "--conf-file", str(HYPERPARAMETERS)]


def is_refusal(error: Exception) -> bool:
    """Whether fbrl or the zoo raised it themselves, and not what they called: it is then meant for the user."""
    frame, _ = list(traceback.walk_tb(error.__traceback__))[-1]
    return frame.f_globals.get("__name__", "").partition(".")[0] in REFUSES


def fail(message: str) -> NoReturn:
    """Ends on bad input: one line on stderr, exit code 2."""
    print(f"error: {message}", file=sys.stderr)
    raise SystemExit(2)


if __name__ == "__main__":
    main()

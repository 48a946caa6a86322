"""python -m fbrl.hub push FOLDER user/name, python -m fbrl.hub pull user/name [FOLDER]."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from fbrl.hub.agent import HubError
from fbrl.hub.transfer import pull, push


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise HubError(f"{' '.join(message.split())}; see python -m fbrl.hub --help")


def make_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = _Parser(prog="python -m fbrl.hub", description=__doc__, allow_abbrev=False)
    commands = parser.add_subparsers(dest="command", required=True)
    to = commands.add_parser("push", help="upload an agent", allow_abbrev=False)
    to.add_argument("folder", type=Path, help="a run's folder, or one of agents/")
    to.add_argument("repo", help="user/name on the Hub; made where there is none")
    to.add_argument("--private", action="store_true", help="only you may see it")
    back = commands.add_parser("pull", help="download an agent", allow_abbrev=False)
    back.add_argument("repo", help="user/name on the Hub")
    back.add_argument("folder", type=Path, nargs="?", help="new or empty folder (default: the repository's name)")
    back.add_argument("--revision", help="branch, tag or commit (default: the newest)")
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    """Pushes or pulls; bad input, and a Hub that refuses, end it with one line and exit code 2."""
    try:
        args = make_parser().parse_args(arguments)
        if args.command == "push":
            print(push(args.folder, args.repo, args.private))
        else:
            print(pull(args.repo, args.folder or Path(args.repo.rpartition("/")[2] or args.repo), args.revision))
    except ModuleNotFoundError as error:
        _end(f"needs pip install fbrl[hub] ({error})")
    except (HubError, OSError) as error:
        _end(str(error))
    except KeyboardInterrupt:
        raise SystemExit(130) from None


def _end(message: str) -> NoReturn:
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    raise SystemExit(2)


if __name__ == "__main__":
    main()

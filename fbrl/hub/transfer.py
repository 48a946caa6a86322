"""Agents to and from the Hugging Face Hub. Nothing is unpickled on the way.

What goes is what stands in an agent's folder under the names of ``FILES``: settings, agent, card, evaluation, film. The
weights go a second time as ``model.safetensors``, which the Hub can look into. What comes is checked before it is kept.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import shlex
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fbrl.hub.agent import (
    AGENTS,
    FILES,
    REPLAYS,
    RESUME,
    WEIGHTS,
    Agent,
    HubError,
    as_safetensors,
    check_same_weights,
    one_line,
    read_agent,
    read_text,
)
from fbrl.hub.card import CardError, Score, card, read_score

NAME = re.compile(r"[A-Za-z0-9][\w.-]*/\w[\w.-]{0,95}", re.ASCII)  # of a repository
NOT_IN_A_NAME = re.compile(r"--|\.\.|[.-]$|\.git$")


def push(folder: Path, repo: str, private: bool = False) -> str:
    """Uploads an agent in one commit.

    Args:
        folder: a run's folder, or one of ``agents/``.
        repo: "user/name"; made where there is none.
        private: only you may see it.

    Returns:
        What was done, and what is missing, in lines.

    Raises:
        HubError: where there is no agent, no token, or the Hub does not take it.
    """
    from huggingface_hub import CommitOperationAdd, HfApi, get_token

    check_repo(repo)
    if not os.path.isdir(folder):
        raise HubError(f"{folder}: no such folder; expected one with config.yaml and {' or '.join(AGENTS)}")
    try:
        agent = read_agent(folder)
        files, missing = _to_push(agent, repo)
    except (HubError, CardError) as error:
        raise HubError(f"{folder}: {error}") from error
    if get_token() is None:
        raise HubError("no token of the Hugging Face Hub: hf auth login asks for it, or set HF_TOKEN")
    api = HfApi(library_name="fbrl")
    with _asking_the_hub(repo):
        api.create_repo(repo, private=private or None, exist_ok=True)
        if private and not api.repo_info(repo).private:
            raise HubError(f"{repo}: is public already, and --private would not hide what is pushed")
        added = [CommitOperationAdd(name, content) for name, content in files.items()]
        done = api.create_commit(repo, added, commit_message=f"An agent for {agent.config['env']['id']}, by fbrl")
    return "\n".join([f"{done.commit_url}: {', '.join(files)}", *missing])


def _to_push(agent: Agent, repo: str) -> tuple[dict[str, bytes | str], list[str]]:
    """Name -> content or path, and what is not there, in lines."""
    folder, named, missing = agent.file.parent, shlex.quote(str(agent.file.parent)), []
    replay = next((name for name in REPLAYS if (folder / name).is_file()), None)
    files: dict[str, bytes | str] = {"config.yaml": _without_places(agent.config), agent.file.name: _of(agent.file)}
    files[WEIGHTS] = as_safetensors(agent.weights)
    score = None
    if (said := read_text(folder / "evaluation.json")) is not None:
        evaluation, score = _read_evaluation(said, agent)
        files["evaluation.json"] = json.dumps(evaluation, indent=1).encode()
    else:
        missing += [f"no evaluation; python evaluate_agent.py {named} --json {named}/evaluation.json makes it"]
    text = read_text(folder / "README.md")
    try:
        files["README.md"] = card(repo, agent.config, score, replay, text).encode()
    except CardError as error:
        raise CardError(f"README.md: {error}") from None
    if (folder / "versions.json").is_file():
        files["versions.json"] = str(folder / "versions.json")
    if replay is not None:
        files[replay] = str(folder / replay)
    else:
        missing += [f"no film; python evaluate_agent.py {named} --video {named}/{REPLAYS[0]} makes it"]
    return files, missing


def _without_places(config: dict[str, Any]) -> bytes:
    """The settings as YAML, but for where the run was on its machine: whoever trains with them has other folders."""
    import yaml

    run = config.get("run")
    kept = {key: value for key, value in run.items() if key not in ("folder", "name")} if isinstance(run, dict) else {}
    return str(yaml.safe_dump(config | ({"run": kept} if kept else {}), sort_keys=False, allow_unicode=True)).encode()


def _of(file: Path) -> bytes | str:
    """The agent's file, without what only its run needs."""
    with zipfile.ZipFile(file) as archive:
        if RESUME not in archive.namelist():
            return str(file)
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w") as kept:
            for member in archive.infolist():
                if member.filename != RESUME:
                    kept.writestr(member, archive.read(member))
    return buffer.getvalue()


def _read_evaluation(text: str, agent: Agent) -> tuple[dict[str, Any], Score]:
    """The evaluation, without the folder that the agent was in, and what it says."""
    try:
        evaluation = json.loads(text)
        score = read_score(evaluation, agent.config, agent.steps)
    except (ValueError, RecursionError) as error:
        raise HubError(f"evaluation.json: {one_line(error)}") from None
    return evaluation | ({"agent": agent.file.name} if "agent" in evaluation else {}), score


def pull(repo: str, folder: Path, revision: str | None = None) -> str:
    """Downloads an agent into a new or empty folder: files of known names only, kept where they are an agent.

    Args:
        repo: "user/name".
        folder: where it goes.
        revision: a branch, tag or commit; the newest where None.

    Returns:
        What was done, and how to play the agent, in lines.

    Raises:
        HubError: where the folder holds something, the Hub does not give it, or what it gives is no agent.
    """
    from huggingface_hub import snapshot_download

    check_repo(repo)
    if os.path.lexists(folder) and (folder.is_symlink() or not folder.is_dir() or any(folder.iterdir())):
        raise HubError(f"{folder}: exists already and would be overwritten; give a new or an empty folder")
    if not os.path.isdir(folder.parent):
        raise HubError(f"{folder}: there is no folder {folder.parent}")
    with tempfile.TemporaryDirectory(prefix=".pull-", dir=folder.parent) as place:
        with _asking_the_hub(repo, revision):
            snapshot_download(repo, revision=revision, local_dir=place, allow_patterns=list(FILES), library_name="fbrl")
        try:
            agent = read_agent(Path(place))
            check_same_weights(agent, Path(place) / WEIGHTS)
        except HubError as error:
            raise HubError(f"{repo}: {error}") from error
        others = set(AGENTS) - {agent.file.name}  # at which nobody has looked
        found = [name for name in FILES if name not in others and (Path(place) / name).is_file()]
        whole = Path(place) / "agent"
        whole.mkdir()
        for name in found:
            os.replace(Path(place) / name, whole / name)
        if folder.is_dir():  # Windows replaces no folder, not even an empty one
            folder.rmdir()
        os.replace(whole, folder)  # all of it, or nothing
    play = f"python evaluate_agent.py {shlex.quote(str(folder))}"
    return f"{folder}: {', '.join(found)}; nothing was unpickled\nplay it: {play}"


def check_repo(repo: str) -> None:
    """Raises HubError where a repository's name is none; what else the Hub does not like, it says itself."""
    if not NAME.fullmatch(repo) or NOT_IN_A_NAME.search(repo):
        raise HubError(f"the repository must be user/name, of letters, digits, '-', '_' and '.', got {repo!r}")


@contextlib.contextmanager
def _asking_the_hub(repo: str, revision: str | None = None) -> Iterator[None]:
    """Makes a HubError of whatever the Hub and the way to it raise, which have no base in common."""
    from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError

    try:
        yield
    except HubError:
        raise
    except RepositoryNotFoundError as error:
        raise HubError(f"{repo}: the Hub has no such repository, or your token may not see it") from error
    except RevisionNotFoundError as error:
        raise HubError(f"{repo}: has no revision {revision}") from error
    except HfHubHTTPError as error:
        status = error.response.status_code
        hint = "; is the token right, and may it write there? " if status in (401, 403) else ": "
        raise HubError(f"{repo}: the Hub refused with status {status}{hint}{one_line(error)}") from error
    except Exception as error:
        raise HubError(f"{repo}: the Hub cannot be asked ({type(error).__name__}: {one_line(error)})") from error

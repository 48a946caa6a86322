"""Runs ``train_agent.py`` in a process of its own, to be killed at a moment that is asked for.

Processes are forked: a new one would take seconds to import everything, and there are hundreds.
"""

import json
import os
import pathlib
import runpy
import signal
import sys
import time
import traceback
import warnings
import zipfile

from experiment import training
from experiment.saved import read_saved

ROOT = pathlib.Path(__file__).parents[2]
SIZES = (
    *("--core.d_model=8", "--core.n_layers=1", "--core.n_heads=2", "--core.window=4", "--core.form=fast"),
    *("--ppo.n_steps=16", "--ppo.seq_len=8", "--ppo.batch_size=16", "--ppo.n_epochs=1", "--env.n_envs=2"),
    *("--run.eval_every=32", "--run.eval_episodes=2", "--run.checkpoint_every=32", "--run.device=cpu"),
    *("--run.eval_max_steps=20", "--run.progress_bar=false", "--run.threads=1"),
)
TASKS = {"fbrl/TMaze-v0": ("--env.kwargs={corridor: 3}",), "MiniGrid-MemoryS7-v0": ()}


class Script:
    """``train_agent.py`` with these arguments, started.

    Args:
        folder: where what it prints goes.
        arguments: of the script.
        prepare: called in the new process first.
        outputs: where it prints to; None means files in the folder.
    """

    def __init__(self, folder, *arguments, prepare=lambda: None, output=None):
        folder.mkdir(parents=True, exist_ok=True)
        self.out, self.err = folder / "out.txt", folder / "err.txt"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of threads, which none of what is forked waits for
            self.pid = os.fork()
        self.code = None
        if self.pid == 0:
            self._be(list(map(str, arguments)), prepare, output)

    def _be(self, arguments, prepare, output):
        code = 1
        try:
            for number, file in ((1, self.out), (2, self.err)):
                target = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC) if output is None else output
                os.dup2(target, number)
            sys.stdout, sys.stderr = (os.fdopen(os.dup(number), "w", buffering=1) for number in (1, 2))
            signal.signal(signal.SIGINT, signal.default_int_handler)
            sys.argv = [str(ROOT / "train_agent.py"), *arguments]
            training.FINAL_EPISODES = 10
            prepare()
            runpy.run_path(sys.argv[0], run_name="__main__")
            code = 0
        except SystemExit as end:
            code = end.code or 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)

    def wait(self, seconds=300.0):
        """Its exit code, minus the signal that ended it; None where it goes on for longer."""
        end = time.monotonic() + seconds
        while self.code is None and time.monotonic() < end:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.code = os.waitstatus_to_exitcode(status)
            else:
                time.sleep(0.01)
        return self.code

    def signal(self, number):
        """Sends a signal, if it still runs."""
        if self.wait(0.0) is None:
            os.kill(self.pid, number)

    def until(self, exists, seconds=120.0):
        """Waits for a file."""
        end = time.monotonic() + seconds
        while not exists.exists() and self.wait(0.02) is None:
            assert time.monotonic() < end


def dying(at, when):
    """What lets a process die at the N-th call that writes, replaces or flushes a file: "before" or "after" it."""
    calls = [0]

    def counted(call):
        def made(*args, **kwargs):
            calls[0] += 1
            now = calls[0]
            if (now, "before") == (at, when):
                os.kill(os.getpid(), signal.SIGKILL)
            result = call(*args, **kwargs)
            if (now, "after") == (at, when):
                os.kill(os.getpid(), signal.SIGKILL)
            return result

        return made

    def prepare():
        opened, counting = pathlib.Path.open, counted(pathlib.Path.open)

        def open_counted(self, mode="r", *args, **kwargs):
            return (counting if mode in ("wb", "xb") else opened)(self, mode, *args, **kwargs)

        os.replace, os.fsync, pathlib.Path.open = counted(os.replace), counted(os.fsync), open_counted

    prepare.calls = calls
    return prepare


def new(folder, task, *arguments):
    """The arguments of a new run, ``folder``/run."""
    return (f"--env.id={task}", *TASKS[task], *SIZES, f"--run.folder={folder}", "--run.name=run", *arguments)


def again(folder, task, *arguments):
    """The arguments that go on with it, or start it where it never began."""
    run = folder / "run"
    return ("--resume", run) if (run / "config.yaml").exists() else new(folder, task, *arguments)


def score(line):
    """Success, or the return where all episodes were cut before the task said anything."""
    said = json.loads(line)
    return said["success"] is not None, said["return"] if said["success"] is None else said["success"]


def assert_whole(run):
    """Whatever happened, every file is whole, and the best agent is at least as good as any line says."""
    for name in ("last.zip", "best.zip"):
        if (run / name).exists():
            assert read_saved(run / name).num_timesteps >= 0
    lines = run / "evaluations.jsonl"
    scores = [score(line) for line in lines.read_text().splitlines()] if lines.exists() else []
    if scores:
        with zipfile.ZipFile(run / "best.zip") as archive:
            assert score(archive.read("evaluation.json")) >= max(scores)


def goes_on(folder, task, *arguments):
    """Goes on with the run, which has to come to its end, if it has not; hands back what it prints."""
    run, out = folder / "run", ""
    if not (run / "finished").exists():
        script = Script(folder, *again(folder, task, *arguments))
        assert script.wait() == 0, script.err.read_text()
        out = script.out.read_text()
    names = {path.name for path in run.iterdir() if not path.name.startswith("events.out.tfevents.")}
    expected = {"config.yaml", "versions.json", "evaluations.jsonl", "best.zip", "last.zip", "finished"}
    assert expected <= names <= {*expected, "finished.tmp", ".lock"}, "nothing is missing, and of the end nothing left"
    return out

"""Runs that are killed, at any moment, go on; the best agent is never lost; nobody shares a run with another."""

import json
import os
import random
import re
import shutil
import signal
import subprocess
import time

import numpy as np
import pytest
import torch

from fbrl import MemoryPPO
from tests.robust.driver import SIZES, TASKS, Script, again, assert_whole, dying, goes_on, new

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="processes cannot be forked here")
STEPS = "--ppo.timesteps=96"


def same_weights(one, other):
    first, second = (MemoryPPO.load(folder / "last.zip", device="cpu").policy.state_dict() for folder in (one, other))
    return all(torch.equal(first[name], second[name]) for name in second)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Runs that nobody killed, by task; how many calls write their files; how many seconds they take."""
    made = {}

    def of(task):
        if task not in made:
            folder, counting = tmp_path_factory.mktemp("whole"), dying(0, "before")
            said = folder / "calls"

            def prepare():
                counting()
                done = os._exit
                os._exit = lambda code: (said.write_text(str(counting.calls[0])), done(code))

            began = time.monotonic()
            script = Script(folder, *new(folder, task, STEPS), prepare=prepare)
            assert script.wait() == 0, script.err.read_text()
            made[task] = folder / "run", int(said.read_text()), time.monotonic() - began
        return made[task]

    return of


def killed_at(folder, task, call, when):
    """A run that died at this call, and went on."""
    script = Script(folder, *new(folder, task, STEPS), prepare=dying(call, when))
    assert script.wait() == -signal.SIGKILL, script.err.read_text()
    assert_whole(folder / "run")
    out = goes_on(folder, task, STEPS)
    assert "new episodes" not in out
    assert_whole(folder / "run")


@pytest.mark.slow
def test_a_kill_at_some_calls(tmp_path, whole):
    """Before the first checkpoint, in the middle and near the end; bit for bit as if nothing had been."""
    task = "fbrl/TMaze-v0"
    run, calls, _ = whole(task)
    for number, call in enumerate((2, calls // 2, calls - 4)):
        folder = tmp_path / str(number)
        killed_at(folder, task, call, ("before", "after")[number % 2])
        assert same_weights(folder / "run", run)


@pytest.mark.slow
@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("when", ["before", "after"])
def test_a_kill_at_every_call_that_writes(tmp_path, whole, task, when):
    run, calls, _ = whole(task)
    for call in range(1, calls + 1):
        killed_at(tmp_path / str(call), task, call, when)
        assert same_weights(tmp_path / str(call) / "run", run), call
        shutil.rmtree(tmp_path / str(call))


@pytest.mark.slow
@pytest.mark.parametrize("task", TASKS)
def test_a_hundred_kills_at_random_moments(tmp_path, whole, task):
    """Of two tasks together two hundred. Runs die up to four times before they end."""
    seed = random.SystemRandom().randrange(10**6)
    chance, kills, number = random.Random(seed), 0, 0
    run, _, seconds = whole(task)
    while kills < 100:
        number += 1
        folder = tmp_path / str(number)
        for _ in range(chance.randint(1, 4)):
            script = Script(folder, *again(folder, task, STEPS))
            script.wait(chance.uniform(0.0, 1.0) * seconds)
            script.signal(signal.SIGKILL)
            kills += script.wait() == -signal.SIGKILL
            assert_whole(folder / "run")
            if (folder / "run" / "finished").exists():
                break
        if not (folder / "run" / "finished").exists():
            goes_on(folder, task, STEPS)
        assert_whole(folder / "run")
        assert same_weights(folder / "run", run), f"seed {seed}"
        shutil.rmtree(folder)
    print(f"{kills} kills, {number} runs, seed {seed}")


def test_two_starts_and_two_resumes_at_once(tmp_path):
    """One trains, the other is refused in one line; the folder is that of one run."""
    run, arguments = tmp_path / "run", new(tmp_path, "fbrl/TMaze-v0", "--ppo.timesteps=256")
    for given in (arguments, ("--resume", run)):
        both = [Script(tmp_path / name, *given) for name in ("one", "other")]
        codes = [script.wait() for script in both]
        assert sorted(codes) == [0, 2], [script.err.read_text() for script in both]
        refused = both[codes.index(2)].err.read_text()
        assert refused.count("\n") == 1
        assert any(why in refused for why in ("another process is training in it", "already holds a run", "finished"))
        assert_whole(run)
        (run / "finished").unlink()
        steps = [json.loads(line)["timesteps"] for line in (run / "evaluations.jsonl").read_text().splitlines()]
        assert steps == sorted(set(steps))


def full():
    """A disk that takes so many bytes of a file."""
    import resource

    resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, resource.RLIM_INFINITY))
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)


def test_a_full_disk(tmp_path):
    """One line that names the file; no temporary is left, what was there is whole, and the run goes on later."""
    task, larger = "fbrl/TMaze-v0", ("--core.d_model=64", STEPS)
    script = Script(tmp_path, *new(tmp_path, task, *larger), prepare=full)
    assert script.wait() == 2
    (line,) = script.err.read_text().splitlines()
    assert f"{tmp_path}/run/last.zip cannot be written: File too large" in line
    assert {path.name for path in (tmp_path / "run").iterdir()} == {"config.yaml", "versions.json"}
    goes_on(tmp_path, task)


@pytest.fixture
def small_disk(tmp_path):
    """Mounts a disk of so many kB on a folder, or makes it another size."""
    folder, mounted = tmp_path / "disk", []

    def of(kilobytes):
        folder.mkdir(exist_ok=True)
        options = f"{'remount,' if mounted else ''}size={kilobytes}k"
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], capture_output=True)
        if done.returncode:
            pytest.skip("nothing can be mounted here")
        mounted.append(folder)
        return folder

    yield of
    if mounted:
        subprocess.run(["umount", folder], check=True)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("mount") is None, reason="nothing can be mounted here")
@pytest.mark.parametrize("kilobytes", [4, 12, 60, 120, 190])
def test_a_disk_that_is_full(tmp_path, small_disk, kilobytes):
    """In its first file, its first checkpoint, its best agent or its second checkpoint: as a limit on a file's size."""
    task = "fbrl/TMaze-v0"
    disk = small_disk(kilobytes)
    script = Script(tmp_path, *new(disk, task, STEPS))
    assert script.wait() == 2, script.err.read_text()
    (line,) = script.err.read_text().splitlines()
    assert re.search(rf"{disk}/run/\S+ cannot be written: No space left on device", line)
    assert not [path for path in (disk / "run").iterdir() if path.suffix == ".tmp"]
    assert_whole(disk / "run")
    small_disk(4000)
    run = disk / "run"
    script = Script(tmp_path, *(("--resume", run) if (run / "config.yaml").exists() else new(disk, task, STEPS)))
    assert script.wait() == 0, script.err.read_text()
    assert_whole(run)


def interrupted(tmp_path, *arguments, number=signal.SIGINT, output=None, close=lambda: None):
    """A run without end that is sent a signal; hands back its steps."""
    script = Script(tmp_path, *arguments, "--ppo.timesteps=1e9", output=output)
    try:
        script.until(tmp_path / "run" / "evaluations.jsonl")
        close()
        script.signal(number)
        assert script.wait() == 130, script.err.read_text()
    finally:
        script.signal(signal.SIGKILL)
    return MemoryPPO.load(tmp_path / "run" / "last.zip", device="cpu").num_timesteps


def test_a_closed_terminal_saves(tmp_path):
    """SIGHUP, with both outputs gone."""
    read, write = os.pipe()
    arguments = new(tmp_path, "fbrl/TMaze-v0")
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)  # under nohup what is started here would not hear it
    try:
        steps = interrupted(
            tmp_path, *arguments, number=signal.SIGHUP, output=write, close=lambda: (os.close(write), os.close(read))
        )
    finally:
        signal.signal(signal.SIGHUP, before)
    assert steps % 32 == 0
    script = Script(tmp_path, "--resume", tmp_path / "run", f"--ppo.timesteps={steps + 32}")
    assert script.wait() == 0, script.err.read_text()
    assert f"going on from {steps:,} of" in script.out.read_text()
    assert "new episodes" not in script.out.read_text()


def test_a_simulator_is_interrupted_resumed_and_finished(tmp_path):
    """LunarLander pickles only how it was made: it goes on with new episodes, and a line says so."""
    pytest.importorskip("Box2D")
    arguments = ("--env.id=LunarLander-v3", *SIZES, f"--run.folder={tmp_path}", "--run.name=run")
    steps = interrupted(tmp_path, *arguments)
    script = Script(tmp_path, "--resume", tmp_path / "run", f"--ppo.timesteps={steps + 64}")
    assert script.wait() == 0, script.err.read_text()
    assert "goes on with new episodes: LunarLander pickles only what it was made with" in script.out.read_text()
    assert (tmp_path / "run" / "finished").exists()
    last = (tmp_path / "run" / "evaluations.jsonl").read_text().splitlines()[-1]
    assert np.isfinite(json.loads(last)["return"])

"""Several processes that train as one: the steps of the optimiser, stopping, resuming, errors, and the script."""

import hashlib
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import textwrap
import traceback
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import Logger
from torch import nn

import experiment.distributed
from experiment.agents import make_model as model_of
from experiment.callbacks import Checkpoint, EntropySchedule
from experiment.checkpoints import load_checkpoint
from experiment.distributed import Together, gather, in_any, in_parallel, of_first, rank, share
from experiment.environments import make_envs
from experiment.parsing import load_settings
from experiment.runs import create_run
from experiment.settings import CoreSettings, EnvSettings, PPOSettings, RunSettings, Settings, SettingsError
from fbrl import MemoryPPO
from tests.tasks import StopAt, collect, make_model, parameters, vec

ROOT = Path(__file__).parents[2]
N, LIMIT = 2, 90  # processes; seconds after which they count as hanging


def serve(number, store, pipe):
    """One of N processes: calls the functions that it is sent, until it is killed."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=number, world_size=N)
    while True:
        function, arguments = pipe.recv()
        try:
            pipe.send((function(*arguments), None))
        except BaseException:
            pipe.send((None, traceback.format_exc()))


class Group:
    """N processes that reach each other; they start with the first call, and anew after one that failed."""

    def __init__(self, folder):
        self.folder, self.pipes, self.processes = folder, [], []

    def start(self):
        context, store = multiprocessing.get_context("spawn"), self.folder / f"store_{os.urandom(4).hex()}"
        for number in range(N):
            mine, theirs = context.Pipe()
            self.pipes.append(mine)
            self.processes.append(context.Process(target=serve, args=(number, store, theirs), daemon=True))
            self.processes[-1].start()

    def stop(self):
        for process in self.processes:
            process.kill()
            process.join()
        self.pipes, self.processes = [], []

    def __call__(self, function, *arguments):
        """What each of the processes returns."""
        if not self.processes:
            self.start()
        for pipe in self.pipes:
            pipe.send((function, arguments))
        answers = [pipe.recv() if pipe.poll(LIMIT) else (None, "hangs") for pipe in self.pipes]
        errors = [error for _, error in answers if error]
        if errors:
            self.stop()
            pytest.fail("\n".join(errors))
        return [value for value, _ in answers]


@pytest.fixture(scope="module")
def together(tmp_path_factory):
    group = Group(tmp_path_factory.mktemp("group"))
    yield group
    group.stop()


def digest(*values):
    """A hash of tensors, arrays and numbers in nested containers."""
    total = hashlib.sha256()

    def add(value):
        if isinstance(value, dict):
            value = [part for key in sorted(value, key=str) for part in (key, value[key])]
        if isinstance(value, (list, tuple)):
            for part in value:
                add(part)
        else:
            plain = value is None or isinstance(value, str)
            total.update(repr(value).encode() if plain else np.asarray(value).tobytes())

    add(values)
    return total.hexdigest()


def learned(model):
    return digest(model.policy.state_dict(), model.policy.optimizer.state_dict())


def quiet(model):
    model.set_logger(Logger(None, []))
    return model


def agent(memory=True, n_envs=2, core="fast", **kwargs):
    """A small agent; the seed is that of the weights, the environments and the sampling."""
    if memory:
        return quiet(make_model(core, vec(n_envs), **kwargs))
    sizes = {"n_steps": 12, "batch_size": 12, "n_epochs": 2, "seed": 0, "device": "cpu"}
    return quiet(PPO("MlpPolicy", vec(n_envs), **sizes | kwargs))


agents = pytest.mark.parametrize("memory", [True, False], ids=["memory", "control"])


def several_updates(memory, parallel):
    model = agent(memory, seed=rank())
    for _ in range(3):  # each with weights and rollouts of its own but for what runs in parallel
        if parallel:
            with in_parallel(model):
                model.learn(2 * 48, Together(lambda: False), reset_num_timesteps=False)
        else:
            model.learn(3 * 12, reset_num_timesteps=False)
    buffer = model.rollout_buffer
    return learned(model), digest(buffer.observations, buffer.actions), model._n_updates


@pytest.mark.slow
@agents
def test_weights_and_optimiser_are_the_same_in_all_processes(together, memory):
    """Bit for bit, although every process learns from its own rollouts."""
    (one, rollout, updates), (other, other_rollout, _) = together(several_updates, memory, True)
    assert updates == 3 * 2 * 2  # calls, rollouts, epochs
    assert rollout != other_rollout
    assert one == other
    (one, _, _), (other, _, _) = together(several_updates, memory, False)
    assert one != other


def give(model, whole, columns):
    """Fills a buffer with some of the environments' part of another's rollout."""
    buffer, source = model.rollout_buffer, whole.rollout_buffer
    for name in (
        "observations",
        "actions",
        "rewards",
        "returns",
        "episode_starts",
        "values",
        "log_probs",
        "advantages",
    ):
        setattr(buffer, name, getattr(source, name)[:, columns].copy())
    if isinstance(model, MemoryPPO):
        buffer.states = [tuple(part[columns] for part in state) for state in source.states]
        buffer.written = [part[columns] for part in source.written]
        model.policy.load_state_dict(whole.policy.state_dict())  # the value head, which is in the returns' units
    buffer.pos, buffer.full, buffer.generator_ready = source.pos, True, False
    return model


def halves(memory, normalize, seq_len, passes):
    """How far the weights are apart after one minibatch of one epoch: one process with all, each of N with its half."""
    kwargs = {"n_epochs": 1, "normalize_advantage": normalize, "learning_rate": 1e-3, "max_grad_norm": 0.1}
    if memory:
        kwargs |= {"seq_len": seq_len, "passes": passes, "core": "plain" if seq_len == 1 else "fast"}
    whole = agent(memory, 4, batch_size=48, **kwargs)
    collect(whole, 2)
    columns = slice(2 * rank(), 2 * rank() + 2)
    half, alone = (give(agent(memory, 2, batch_size=24, **kwargs), whole, columns) for _ in range(2))
    start = parameters(whole)
    with in_parallel(half):
        half.train()
    whole.train()
    alone.train()

    def apart(one, other):
        return max((one[name] - other[name]).abs().max().item() for name in one)

    without = [name for name, p in half.policy.named_parameters() if p.grad is None]
    assert without == [name for name, p in whole.policy.named_parameters() if p.grad is None]
    whole = parameters(whole)
    return apart(parameters(half), whole), apart(parameters(alone), whole), apart(start, whole), without


@pytest.mark.parametrize("normalize", [True, False], ids=["normalized", "as_is"])
@pytest.mark.parametrize(
    ("memory", "seq_len", "passes"), [(True, 4, None), (True, 4, 2), (True, 1, None), (False, 1, None)]
)
def test_two_processes_with_half_a_rollout_equal_one_with_all_of_it(together, memory, seq_len, passes, normalize):
    """Advantages are normalised over all processes or not at all, and it is the averaged gradient that is clipped."""
    for half, alone, moved, without in together(halves, memory, normalize, seq_len, passes):
        assert half < 1e-6
        assert alone > 1e-4
        assert moved > 5e-4
        # sequences of one step read nothing that they wrote
        assert without == (["core.mix"] if memory and seq_len == 1 else [])


def moments():
    """Those of a rollout of this process's own, those that all processes agree on, and what is made of them."""
    model = agent(seed=rank())
    with in_parallel(model):
        collect(model)
        mine = model.rollout_buffer.returns
        return mine, model.return_moments(), model.policy.value_scale.updates.item()


def test_the_units_of_values_are_of_all_returns(together):
    (one, agreed, updates), (other, also, _) = together(moments)
    assert agreed == also
    assert updates == 1
    both = np.concatenate([one, other]).astype(np.float64)
    assert agreed == pytest.approx((both.mean(), both.var()), rel=1e-6)
    assert one.mean() != pytest.approx(other.mean(), rel=1e-3)


def limited(target_kl):
    """Minibatches learned from where the policy seems to have moved in the second process only, and not in the next."""
    model = agent(n_epochs=3, learning_rate=1e-9, target_kl=target_kl)
    steps = []
    model.policy.optimizer.register_step_post_hook(lambda *_: steps.append(1))
    collect(model)
    before = model.rollout_buffer.log_probs.copy()
    with in_parallel(model):
        model.rollout_buffer.log_probs += rank()  # a divergence of exp(-1) = 0.37
        model.train()
        first = len(steps)
        model.rollout_buffer.log_probs = before.T.reshape(-1)
        model.train()
        inside = model.target_kl, model.normalize_advantage
    return first, len(steps) - first, inside, learned(model)


@pytest.mark.parametrize(
    ("target_kl", "expected"),
    [(0.1, 0), (0.2, 6)],  # 1.5 times it is below, or above, the mean of 0 and 0.37
)
def test_the_limit_of_the_divergence_stops_all_processes_or_none(together, target_kl, expected):
    (first, second, inside, one), (other_first, other_second, other_inside, other) = together(limited, target_kl)
    assert first == other_first == expected
    assert second == other_second == 6
    assert inside == other_inside == (target_kl, True)
    assert one == other


def untouched():
    model, seen = agent(), []
    collect(model)
    evaluate, names = model.policy.evaluate_actions, list(model.policy.state_dict())
    model.policy.evaluate_actions = lambda *given: (seen.extend(given), evaluate(*given))[1]
    with in_parallel(model):
        (batch,) = model.rollout_buffer.get()
        actions = batch.actions.long().flatten()
        model.policy.evaluate_actions(batch.observations, actions)
        assert list(model.policy.state_dict()) == names
        assert not any(isinstance(module, nn.parallel.DistributedDataParallel) for module in model.policy.modules())
    assert "evaluate_actions" not in vars(model.policy)
    assert "get" not in vars(model.rollout_buffer)
    return seen[0] is batch.observations and seen[1] is actions


def test_the_policy_gets_the_very_sequences_and_stays_as_it_was(together):
    assert together(untouched) == [True, True]


def uneven():
    model = agent(n_envs=1 + rank())
    with pytest.raises(ValueError, match="must be the same in all processes, got") as error, in_parallel(model):
        pass
    return str(error.value)


def test_processes_with_rollouts_of_other_sizes_are_refused(together):
    message, other = together(uneven)
    assert message == other
    assert "[(12, 1, 12, 2), (12, 2, 12, 2)]" in message


def words():
    called = []
    made = of_first(lambda: called.append(rank()) or f"by {rank()}")
    return made, called, gather(10 + rank()), [in_any(flag) for flag in (False, rank() == 1, rank() == 0, True)]


def test_what_processes_tell_each_other(together):
    first, other = together(words)
    assert first == ("by 0", [0], [10, 11], [False, True, True, True])
    assert other == ("by 0", [], [], [False, True, True, True])


def test_one_process_asks_nobody():
    assert (of_first(lambda: 7), gather(7), in_any(True), in_any(False)) == (7, [7], True, False)
    model = agent()
    with in_parallel(model):
        assert "evaluate_actions" not in vars(model.policy)


class Progress(BaseCallback):
    """What depends on the number of steps, at the start of every rollout."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def _on_step(self):
        return True

    def _on_rollout_start(self):
        model = self.model
        self.seen.append((model.num_timesteps, round(model._current_progress_remaining, 6), round(model.ent_coef, 6)))


def counted(n_envs, ends_at):
    model, progress = agent(n_envs=n_envs, learning_rate=lambda left: 1e-3 * left), Progress()
    asked = []

    def ends():  # only the first process wants to end
        asked.append(1)
        return rank() == 0 and len(asked) == ends_at

    with in_parallel(model):
        model.learn(4 * 48, [Together(ends), EntropySchedule(0.8, 0.0), progress])
    return progress.seen, model.num_timesteps, model.lr_schedule(model._current_progress_remaining)


def test_steps_are_those_of_all_processes(together):
    expected = [(0, 1.0, 0.8), (48, 0.75, 0.6), (96, 0.5, 0.4), (144, 0.25, 0.2)]
    assert counted(4, None) == (expected, 192, 0.0)
    for answer in together(counted, 2, None):
        assert answer == (expected, 192, 0.0)
    for seen, steps, _ in together(counted, 2, 3):
        assert seen == expected[:3]
        assert steps == 96 + 4  # no callback can stop before a step of the environments


def tiny(core="feedback", **kwargs):
    """Settings of a run of five updates in all processes together."""
    return Settings(
        EnvSettings("fbrl/TMaze-v0", n_envs=4, kwargs={"corridor": 3}),
        CoreSettings(core, d_model=8, n_layers=1, n_heads=2, window=4),
        PPOSettings(320, 1e-3, 1e-4, n_steps=16, seq_len=8, batch_size=32, n_epochs=2, ent_coef_end=0.0),
        RunSettings(device="cpu", **kwargs),
    )


def start(settings):
    mine = share(settings)
    return model_of(mine, make_envs(mine.env, mine.run.seed, mine.env.n_envs))


def train(model, settings, *callbacks):
    """To the end of the run, as the script does."""
    callbacks = [Together(lambda: False), EntropySchedule(settings.ppo.ent_coef, settings.ppo.ent_coef_end), *callbacks]
    with in_parallel(quiet(model)):
        model.learn(settings.ppo.timesteps - model.num_timesteps, callbacks, reset_num_timesteps=False)
    return model


def resumed(core, folder):
    settings = tiny(core, seed=3)
    whole = train(start(settings), settings)
    checkpoint = Checkpoint(folder, settings)
    train(start(settings), settings, checkpoint, StopAt(checkpoint, 128, by=1))
    assert (checkpoint.stopped, checkpoint.saved_at) == (True, 128)
    np.random.seed(77)  # another process has other random states
    torch.manual_seed(77)
    again = load_checkpoint(folder, settings, lambda: start(settings).env)
    assert again.num_timesteps == 128
    train(again, settings)
    return [(learned(m), digest(m._last_obs), m.num_timesteps, m.batch_size) for m in (whole, again)]


@pytest.mark.parametrize("core", ["feedback", "none"])
def test_a_resumed_run_is_the_uninterrupted_run_bit_for_bit(together, core, tmp_path):
    for whole, again in together(resumed, core, tmp_path):
        assert again == whole
        assert whole[2:] == (320, 16)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["last.zip"]


def saved(folder):
    settings = tiny()
    checkpoint = Checkpoint(folder, settings)
    train(start(settings), settings, checkpoint, StopAt(checkpoint, 128, by=1))
    return checkpoint.saved_at


def taken_up(folder):
    settings = tiny()
    model = load_checkpoint(folder, settings, lambda: start(settings).env)
    model.env.reset()
    seeds = [rng.bit_generator.seed_seq.entropy for rng in model.env.rngs]
    return model.num_timesteps, model._last_obs, model.batch_size, seeds, learned(model)


def test_another_number_of_processes_starts_new_episodes(together, tmp_path, capsys):
    assert together(saved, tmp_path) == [128, 128]
    settings = tiny()
    model = load_checkpoint(tmp_path, settings, lambda: start(settings).env)
    line = f"{tmp_path}: saved by 2 processes, not 1; goes on with new episodes and random numbers\n"
    assert capsys.readouterr().out == line
    assert (model.num_timesteps, model._last_obs, model.batch_size, model.n_envs) == (128, None, 32, 4)
    weights = parameters(model)
    train(model, settings)
    assert model.num_timesteps == 320
    assert not all(torch.equal(weights[name], weight) for name, weight in parameters(model).items())
    checkpoint = Checkpoint(tmp_path, settings)
    checkpoint.init_callback(model)
    checkpoint.save()
    one, other = together(taken_up, tmp_path)
    assert one[:3] == other[:3] == (320, None, 16)
    assert (one[3], other[3]) == ([320, 321], [322, 323]), "other levels than at the start"
    assert one[4] == other[4] == learned(model)


def seeds(settings):
    model = start(settings)
    model.env.reset()
    draw = torch.rand(1).item(), np.random.random()
    return [rng.bit_generator.seed_seq.entropy for rng in model.env.rngs], draw


def test_environments_have_the_seeds_that_one_process_would_give_them(together):
    (first, draw), (second, other_draw) = together(seeds, tiny(seed=7))
    whole, draw_of_one = seeds(tiny(seed=7))
    assert whole == first + second == [7, 8, 9, 10]
    assert draw == draw_of_one
    assert all(one != other for one, other in zip(draw, other_draw, strict=True))


@pytest.mark.parametrize(
    ("group", "name", "value", "message"),
    [
        ("env", "n_envs", 9, "env.n_envs must be a multiple of the 2 processes, got 9"),
        ("ppo", "batch_size", 24, "ppo.batch_size must be a multiple of ppo.seq_len x processes = 8 x 2, got 24"),
        ("run", "device", "cuda:1", "run.device must be auto, cpu or cuda where there are 2 processes, got cuda:1"),
    ],
)
def test_what_cannot_be_shared_out(monkeypatch, group, name, value, message):
    settings = tiny()
    setattr(getattr(settings, group), name, value)
    assert share(settings) is settings  # of one process
    monkeypatch.setattr(experiment.distributed, "size", lambda: 2)
    with pytest.raises(SettingsError, match=f"^{message}$"):
        share(settings)


def test_a_share_that_is_too_small(monkeypatch):
    monkeypatch.setattr(experiment.distributed, "size", lambda: 2)
    settings = tiny()
    settings.ppo.seq_len, settings.ppo.batch_size = 1, 2
    with pytest.raises(SettingsError, match=r"^ppo\.batch_size must be at least 2, got 1, in each of 2 processes$"):
        share(settings)


@pytest.mark.parametrize(
    ("device", "there", "mine"),
    [("auto", True, "cuda:1"), ("auto", False, "auto"), ("cuda", True, "cuda:1"), ("cpu", True, "cpu")],
)
def test_each_process_takes_a_gpu_of_its_own(monkeypatch, device, there, mine):
    monkeypatch.setattr(experiment.distributed, "size", lambda: 2)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: there)
    monkeypatch.setenv("LOCAL_RANK", "1")
    settings = tiny()
    settings.run.device = device
    assert share(settings).run.device == mine


TINY = (
    *("--env.kwargs={corridor: 3}", "--env.n_envs=4"),
    *("--core.d_model=8", "--core.n_layers=1", "--core.n_heads=2", "--core.window=4"),
    *("--ppo.timesteps=256", "--ppo.n_steps=16", "--ppo.seq_len=8", "--ppo.batch_size=32", "--ppo.n_epochs=1"),
    *("--run.eval_every=64", "--run.eval_episodes=4", "--run.checkpoint_every=64", "--run.device=cpu"),
    *("--run.progress_bar=false", "--run.name=tiny"),
)


@pytest.fixture
def torchrun(tmp_path):
    """Runs the script in N processes, after ``first``, a piece of Python; hands back stdout and stderr."""

    def torchrun(*arguments, first=""):
        script = tmp_path / "script.py"
        script.write_text(f"import os, signal, train_agent\n{textwrap.dedent(first)}\ntrain_agent.main()\n")
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={N}", script]
        environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
        process = subprocess.Popen(
            [*command, *map(str, arguments)],
            cwd=tmp_path,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            out, err = process.communicate(timeout=LIMIT)
        finally:
            process.send_signal(signal.SIGTERM)  # which ends the processes that it started too
            process.wait(60)
        return process.returncode, out, err

    return torchrun


def error_lines(err):
    return [line for line in err.splitlines() if line.startswith("error: ")]


def at(step, what):
    """Python that lets the second process do something when that many steps have been taken."""
    return f"""
        from experiment.distributed import Together
        on_step = Together._on_step

        def at(together):
            going_on = on_step(together)
            if together.model.num_timesteps == {step} and os.environ["RANK"] == "1":
                {what}
            return going_on

        Together._on_step = at
    """


@pytest.mark.slow
def test_a_run_and_its_control(torchrun, tmp_path):
    code, out, err = torchrun(*TINY, "--run.folder=runs", "--run.control=true")
    assert code == 0, err
    assert err == ""
    lines = out.splitlines()
    assert lines[0] == "runs/tiny: feedback core on fbrl/TMaze-v0, 256 steps"
    assert lines[1] == "runs/tiny_control: none core on fbrl/TMaze-v0, 256 steps"
    assert [line.split()[0] for line in lines[2:]] == ["fbrl/TMaze-v0,", "feedback", "none"]
    for folder, algorithm in ((tmp_path / "runs" / "tiny", MemoryPPO), (tmp_path / "runs" / "tiny_control", PPO)):
        names = [path.name for path in folder.iterdir()]
        assert len([name for name in names if name.startswith("events.out.tfevents.")]) == 1
        steps = [int(step) for step in re.findall('"timesteps": (\\d+)', (folder / "evaluations.jsonl").read_text())]
        assert steps == [64, 128, 192, 256]
        assert algorithm.load(folder / "last.zip", device="cpu").num_timesteps == 256
    settings = load_settings(tmp_path / "runs" / "tiny" / "config.yaml")
    assert (settings.env.n_envs, settings.ppo.batch_size, settings.run.seed) == (4, 32, 0)
    settings.run.folder = str(tmp_path / "one")
    one = create_run(settings)
    ours, theirs = ((folder / "config.yaml").read_text() for folder in (tmp_path / "runs" / "tiny", one))
    assert ours == theirs.replace(str(tmp_path / "one"), "runs")


@pytest.mark.slow
def test_help_is_printed_once(torchrun):
    code, out, err = torchrun("--help")
    assert code == 0, err
    assert out.count("usage: train_agent.py") == 1
    assert err == ""


@pytest.mark.slow
def test_a_process_that_is_killed_ends_the_run(torchrun, tmp_path):
    code, out, err = torchrun(*TINY, "--run.folder=runs", first=at(136, "os.kill(os.getpid(), signal.SIGKILL)"))
    assert code != 0
    (line,) = error_lines(err)
    assert "runs/tiny: another process has ended or cannot be reached; go on from the last checkpoint with:" in line
    assert line.endswith("torchrun --nproc-per-node 2 train_agent.py --resume runs/tiny")
    assert "episodes" not in out
    settings = load_settings(tmp_path / "runs" / "tiny" / "config.yaml")
    model = load_checkpoint(tmp_path / "runs" / "tiny", settings, lambda: start(settings).env)
    assert model.num_timesteps == 128


@pytest.mark.slow
def test_an_error_of_one_process_ends_all_with_its_line(torchrun):
    code, _, err = torchrun(*TINY, "--run.folder=runs", first=at(136, 'raise ValueError("reward must be finite")'))
    assert code != 0
    assert error_lines(err) == ["error: ValueError: reward must be finite"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--run.folder=runs",), "runs/tiny already holds a run; choose another run.name"),  # only the first looks
        (("--env.n_envs=3",), "env.n_envs must be a multiple of the 2 processes, got 3"),
    ],
)
def test_bad_input_is_refused_once(torchrun, tmp_path, arguments, message):
    (tmp_path / "runs" / "tiny").mkdir(parents=True)
    (tmp_path / "runs" / "tiny" / "notes.txt").write_text("mine")
    code, out, err = torchrun(*TINY, *arguments)
    assert code != 0
    (line,) = error_lines(err)
    assert message in line
    assert "exitcode  : 2 " in err
    assert out == ""
    assert [path.name for path in tmp_path.rglob("*.txt")] == ["notes.txt"]
    assert not list(tmp_path.rglob("config.yaml"))


@pytest.mark.slow
@pytest.mark.parametrize("number", ["SIGINT", "SIGTERM"])
def test_an_interrupt_saves_and_the_run_goes_on_as_if_nothing_had_been(torchrun, tmp_path, number):
    """The signal reaches ``torchrun``, which hands it on, or dies with it."""
    interrupt = at(136, f"os.kill(os.getppid(), signal.{number})")
    code, out, err = torchrun(*TINY, "--run.folder=runs", "--run.checkpoint_every=1000", first=interrupt)
    assert code != 0
    again = "torchrun --nproc-per-node 2 train_agent.py --resume runs/tiny"
    saved = re.search(r"^runs/tiny: saved at (\d+) steps; go on with: (.*)$", out, re.MULTILINE)
    assert saved[2] == again
    assert err.count("saving after this update") == 1
    assert error_lines(err) == []

    code, out, err = torchrun("--resume", "runs/tiny")
    assert code == 0, err
    assert out.startswith(f"runs/tiny: going on from {saved[1]} of 256 steps\n")
    assert out.count("feedback  success") == 1
    assert torchrun(*TINY, "--run.folder=runs", "--run.name=whole", "--run.checkpoint_every=1000")[0] == 0
    resumed, whole = (MemoryPPO.load(tmp_path / "runs" / name / "last.zip", device="cpu") for name in ("tiny", "whole"))
    assert learned(resumed) == learned(whole)

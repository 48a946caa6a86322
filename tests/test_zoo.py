"""The RL Zoo with ``memory_ppo``: its scripts train, play, go on and search.

Each runs in a process of its own, because the zoo, once imported, changes Gymnasium's TimeLimit for everybody.
"""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import gymnasium as gym
import pytest
import yaml

import envs
from fbrl import EpisodicNovelty, MemoryPPO
from fbrl.symbolic import SymbolicObservation
from fbrl.zoo import HYPERPARAMETERS
from fbrl.zoo.__main__ import main, with_hyperparameters
from fbrl.zoo.sampler import converted, sample

ROOT = Path(__file__).parents[1]
HAS_ZOO = importlib.util.find_spec("rl_zoo3") is not None
needs_zoo = pytest.mark.skipif(not HAS_ZOO, reason="rl_zoo3 is not installed: pip install fbrl[zoo]")
GIVEN = yaml.safe_load(HYPERPARAMETERS.read_text())
OF_THE_ZOO = ("n_timesteps", "n_envs", "normalize", "env_wrapper", "vec_env_wrapper")

TMAZE = ["--env", "fbrl/TMaze-v0", "--gym-packages", "envs"]
QUICK = "{'core_kwargs': {'d_model': 16, 'n_layers': 1, 'n_heads': 2, 'window': 8}}"
# plays as fbrl.zoo does, with an agent that is handed no memory
FORGETFUL = """
from fbrl import MemoryPPO
from fbrl.zoo.__main__ import main
predict = MemoryPPO.predict
MemoryPPO.predict = lambda self, obs, state, **kwargs: predict(self, obs, state=None, **kwargs)
main()
"""


def zoo(*arguments, code=None, returns=0):
    """What ``python -m fbrl.zoo`` prints, from the repository's root; ``code`` runs in its place."""
    command = ["-m", "fbrl.zoo"] if code is None else ["-c", code]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *command, *map(str, arguments)], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert done.returncode == returns, done.stdout + done.stderr
    return done.stdout if returns == 0 else done.stderr


def train(folder, *arguments):
    return zoo("train", "--algo", "memory_ppo", "-f", folder, "--device", "cpu", "--seed", 1, *arguments)


def success(folder, **kwargs):
    """The success rate that the zoo's enjoy prints, in per cent."""
    arguments = ["enjoy", "--algo", "memory_ppo", "-f", folder, "--no-render", "--device", "cpu", "-n", 400, *TMAZE]
    [line] = [line for line in zoo(*arguments, **kwargs).splitlines() if line.startswith("Success rate")]
    return float(line.removeprefix("Success rate: ").removesuffix("%"))


@needs_zoo
def test_it_plays_with_the_memory_that_it_was_trained_with(tmp_path):
    """A T-maze cannot be solved in more than half of the episodes without what its first step showed."""
    quick = ["n_steps:16", "seq_len:16", "batch_size:64", "learning_rate:'lin_3e-3'", f"policy_kwargs:{QUICK}"]
    train(tmp_path, *TMAZE, "--env-kwargs", "corridor:1", "-n", 5000, "--eval-freq", -1, "-params", *quick)
    assert success(tmp_path) >= 98
    assert success(tmp_path, code=FORGETFUL) <= 65


@needs_zoo
def test_it_normalizes_evaluates_and_goes_on(tmp_path):
    arguments = ["--env", "CartPoleNoVel-v1", "-params", "n_epochs:1"]
    said = train(tmp_path, *arguments, "-n", 512, "--eval-freq", 256, "--eval-episodes", 2)
    assert str(HYPERPARAMETERS) in said
    assert "Eval num_timesteps=256" in said
    first = tmp_path / "memory_ppo" / "CartPoleNoVel-v1_1"
    assert (first / "best_model.zip").is_file()
    assert (first / "CartPoleNoVel-v1" / "vecnormalize.pkl").is_file()
    agent = first / "CartPoleNoVel-v1.zip"
    trained = MemoryPPO.load(agent, device="cpu")
    assert (trained.seq_len, trained.n_envs, trained.policy.core.window) == (32, 8, 32)
    said = train(tmp_path, *arguments, "-n", 256, "--eval-freq", -1, "-i", agent)
    assert "Loading saved VecNormalize stats" in said
    more = MemoryPPO.load(tmp_path / "memory_ppo" / "CartPoleNoVel-v1_2" / "CartPoleNoVel-v1.zip", device="cpu")
    assert more._n_updates == 3  # of one epoch each, two of which are the first agent's


@needs_zoo
def test_it_searches_and_trains_what_it_found(tmp_path):
    study = ["--storage", tmp_path / "study.log", "--study-name", "search"]
    search = ["-optimize", "--n-trials", 2, "--n-evaluations", 1, "--eval-episodes", 1, "-params", "n_envs:1"]
    train(tmp_path, "--env", "CartPole-v1", "-n", 64, *search, *study)
    [report] = tmp_path.glob("memory_ppo/report_*.csv")
    assert [line.split(",")[-1] for line in report.read_text().splitlines()] == ["state", "COMPLETE", "COMPLETE"]
    train(tmp_path, "--env", "CartPole-v1", "-n", 64, "--eval-freq", -1, "--trial-id", 1, *study)
    [config] = tmp_path.glob("memory_ppo/CartPole-v1_*/CartPole-v1/config.yml")
    found = dict(yaml.unsafe_load(config.read_text()))
    assert found["n_steps"] % found["seq_len"] == 0
    assert f",{found['learning_rate']!r}," in report.read_text().splitlines()[2]


@needs_zoo
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--env", "Nope-v1"], "Nope-v1 not found in gym registry"),
        (["--env", "CartPole-v1", "--gym-packages", "no_such"], "--gym-packages: there is no module no_such"),
        (["--env", "CartPole-v1", "-params", "seq_len:7"], "n_steps must be a multiple of seq_len, got n_steps=128"),
        (
            ["--env", "CartPole-v1", "-params", "height:7"],
            "MemoryPPO.__init__() got an unexpected keyword argument 'height'",
        ),
    ],
)
def test_bad_input_is_one_line(arguments, message, tmp_path):
    [line] = zoo("train", "--algo", "memory_ppo", "-f", tmp_path, *arguments, returns=2).splitlines()
    assert line.startswith(f"error: {message}")


@needs_zoo
def test_what_is_not_there_to_play_is_one_line(tmp_path):
    """An agent's task whose package is not named; a package without what it needs."""
    for name in ("fbrl-TMaze-v0_1", "fbrl-TMaze-v0_1/fbrl-TMaze-v0"):
        (tmp_path / "memory_ppo" / name).mkdir(parents=True)
    (tmp_path / "memory_ppo/fbrl-TMaze-v0_1/fbrl-TMaze-v0.zip").touch()
    arguments = ["enjoy", "--algo", "memory_ppo", "-f", tmp_path, "--no-render", "--env", "fbrl/TMaze-v0"]
    error = "error: --env: no environment is called fbrl/TMaze-v0; --gym-packages names the package that registers it"
    assert zoo(*arguments, returns=2).splitlines()[-1] == error
    without = "import sys; sys.modules['minigrid'] = None; from fbrl.zoo.__main__ import main; main()"
    [line] = zoo(*arguments, "--gym-packages", "envs", code=without, returns=2).splitlines()
    assert line == "error: MiniGrid is not installed: pip install fbrl[minigrid]"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "the first argument must be train or enjoy, got nothing"),
        (["play"], "the first argument must be train or enjoy, got play"),
        (["train"], "rl-zoo3 is not installed: pip install fbrl[zoo]"),
    ],
)
def test_what_cannot_start_is_refused(arguments, message, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["fbrl.zoo", *arguments])
    monkeypatch.setitem(sys.modules, "rl_zoo3", None)  # as if it were not there
    with pytest.raises(SystemExit) as stop:
        main()
    assert (stop.value.code, capsys.readouterr().err) == (2, f"error: {message}\n")


@pytest.mark.parametrize(
    ("arguments", "ours"),
    [
        (["--algo", "memory_ppo"], True),
        (["--env", "CartPole-v1", "--algo=memory_ppo", "-params", "n_steps:32"], True),
        (["--algo", "memory_ppo", "-conf", "my.yml"], False),
        (["--algo", "memory_ppo", "--conf-file=my.yml"], False),
        (["--algo", "memory_ppo", "--conf", "my.yml"], False),
        (["--algo", "ppo"], False),
        ([], False),
        (["--algo"], False),
    ],
)
def test_our_hyperparameters_are_taken_where_none_are_given(arguments, ours):
    added = ["--conf-file", str(HYPERPARAMETERS)] if ours else []
    assert with_hyperparameters(arguments) == arguments + added


@pytest.mark.parametrize("env_id", GIVEN)
def test_the_hyperparameters_make_an_agent(env_id):
    """Of the task that they are for; the wrappers that they name are those that the tasks need."""
    given = {"CartPoleNoVel-v1": "CartPole-v1", "PendulumNoVel-v1": "Pendulum-v1", "default": "CartPole-v1"}
    hyperparameters = GIVEN[env_id]
    env = gym.make(given.get(env_id, env_id))
    if "env_wrapper" in hyperparameters:
        assert hyperparameters["env_wrapper"] == ["fbrl.symbolic.SymbolicObservation"]
        env = SymbolicObservation(env)
    kwargs = {name: value for name, value in hyperparameters.items() if name not in OF_THE_ZOO}
    for name in ("learning_rate", "clip_range"):
        if isinstance(kwargs.get(name), str):
            kwargs[name] = float(kwargs[name].removeprefix("lin_"))
    model = MemoryPPO(env=env, device="cpu", **kwargs)
    if "vec_env_wrapper" in hyperparameters:
        [wrapper] = hyperparameters["vec_env_wrapper"]
        assert EpisodicNovelty(model.get_env(), **wrapper["fbrl.EpisodicNovelty"]).bonus == 0.03
    rollout = kwargs["n_steps"] * hyperparameters["n_envs"]
    assert rollout % kwargs["batch_size"] == 0
    assert hyperparameters["n_timesteps"] >= rollout


@pytest.mark.parametrize("seed", range(5))
def test_every_trial_makes_an_agent(seed):
    optuna = pytest.importorskip("optuna")
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed))
    trial = study.ask()
    given = sample(trial, n_actions=2, n_envs=3, additional_args={})
    assert given == converted(trial.params)
    model = MemoryPPO("MlpPolicy", envs.make("CartPole-v1"), device="cpu", **given)
    core = model.policy.core
    assert 2 ** trial.params["window_pow"] == core.window == given["policy_kwargs"]["core_kwargs"]["window"]
    assert len(core.layers) == trial.params["n_layers"]
    assert model.n_steps % model.seq_len == 0
    assert trial.user_attrs["gamma"] == model.gamma == 1 - trial.params["one_minus_gamma"]

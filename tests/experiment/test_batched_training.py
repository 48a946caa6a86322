"""Tasks that are written for N environments are trained and evaluated as such, where nothing is around them."""

import pytest

from envs.batch_vec_env import BatchVecEnv
from experiment.environments import evaluation_envs, make_batch, make_envs
from experiment.playing import exhaustive
from experiment.settings import EnvSettings, SettingsError
from fbrl.vec_env import FiniteVecEnv

SHORT = {"states": 3, "questions": 2, "length": 7}


def settings(env_id="fbrl/HiddenAutomaton-v0", kwargs=SHORT, **others):
    return EnvSettings(env_id, n_envs=3, kwargs=kwargs, **others)


@pytest.mark.parametrize("make", [make_envs, evaluation_envs])
def test_they_are_stepped_at_once(make):
    env = make(settings(), 5, 3)
    assert type(env) is BatchVecEnv
    assert (env.num_envs, env.task.states, env.task.length) == (3, 3, 7)


@pytest.mark.parametrize(
    "others",
    [{"previous_action": True}, {"previous_reward": True}, {"kwargs": SHORT | {"max_episode_steps": 5}}],
)
def test_what_is_around_a_task_is_kept(others):
    env = make_envs(settings(**others), 5, 3)
    assert type(env) is FiniteVecEnv
    assert make_batch(settings("MiniGrid-MemoryS7-v0", {}), 5, 3) is None


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"states": 1}, "states must be a whole number, at least 2, got 1"),
        ({"cups": 3}, "got an unexpected keyword argument 'cups'"),
    ],
)
def test_wrong_arguments_are_refused_in_one_line(kwargs, message):
    with pytest.raises(SettingsError, match=message) as refused:
        make_envs(settings(kwargs=kwargs), 5, 3)
    assert str(refused.value).startswith("env.id fbrl/HiddenAutomaton-v0 with env.kwargs")
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    "env_id", ["fbrl/HiddenAutomaton-v0", "fbrl/GridWalk-v0", "fbrl/Counting-v0", "fbrl/WaterMaze-v0"]
)
def test_their_start_states_cannot_be_listed(env_id):
    with pytest.raises(SettingsError, match=f"^--exhaustive: {env_id} ") as refused:
        exhaustive(None, settings(env_id, {}))
    assert "\n" not in str(refused.value)

"""Control without velocities: what is hidden, what is kept, the table."""

import json

import numpy as np
import pytest

from benchmarks.learning import control


@pytest.mark.parametrize("name", control.TASKS)
def test_what_is_seen(name):
    task = control.TASKS[name]
    env = control.make_envs(task, 3, seed=0)
    first = env.reset()
    assert first.shape == (3, len(task.seen))
    hidden = env.venv.envs[0].unwrapped.observation_space.shape[0] - len(task.seen)
    assert hidden == {"CartPole": 0, "CartPoleNoVel-50k": 2, "CartPoleNoVel": 2}.get(name, 1)
    observations, rewards, _, _ = env.step(np.array([env.action_space.sample() for _ in range(3)]))
    assert np.array_equal(observations, env.get_original_obs()) == (name == "CartPole")
    assert np.array_equal(rewards, env.get_original_reward()) == (name != "CartPoleNoVel-50k")


@pytest.mark.parametrize("agent", control.AGENTS)
def test_a_run_is_kept_and_told(agent, tmp_path, monkeypatch):
    task = control.TASKS["CartPoleNoVel"]
    monkeypatch.setitem(control.TASKS, "CartPoleNoVel", task._replace(ppo=task.ppo | {"n_epochs": 2}))
    monkeypatch.setattr(control, "EPISODES", 3)
    row = control.run("CartPoleNoVel", agent, seed=2, steps=512)
    assert row["steps"] == 512
    assert row["kl"] > 0
    assert 5 < row["return"] <= 500
    path = tmp_path / "control.json"
    control.keep(row, path)
    control.keep(row | {"seed": 0, "return": 30.0}, path)
    control.keep(row | {"return": 50.0}, path)  # anew
    kept = json.loads(path.read_text())["rows"]
    assert [(one["seed"], one["return"]) for one in kept] == [(0, 30.0), (2, 50.0)]
    expected = f"| CartPoleNoVel | {agent} | {row['parameters']:,} | 0, 2 | 30.0, 50.0 | 40.0 | {row['kl']:.4f} |"
    assert control.table(path).splitlines()[2:] == [expected]

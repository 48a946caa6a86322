"""Where the time goes."""

import time

import pytest
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from experiment.timing import TimeShares
from fbrl.vec_env import FiniteVecEnv
from tests.tasks import ConstantTask, make_model

N_STEPS, N_ENVS, SLEEP = 12, 2, 0.004  # seconds a step of one environment
BETWEEN, UPDATE = 0.05, 0.3  # seconds


class SlowTask(ConstantTask):
    def step(self, action):
        time.sleep(SLEEP)
        return super().step(action)


class SlowBetweenUpdates(BaseCallback):
    """Takes its time before a rollout, and keeps what is logged at its end."""

    def __init__(self):
        super().__init__()
        self.logged = []

    def _on_step(self):
        return True

    def _on_rollout_start(self):
        time.sleep(BETWEEN)

    def _on_rollout_end(self):
        time.sleep(BETWEEN)
        self.logged.append(
            {name: value for name, value in self.logger.name_to_value.items() if name.startswith("time/")}
        )


def train(env):
    callback = SlowBetweenUpdates()
    model = make_model(env=env, n_steps=N_STEPS)
    model.set_logger(Logger(folder=None, output_formats=[]))
    update = model.train

    def slow_update():
        time.sleep(UPDATE)
        update()

    model.train = slow_update
    model.learn(3 * N_STEPS * N_ENVS, TimeShares([callback]))
    return callback.logged


@pytest.mark.parametrize("wrap", [lambda env: env, lambda env: VecNormalize(env)], ids=["bare", "wrapped"])
def test_shares_of_a_training(wrap):
    first, *later = train(wrap(FiniteVecEnv([SlowTask] * N_ENVS)))
    assert not {name for name in first if name != "time/fps"}, "before the first rollout there was no update"
    assert len(later) == 2
    for logged in later:
        shares = {name: logged[f"time/{name}"] for name in ("environment", "acting", "update", "other")}
        assert sum(shares.values()) == pytest.approx(1)
        assert min(shares.values()) > 0
        seconds = N_STEPS * N_ENVS / logged["time/steps_per_second"]
        assert shares["environment"] * seconds >= N_STEPS * N_ENVS * SLEEP
        assert shares["other"] * seconds >= 2 * BETWEEN
        assert shares["update"] * seconds >= UPDATE
        assert shares["acting"] * seconds < UPDATE, "a few small steps"


def test_environments_that_do_not_count():
    _, *later = train(DummyVecEnv([ConstantTask] * N_ENVS))
    for logged in later:
        assert logged["time/rollout"] + logged["time/update"] + logged["time/other"] == pytest.approx(1)
        assert "time/environment" not in logged


def test_seconds_of_steps():
    env = FiniteVecEnv([SlowTask] * N_ENVS)
    env.reset()
    assert env.seconds_stepping == 0
    env.step([0] * N_ENVS)
    assert env.seconds_stepping >= N_ENVS * SLEEP

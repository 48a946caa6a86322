"""What the tests of the tasks that are written for N environments share."""

import numpy as np


class Scripted:
    """Stands in for a random generator: hands out the given draws in their order, whatever is asked for."""

    def __init__(self, *draws):
        self.draws = list(draws)

    def integers(self, *args, size=None):
        return self.draws.pop(0)

    permutation = integers


def start_all(task, draws):
    """Starts environment i with the draws i; there are as many as environments."""
    assert task.n_envs == len(draws)
    for index, drawn in enumerate(draws):
        task.start(index, Scripted(*drawn))
    return task


def play_all(task, policy):
    """One episode in each environment, from where they were started: returns and successes (N,).

    ``policy`` maps the observations so far, a list of (N, ...), to actions (N,). All episodes are equally long.
    """
    seen, returns = [task.observe()], np.zeros(task.n_envs)
    while True:
        rewards, terminated, truncated, success = task.step(policy(seen))
        returns += rewards
        ended = terminated | truncated
        assert ended.all() or not (ended.any() or success.any())
        if ended.all():
            return returns, success
        seen.append(task.observe())


def play_one(env, policy, seed):
    """One episode: the return, the success and the length; ``policy`` maps the observations so far to an action."""
    seen, total, done = [env.reset(seed=seed)[0]], 0.0, False
    while not done:
        observation, reward, terminated, truncated, info = env.step(policy(seen))
        seen.append(observation)
        total += reward
        done = terminated or truncated
    return total, info["is_success"], len(seen) - 1

"""Runs the Python code of README.md and of the documentation's pages, whose trainings are cut short."""

import pytest
import torch
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from sybil import Sybil
from sybil.parsers.myst import PythonCodeBlockParser

torch.set_num_threads(1)  # the tests are small; threads would only wait for each other
LONGEST = 500  # environment steps of a training on a page


@pytest.fixture
def cut_short(monkeypatch, tmp_path):
    """Trainings of one epoch on a rollout or two; files go to a folder that is thrown away."""
    learn = OnPolicyAlgorithm.learn

    def learn_a_little(self, total_timesteps, *args, **kwargs):
        self.n_epochs = 1
        return learn(self, min(total_timesteps, LONGEST), *args, **kwargs)

    monkeypatch.setattr(OnPolicyAlgorithm, "learn", learn_a_little)
    monkeypatch.chdir(tmp_path)


pytest_collect_file = Sybil(
    parsers=[PythonCodeBlockParser()], patterns=["README.md", "docs/*.md", "docs/guides/*.md"], fixtures=["cut_short"]
).pytest()

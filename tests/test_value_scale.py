"""Values in units of the returns: learning does not depend on the scale of the reward."""

import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3.common.save_util import load_from_zip_file, save_to_zip_file
from torch import nn

from fbrl import MemoryPPO
from fbrl.value_scale import LEAST, RATE, ValueScale
from tests.tasks import RandomTask, collect, make_model, parameters, vec


def test_by_hand():
    scale, head = ValueScale(), nn.Linear(3, 1)
    assert not scale.known
    assert scale.to_raw(torch.tensor(5.0)) == scale.to_units(torch.tensor(5.0)) == 5
    scale.update(0.0, 0.0, head)
    assert not scale.known
    scale.update(10.0, 4.0, head)  # the first is taken as it is
    assert scale.known
    assert scale.mean == 10
    assert scale.std.item() == pytest.approx(np.sqrt(4 + (LEAST * 10) ** 2))
    scale.update(13.0, 2.0, head)  # of two, each counts half: mean 11.5, variance (4 + 2) / 2 + 1.5^2
    assert scale.mean == 11.5
    assert scale.variance.item() == pytest.approx(3 + 1.5**2)
    values = torch.tensor([1.0, -7.0, 30.0])
    torch.testing.assert_close(scale.to_raw(scale.to_units(values)), values)
    assert scale.to_units(scale.mean) == 0


def test_old_returns_are_forgotten():
    scale, head = ValueScale(), nn.Linear(3, 1)
    for mean in [100.0] * 20 + [0.0] * 5:
        scale.update(mean, 1.0, head)
    assert scale.mean.item() == pytest.approx(100 * (1 - RATE) ** 5)


def test_what_the_head_says_stays_the_same():
    scale, head, x = ValueScale(), nn.Linear(3, 1), torch.randn(7, 3)
    scale.update(5.0, 2.0, head)
    weight = head.weight.clone()
    before = scale.to_raw(head(x))
    scale.update(-300.0, 1e4, head)
    assert (head.weight / weight).max() < 0.2
    torch.testing.assert_close(scale.to_raw(head(x)), before, rtol=1e-4, atol=1e-4)


class ScaledTask(RandomTask):
    """Pays ``scale`` times what is better the more often action 1 is taken."""

    def __init__(self, scale, **kwargs):
        super().__init__(action_space=spaces.Discrete(2), **kwargs)
        self.scale = scale

    def step(self, action):
        obs, reward, *rest = super().step(action)
        return obs, self.scale * (1 + action + 0.1 * reward), *rest


APART = {"policy_kwargs": {"share_features_extractor": False}}


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, {"clip_range_vf": 0.2}, APART], ids=["default", "clipped", "apart"])
def test_learning_does_not_depend_on_the_scale_of_the_reward(options):
    """Equal weights but for rounding after many updates, and values and returns that are scaled alike."""

    def learned(scale):
        model = make_model("fast", vec(task=ScaledTask, scale=scale), n_steps=24, learning_rate=3e-3, **options)
        model.learn(5 * 72)
        collect(model)
        return model

    one = learned(1.0)
    start = parameters(make_model("fast", vec(task=ScaledTask, scale=1.0), **options))
    moved = max((value - start[name]).abs().max() for name, value in parameters(one).items())
    assert moved > 0.05
    for scale in (0.001, 1000.0):
        other = learned(scale)
        np.testing.assert_array_equal(other.rollout_buffer.actions, one.rollout_buffer.actions)
        for name in ("rewards", "values", "advantages", "returns"):
            ours, theirs = (getattr(model.rollout_buffer, name) for model in (one, other))
            np.testing.assert_allclose(theirs / scale, ours, rtol=1e-2, atol=1e-2, err_msg=name)
        for name, value in parameters(other).items():
            torch.testing.assert_close(value, parameters(one)[name], rtol=0, atol=2e-2 * moved, msg=name)


def test_without_it_learning_does():
    """So that the test above can fail."""
    weights = []
    for scale in (1.0, 1000.0):
        env = vec(task=ScaledTask, scale=scale)
        model = make_model("fast", env, n_steps=24, learning_rate=3e-3, normalize_values=False).learn(3 * 72)
        weights.append(torch.nn.utils.parameters_to_vector(model.policy.action_net.parameters()))
    assert (weights[0] - weights[1]).abs().max() > 0.01


def test_minibatches_are_in_units_and_the_buffer_is_not():
    model = make_model("plain", vec(task=ScaledTask, scale=50.0))
    collect(model, rollouts=2)
    buffer, scale = model.rollout_buffer, model.policy.value_scale
    assert scale.mean > 50
    returns = buffer.returns.copy()
    assert returns.mean() > 50
    (batch,) = buffer.get()
    torch.testing.assert_close(scale.to_raw(batch.returns).sort().values, torch.tensor(np.sort(returns.ravel())))
    assert batch.returns.abs().max() < 20


def test_the_first_rollout_has_units_of_its_own():
    """What the new head said counts in units of the first returns; cut episodes are taken on by it."""
    model = make_model("plain", vec(task=ScaledTask, scale=1e6), gamma=0.9)
    collect(model)
    buffer, scale = model.rollout_buffer, model.policy.value_scale
    assert scale.updates == 1
    assert buffer.values.std() < 10 * scale.std.item()
    assert abs(buffer.values.mean() - scale.mean.item()) < 10 * scale.std.item()
    cut = buffer.rewards > 3.5e6  # no reward itself is
    assert 0 < cut.sum() < buffer.rewards.size / 2
    (batch,) = buffer.get()
    with torch.no_grad():
        values, _, _ = model.policy.evaluate_actions(batch.observations, batch.actions.long().flatten())
    torch.testing.assert_close(values.flatten(), batch.old_values, rtol=0, atol=1e-4)


def test_nothing_but_zeros():
    model = make_model("plain", vec(task=ScaledTask, scale=0.0)).learn(72)
    assert not model.policy.value_scale.known
    assert all(value.isfinite().all() for value in parameters(model).values())


def test_saved_and_loaded(tmp_path):
    model = make_model("plain", vec(task=ScaledTask, scale=50.0)).learn(72)
    model.save(tmp_path / "model")
    loaded = MemoryPPO.load(tmp_path / "model", device="cpu", env=vec(task=ScaledTask, scale=50.0))
    assert loaded.normalize_values
    for name, value in model.policy.value_scale.state_dict().items():
        assert torch.equal(loaded.policy.value_scale.state_dict()[name], value), name
    before = loaded.policy.value_scale.updates.item()
    loaded.learn(36)
    assert loaded.policy.value_scale.updates == before + 1


def test_an_agent_saved_without_units_stays_without(tmp_path):
    """It has the values that it had, also once it learns on."""
    model = make_model("plain", normalize_values=False, policy_kwargs={"net_arch": []}).learn(72)
    model.save(tmp_path / "model")
    data, params, variables = load_from_zip_file(tmp_path / "model", device="cpu")
    del data["normalize_values"]
    del data["policy_kwargs"]["net_arch"]
    data["rollout_buffer_kwargs"].pop("value_scale", None)
    for name in [name for name in params["policy"] if name.startswith("value_scale.")]:
        del params["policy"][name]
    save_to_zip_file(tmp_path / "old", data, params, variables)
    old = MemoryPPO.load(tmp_path / "old", device="cpu", env=vec())
    assert not old.normalize_values
    obs, starts = torch.randn(3, 3), torch.ones(3, dtype=torch.bool)
    values = [m.policy.predict_values(obs, m.policy.initial_state(3), starts) for m in (model, old)]
    assert torch.equal(*values)
    old.learn(36)
    assert not old.policy.value_scale.known
    assert old.rollout_buffer.value_scale is None

"""No change of any weight, in whatever way, goes unnoticed by an agent that is in the middle of an episode."""

import copy

import numpy as np
import pytest
import torch
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.utils import polyak_update
from torch import nn
from torch.func import functional_call
from torch.nn.utils.parametrize import register_parametrization
from torch.utils.checkpoint import checkpoint

from fbrl.cores.watch import Watch
from tests.cores.cases import make_cores, make_input, make_memory, make_starts
from tests.tasks import CORES, collect, make_model, sharpen


def written_to_data(policy):
    policy.core.w_k.weight.data *= -1


def written_to_a_row(policy):
    policy.core.ln_m.bias.data[2] = 4


def written_to_a_layer(policy):
    policy.core.layers[1].w_q.weight.data *= -1


def data_replaced(policy):
    policy.core.layers[0].w_o.weight.data = -policy.core.layers[0].w_o.weight.data


def loaded_by_assignment(policy):
    policy.load_state_dict({name: weight + 0.2 for name, weight in policy.state_dict().items()}, assign=True)


def polyak(policy):
    others = [weight + 0.5 for weight in policy.parameters()]
    polyak_update(others, policy.parameters(), 0.5)


def layer_replaced(policy):
    policy.core.w_v = nn.Linear(8, 8, bias=False)


def norm_replaced(policy):
    policy.core.layers[1].ln_1 = nn.LayerNorm(8)
    nn.init.normal_(policy.core.layers[1].ln_1.weight)


def parameter_replaced(policy):
    policy.core.layers[0].w_1.weight = nn.Parameter(-policy.core.layers[0].w_1.weight.detach())


def core_replaced(policy):
    policy.core = type(policy.core)(**policy.core_kwargs)


def twin_replaced(policy):
    policy.core.pi = type(policy.core.pi)(**policy.core_kwargs)


CHANGES = [
    written_to_data,
    written_to_a_row,
    written_to_a_layer,
    data_replaced,
    loaded_by_assignment,
    polyak,
    layer_replaced,
    norm_replaced,
    parameter_replaced,
    core_replaced,
]


def name_of(function):
    return function.__name__


@pytest.mark.parametrize("change", CHANGES, ids=name_of)
def test_predict_goes_on_with_the_weights_of_now(change):
    policy = sharpen(make_model("fast")).policy
    assert_noticed(policy, change)


def test_predict_goes_on_with_the_cores_of_now():
    """Of an actor and a critic that share nothing."""
    policy = sharpen(make_model("fast", policy_kwargs={"share_features_extractor": False})).policy
    assert_noticed(policy, twin_replaced)


class Scaled(nn.Module):
    """A parametrization."""

    def __init__(self):
        super().__init__()
        self.factor = nn.Parameter(torch.ones(()))

    def forward(self, weight):
        return self.factor * weight


def factors_written_to(policy):
    for layer in (policy.core.w_k, policy.core.layers[0].w_q):
        layer.parametrizations.weight[0].factor.data.fill_(-2)


@pytest.mark.parametrize("form", ["fast", "auto"])
def test_predict_goes_on_with_what_weights_are_made_of_now(form):
    policy = sharpen(make_model("fast")).policy
    policy.core.form = form
    for layer in (policy.core.w_k, policy.core.layers[0].w_q):
        register_parametrization(layer, "weight", Scaled())
    assert_noticed(policy, factors_written_to)


@pytest.mark.parametrize("core", ["transformer_xl", "lstm"])
def test_predict_goes_on_with_the_core_of_now(core):
    assert_noticed(sharpen(make_model(core)).policy, core_replaced)


def assert_noticed(policy, change):
    """The step after the change is that of an agent which is given a copy of the state, and not what it was before."""
    *observations, obs = np.random.default_rng(0).uniform(-1, 1, (8, 5, 3)).astype(np.float32)
    state = None
    for seen in observations:
        _, state = policy.predict(seen, state)
    copied = tuple(part.copy() for part in state)
    _, before = copy.deepcopy(policy).predict(obs, copied)
    change(policy)
    actions, after = policy.predict(obs, state, deterministic=True)
    expected_actions, expected = policy.predict(obs, copied, deterministic=True)
    np.testing.assert_array_equal(actions, expected_actions)
    for part, same in zip(after, expected, strict=True):
        np.testing.assert_allclose(part, same, rtol=0, atol=1e-5)
    assert max(np.abs(one - other).max() for one, other in zip(expected, before, strict=True)) > 1e-3


class Meddle(BaseCallback):
    """Changes the weights after the sixth step of a rollout."""

    def __init__(self, change):
        super().__init__()
        self.change = change

    def _on_step(self):
        if self.n_calls == 6:
            self.change(self.model.policy)
        return True


@pytest.mark.parametrize("change", [written_to_data, layer_replaced, core_replaced], ids=name_of)
def test_a_rollout_goes_on_with_the_weights_of_now(change):
    """What was done after the change is what the changed policy does from the memory before it."""
    model = sharpen(make_model("fast", seq_len=6, batch_size=12))
    collect(model, callback=Meddle(change))
    buffer = model.rollout_buffer
    state = buffer.states[1]
    for t in range(6, 12):
        obs, starts = torch.as_tensor(buffer.observations[t]), torch.as_tensor(buffer.episode_starts[t]).bool()
        with torch.no_grad():
            distribution, state = model.policy.get_distribution(obs, state, starts)
            log_probs = distribution.log_prob(torch.as_tensor(buffer.actions[t]).flatten())
        np.testing.assert_allclose(buffer.log_probs[t], log_probs, rtol=0, atol=1e-4)


def test_what_is_a_view_may_be_written_to():
    core = nn.Linear(3, 5)
    watch = Watch(core, [core.weight])
    assert watch.unchanged()
    core.bias.data += 1
    assert watch.unchanged()
    core.weight.data[4, 2] += 1
    assert not watch.unchanged()


@pytest.mark.parametrize("core", CORES)
def test_loading_and_predicting_in_inference_mode(core, tmp_path):
    model = make_model(core)
    model.save(tmp_path / "agent.zip")
    obs = np.random.default_rng(0).uniform(-1, 1, (4, 2, 3)).astype(np.float32)

    def play(agent):
        state, actions = None, []
        for seen in obs:
            action, state = agent.predict(seen, state, deterministic=True)
            actions.append(action)
        return actions, state

    expected = play(model)
    with torch.inference_mode():
        agent = type(model).load(tmp_path / "agent.zip", device="cpu")
        inside = play(agent)
    for found in (inside, play(agent)):
        np.testing.assert_array_equal(found[0], expected[0])
        for part, same in zip(found[1], expected[1], strict=True):
            np.testing.assert_allclose(part, same, rtol=0, atol=1e-6)


def gradients(core, run):
    x = make_input(7).requires_grad_()
    core.zero_grad()
    features, slots = run(x)
    (features.square().sum() + slots.sum()).backward()
    return [x.grad, *(parameter.grad for parameter in core.parameters())]


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_checkpointing_the_scan(use_reentrant):
    _, fast = make_cores(5)
    memory, starts = make_memory("half", 5), make_starts("middle", 7)

    def run(x):
        features, after = fast(x, memory, starts)
        return features, after.slots

    expected = gradients(fast, run)
    found = gradients(fast, lambda x: checkpoint(run, x, use_reentrant=use_reentrant))
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-12)


def test_the_transforms_of_torch_func():
    _, fast = make_cores(5)
    memory, starts, x = make_memory("half", 5), make_starts("middle", 7), make_input(7)
    weights = dict(fast.named_parameters())

    def loss(weights):
        features, after = functional_call(fast, weights, (x, memory, starts))
        return features.square().sum() + after.slots.sum()

    found = torch.func.grad(loss)(weights)
    loss(weights).backward()
    for name, weight in weights.items():
        torch.testing.assert_close(found[name], weight.grad, rtol=1e-9, atol=1e-9)

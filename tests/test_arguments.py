"""``MemoryPPO`` and its policies as users of PPO call them: what is said is used, or refused in one line."""

import inspect
import warnings

import numpy as np
import pytest
import torch
from gymnasium import spaces
from sb3_contrib import RecurrentPPO
from stable_baselines3 import A2C, DQN, PPO
from stable_baselines3.common.distributions import CategoricalDistribution
from stable_baselines3.common.policies import ActorCriticPolicy
from torch import nn

import fbrl
from fbrl import MemoryPolicy, MemoryPPO
from fbrl.policy import goes_through_forward
from tests.tasks import DICT, SIZES, VECTOR, RandomTask, collect, make_model, vec

CORE = {"core_kwargs": SIZES}


def test_the_signature_is_that_of_ppo():
    """Names, order and defaults; what is ours comes behind and by name."""
    theirs = list(inspect.signature(PPO).parameters.values())
    ours = list(inspect.signature(MemoryPPO).parameters.values())
    assert [p.name for p in ours[: len(theirs)]] == [p.name for p in theirs]
    differ = {a.name for a, b in zip(ours, theirs, strict=False) if a.default != b.default}
    assert differ == {"n_steps", "batch_size"}
    assert [p.name for p in ours[len(theirs) :]] == ["seq_len", "passes", "normalize_values"]
    assert all(p.kind is p.KEYWORD_ONLY for p in ours[len(theirs) :])


def test_positional_arguments():
    model = MemoryPPO(
        "MlpPolicy", vec(2), 2e-4, 64, 32, 3, 0.9, 0.8, 0.3, None, False, 0.01, device="cpu", policy_kwargs=CORE
    )
    given = (model.learning_rate, model.n_steps, model.batch_size, model.n_epochs, model.gamma, model.gae_lambda)
    assert given == (2e-4, 64, 32, 3, 0.9, 0.8)
    assert (model.clip_range(1), model.normalize_advantage, model.ent_coef) == (0.3, False, 0.01)


def test_the_policies_are_exported():
    assert {fbrl.MemoryPolicy, fbrl.MemoryCnnPolicy, fbrl.MemoryMultiInputPolicy} == set(
        MemoryPPO.policy_aliases.values()
    )


@pytest.mark.parametrize(("value", "given"), [(32.0, "32.0"), ("32", "'32'"), (True, "True"), (None, "None")])
def test_a_seq_len_of_another_type(value, given):
    with pytest.raises(ValueError, match=f"^seq_len must be a whole number, got {given}$"):
        make_model(seq_len=value)


@pytest.mark.parametrize("name", ["seq_len", "n_steps", "batch_size"])
@pytest.mark.parametrize("value", [0, -8])
def test_sizes_of_nothing(name, value):
    with pytest.raises(ValueError, match=f"^{name} must be at least 1, got {value}$"):
        make_model(**{name: value})


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"core_class": "gru"}, "core_class must be a subclass of Core, got 'gru'"),
        ({"core_class": nn.GRU}, "core_class must be a subclass of Core, got GRU"),
        ({"activation_fn": "relu"}, "activation_fn must be a subclass of Module, got 'relu'"),
        ({"activation_fn": torch.relu}, "activation_fn must be a subclass of Module, got <built-in"),
    ],
)
def test_classes_that_are_none(kwargs, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        MemoryPPO("MlpPolicy", vec(2), policy_kwargs=kwargs)


@pytest.mark.parametrize(
    ("kwargs", "expected"),
    [
        ({}, {"fused": True, "eps": 1e-5}),
        ({"optimizer_kwargs": {"weight_decay": 0.1}}, {"fused": True, "eps": 1e-8, "weight_decay": 0.1}),
        ({"optimizer_kwargs": {"foreach": False}}, {"fused": None, "foreach": False}),
        ({"optimizer_kwargs": {"fused": False}}, {"fused": False}),
        ({"optimizer_class": torch.optim.AdamW}, {"fused": True, "eps": 1e-8}),
        ({"optimizer_class": torch.optim.SGD}, {"fused": None}),
    ],
)
def test_the_optimiser_is_fused_where_nothing_else_is_said(kwargs, expected, tmp_path):
    """And stays so in a file; epsilon is as in Stable-Baselines3, which sets it where nothing is given."""
    model = make_model(policy_kwargs=kwargs)
    theirs = PPO("MlpPolicy", vec(2), policy_kwargs=dict(kwargs)).policy.optimizer
    collect(model)
    model.train()
    model.save(tmp_path / "agent")
    for found in (model, MemoryPPO.load(tmp_path / "agent")):
        optimizer = found.policy.optimizer
        group = optimizer.param_groups[0]
        assert type(optimizer) is type(theirs)
        assert group.get("eps") == theirs.param_groups[0].get("eps")
        assert {key: group.get(key) for key in expected} == expected


def test_a_fused_step_is_the_step():
    """Up to rounding; over some steps, of every parameter of a policy."""
    after = []
    for kwargs in ({}, {"eps": 1e-5, "fused": False}):
        torch.manual_seed(0)
        model = make_model(policy_kwargs={"optimizer_kwargs": kwargs or None})
        for _ in range(3):
            for parameter in model.policy.parameters():
                parameter.grad = torch.randn_like(parameter)
            model.policy.optimizer.step()
        after.append(dict(model.policy.named_parameters()))
    for name, parameter in after[0].items():
        torch.testing.assert_close(parameter, after[1][name], rtol=0, atol=1e-6)


def test_the_policy_of_dicts_for_what_is_no_dict():
    with pytest.raises(
        ValueError, match=r"^MultiInputPolicy reads a Dict; MlpPolicy and CnnPolicy read others, got Box$"
    ):
        MemoryPPO("MultiInputPolicy", vec(2))


@pytest.mark.parametrize("value", [2.0, "2", True, -1])
def test_passes_of_another_type(value):
    with pytest.raises(
        ValueError, match=f"^passes must be a whole number of at least 1, or None for the scan, got {value!r}$"
    ):
        make_model(passes=value)


@pytest.mark.parametrize("name", ["n_steps", "batch_size"])
def test_steps_that_are_no_whole_number(name):
    with pytest.raises(ValueError, match=f"^{name} must be a whole number, got 12.5$"):
        make_model(**{name: 12.5})


def test_whole_numbers_of_numpy_are_taken():
    assert make_model(seq_len=np.int64(4), passes=np.int32(2)).seq_len == 4


def test_a_rollout_smaller_than_a_minibatch_is_one_minibatch():
    """Without a word about truncated ones; where they are truncated, PPO's warning stays."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        MemoryPPO("MlpPolicy", vec(1), n_steps=64, device="cpu", policy_kwargs=CORE)
    with pytest.warns(UserWarning, match="truncated mini-batch of size 4"):
        make_model(batch_size=32)


@pytest.mark.parametrize("policy", [ActorCriticPolicy, RandomTask, 3])
def test_a_policy_without_memory(policy):
    with pytest.raises(
        ValueError, match=r"^policy must be a name or a subclass of MemoryPolicy, which remembers, got "
    ):
        MemoryPPO(policy, vec())


@pytest.mark.parametrize("algorithm", [PPO, A2C])
def test_an_algorithm_without_memory(algorithm, tmp_path):
    """Made, or loaded from the file of an agent with memory."""
    message = f"^MemoryPolicy remembers, and {algorithm.__name__} gives it no memory: .* fbrl.MemoryPPO$"
    with pytest.raises(ValueError, match=message):
        algorithm(MemoryPolicy, vec())
    make_model().save(tmp_path / "agent.zip")
    with pytest.raises(ValueError, match=message):
        PPO.load(tmp_path / "agent.zip") if algorithm is PPO else algorithm(MemoryPolicy, vec())


def test_a_policy_can_be_made_by_itself():
    policy = MemoryPolicy(VECTOR, spaces.Discrete(2), lambda _: 1e-3, core_kwargs=SIZES)
    assert policy.predict(VECTOR.sample())[0].shape == ()


@pytest.mark.parametrize("algorithm", [PPO, A2C, DQN, RecurrentPPO])
def test_the_file_of_an_agent_without_our_memory(algorithm, tmp_path):
    path = tmp_path / "agent.zip"
    names = {RecurrentPPO: ("MlpLstmPolicy", "RecurrentActorCriticPolicy"), DQN: ("MlpPolicy", "DQNPolicy")}
    name, policy = names.get(algorithm, ("MlpPolicy", "ActorCriticPolicy"))
    algorithm(name, RandomTask(), device="cpu").save(path)
    with pytest.raises(ValueError, match=f"^{path}: holds no MemoryPPO but a PPO, or another .* policy is {policy}: "):
        MemoryPPO.load(path)


@pytest.mark.parametrize("name", ["seq_len", "passes"])
def test_what_the_buffer_is_given_elsewhere(name):
    with pytest.raises(
        ValueError, match=f"^rollout_buffer_kwargs must not hold {name}: give {name} to MemoryPPO itself$"
    ):
        make_model(rollout_buffer_kwargs={name: 8})
    with pytest.raises(ValueError, match=r"^rollout_buffer_kwargs must not hold gamma: which PPO sets$"):
        make_model(rollout_buffer_kwargs={"gamma": 0.5})


def test_an_agent_whose_buffer_was_given_its_sizes_is_loaded(tmp_path):
    """Files hold what the buffer was made with."""
    make_model().save(tmp_path / "agent.zip")
    assert MemoryPPO.load(tmp_path / "agent.zip", env=vec()).learn(36).num_timesteps == 36


@pytest.mark.parametrize("net_arch", [[], {"pi": [], "vf": []}])
def test_an_activation_without_layers(net_arch):
    with pytest.raises(ValueError, match=r"^activation_fn has no effect where net_arch is empty; got ReLU$"):
        make_model(policy_kwargs={"activation_fn": nn.ReLU, "net_arch": net_arch})


def test_an_activation_with_layers():
    model = make_model(policy_kwargs={"activation_fn": nn.ELU, "net_arch": {"pi": [], "vf": [5]}})
    assert isinstance(model.policy.mlp_extractor.value_net[1], nn.ELU)


class CustomNetwork(nn.Module):
    """As in Stable-Baselines3's documentation, "Custom Policy", advanced example."""

    def __init__(self, feature_dim, last_layer_dim_pi=64, last_layer_dim_vf=64):
        super().__init__()
        self.latent_dim_pi = last_layer_dim_pi
        self.latent_dim_vf = last_layer_dim_vf
        self.policy_net = nn.Sequential(nn.Linear(feature_dim, last_layer_dim_pi), nn.ReLU())
        self.value_net = nn.Sequential(nn.Linear(feature_dim, last_layer_dim_vf), nn.ReLU())

    def forward(self, features):
        return self.forward_actor(features), self.forward_critic(features)

    def forward_actor(self, features):
        return self.policy_net(features)

    def forward_critic(self, features):
        return self.value_net(features)


class CustomActorCriticPolicy(MemoryPolicy):
    """As there, of another class."""

    def __init__(self, observation_space, action_space, lr_schedule, *args, **kwargs):
        kwargs["ortho_init"] = False
        super().__init__(observation_space, action_space, lr_schedule, *args, **kwargs)

    def _build_mlp_extractor(self):
        self.mlp_extractor = CustomNetwork(self.features_dim)


def test_the_advanced_example_of_stable_baselines3(tmp_path):
    """The network stands between the core and the heads, learns, and comes back from a file."""
    model = MemoryPPO(CustomActorCriticPolicy, RandomTask(), n_steps=32, device="cpu", policy_kwargs=CORE)
    assert model.policy.mlp_extractor.policy_net[0].in_features == SIZES["d_model"]
    before = model.policy.mlp_extractor.value_net[0].weight.clone()
    model.learn(64)
    assert not torch.equal(model.policy.mlp_extractor.value_net[0].weight, before)
    model.save(tmp_path / "agent.zip")
    obs = VECTOR.sample()
    loaded = MemoryPPO.load(tmp_path / "agent.zip", device="cpu")
    assert loaded.predict(obs, deterministic=True)[0] == model.predict(obs, deterministic=True)[0]


class Counts(MemoryPolicy):
    """Counts what acts, and always takes action 2."""

    forwards = distributions = 0

    def forward(self, obs, state=None, episode_start=None, deterministic=False):
        self.forwards += 1
        _, values, log_prob, state = super().forward(obs, state, episode_start, deterministic)
        return torch.full((len(values),), 2), values, log_prob, state

    def get_distribution(self, obs, state=None, episode_start=None):
        self.distributions += 1
        _, state = super().get_distribution(obs, state, episode_start)
        logits = torch.tensor([[0.0, 9.0, 0.0]]).expand(len(episode_start), 3)
        return CategoricalDistribution(3).proba_distribution(logits), state


def test_an_overridden_forward_acts_in_rollouts():
    model = make_model("fast", policy=Counts)
    collect(model, 2)
    assert model.policy.forwards == 2 * 12
    assert (model.rollout_buffer.actions == 2).all()


def test_an_overridden_distribution_acts_in_predict():
    """As in PPO. The memory goes on as ever."""
    policy = make_model("fast", policy=Counts).policy
    plain = make_model("fast").policy
    plain.load_state_dict(policy.state_dict())
    state = other = None
    for _ in range(3):
        obs = np.stack([VECTOR.sample()] * 2)
        actions, state = policy.predict(obs, state, deterministic=True)
        _, other = plain.predict(obs, other)
        assert actions.tolist() == [1, 1]
    assert policy.distributions == 3
    np.testing.assert_allclose(state[0], other[0], rtol=0, atol=1e-6)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # torch.compile does it
@pytest.mark.parametrize("how", ["instance", "hook", "compile"])
def test_what_is_done_to_forward_is_used(how):
    """As in PPO, whose rollouts call the policy."""
    plain, model = make_model("fast"), make_model("fast")
    policy, calls = model.policy, []

    def counting(graph, example):
        return lambda *args: calls.append(1) or graph(*args)

    if how == "instance":
        forward = policy.forward
        policy.forward = lambda *args: calls.append(1) or forward(*args)
    elif how == "hook":
        policy.register_forward_hook(lambda *_: calls.append(1))
    else:
        model.policy = torch.compile(policy, backend=counting)
    collect(model)
    assert len(calls) >= 12
    plain.set_random_seed(0)
    collect(plain)
    np.testing.assert_allclose(model.rollout_buffer.values, plain.rollout_buffer.values, rtol=0, atol=1e-5)


def test_compiling_in_place_is_used():
    policy = make_model("fast").policy
    assert not goes_through_forward(policy)
    policy.compile(backend="eager")
    assert goes_through_forward(policy)


@pytest.mark.parametrize("method", ["forward", "get_distribution", "predict_values"])
def test_methods_called_as_those_of_ppo(method):
    policy = make_model().policy
    message = rf"^{method} of a policy that remembers takes \(obs, state, episode_start\); the state before .*$"
    for arguments in [(torch.zeros(2, 3),), (torch.zeros(2, 3), True)]:
        with pytest.raises(TypeError, match=message):
            getattr(policy, method)(*arguments)


def test_evaluating_actions_as_ppo_does():
    policy = make_model().policy
    with pytest.raises(TypeError, match=r"^evaluate_actions of a policy .* fbrl\.sequences\.Sequences, got Tensor$"):
        policy.evaluate_actions(torch.zeros(2, 3), torch.zeros(2))


def test_the_messages_of_stable_baselines3():
    with pytest.raises(ValueError, match="mixing Gym API"):
        make_model().predict((VECTOR.sample(), {}))
    nested = spaces.Dict({"a": DICT})
    with pytest.raises(NotImplementedError, match="Nested observation spaces are not supported"):
        MemoryPPO("MultiInputPolicy", RandomTask(nested))

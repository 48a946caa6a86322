"""Action masks: what is not allowed is not done, in acting, in learning and in evaluation; the first ratio is one."""

import copy

import numpy as np
import pytest
import torch
from gymnasium import spaces
from sb3_contrib import MaskablePPO
from sb3_contrib.common.maskable.callbacks import MaskableEvalCallback
from sb3_contrib.common.maskable.evaluation import evaluate_policy
from sb3_contrib.common.wrappers import ActionMasker
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from benchmarks.learning.masks import Doors
from fbrl.arguments import MaskError
from fbrl.cores.rnn import GRU
from fbrl.evaluation import play
from fbrl.masks import MaskableMemoryPPO, check_masks, choices, masks_of
from fbrl.vec_env import FiniteVecEnv
from tests.tasks import CORES, DICT, SIZES, VECTOR, RandomTask, collect, sharpen

SPACES = {
    "discrete": spaces.Discrete(5),
    "multi_discrete": spaces.MultiDiscrete([3, 2]),
    "multi_binary": spaces.MultiBinary(3),
}


class MaskedTask(RandomTask):
    """Allows other actions at every step, and refuses all others."""

    def action_masks(self):
        dims = choices(self.action_space)
        rng = np.random.default_rng(self.seen)
        masks = [rng.random(n) < 0.5 for n in dims]
        for mask in masks:
            mask[rng.integers(len(mask))] = True
        return np.concatenate(masks)

    def reset(self, **kwargs):
        self.seen = 0
        return super().reset(**kwargs)

    def step(self, action):
        chosen = np.atleast_1d(np.asarray(action, int))
        dims = choices(self.action_space)
        allowed = np.split(self.action_masks(), np.cumsum(dims)[:-1])
        assert all(part[one] for part, one in zip(allowed, chosen, strict=True)), f"{action} is not allowed"
        self.seen += 1
        return super().step(action)


def vec(n_envs=3, task=MaskedTask, **kwargs):
    return DummyVecEnv([lambda: Monitor(task(**kwargs)) for _ in range(n_envs)])


def make_model(core="fast", env=None, policy="MlpPolicy", **kwargs):
    core_class, core_kwargs = CORES[core]
    sizes = {"n_steps": 12, "seq_len": 4, "batch_size": 12, "n_epochs": 2, "seed": 0, "device": "cpu"}
    policy_kwargs = {"core_class": core_class, "core_kwargs": core_kwargs} | kwargs.pop("policy_kwargs", {})
    return MaskableMemoryPPO(policy, env or vec(), policy_kwargs=policy_kwargs, **sizes | kwargs)


@pytest.mark.parametrize("name", SPACES)
@pytest.mark.parametrize("core", ["fast", "lstm"])
def test_first_ratio_is_one(name, core):
    """A rollout is replayed under the masks that it was acted under; no action of it was not allowed."""
    model = sharpen(make_model(core, vec(action_space=SPACES[name])), factor=30)
    for _ in range(3):
        collect(model)
    buffer = model.rollout_buffer
    assert 0.3 < buffer.action_masks.mean() < 0.9
    for batch in buffer.get(12):
        actions = batch.actions.long().flatten() if name == "discrete" else batch.actions
        values, log_prob, entropy = model.policy.evaluate_actions(batch.observations, actions)
        torch.testing.assert_close(log_prob, batch.old_log_prob, rtol=0, atol=1e-5)
        without = model.policy.evaluate_actions(batch.observations.sequences, actions)
        torch.testing.assert_close(model.policy.value_scale.to_raw(values), model.policy.value_scale.to_raw(without[0]))
        assert (log_prob - without[1]).max() > 0.1, "the masks have an effect"
        assert entropy.isfinite().all()


@pytest.mark.parametrize("name", SPACES)
def test_only_what_is_allowed_is_done_in_learning_and_evaluation(name):
    """``MaskedTask`` refuses everything else."""
    model = make_model(env=vec(action_space=SPACES[name])).learn(108)
    for deterministic in (True, False):
        episodes = play(model, vec(2, action_space=SPACES[name]), 6, deterministic=deterministic)
        assert len(episodes.lengths) == 6
    evaluate_policy(model, vec(2, action_space=SPACES[name]), n_eval_episodes=4, warn=False)
    with pytest.raises(AssertionError, match="is not allowed"):
        play(model.policy, vec(2, action_space=SPACES[name]), 60)


def test_what_sb3_contrib_has_around_it():
    """Its callback evaluates the model; ``ActionMasker`` gives masks to an environment that has none."""
    model = make_model()
    callback = MaskableEvalCallback(vec(2), n_eval_episodes=2, eval_freq=12, verbose=0, warn=False)
    model.learn(36, callback=callback)
    assert np.isfinite(callback.last_mean_reward)

    class NoThird(RandomTask):
        def step(self, action):
            assert action != 2
            return super().step(action)

    env = DummyVecEnv([lambda: ActionMasker(NoThird(), lambda env: np.array([True, True, False])) for _ in range(2)])
    make_model("gru", env).learn(48)


def test_dict_observations_and_parallel_passes():
    env = vec(observation_space=DICT)
    model = make_model(env=env, policy="MultiInputPolicy", passes=2).learn(72)
    collect(model)
    for batch in model.rollout_buffer.get(12):
        _, log_prob, _ = model.policy.evaluate_actions(batch.observations, batch.actions.long().flatten())
        torch.testing.assert_close(log_prob, batch.old_log_prob, rtol=0, atol=1e-4)


def test_probabilities_are_those_of_sb3_contrib():
    """The same logits under the same masks."""
    env = vec(action_space=SPACES["multi_discrete"])
    ours, theirs = make_model("memoryless", env), MaskablePPO("MlpPolicy", env, n_steps=12, batch_size=12, device="cpu")
    latent = torch.randn(5, ours.policy.action_net.in_features)
    masks = np.stack([MaskedTask(VECTOR, SPACES["multi_discrete"]).action_masks.__get__(task)() for task in _tasks(5)])
    with ours.policy.masked(masks), torch.no_grad():
        found = ours.policy._get_action_dist_from_latent(latent)
    expected = copy.deepcopy(theirs.policy.action_dist).proba_distribution(ours.policy.action_net(latent))
    expected.apply_masking(masks)
    for one, other in zip(found.distributions, expected.distributions, strict=True):
        torch.testing.assert_close(one.probs, other.probs)
        assert (one.probs[~one.masks] < 1e-6).all()


def _tasks(n):
    for seen in range(n):
        task = MaskedTask(VECTOR, SPACES["multi_discrete"])
        task.seen = seen
        yield task


def test_predict_takes_one_mask_or_a_batch():
    model = sharpen(make_model())
    one = np.zeros(3, np.float32)
    for allowed in range(3):
        action, state = model.predict(one, action_masks=np.arange(3) == allowed)
        assert action == allowed
        actions, _ = model.predict(np.stack([one] * 2), action_masks=np.stack([np.arange(3) == allowed] * 2))
        assert actions.tolist() == [allowed] * 2
    assert state[0].shape[0] == 1
    assert model.policy._masks is None, "masks do not outlive the call"


@pytest.mark.parametrize(
    ("masks", "message"),
    [
        (np.ones(4), r"action_masks must have 5 entries for MultiDiscrete\(\[3 2\]\), got the shape \(4,\)"),
        (np.array([[1, 0, 0, 1, 1], [1, 1, 1, 0, 0]]), "action_masks of row 1 allow nothing in part 1 of the action"),
    ],
)
def test_masks_that_cannot_be_used(masks, message):
    with pytest.raises(ValueError, match=message):
        check_masks(masks, SPACES["multi_discrete"])


class DeadEnd(RandomTask):
    """Allows nothing from its second step on, in every second environment that is made; episodes of nine steps."""

    made = 0

    def __init__(self):
        super().__init__()
        self.is_open, DeadEnd.made = DeadEnd.made % 2 == 0, DeadEnd.made + 1

    def action_masks(self):
        return np.full(self.action_space.n, self.is_open or self.taken < 2)

    def reset(self, **kwargs):
        self.taken = 0
        return super().reset(**kwargs)

    def step(self, action):
        self.taken += 1
        obs, reward, _, _, info = super().step(action)
        return obs, reward, self.taken == 9, False, info


def test_a_mask_that_allows_nothing_is_named():
    """In learning by environment and step, in playing by environment; under wrappers of vectorized environments too."""
    for around in (lambda env: env, VecNormalize):
        DeadEnd.made = 0
        model = make_model(env=around(vec(2, DeadEnd)))
        with pytest.raises(MaskError, match=r"^action_masks of environment 1 at step 2 allow nothing$"):
            model.learn(24)
        with pytest.raises(MaskError, match=r"^action_masks of environment 1 allow nothing$"):
            play(model, around(vec(2, DeadEnd)), 2)
        named = FiniteVecEnv([lambda: Monitor(DeadEnd()) for _ in range(2)])
        with pytest.raises(MaskError, match=r"^action_masks of environment 1 \(DeadEnd\), step 2 of its episode allow"):
            play(model, around(named), 2)
    env = DeadEnd()
    env.is_open, env.taken = False, 2
    with pytest.raises(MaskError, match=r"^action_masks of the environment allow nothing$"):
        masks_of(env, env.action_space)


@pytest.mark.parametrize(
    ("mask", "shape"),
    [("all", r"\(\)"), (True, r"\(\)"), (np.ones(3, bool), r"\(3,\)"), ([[True] * 3, [True] * 2], r"\(2,\)")],
)
def test_a_mask_of_another_shape_is_named(mask, shape):
    """Five environments of five choices: a number from each is no mask, though there are as many as one has entries."""

    class Odd(RandomTask):
        made = 0

        def __init__(self):
            super().__init__(action_space=SPACES["multi_discrete"])
            self.number, Odd.made = Odd.made, Odd.made + 1

        def action_masks(self):
            return mask if self.number == 3 or isinstance(mask, str | bool) else np.ones(5, bool)

    says = rf"must have 5 entries for MultiDiscrete\(\[3 2\]\), got the shape {shape}$"
    first = 0 if isinstance(mask, str | bool) else 3
    with pytest.raises(MaskError, match=rf"^action_masks of environment {first} at step 0 {says}"):
        make_model(env=vec(5, Odd)).learn(60)
    Odd.made = 0
    named = FiniteVecEnv([lambda: Monitor(Odd()) for _ in range(5)])
    named.reset()
    with pytest.raises(MaskError, match=rf"^action_masks of environment {first} \(Odd\), step 0 of its episode {says}"):
        masks_of(named, named.action_space)
    Odd.made = 3
    with pytest.raises(MaskError, match=f"^action_masks of the environment {says}"):
        masks_of(Odd(), SPACES["multi_discrete"])


def test_what_cannot_be_masked():
    with pytest.raises(ValueError, match=r"an environment has no action_masks\(\)"):
        masks_of(DummyVecEnv([RandomTask]), spaces.Discrete(3))
    with pytest.raises(ValueError, match="can be masked, got Box"):
        MaskableMemoryPPO("MlpPolicy", vec(action_space=spaces.Box(-1, 1, (2,))), device="cpu")


def test_saved_and_loaded(tmp_path):
    model = sharpen(make_model(env=vec(action_space=SPACES["multi_binary"])))
    model.learn(36).save(tmp_path / "model")
    loaded = MaskableMemoryPPO.load(tmp_path / "model", env=vec(action_space=SPACES["multi_binary"]), device="cpu")
    obs, masks = np.zeros((2, 3), np.float32), np.array([[1, 0, 0, 1, 1, 1]] * 2)
    for agent in (model, loaded):
        np.testing.assert_array_equal(agent.predict(obs, action_masks=masks)[0][:, :2], [[0, 1]] * 2)
    loaded.learn(36)


@pytest.mark.slow
def test_a_task_that_takes_masks_and_memory():
    """Exactly: without masks at most 1 of 8 episodes, without memory half; with both it is learned."""
    kwargs = {"n_steps": 32, "seq_len": 8, "batch_size": 128, "n_epochs": 4, "learning_rate": 3e-3, "ent_coef": 0.01}
    policy_kwargs = {"core_class": GRU, "core_kwargs": {"d_model": SIZES["d_model"] * 4, "n_layers": 1}}
    model = MaskableMemoryPPO(
        "MlpPolicy", vec(16, Doors), device="cpu", seed=0, policy_kwargs=policy_kwargs, **kwargs
    ).learn(8192)
    with_masks = play(model, vec(16, Doors), 200, deterministic=True).success.mean()
    without_masks = play(model.policy, vec(16, Doors), 200).success.mean()
    forgetful = play(model, vec(16, Doors), 200, deterministic=True, zero_memory=True).success.mean()
    assert with_masks > 0.95
    assert without_masks < 0.2
    assert forgetful < 0.7

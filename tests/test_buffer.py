import numpy as np
import pytest
import torch
from gymnasium import spaces

from fbrl.buffer import SequenceDictRolloutBuffer, SequenceRolloutBuffer

N_STEPS, N_ENVS, T = 12, 3, 4
STARTS = {(0, 0), (0, 1), (0, 2), (5, 1), (8, 0), (11, 2)}  # (step, environment)


def mark(step, env):
    """A number that tells step and environment."""
    return 100 * env + step


def filled(n_envs=N_ENVS, is_dict=False, passes=None):
    """A full buffer; see ``fill``."""
    number = spaces.Box(-np.inf, np.inf, (1,))
    space = spaces.Dict({"a": number, "b": number}) if is_dict else number
    buffer_class = SequenceDictRolloutBuffer if is_dict else SequenceRolloutBuffer
    sizes = {"n_envs": n_envs, "seq_len": T, "passes": passes}
    buffer = buffer_class(N_STEPS, space, spaces.Discrete(10**6), "cpu", gamma=0.5, **sizes)
    return fill(buffer, is_dict)


def state(marks):
    return torch.as_tensor(marks)[:, None, None].expand(-1, 5, 2), torch.as_tensor(marks).long()


def fill(buffer, is_dict=False, offset=0):
    """Fills a buffer with entries that are each the mark of their step and environment, or made from it."""
    envs = np.arange(buffer.n_envs)
    for step in range(N_STEPS):
        marks = mark(step, envs).astype(np.float32) + offset
        obs = marks[:, None]
        buffer.add(
            {"a": obs, "b": -obs} if is_dict else obs,
            marks.astype(np.int64),
            marks + 0.5,
            np.array([(step, env) in STARTS for env in envs]),
            torch.as_tensor(marks + 0.25),
            torch.as_tensor(-marks),
            state=state(marks),
            next_state=state(marks + 1),
        )
    buffer.compute_returns_and_advantage(torch.zeros(buffer.n_envs), np.zeros(buffer.n_envs, bool))
    return buffer


@pytest.mark.parametrize("n_envs", [1, N_ENVS])
@pytest.mark.parametrize("is_dict", [False, True])
def test_sequences_are_consecutive_steps_of_one_environment(n_envs, is_dict):
    buffer = filled(n_envs, is_dict)
    seen = []
    for batch in buffer.get(2 * T):
        observations, starts, state, iterate = batch.observations
        assert iterate is None
        if is_dict:
            torch.testing.assert_close(observations["b"], -observations["a"], rtol=0, atol=0)
            observations = observations["a"]
        assert observations.shape[1:] == (T, 1)
        assert starts.dtype == torch.bool
        for row in range(len(observations)):
            first = int(observations[row, 0, 0])
            env, step = divmod(first, 100)
            assert step % T == 0
            assert observations[row, :, 0].tolist() == [mark(step + t, env) for t in range(T)]
            assert starts[row].tolist() == [(step + t, env) in STARTS for t in range(T)]
            # the state before the first step, of that environment
            assert state[0][row].unique().tolist() == [first]
            assert state[1][row].item() == first
            seen.append((env, step))
    assert sorted(seen) == [(env, step) for env in range(n_envs) for step in range(0, N_STEPS, T)]


@pytest.mark.parametrize("is_dict", [False, True])
def test_everything_else_follows_the_flattened_sequences(is_dict):
    buffer = filled(is_dict=is_dict)
    returns, advantages = buffer.returns.copy(), buffer.advantages.copy()  # (n_steps, n_envs)
    for batch in buffer.get(2 * T):
        observations = batch.observations.observations
        marks = (observations["a"] if is_dict else observations).flatten()
        env, step = divmod(marks.long().numpy(), 100)
        torch.testing.assert_close(batch.actions, marks.unsqueeze(1), rtol=0, atol=0)
        torch.testing.assert_close(batch.old_values, marks + 0.25, rtol=0, atol=0)
        torch.testing.assert_close(batch.old_log_prob, -marks, rtol=0, atol=0)
        torch.testing.assert_close(batch.returns, torch.as_tensor(returns[step, env]), rtol=0, atol=0)
        torch.testing.assert_close(batch.advantages, torch.as_tensor(advantages[step, env]), rtol=0, atol=0)


@pytest.mark.parametrize("batch_size", [T, 2 * T, 4 * T, N_STEPS * N_ENVS, 100 * T, None])
def test_an_epoch_uses_everything_once(batch_size):
    buffer = filled()
    total = N_STEPS * N_ENVS
    expected = sorted(mark(step, env) for step in range(N_STEPS) for env in range(N_ENVS))
    for _ in range(2):
        batches = list(buffer.get(batch_size))
        assert sorted(int(x) for batch in batches for x in batch.observations.observations.flatten()) == expected
        sizes = [len(batch.returns) for batch in batches]
        wanted = min(batch_size or total, total)
        assert sizes == [wanted] * (total // wanted) + ([total % wanted] if total % wanted else [])
        for batch, size in zip(batches, sizes, strict=True):
            assert batch.observations.observations.shape == (size // T, T, 1)
            assert batch.observations.episode_starts.shape == (size // T, T)
            assert batch.actions.shape == (size, 1)


def test_the_order_is_drawn_anew_in_every_epoch():
    buffer = filled()
    np.random.seed(0)
    epochs = [[int(batch.observations.observations[0, 0, 0]) for batch in buffer.get(T)] for _ in range(3)]
    assert len({tuple(epoch) for epoch in epochs}) == 3


def test_only_the_states_before_sequences_are_kept():
    buffer = filled()
    assert len(buffer.states) == N_STEPS // T
    buffer.reset()
    assert buffer.states == []


def test_a_second_rollout_replaces_the_first():
    buffer = filled()
    list(buffer.get(T))
    buffer.reset()
    fill(buffer, offset=10_000)
    (batch,) = buffer.get()
    assert batch.observations.observations.min() == 10_000
    assert batch.observations.state[1].min() == 10_000
    assert batch.returns.shape == (N_STEPS * N_ENVS,)


def test_a_buffer_that_is_not_full_hands_out_nothing():
    buffer = filled()
    buffer.reset()
    with pytest.raises(AssertionError, match="the rollout buffer is not full"):
        next(buffer.get(T))


def test_passes_start_from_what_each_step_wrote():
    buffer = filled(passes=2)
    for batch in buffer.get(2 * T):
        observations, _, _, iterate = batch.observations
        assert iterate.passes == 2
        assert iterate.memories.shape == (*observations.shape[:2], 2)
        torch.testing.assert_close(iterate.memories, observations.expand(-1, -1, 2) + 1, rtol=0, atol=0)


def test_passes_go_on_from_what_the_last_ones_left_behind():
    buffer = filled(passes=1)
    for epoch in range(3):
        for batch in buffer.get(2 * T):
            observations, _, _, iterate = batch.observations
            torch.testing.assert_close(iterate.memories, observations.expand(-1, -1, 2) + 1 + epoch, rtol=0, atol=0)
            iterate.memories = iterate.memories + 1  # what the policy does
    norm = np.sqrt(sum((mark(step, env) + 1) ** 2 for step in range(N_STEPS) for env in range(N_ENVS)))
    each = np.sqrt(N_STEPS * N_ENVS) / norm
    np.testing.assert_allclose(buffer.drift, [each, 2 * each, 3 * each], rtol=1e-6)


def test_a_second_rollout_has_memories_of_its_own():
    buffer = filled(passes=1)
    for batch in buffer.get():
        batch.observations.iterate.memories += 7
    buffer.reset()
    assert buffer.drift == []
    fill(buffer, offset=10_000)
    (batch,) = buffer.get()
    assert batch.observations.iterate.memories.min() == 10_001
    assert buffer.drift == [0]

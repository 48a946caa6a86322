"""What is told of the cue is so, and the agent does not see it."""

import numpy as np
import pytest
from minigrid.core.constants import OBJECT_TO_IDX

import envs
from envs.cue import CueInInfo, with_cue

LEFT, FORWARD = 0, 2


def test_the_cue_of_the_memory_tasks():
    """From the room, looking back, the cue is in view; the walk along the hallway ends at the junction."""
    seen = {"key": 0, "ball": 0}
    for seed in range(4):
        env = with_cue(envs.make("MiniGrid-MemoryS9-v0", seed=seed))
        observation, info = env.reset()
        for action in [LEFT] * 4 + [FORWARD] * 9:
            there = (observation["image"][..., 0] == OBJECT_TO_IDX[info["cue"]]).any()
            assert there or not info["cue_in_view"]
            seen[info["cue"]] += info["cue_in_view"]
            observation, _, terminated, _, info = env.step(action)
            assert not terminated
        assert info["decision"]
        assert tuple(env.unwrapped.agent_pos) == (7, 4)
    assert min(seen.values()) > 0


def test_the_t_maze():
    env = with_cue(envs.make("fbrl/TMaze-v0", seed=0, corridor=2))
    observation, info = env.reset()
    told = [info] + [env.step(0)[-1] for _ in range(2)]
    assert {one["cue"] for one in told} == {("up", "down")[observation]}
    assert [(one["cue_in_view"], one["decision"]) for one in told] == [(True, False), (False, False), (False, True)]
    assert "is_success" in told[-1]


def test_the_automaton_tells_where_the_ball_is():
    env = with_cue(envs.make("fbrl/HiddenAutomaton-v0", seed=0, length=9, questions=8))
    observation, info = env.reset()
    assert info == {"cue": str(observation[:5].argmax()), "cue_in_view": True, "decision": False}
    total = 0.0
    for _ in range(9):
        _, reward, *_, info = env.step(int(info["cue"]))  # whoever knows the cue is always right
        total += reward
    assert total == pytest.approx(1)


def test_other_tasks_are_as_they_were():
    env = envs.make("fbrl/Counting-v0")
    assert with_cue(env) is env
    watched = with_cue(envs.make("MiniGrid-MemoryS7-v0", seed=3))
    assert isinstance(watched, CueInInfo)
    plain = envs.make("MiniGrid-MemoryS7-v0", seed=3)
    np.testing.assert_array_equal(watched.reset()[0]["image"], plain.reset()[0]["image"])

"""Missions as tokens."""

import numpy as np
import pytest
from minigrid.core.mission import MissionSpace
from minigrid.envs.babyai.core.roomgrid_level import BabyAIMissionSpace

from fbrl.mission import BABYAI_LENGTH, WORDS, longest_mission, tokenize


def test_tokens_by_hand():
    tokens = tokenize("Go to a ball, then go", 8)
    expected = [WORDS.index(word) + 1 for word in ("go", "to", "a", "ball", "then", "go")]
    assert tokens.tolist() == [*expected, 0, 0]
    assert tokens.dtype == np.uint8


def test_words_are_distinct_and_fit_a_byte():
    assert len(set(WORDS)) == len(WORDS) < 256


def test_the_longest_mission_of_babyai():
    put = "put a red ball in front of you next to a blue ball in front of you"
    mission = f"{put} and {put} after you {put} and {put}"
    assert (tokenize(mission, BABYAI_LENGTH) > 0).all()
    with pytest.raises(ValueError, match="73 words, more than 72"):
        tokenize(f"{mission} then", BABYAI_LENGTH)


def test_an_unknown_word_is_named():
    with pytest.raises(ValueError, match=r"'jump'.*WORDS"):
        tokenize("jump to the ball", 4)


def test_longest_mission():
    assert longest_mission(MissionSpace(lambda: "go to the goal")) == 0
    assert longest_mission(MissionSpace(lambda color: f"get the {color} key", [["blue"]])) == 0
    verbs, colors = ["get a", "you must fetch a", "fetch a"], ["blue", "red"]
    assert longest_mission(MissionSpace(lambda verb, color: f"{verb} {color} key", [verbs, colors])) == 6
    assert longest_mission(BabyAIMissionSpace()) == BABYAI_LENGTH

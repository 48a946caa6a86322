"""Missions as token ids: the fixed vocabulary of MiniGrid's and BabyAI's mission texts."""

from __future__ import annotations

import numpy as np
from minigrid.core.mission import MissionSpace
from minigrid.envs.babyai.core.roomgrid_level import BabyAIMissionSpace
from numpy.typing import NDArray

WORDS = (
    *("a", "after", "and", "at", "avoid", "ball", "behind", "blue", "box", "door", "end", "fetch", "find", "from"),
    *("front", "get", "go", "goal", "green", "grey", "hallway", "in", "key", "lava", "left", "matching", "maze"),
    *("must", "near", "next", "object", "of", "on", "open", "opening", "pick", "purple", "put", "reach", "red"),
    *("right", "room", "rooms", "square", "the", "then", "to", "traverse", "unlock", "up", "use", "yellow"),
    *("you", "your"),
)
"""Token i is ``WORDS[i - 1]``; 0 is padding. A saved agent depends on the order: new words go at the end."""

UNKNOWN = 255
"""The token of a word that is not in ``WORDS``, in tasks that are not MiniGrid's own."""

BABYAI_LENGTH = 72
"""Words in BabyAI's longest mission: four of "put a red ball in front of you next to a red ball in front of you"
(17 words), two and two joined by "and", the pairs by "after you" (two words)."""

_TOKENS = {word: token for token, word in enumerate(WORDS, start=1)}


def longest_mission(space: MissionSpace) -> int:
    """The number of words in the longest mission of the space, 0 if the space holds one mission only.

    A mission that never changes tells the agent nothing. BabyAI does not declare its missions: any of its levels
    counts as varying, with ``BABYAI_LENGTH`` words.
    """
    if isinstance(space, BabyAIMissionSpace):
        return BABYAI_LENGTH
    placeholders: list[list[str]] = space.ordered_placeholders or []
    if all(len(choices) == 1 for choices in placeholders):
        return 0
    longest = (max(choices, key=lambda choice: len(choice.split())) for choices in placeholders)
    return len(split(space.mission_func(*longest)))


def tokenize(mission: str, length: int, unknown: int | None = None) -> NDArray[np.uint8]:
    """The mission's tokens (length,) uint8, filled up with 0. Case and commas do not count.

    ``unknown`` is the token of words outside ``WORDS``. Raises ``ValueError`` on such a word where there is none for
    it, and on a mission of more than ``length`` words.
    """
    words = split(mission)
    if len(words) > length:
        raise ValueError(f"the mission {mission!r} has {len(words)} words, more than {length}")
    tokens = np.zeros(length, dtype=np.uint8)
    for i, word in enumerate(words):
        token = _TOKENS.get(word, unknown)
        if token is None:
            raise ValueError(f"the word {word!r} of the mission {mission!r} is not in fbrl.mission.WORDS")
        tokens[i] = token
    return tokens


def split(mission: str) -> list[str]:
    """The words of a mission."""
    return mission.lower().replace(",", " ").split()

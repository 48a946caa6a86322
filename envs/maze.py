"""Maze navigation: find the goal of an unknown maze, again and again from new places, and be quicker by remembering."""

from __future__ import annotations

from collections import deque
from typing import Any

import gymnasium as gym
import numpy as np
from minigrid.core.constants import COLOR_NAMES, DIR_TO_VEC
from minigrid.core.grid import Grid
from minigrid.core.mission import MissionSpace
from minigrid.core.world_object import Floor, Goal, Wall
from minigrid.minigrid_env import MiniGridEnv

from envs.batch import check_whole

Cell = tuple[int, int]
Pose = tuple[Cell, int]
"""A cell (column, row) and where the agent faces, 0..3: right, down, left, up."""

LOOKING = 5
"""Steps that an agent may lose in each visit before it sets out: 3 turns to look round, 2 to face an opening."""


class MazeNavigation(MiniGridEnv):
    """A re-creation of the task that the Feedback Transformer's paper calls maze navigation, at a scale of our own.

    The maze is drawn anew for every episode and stays as it is for the length of it; so does its goal. Whenever the
    agent reaches the goal, it is put into another place, and ``visits`` arrivals are a success. Only the idea is that
    of the paper (Fan et al. 2020, arXiv 2002.09402): sizes, observations, rewards and limits are not, and results are
    not comparable.

    The maze is perfect: one way leads from any place to any other. It is drawn depth-first on ``size`` x ``size``
    cells, ``size`` odd, walls around it included: ((size - 1) / 2)^2 rooms, and a cell between any two that are
    joined. Every floor has one of six colours, drawn so that no two cells look alike together with their four
    neighbours: a place can be recognised, though only by an agent that remembers it from before. The view has 3x3
    cells; unlike in MiniGrid's tasks it shows the colour of the cell that the agent stands on. Actions
    ``Discrete(3)``: turn left, turn right, forward. An arrival earns 1 / ``visits``, and the last one ends the episode.

    The goal lies in a dead end. It, and the places and directions in which the agent is put, are drawn evenly at
    reset. The limit, unless ``max_steps`` gives one, depends on them: the steps of the way once round the maze along
    its walls, and for each visit the shortest way from its place to the goal, turns included, and 5 steps more.

    With memory the best success is exactly 1, and the return 1. An agent always is in time that looks round in each
    place where it is put (3 turns), follows the wall to its right (after 2 turns at most) until it recognises a cell
    where it has been, and goes the shortest way from there. The cells where it has been are connected with the goal, so
    that the first which it recognises lies on the shortest way. And it never leaves a cell along the wall in the same
    direction twice, not even in different visits, because it recognises the cell: all in all it follows the wall no
    further than once round the maze.

    The best without memory is not known exactly. Of 100 mazes of the default size, a memoryless policy that goes
    straight on wherever it can, and else to either side, solves 17 (mean return .57); one that turns off one time in
    ten 4 (.43). To follow the wall one must know whether one has just turned, which ``previous_action`` tells; that
    solves 3 (.68).

    Raises ``ValueError`` if ``size`` is not odd and in 5..13, or ``visits`` or ``max_steps`` not a whole number from 1.
    """

    def __init__(self, size: int = 9, visits: int = 12, max_steps: int | None = None, **kwargs: Any) -> None:
        check_whole("size", size, 5, 13)
        if size % 2 == 0:
            raise ValueError(f"size must be odd, got {size}")
        check_whole("visits", visits, 1)
        if max_steps is not None:
            check_whole("max_steps", max_steps, 1)
        self.visits = visits
        self.arrivals = 0
        self.goal: Cell = (1, 1)
        self.places: list[Pose] = []
        self._fixed_limit = max_steps
        super().__init__(
            mission_space=MissionSpace(mission_func=self._mission),
            grid_size=size,
            max_steps=max_steps or 1,  # else set with each maze
            **{"agent_view_size": 3, **kwargs},
        )
        self.action_space = gym.spaces.Discrete(3)

    @staticmethod
    def _mission() -> str:
        return "get to the goal again and again"

    def _gen_grid(self, width: int, height: int) -> None:
        """A maze, its goal, where the agent is put for each visit, and the limit."""
        self.mission = self._mission()
        free = self._carve(width)
        self.goal = self._rand_elem([cell for cell in free if len(self._neighbours(cell)) == 1])
        free.remove(self.goal)
        self._paint(free)
        self.put_obj(Goal(), *self.goal)
        self.places = [(self._rand_elem(free), int(self._rand_int(0, 4))) for _ in range(self.visits)]
        self.arrivals = 0
        self._place()
        ways = self.steps_to_goal()
        self.max_steps = self._fixed_limit or self.tour() + sum(ways[p] + LOOKING for p in self.places)

    def _carve(self, size: int) -> list[Cell]:
        """Walls everywhere, and a random tree of rooms at odd coordinates, depth first: the free cells, sorted."""
        self.grid = Grid(size, size)
        free: set[Cell] = {(1 + 2 * self._rand_int(0, size // 2), 1 + 2 * self._rand_int(0, size // 2))}
        path = list(free)
        while path:
            x, y = path[-1]
            beside = [(x + 2 * dx, y + 2 * dy) for dx, dy in DIR_TO_VEC]
            new = [cell for cell in beside if min(cell) > 0 and max(cell) < size and cell not in free]
            if not new:
                path.pop()
                continue
            room = self._rand_elem(new)
            free |= {room, ((x + room[0]) // 2, (y + room[1]) // 2)}
            path.append(room)
        for x, y in np.ndindex(size, size):
            if (x, y) not in free:
                self.grid.set(x, y, Wall())
        return sorted((int(x), int(y)) for x, y in free)

    def _paint(self, cells: list[Cell]) -> None:
        """Colours the floors until no two cells look alike together with their four neighbours."""
        looks: set[tuple[str | None, ...]] = set()
        while len(looks) < len(cells):
            colours: dict[Cell, str] = {cell: self._rand_elem(COLOR_NAMES) for cell in cells}
            colours[self.goal] = "goal"
            around = [[(x, y), *((x + dx, y + dy) for dx, dy in DIR_TO_VEC)] for x, y in cells]
            looks = {tuple(colours.get(cell) for cell in place) for place in around}
        for cell in cells:
            self.put_obj(Floor(colours[cell]), *cell)

    def _neighbours(self, cell: Cell) -> list[int]:
        """The directions in which no wall is beside the cell."""
        x, y = cell
        ways = enumerate(DIR_TO_VEC)
        return [direction for direction, (dx, dy) in ways if not isinstance(self.grid.get(x + dx, y + dy), Wall)]

    def tour(self) -> int:
        """Steps of the way round along the wall, turns included."""
        (x, y), direction = self.goal, self._neighbours(self.goal)[0]
        steps = 0
        while True:
            dx, dy = (int(d) for d in DIR_TO_VEC[direction])
            x, y = x + dx, y + dy
            steps += 1
            if (x, y) == self.goal:
                return steps
            turn = next(turn for turn in (1, 0, 3, 2) if (direction + turn) % 4 in self._neighbours((x, y)))
            direction = (direction + turn) % 4
            steps += (0, 1, 2, 1)[turn]

    def _place(self) -> None:
        self.agent_pos, self.agent_dir = self.places[self.arrivals]

    def steps_to_goal(self) -> dict[Pose, int]:
        """The fewest steps to the goal from every pose, turns included."""
        steps: dict[Pose, int] = {(self.goal, direction): 0 for direction in range(4)}
        waiting = deque(steps)
        while waiting:
            pose = (x, y), direction = waiting.popleft()
            dx, dy = (int(d) for d in DIR_TO_VEC[direction])
            before: list[Pose] = [((x - dx, y - dy), direction)]
            if (x, y) != self.goal:
                before += [((x, y), (direction + 1) % 4), ((x, y), (direction - 1) % 4)]
            for earlier in before:
                if earlier not in steps and isinstance(self.grid.get(*earlier[0]), Floor):
                    steps[earlier] = steps[pose] + 1
                    waiting.append(earlier)
        return steps

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """One step; at the goal the agent is put into its next place, which the observation shows already."""
        observation, _, arrived, truncated, info = super().step(action)
        if not arrived:
            return observation, 0.0, False, truncated, info
        self.arrivals += 1
        done = self.arrivals == self.visits
        if not done:
            self._place()
            observation = self.gen_obs()  # type: ignore[no-untyped-call]
        return observation, 1 / self.visits, done, truncated, info

    def gen_obs_grid(self, agent_view_size: int | None = None) -> Any:
        """MiniGrid's view, and in it the floor that the agent stands on."""
        grid, visible = super().gen_obs_grid(agent_view_size)  # type: ignore[no-untyped-call]
        grid.set(grid.width // 2, grid.height - 1, self.grid.get(*self.agent_pos))
        return grid, visible

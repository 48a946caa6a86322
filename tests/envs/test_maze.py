"""Maze navigation: an agent that remembers the maze always succeeds; what reaches the goal without does so too late."""

from collections import deque

import numpy as np
import pytest
from minigrid.core.constants import OBJECT_TO_IDX

from envs import make

LEFT, RIGHT, FORWARD = 0, 1, 2
AHEAD, TO_RIGHT, BEHIND, TO_LEFT = range(4)
VECTORS = ((1, 0), (0, 1), (-1, 0), (0, -1))
WALL, GOAL = OBJECT_TO_IDX["wall"], OBJECT_TO_IDX["goal"]


def around(observation):
    """The object and colour of the agent's own cell, and of those ahead and beside it, by direction."""
    image = observation["image"][..., :2]
    own, ahead, right, left = (tuple(image[place].tolist()) for place in ((1, 2), (1, 1), (2, 2), (0, 2)))
    return own, {AHEAD: ahead, TO_RIGHT: right, TO_LEFT: left}


def turn_to(side):
    return {AHEAD: FORWARD, TO_RIGHT: RIGHT, BEHIND: LEFT, TO_LEFT: LEFT}[side]


def goal_beside(beside):
    return next((side for side, thing in beside.items() if thing[0] == GOAL), None)


class WallFollower:
    """Keeps the wall to its right. Of the past it knows whether it has just turned, and nothing else."""

    def __init__(self):
        self.turned = False

    def act(self, observation):
        _, beside = around(observation)
        side = goal_beside(beside)
        if side is None:
            order = (AHEAD, TO_RIGHT, TO_LEFT) if self.turned else (TO_RIGHT, AHEAD, TO_LEFT)
            side = next((side for side in order if beside[side][0] != WALL), BEHIND)
        action = turn_to(side)
        self.turned = action != FORWARD
        return action


class Wanderer:
    """A memoryless policy: goes on with chance ``forward`` where it can turn as well, turns to either side alike."""

    def __init__(self, forward, seed):
        self.forward = forward
        self.rng = np.random.default_rng(seed)

    def act(self, observation):
        _, beside = around(observation)
        side = goal_beside(beside)
        if side is not None:
            return turn_to(side)
        sides = [side for side in (TO_RIGHT, TO_LEFT) if beside[side][0] != WALL]
        if beside[AHEAD][0] != WALL and (not sides or self.rng.random() < self.forward):
            return FORWARD
        return turn_to(sides[self.rng.integers(len(sides))]) if sides else LEFT


class Expert:
    """Follows the wall until it recognises a cell, and goes the shortest way to the goal from there.

    It knows what it observes. ``places`` has the coordinates, the goal's being (0, 0), of each look: what was seen of a
    cell and its four neighbours. ``seen`` is what was seen since the agent was last put somewhere, by coordinates of
    which (0, 0) is there.
    """

    def __init__(self):
        self.places = {}
        self.start()

    def start(self):
        self.seen, self.visited = {}, {}
        self.here, self.shift, self.side = (0, 0), None, None
        self.arrived = True  # in a cell, and has not chosen yet where to go on

    def act(self, observation):
        own, beside = around(observation)
        heading = observation["direction"]
        self.seen[self.here] = own
        for side, thing in beside.items():
            self.seen[self.neighbour(heading + side)] = thing
        action = self.choose(heading, beside)
        if action == FORWARD:
            self.here, self.arrived = self.neighbour(heading), True
            if beside[AHEAD][0] == GOAL:
                self.remember((-self.here[0], -self.here[1]))
                self.start()
        return action

    def neighbour(self, direction):
        dx, dy = VECTORS[direction % 4]
        return self.here[0] + dx, self.here[1] + dy

    def look(self, cell):
        x, y = cell
        return tuple(self.seen.get(place) for place in [cell, *((x + dx, y + dy) for dx, dy in VECTORS)])

    def choose(self, heading, beside):
        look = self.look(self.here)
        if None in look:
            return LEFT  # only where it has just been put
        self.visited[self.here] = look
        if self.shift is None and look in self.places:
            known = self.places[look]
            self.shift = known[0] - self.here[0], known[1] - self.here[1]
            self.remember(self.shift)
        if self.arrived:
            first = len(self.visited) == 1 and self.side is None
            self.side = (heading + self.where_to(heading, first)) % 4
            self.arrived = False
        return turn_to((self.side - heading) % 4)

    def where_to(self, heading, first):
        """The side, from where the agent looks, to which it goes on."""
        if self.shift is not None:
            return (self.way_home() - heading) % 4
        order = (AHEAD, TO_RIGHT, TO_LEFT, BEHIND) if first else (TO_RIGHT, AHEAD, TO_LEFT, BEHIND)
        open_sides = [side for side in order if self.seen[self.neighbour(heading + side)][0] != WALL]
        at_goal = [side for side in open_sides if self.seen[self.neighbour(heading + side)][0] == GOAL]
        return (at_goal + open_sides)[0]

    def remember(self, shift):
        for (x, y), look in self.visited.items():
            self.places[look] = x + shift[0], y + shift[1]

    def way_home(self):
        """The direction of the first step of the shortest way to the goal, through cells where it has been."""
        target = self.here[0] + self.shift[0], self.here[1] + self.shift[1]
        cells, waiting, found = set(self.places.values()), deque([(0, 0)]), {(0, 0)}
        while waiting:
            x, y = waiting.popleft()
            for direction, (dx, dy) in enumerate(VECTORS):
                before = x - dx, y - dy
                if before == target:
                    return direction
                if before in cells and before not in found:
                    found.add(before)
                    waiting.append(before)
        raise AssertionError("no way is known")


def play(env, agent, seed):
    """Success, return and steps of one episode."""
    observation, _ = env.reset(seed=seed)
    rewards, done = [], False
    while not done:
        observation, reward, terminated, truncated, info = env.step(agent.act(observation))
        rewards.append(reward)
        done = terminated or truncated
    return info["is_success"], sum(rewards), len(rewards)


def play_many(make_agent, n, **kwargs):
    """Success and return over ``n`` mazes."""
    env = make("fbrl/MazeNavigation-v0", **kwargs)
    results = [play(env, make_agent(seed), seed) for seed in range(n)]
    return np.mean([success for success, _, _ in results]), np.mean([total for _, total, _ in results])


@pytest.mark.parametrize(
    ("size", "visits", "n"), [(9, 12, 100), (5, 1, 30), (5, 23, 10), (7, 3, 30), (11, 7, 30), (13, 1, 30), (13, 17, 10)]
)
def test_memory_always_succeeds(size, visits, n):
    assert play_many(lambda seed: Expert(), n, size=size, visits=visits) == pytest.approx((1, 1))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("make_agent", "success", "score"),
    [
        (lambda seed: WallFollower(), 0.03, 0.6833),
        (lambda seed: Wanderer(1.0, seed), 0.17, 0.5692),
        (lambda seed: Wanderer(0.9, seed), 0.04, 0.4317),
    ],
    ids=["wall follower", "straight on", "wanderer"],
)
def test_without_memory_time_runs_out(make_agent, success, score):
    assert play_many(make_agent, 100) == pytest.approx((success, score), abs=5e-5)


def maze(seed=0, **kwargs):
    env = make("fbrl/MazeNavigation-v0", **kwargs)
    env.reset(seed=seed)
    return env.unwrapped


def free_cells(base):
    return [
        (x, y) for x, y in np.ndindex(base.width, base.height) if getattr(base.grid.get(x, y), "type", "") != "wall"
    ]


def neighbours(cells, cell):
    return [(cell[0] + dx, cell[1] + dy) for dx, dy in VECTORS if (cell[0] + dx, cell[1] + dy) in cells]


@pytest.mark.parametrize("size", [5, 7, 9, 11, 13])
def test_one_way_leads_from_any_place_to_any_other(size):
    for seed in range(5):
        base = maze(seed, size=size)
        cells = free_cells(base)
        assert {(x, y) for x in range(1, size, 2) for y in range(1, size, 2)} <= set(cells)
        assert sum(len(neighbours(cells, cell)) for cell in cells) == 2 * (len(cells) - 1)  # as many edges as in a tree
        steps = base.steps_to_goal()
        assert {cell for cell, _ in steps} == set(cells)  # and all of it hangs together
        assert len(neighbours(cells, base.goal)) == 1
        assert base.grid.get(*base.goal).type == "goal"
        assert len(base.places) == 12
        assert base.goal not in [cell for cell, _ in base.places]


def test_no_two_cells_look_alike():
    for seed in range(20):
        base = maze(seed, size=11)
        looks = set()
        for x, y in set(free_cells(base)) - {base.goal}:
            places = [(x, y), *((x + dx, y + dy) for dx, dy in VECTORS)]
            looks.add(tuple((thing.type, thing.color) for thing in (base.grid.get(*place) for place in places)))
        assert len(looks) == len(free_cells(base)) - 1


def test_mazes_goals_and_places_differ():
    mazes = [maze(seed) for seed in range(10)]
    assert len({base.grid.encode().tobytes() for base in mazes}) == 10
    assert len({base.goal for base in mazes}) > 3
    assert len({place for base in mazes for place in base.places}) > 80
    assert maze(3).grid.encode().tobytes() == mazes[3].grid.encode().tobytes()
    assert maze(3).places == mazes[3].places


def test_the_view_shows_the_floor_below_the_agent():
    env = make("fbrl/MazeNavigation-v0")
    observation, _ = env.reset(seed=2)
    floor = env.unwrapped.grid.get(*env.unwrapped.agent_pos)
    assert tuple(observation["image"][1, 2]) == floor.encode()
    assert observation["image"].shape == (3, 3, 3)
    assert env.action_space.n == 3
    wide, _ = make("fbrl/MazeNavigation-v0", agent_view_size=7).reset(seed=2)
    assert tuple(wide["image"][3, 6]) == floor.encode()


def walk_home(base, pose):
    """The steps of always going on to a pose that is nearer to the goal, by playing."""
    steps = base.steps_to_goal()
    (base.agent_pos, base.agent_dir), taken, arrivals = pose, 0, base.arrivals
    while base.arrivals == arrivals:
        x, y = (int(i) for i in base.agent_pos)
        (dx, dy), direction = VECTORS[base.agent_dir], int(base.agent_dir)
        after = [((x, y), (direction - 1) % 4), ((x, y), (direction + 1) % 4), ((x + dx, y + dy), direction)]
        action = min(range(3), key=lambda action: steps.get(after[action], np.inf))
        assert steps[after[action]] == steps[(x, y), direction] - 1
        result = base.step(action)
        taken += 1
    return taken, result


def test_the_shortest_ways_and_what_an_arrival_brings():
    base = maze(seed=1, visits=5)
    expected = base.steps_to_goal()
    for visit, pose in enumerate(base.places):
        assert (tuple(base.agent_pos), base.agent_dir) == pose
        taken, (observation, reward, terminated, truncated, _) = walk_home(base, pose)
        assert taken == expected[pose]
        assert reward == 1 / 5
        assert (terminated, truncated) == (visit == 4, False)
        if not terminated:
            assert (tuple(base.agent_pos), base.agent_dir) == base.places[visit + 1]
            np.testing.assert_array_equal(observation["image"], base.gen_obs()["image"])


@pytest.mark.parametrize("seed", range(5))
def test_the_tour_is_once_round_the_maze_along_the_wall(seed):
    """From the goal on, with a floor in its place, the wall follower is back after as many steps."""
    env = make("fbrl/MazeNavigation-v0", max_steps=1000)
    env.reset(seed=seed)
    base = env.unwrapped
    (way,) = neighbours(free_cells(base), base.goal)
    base.grid.set(*base.goal, base.grid.get(*way))
    base.agent_pos, base.agent_dir = base.goal, VECTORS.index((way[0] - base.goal[0], way[1] - base.goal[1]))
    observation, *_ = env.step(FORWARD)
    agent, steps = WallFollower(), 1
    visited = {way}
    while tuple(base.agent_pos) != base.goal:
        observation, *_ = env.step(agent.act(observation))
        visited.add(tuple(int(i) for i in base.agent_pos))
        steps += 1
    assert visited == set(free_cells(base))
    assert steps == base.tour()


def test_the_limit():
    base = maze(seed=4, visits=3)
    ways = base.steps_to_goal()
    assert base.max_steps == base.tour() + sum(ways[place] + 5 for place in base.places)
    env = make("fbrl/MazeNavigation-v0", max_steps=7)
    env.reset(seed=0)
    results = [env.step(LEFT) for _ in range(7)]
    assert [result[3] for result in results] == [False] * 6 + [True]
    assert results[-1][4] == {"is_success": False}
    assert sum(result[1] for result in results) == 0


def test_success_in_the_last_step_allowed():
    env = make("fbrl/MazeNavigation-v0", visits=1)
    env.reset(seed=0)
    base = env.unwrapped
    base.step_count = base.max_steps - base.steps_to_goal()[base.places[0]]
    _, (_, reward, terminated, truncated, _) = walk_home(base, base.places[0])
    assert (reward, terminated, truncated) == (1, True, True)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"size": 8}, r"^size must be odd, got 8$"),
        ({"size": 15}, r"^size must be a whole number, 5 to 13, got 15$"),
        ({"size": 9.0}, r"^size must be a whole number, 5 to 13, got 9.0$"),
        ({"visits": 0}, r"^visits must be a whole number, at least 1, got 0$"),
        ({"visits": 2.5}, r"^visits must be a whole number, at least 1, got 2\.5$"),
        ({"max_steps": 0}, r"^max_steps must be a whole number, at least 1, got 0$"),
    ],
)
def test_wrong_arguments(kwargs, message):
    with pytest.raises(ValueError, match=message):
        make("fbrl/MazeNavigation-v0", **kwargs)
